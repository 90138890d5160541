"""Looking at what is offered to a dataset: bytes become a manifest row, kept or dropped with a reason, and rows a version.

Reasons are stable codes: licence (not one that was asked for), empty, truncated, unreadable, unsupported, too_large, too_small, duplicate, no_class, removed (by a person),
left_out (with its class, or by a restored version), bad_line, bad_label and changed (of a table, worker/layouts.py), and those of a fetch that failed (worker/scraping/fetch.py)
or of an item that could not be read (shared/items.py).
"""

import json
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from shared import datasets, duplicates, edits, findings
from shared.edits import Edit
from shared.errors import DarkroomError, Invalid
from shared.storage import Storage, version_name, versions
from worker import measuring
from worker.progress import Progress

ENOUGH = 2  # images a class needs: one to train on, one to validate with
EVERY = 0.2  # seconds between two reports of progress
LATEST = 24  # pictures that the page of a running job shows
GONE = ("removed", "left_out")  # reasons of pictures that the version before still had


def _one_at_a_time(publish: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Two jobs that end at the same moment take turns, so that the second has what the first has published."""

    @wraps(publish)
    def alone(collection: "Collection", *args: Any, **more: Any) -> dict[str, Any]:
        with collection.storage.alone(f"datasets/{collection.name}", collection._progress.check):
            return publish(collection, *args, **more)

    return alone


class Collection:
    """The rows of a dataset version in the making: what the newest version kept, and what is offered now."""

    def __init__(self, storage: Storage, name: str, progress: Progress) -> None:
        """Begin with the kept rows of the newest version of the dataset `name`, if there is one."""
        self.storage = storage
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.parent: int | None = None
        self.kept: Counter[str] = Counter()  # by class, of what was offered now
        self.reasons: Counter[str] = Counter()
        self._carried: dict[str, dict[str, Any]] = {}  # by sha256, the rows of the newest version
        self._offered: dict[str, dict[str, Any]] = {}  # and those of `rows` that are kept
        self._settled: set[str] = set()  # pictures of which this job has its own say, whatever another one publishes meanwhile
        self._latest: deque[dict[str, str]] = deque(maxlen=LATEST)
        self._removed: set[str] = set()  # pictures that a person did not want here
        self._restored: int | None = None  # the version whose rows this one has
        self._renaming: Callable[[str], str | None] | None = None
        self._progress = progress
        self._told = 0.0
        self.carry()

    def carry(self) -> None:
        """Take over what versions newer than the one known have kept, relabelled and removed; what this job says of a picture stays."""
        newer = [number for number in versions(self.storage, f"datasets/{self.name}") if number > (self.parent or 0)]
        for number in newer if self.parent else newer[-1:]:
            for row in datasets.rows(self.storage, self.name, number, status="dropped"):
                if row["reason"] in GONE and row["sha256"] not in self._settled:
                    self._carried.pop(row["sha256"], None)
            for row in datasets.rows(self.storage, self.name, number):
                if row["sha256"] not in self._settled:
                    self._carried[row["sha256"]] = row
            self.parent = number
        self._removed = edits.removed(self.storage, self.name)
        if self._renaming:
            self.rename(self._renaming)

    def add(self, origin: dict[str, Any], facts: dict[str, Any], corrects: bool = False) -> bool:
        """Append the row of what was offered: where it is from, and what `examine` or `dropped` found. Whether it was kept.

        `corrects`: a picture that is here already under another label gets this one, and keeps what else is known of it.
        """
        row = datasets.blank_row(**{**origin, "name": _printable(origin.get("name", ""))}, **facts)
        known = None if row["reason"] else self._offered.get(row["sha256"]) or self._carried.get(row["sha256"])
        if known and corrects and known["label"] != row["label"]:
            self._relabel(known, row["label"])
            return True
        if not row["reason"] and not known and not corrects and row["sha256"] in self._removed:
            row |= _removal(f"A person removed this image; `darkroom dataset edit {self.name} {row['sha256']} --undo` lets it in again.")
        if known:
            row["reason"] = "duplicate"
            row["detail"] = f"The same bytes are already kept in the class {known['label']!r}."
        row["status"] = "dropped" if row["reason"] else "kept"
        self.rows.append(row)
        if row["reason"]:
            self.reasons[row["reason"]] += 1
            return False
        self._offered[row["sha256"]] = row
        self._settled.add(row["sha256"])
        self._count(row)
        return True

    def change(self, changes: Iterable[Edit]) -> None:
        """Relabel and remove pictures that are carried over; those that are not there any more are passed over.

        Raises Invalid when two classes then differ by case alone.
        """
        for edit in changes:
            known = self._carried.get(edit.sha256)
            if known and edit.label:
                self._relabel(known, edit.label)
            elif known:
                del self._carried[edit.sha256]
                self._settled.add(edit.sha256)
                self.rows.append({**known, "status": "dropped", **_removal(f"A person removed it from the class {known['label']!r}.")})
                self.reasons["removed"] += 1
        self.check_labels(())

    def rename(self, renaming: Callable[[str], str | None]) -> None:
        """Give the classes that are carried over the names that `renaming` says; None: the class is left out, a dropped row an image.

        Raises Invalid when two classes then differ by case alone.
        """
        self._renaming = renaming
        for row in [row for row in self._carried.values() if row["sha256"] not in self._settled]:
            label = renaming(row["label"])
            if label is None:
                del self._carried[row["sha256"]]
                self._settled.add(row["sha256"])
                self.rows.append({**row, "status": "dropped", "reason": "left_out", "detail": f"The class {row['label']!r} was left out."})
                self.reasons["left_out"] += 1
            elif label != row["label"]:
                self._relabel(row, label)
        self.check_labels(())

    def restore(self, version: int) -> None:
        """Let the version have just the pictures and labels that an earlier one kept; what the newest has besides is dropped as `left_out`.

        Raises NotFound.
        """
        self._restored = version
        for row in datasets.rows(self.storage, self.name, version):
            self._count(row)

    def _all_rows(self) -> list[dict[str, Any]]:
        if self._restored is None:
            return [*self._carried.values(), *self.rows]
        kept = datasets.rows(self.storage, self.name, self._restored)
        there = {row["sha256"] for row in kept}
        left_out = {"status": "dropped", "reason": "left_out", "detail": f"v{self._restored}, which was restored, does not have it."}
        return [*kept, *({**row, **left_out} for sha256, row in self._carried.items() if sha256 not in there)]

    def _relabel(self, known: dict[str, Any], label: str) -> None:
        known["label"] = label
        self._settled.add(known["sha256"])
        self._count(known)

    def _count(self, row: dict[str, Any]) -> None:
        self.kept[row["label"]] += 1
        self._latest.append({key: row[key] for key in ("sha256", "ext", "label")})

    def check_labels(self, labels: Iterable[str]) -> None:
        """Raises Invalid when two classes, old or new, differ by case alone: on some disks they would be one folder."""
        seen: dict[str, str] = {}
        for label in [*(row["label"] for row in self._carried.values()), *labels]:
            other = seen.setdefault(label.casefold(), label)
            if other != label:
                raise Invalid(f"The classes {other!r} and {label!r} differ by upper and lower case alone; give them one name.")

    def tell(self, phase: str, done: int, total: int, labels: Iterable[str] | None = None) -> None:
        """Report progress, at most five times a second; `labels`: also how many each class has, and the latest pictures.

        Raises Cancelled when the job should stop.
        """
        self._progress.check()
        if time.monotonic() - self._told < EVERY and done < total:
            return
        self._told = time.monotonic()
        fields: dict[str, Any] = {} if labels is None else {"classes": {n: self.kept[n] for n in labels}, "latest": [*self._latest]}
        numbers = {"kept": self.kept.total(), "dropped": self.reasons.total(), "reasons": dict(self.reasons.most_common())}
        self._progress.update(phase=phase, done=done, total=total, **numbers, **fields)

    @_one_at_a_time
    def publish(
        self,
        job: str,
        source: dict[str, Any],
        labels: Iterable[str] = (),
        remarks: Iterable[str] = (),
        entries: Sequence[Edit] = (),
        note: str = "",
        author: str = "",
    ) -> dict[str, Any]:
        """Make the rows the next version of the dataset; returns the job's result: dataset, version, images, dropped.

        An existing dataset is added to: the version holds the kept rows of the newest version (`info["parent"]`, else None)
        and what was offered now. `labels`: classes that were asked for, whether anything was found or not; `remarks`:
        sentences that explain what is missing; `entries`: the edits that the version includes; `note` and `author` are kept with
        it. Its findings are told of all its rows. Raises DarkroomError, with nothing published, when fewer than two classes have images or a
        class has fewer than two.
        """
        self._progress.update(phase="publishing")
        rows = self._measured()
        _check_enough(rows, labels, remarks)
        duplicates.assign(rows, self._progress.check)
        before = findings.of_version(self.storage, self.name, self.parent).get("placeholder", ()) if self.parent else ()
        found = findings.find(rows, duplicates.groups(rows), before)
        info = {
            "dataset": self.name,
            "created": time.time(),
            "job": job,
            "parent": self.parent,
            "source": source,
            "note": note,
            "author": author,
            "edits": dict(Counter(edit.action for edit in edits.changes_of(entries))),
            **datasets.summary(rows),
            "findings": findings.counts(found),
        }
        with tempfile.TemporaryDirectory(prefix="darkroom-dataset-") as folder:
            (Path(folder) / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
            (Path(folder) / "findings.json").write_text(json.dumps(found), encoding="utf-8")
            if entries:
                (Path(folder) / "edits.json").write_text(json.dumps(edits.as_json(entries), ensure_ascii=False), encoding="utf-8")
            version = self.storage.publish_version(f"datasets/{self.name}", Path(folder), info)
        return _result(self.name, version, info)

    def _measured(self) -> list[dict[str, Any]]:
        """The rows of the version, each measured. That may take minutes after an earlier Darkroom, in which another job may publish: then the same again."""
        known: dict[str, dict[str, Any]] = {}
        while True:
            self.carry()
            rows = self._all_rows()
            if not measuring.complete(rows, self.storage, known, lambda done, total: self.tell("measuring", done, total)):
                return rows


def published(storage: Storage, name: str, job: str) -> dict[str, Any] | None:
    """The result of a job that has published its version already, or None: a job may be run again after its worker died."""
    for number in reversed(versions(storage, f"datasets/{name}")):
        info = storage.read_json(f"datasets/{name}/{version_name(number)}/info.json")
        if info.get("job") == job:
            return _result(name, number, info)
    return None


def _removal(detail: str) -> dict[str, str]:
    return {"reason": "removed", "detail": detail}


def _result(name: str, version: int, info: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": name, "version": version, "images": info["images"], "dropped": sum(info["dropped"].values())}


def _check_enough(rows: list[dict[str, Any]], labels: Iterable[str], remarks: Iterable[str]) -> None:
    """Raises DarkroomError unless there are two classes or more with two images or more each."""
    counts = {label: 0 for label in [*labels, *(row["label"] for row in rows if row["reason"] != "left_out")] if label}
    for row in rows:
        if row["status"] == "kept":
            counts[row["label"]] += 1
    if not any(counts.values()):
        sentence = "No usable images were found."
    elif len(counts) < ENOUGH:
        sentence = f"A classifier needs at least two classes; there is only {next(iter(counts))!r}."
    else:
        poor = [f"{label!r} has {n}" for label, n in counts.items() if n < ENOUGH]
        if not poor:
            return
        more = f", and {len(poor) - 10} more classes" if len(poor) > 10 else ""
        sentence = f"Each class needs at least {ENOUGH} usable images; {', '.join(poor[:10])}{more}."
    why = Counter(row["reason"] for row in rows if row["reason"])
    reasons = f" Dropped: {', '.join(f'{n} {code}' for code, n in why.most_common(6))}." if why else ""
    raise DarkroomError(" ".join([sentence + reasons, *remarks, "No dataset was made."]))


def _printable(name: str) -> str:
    """A file name in a broken encoding is no valid text; it becomes one with question marks."""
    return name.encode("utf-8", "replace").decode()
