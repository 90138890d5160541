"""What people decide about the images of a dataset: the label is right (keep), another one is (relabel), or the image does not belong there (remove).

An action is a file of its own, `datasets/<name>/edits/<id>.json`, which never changes, whether it decides about one image or about thousands:
the log is the state. Of an image the last decision counts. To undo is one more entry: of an image, after which nothing is decided about it, or
of another entry, which then is as if it had not been; what was decided before it counts again. A version that is made of edits holds the
entries it includes in its `edits.json`; what no version in the line of the newest one includes is still to be made. Neither a clock nor a
counter says so, and thus an entry that is written while a version is made waits for the next.
"""

import json
import re
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, ValidationError, model_validator

from shared import datasets
from shared.errors import Conflict, Invalid, NotFound
from shared.jobs import new_id
from shared.specs import HIDDEN, ClassName, JobId, Name, Spec, check, invalid
from shared.storage import Storage, version_name

SHA256 = re.compile(r"[0-9a-f]{64}")
MOST = 200_000  # images of one action


def _check_sha256(text: str) -> str:
    if not SHA256.fullmatch(text):
        raise ValueError("an image is named by the SHA-256 of its bytes, 64 hexadecimal digits")
    return text


def _one_line(text: str) -> str:
    if any(unicodedata.category(c) in HIDDEN for c in text):
        raise ValueError("one line of text cannot hold control, bidirectional or invisible characters")
    return text.strip()


class EditSpec(Spec):
    """What is decided about one image."""

    sha256: Annotated[str, AfterValidator(_check_sha256)] = Field(description="of the image's bytes")
    action: Literal["keep", "relabel", "remove"]
    label: ClassName | None = Field(None, description="the right one, of a relabel")
    why: Annotated[str, AfterValidator(_one_line)] = Field(
        "", max_length=200, description="what led there, such as: suspect of clothing/v2"
    )

    @model_validator(mode="after")
    def check_label(self) -> "EditSpec":
        """A relabel has a label, and nothing else has one."""
        if (self.label is None) == (self.action == "relabel"):
            raise ValueError("a relabel needs a label, and nothing else has one")
        return self


class ActionSpec(Spec):
    """What is decided about several images at once, and undone at once."""

    id: JobId | None = Field(None, description="one of the sender's own, new for each action: what is sent twice under it is one entry")
    edits: list[EditSpec] = Field(min_length=1, max_length=MOST)


@dataclass(frozen=True)
class Edit:
    """What an entry of the log says of one image. `at`: seconds since 1970; `before` and `version`: the label that the newest version gave, and its number.

    Those of one action share the id. An undo of another entry has its id in `undoes` and names no image.
    """

    id: str
    at: float
    sha256: str
    ext: str
    action: str  # keep, relabel, remove or undo
    label: str | None  # of a relabel
    before: str
    why: str
    version: int
    undoes: str = ""


def parse_edit(data: Any) -> EditSpec:
    """Validate what was sent. Raises Invalid with one sentence."""
    try:
        return EditSpec.model_validate(data)
    except ValidationError as error:
        raise invalid(error) from None


def parse_action(data: Any) -> ActionSpec:
    """Validate what was sent. Raises Invalid with one sentence."""
    try:
        return ActionSpec.model_validate(data)
    except ValidationError as error:
        raise invalid(error) from None


def decide(storage: Storage, name: str, said: EditSpec) -> Edit:
    """Log what is decided about an image of the newest version; a relabel to the label it has is a keep.

    Raises NotFound for a dataset or image that is not there, and Invalid for a label that differs from a class by case alone.
    """
    return decide_all(storage, name, [said])[0]


def decide_all(storage: Storage, name: str, said: Sequence[EditSpec], entry: str | None = None) -> tuple[Edit, ...]:
    """Log one action, which decides about any number of images of the newest version: all of it, or nothing and an error as of `decide`.

    `entry`: the id that it shall have; one that is in the log already is answered as it is.
    """
    info = datasets.info(storage, name)
    if entry and storage.exists(_key(name, entry)):
        return _entry(storage, name, entry)
    rows = _rows(storage, info, {each.sha256 for each in said})
    if gone := [each.sha256 for each in said if each.sha256 not in rows]:
        more = f" and {len(gone) - 1} more of these" if len(gone) > 1 else ""
        raise NotFound(f"The dataset {name!r} v{info['version']}, its newest version, has no image {gone[0][:12]}…{more}.")
    _check_labels(storage, info, {each.label for each in said if each.label})
    about = {"id": entry or new_id(), "at": time.time(), "version": info["version"]}
    return _write(storage, name, tuple(_edit(each, rows[each.sha256], about) for each in said))


def _edit(said: EditSpec, row: dict[str, str], about: dict[str, Any]) -> Edit:
    action, label = (said.action, said.label) if said.label != row["label"] else ("keep", None)
    return Edit(**about, sha256=row["sha256"], ext=row["ext"], action=action, label=label, before=row["label"], why=said.why)


def undo(storage: Storage, name: str, sha256: str) -> Edit | None:
    """Take back what is decided about an image; None, and nothing happens, if nothing is. Raises NotFound, and Conflict for a relabel that a version includes.

    Undoing a removal that a version includes lets the image come in again with an import.
    """
    info = datasets.info(storage, name)
    last = decided(storage, name).get(sha256)
    if last is None:
        return None
    made = _included(storage, name).get(last.id)
    if made and last.action == "relabel":
        raise Conflict(f"The relabel is part of {name} v{made[0]} already. Give the image another label instead.")
    about = {"version": info["version"], "ext": last.ext, "before": last.before}
    return _write(storage, name, (Edit(new_id(), time.time(), sha256, action="undo", label=None, why="", **about),))[0]


def undo_entry(storage: Storage, name: str, entry: str) -> Edit | None:
    """Take back all that an entry decided; None, and nothing happens, if that has been done. Raises as `undo`, and Conflict for an entry that is an undo.

    What was decided before it counts again, and what was decided after it stays.
    """
    info = datasets.info(storage, name)
    check(JobId, entry)
    if not storage.exists(_key(name, entry)):
        raise NotFound(f"The log of {name} has no entry {entry}.")
    found, made = _entry(storage, name, entry), _included(storage, name).get(entry)
    if found[0].action == "undo":
        raise Conflict("This entry is an undo itself. Decide about the image again instead.")
    if made and any(edit.action == "relabel" for edit in found):
        raise Conflict(f"What was relabelled is part of {name} v{made[0]} already. Give the images another label instead.")
    if any(edit.undoes == entry for edit in log(storage, name)):
        return None
    return _write(storage, name, (Edit(new_id(), time.time(), "", "", "undo", None, "", "", info["version"], entry),))[0]


def log(storage: Storage, name: str) -> list[Edit]:
    """Every entry, image by image, the oldest first. Raises Invalid or NotFound."""
    included = _included(storage, name)
    ids = [file.removesuffix(".json") for file in storage.list(f"datasets/{name}/edits")]
    entries = [included[i][1] if i in included else _entry(storage, name, i) for i in ids]
    return [edit for entry in sorted(entries, key=lambda entry: (entry[0].at, entry[0].id)) for edit in entry]


def decided(storage: Storage, name: str) -> dict[str, Edit]:
    """By sha256, what is decided about an image: a keep, relabel or remove, whether a version includes it or not. Raises Invalid or NotFound."""
    return {sha256: edit for sha256, edit in _last(log(storage, name)).items() if edit.action != "undo"}


def unmade(storage: Storage, name: str) -> list[Edit]:
    """The entries that the newest version and those before it do not include, the oldest first. Raises Invalid or NotFound."""
    included = _included(storage, name)
    return [edit for edit in log(storage, name) if edit.id not in included]


def changes_of(entries: Sequence[Edit]) -> list[Edit]:
    """What entries, the oldest first, change in a dataset: a relabel or remove an image, in the order they were decided."""
    return sorted((e for e in _last(entries).values() if e.action in {"relabel", "remove"}), key=lambda edit: (edit.at, edit.id))


def pending(storage: Storage, name: str) -> list[Edit]:
    """What the next version would change. Raises Invalid or NotFound."""
    return changes_of(unmade(storage, name))


def standing(storage: Storage, name: str) -> dict[str, Edit]:
    """By sha256, what is decided about images and not yet part of a version; and what is kept, whenever that was. Raises Invalid or NotFound."""
    entries, included = log(storage, name), _included(storage, name)
    kept = {sha256: edit for sha256, edit in _last(entries).items() if edit.action == "keep"}
    return kept | {edit.sha256: edit for edit in changes_of([edit for edit in entries if edit.id not in included])}


def removed(storage: Storage, name: str) -> set[str]:
    """The sha256 of the images that a version was made without. Empty for a dataset that is not there.

    A removal that came after a version which was restored since is in force no more: the image is there again.
    """
    try:
        check(Name, name)
        in_force = {edit.id for _, entries in _line(storage, name, through_restores=True) for edit in entries}
        return {sha256 for sha256, edit in decided(storage, name).items() if edit.action == "remove" and edit.id in in_force}
    except NotFound:
        return set()


def image(storage: Storage, info: dict[str, Any], sha256: str) -> dict[str, str] | None:
    """The kept row of a version (as `datasets.info` tells it) that has these bytes: {sha256, ext, label}; None: there is none."""
    return _rows(storage, info, [sha256]).get(sha256)


def labels(storage: Storage, info: dict[str, Any], sha256s: Iterable[str]) -> dict[str, str]:
    """The label of each of these images that a version keeps."""
    return {sha256: row["label"] for sha256, row in _rows(storage, info, sha256s).items()}


def images(storage: Storage, info: dict[str, Any]) -> pa.Table:
    """The kept rows of a version in manifest order: sha256, ext, label. The few versions that were asked for last stay in memory."""
    return _images(storage, info["dataset"], info["version"], info["hash"])


def as_json(entries: Iterable[Edit]) -> list[dict[str, Any]]:
    """Entries as a version's `edits.json` keeps them."""
    return [dict(vars(edit)) for edit in entries]  # flat, and there may be very many


def _last(entries: Sequence[Edit]) -> dict[str, Edit]:
    """By sha256, the last word about an image, which may be to undo what was decided before."""
    undone = {edit.undoes for edit in entries}
    return {edit.sha256: edit for edit in entries if edit.sha256 and edit.id not in undone}


def _check_labels(storage: Storage, info: dict[str, Any], labels: set[str]) -> None:
    """Raises Invalid for labels that differ by case alone from a class, from each other, or from one that waits."""
    if not (new := sorted(labels - set(info["classes"]))):
        return  # nothing that waits differs from a class by case alone
    waiting = {edit.label for edit in pending(storage, info["dataset"]) if edit.label}
    known = {label.casefold(): label for label in [*new[::-1], *sorted(waiting), *info["classes"]]}
    for label in new:
        other = known[label.casefold()]
        if other != label:
            raise Invalid(f"The classes {other!r} and {label!r} differ by upper and lower case alone; write {other!r}.", field="label")


def _key(name: str, entry: str) -> str:
    return f"datasets/{name}/edits/{entry}.json"


def _write(storage: Storage, name: str, entry: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Keep an entry: of one image as it is; of several, what they share is written once."""
    data = as_json(entry)
    if len(entry) == 1:
        storage.write_json(_key(name, entry[0].id), data[0])
        return entry
    shared = {field: data[0][field] for field in ("id", "at", "version")}
    whole = {**shared, "edits": [{field: value for field, value in each.items() if field not in {*shared, "undoes"}} for each in data]}
    storage.write(_key(name, entry[0].id), json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode())
    return entry


def _included(storage: Storage, name: str) -> dict[str, tuple[int, tuple[Edit, ...]]]:
    """By id, the version that includes an entry, and the entry, of those in the newest version or one before it in its line."""
    check(Name, name)
    return {
        entry: (version, tuple(edits)) for version, entries in _line(storage, name) for entry, edits in groupby(entries, attrgetter("id"))
    }


def _line(storage: Storage, name: str, through_restores: bool = False) -> Iterator[tuple[int, tuple[Edit, ...]]]:
    """The newest version, the one it was made from, and so on, each with its edits.

    `through_restores`: behind a version that restores another comes that other, whose images it has, instead of its parent.
    """
    version: int | None = datasets.latest(storage, name)
    while version:
        parent, restored, entries = _made_of(storage, name, version)
        yield version, entries
        version = restored if restored and through_restores else parent


@lru_cache(maxsize=1024)  # versions never change
def _made_of(storage: Storage, name: str, version: int) -> tuple[int | None, int | None, tuple[Edit, ...]]:
    """The version that a version was made from, the one that it restores, and the edits it includes."""
    info = datasets.info(storage, name, version)
    parent, restored = info.get("parent"), datasets.restored(info)
    if not info.get("edits"):
        return parent, restored, ()
    entries = storage.read_json(f"datasets/{name}/{version_name(version)}/edits.json")
    return parent, restored, tuple(Edit(**entry) for entry in entries)


@lru_cache(maxsize=65_536)  # neither do entries
def _entry(storage: Storage, name: str, entry: str) -> tuple[Edit, ...]:
    data = storage.read_json(_key(name, entry))
    shared = {field: data[field] for field in ("id", "at", "version")}
    return tuple(Edit(**shared, **each) for each in data["edits"]) if "edits" in data else (Edit(**data),)


def _rows(storage: Storage, info: dict[str, Any], sha256s: Iterable[str]) -> dict[str, dict[str, str]]:
    found = images(storage, info)
    wanted = found.filter(pc.is_in(found["sha256"], pa.array(list(sha256s), pa.string())))
    return {row["sha256"]: row for row in wanted.to_pylist()}


@lru_cache(maxsize=4)
def _images(storage: Storage, name: str, version: int, digest: str) -> pa.Table:
    """The columns sha256, ext and label of the kept rows; `digest` is the version's hash."""
    kept = [
        pa.Table.from_batches([batch]).filter(pc.equal(batch["status"], "kept"))
        for batch in datasets.row_batches(storage, name, version, ["sha256", "ext", "label", "status"])
    ]
    return pa.concat_tables(kept).select(["sha256", "ext", "label"])
