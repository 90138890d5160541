"""Datasets on storage: pictures once by content, and immutable versions that refer to them.

A version is a Parquet manifest with one row per picture that was offered, kept or dropped, its findings, and an `info.json`. The
validation split is no column but a function of a picture's duplicate group and a seed: it stays the same as the dataset grows,
and neither equal bytes nor near duplicates sit on both sides. An import may say otherwise, picture by picture.
"""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.errors import NotFound
from shared.specs import Name, check
from shared.storage import Storage, version_name, versions

MANIFEST = pa.schema(
    [
        ("sha256", pa.string()),  # of the original bytes; empty if there are none
        ("ext", pa.string()),  # the file is images/<aa>/<sha256>.<ext>
        ("label", pa.string()),
        ("status", pa.string()),  # kept or dropped
        ("reason", pa.string()),  # why it was dropped, a stable code; empty if kept
        ("detail", pa.string()),  # the same as a sentence
        ("name", pa.string()),  # file name or title where it came from
        ("source", pa.string()),  # folder, upload, openverse, commons, ...
        ("url", pa.string()),
        ("page_url", pa.string()),
        ("licence", pa.string()),
        ("licence_url", pa.string()),
        ("creator", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("phash", pa.string()),  # perceptual hash, 64 bits as hex
        ("split", pa.string()),  # train, valid or test, where an import says so; empty: `split` decides
        ("group", pa.string()),  # sha256 of the first image of its near duplicates; empty: it has none
        ("query", pa.string()),  # what was searched for
        ("creator_url", pa.string()),
        ("attribution", pa.string()),  # the sentence that the source asks to be named with
        # how it looks (worker/measuring.py); null in versions of before it was measured
        ("brightness_p5", pa.float32()),  # of luma, 0 black to 1 white
        ("brightness_p99", pa.float32()),
        ("sharpness", pa.float32()),  # steepest edges against the range of brightness
        ("entropy", pa.float32()),  # of luma, bits
        ("chroma", pa.float32()),  # distance from grey, 0 to 1
        ("thumb", pa.string()),  # 12 x 12 luma and 4 x 4 x 2 chroma, uint8, as base64
    ]
)

DELETED = "deleted.json"  # in the folder of a version that was deleted: {"at": seconds since 1970}


def export_key(name: str, version: int, form: str) -> str:
    """Where a version as a zip lies on storage, once it was exported in this format."""
    return f"exports/{name}/{version_name(version)}/{form}.zip"


def exports(storage: Storage, name: str, version: int) -> list[dict[str, Any]]:
    """The zips that were made of a version and are still there: {format, bytes} each."""
    forms = [file.removesuffix(".zip") for file in storage.list(f"exports/{name}/{version_name(version)}")]
    return [{"format": form, "bytes": storage.size(export_key(name, version, form))} for form in forms]


def blank_row(**values: Any) -> dict[str, Any]:
    """A manifest row: empty text, zeros, and None for what is measured, but for `values`."""
    return {**{field.name: _nothing(field) for field in MANIFEST}, **values}


def _nothing(field: pa.Field) -> Any:
    if pa.types.is_floating(field.type):
        return None
    return 0 if pa.types.is_integer(field.type) else ""


def manifest_bytes(rows: list[dict[str, Any]]) -> bytes:
    """The rows as Parquet."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=MANIFEST), out, compression="zstd")
    return out.getvalue()


def summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What info.json says of the rows: classes with counts, dropped reasons, licences, and a hash of what was kept."""
    kept = [r for r in rows if r["status"] == "kept"]
    digest = hashlib.sha256("\n".join(sorted(f"{r['sha256']}\t{r['label']}" for r in kept)).encode()).hexdigest()
    return {
        "images": len(kept),
        "classes": dict(sorted(Counter(r["label"] for r in kept).items())),
        "dropped": dict(Counter(r["reason"] for r in rows if r["status"] == "dropped").most_common()),
        "licences": dict(Counter(r["licence"] or "unknown" for r in kept).most_common()),
        "bytes": sum(r["bytes"] for r in kept),
        "hash": digest,
    }


def names(storage: Storage) -> list[str]:
    """Names of the datasets that have a version."""
    return [name for name in storage.list("datasets") if versions(storage, f"datasets/{name}")]


def latest(storage: Storage, name: str) -> int:
    """The newest version's number. Raises NotFound."""
    check(Name, name)
    found = versions(storage, f"datasets/{name}")
    if not found:
        raise NotFound(f"There is no dataset {name!r}. `darkroom dataset list` shows what there is.")
    return found[-1]


def info(storage: Storage, name: str, version: int | None = None) -> dict[str, Any]:
    """The info of a version, the newest if none is named. Raises NotFound.

    Keys: dataset, version, created (seconds since 1970), job, parent (the version it adds to, or None), source, note and author (empty, and
    missing for versions from before there were any), images, classes ({name: count}), dropped ({reason: count}), edits ({action: count} of
    the changes it includes), licences, bytes, hash, findings ({kind: count}, shared/findings.py; missing as well for versions from before).
    """
    number = latest(storage, name) if version is None else version
    check(Name, name)
    try:
        return storage.read_json(f"datasets/{name}/{version_name(number)}/info.json")  # type: ignore[no-any-return]
    except NotFound:
        raise NotFound(f"There is no version {number} of the dataset {name!r}.") from None


def restored(info: dict[str, Any]) -> int | None:
    """The version whose images and labels the version with this info has again; None for one that restores nothing."""
    source = info.get("source")
    return source["version"] if isinstance(source, dict) and source.get("kind") == "restore" else None


def delete(storage: Storage, name: str, version: int) -> None:
    """Delete a version that nothing was made from. Its number is not given again, and the edits it included wait once more.

    The manifest stays until `darkroom gc` frees it and the images, so that a job which has just read it loses none. Raises NotFound.
    """
    info(storage, name, version)
    folder = f"datasets/{name}/{version_name(version)}"
    storage.write_json(f"{folder}/{DELETED}", {"at": time.time()})  # the folder stays, and with it the number
    storage.delete(f"{folder}/info.json")
    if not versions(storage, f"datasets/{name}"):
        storage.delete(f"datasets/{name}/edits")  # what was decided about images of a dataset that is no more


def rows(
    storage: Storage, name: str, version: int, label: str | None = None, status: str = "kept", start: int = 0, limit: int | None = None
) -> list[dict[str, Any]]:
    """Manifest rows of a version, of one class if `label` is given, in manifest order. Raises NotFound."""
    whole = table(storage, name, version)
    keep = pc.equal(whole["status"], status)
    if label is not None:
        keep = pc.and_(keep, pc.equal(whole["label"], label))
    return whole.filter(keep).slice(start, limit).to_pylist()  # type: ignore[no-any-return]


def table(storage: Storage, name: str, version: int) -> pa.Table:
    """The whole manifest of a version, with the columns of `MANIFEST`. Raises NotFound."""
    check(Name, name)
    with storage.open(f"datasets/{name}/{version_name(version)}/manifest.parquet") as f:
        return _completed(pq.read_table(f))


def rows_of(whole: pa.Table, sha256s: Iterable[str], status: str = "kept") -> list[dict[str, Any]]:
    """The rows of some images in a manifest, in its order."""
    wanted = pc.and_(pc.equal(whole["status"], status), pc.is_in(whole["sha256"], pa.array(sorted(set(sha256s)), pa.string())))
    return whole.filter(wanted).to_pylist()  # type: ignore[no-any-return]


def _completed(found: pa.Table) -> pa.Table:
    """A manifest of an earlier Darkroom has fewer columns: those that it lacks are empty."""
    for field in MANIFEST:
        if field.name not in found.column_names:
            found = found.append_column(field, pa.repeat(pa.scalar(_nothing(field), field.type), len(found)))
    return found.select(MANIFEST.names)


def row_batches(storage: Storage, name: str, version: int | None, columns: list[str], size: int = 10_000) -> Iterator[pa.RecordBatch]:
    """The manifest of a version, the newest if none is named, as a stream of at most `size` rows at a time. Raises NotFound."""
    number = info(storage, name, version)["version"]
    with storage.open(f"datasets/{name}/{version_name(number)}/manifest.parquet") as f:
        yield from pq.ParquetFile(f).iter_batches(size, columns=columns)


def sides(rows: list[dict[str, Any]], valid_pct: float, seed: int) -> list[str]:
    """On which side of the split each kept row of a version is: train, valid or test.

    What an import said (the column `split`) holds: if it has validation pictures, they are all there are, and test pictures are for neither. Otherwise
    `split` decides by group; a picture that is like no other is a group of its own, and so is each of a class whose pictures are all alike.
    """
    said = [row["split"] for row in rows]
    if "valid" in said:
        return [side if side in {"valid", "test"} else "train" for side in said]
    used = [row for row in rows if row["split"] != "test"]
    lone = set(all_alike(used))
    groups = [row["sha256"] if row["label"] in lone else row["group"] or row["sha256"] for row in used]
    valid = iter(split(list(zip(groups, (row["label"] for row in used), strict=True)), valid_pct, seed))
    return ["test" if side == "test" else "valid" if next(valid) else "train" for side in said]


def all_alike(rows: list[dict[str, Any]]) -> list[str]:
    """The classes of which all pictures are near duplicates of each other: there is nothing to hold back that is not like what is trained on."""
    groups: dict[str, set[str]] = {}
    pictures: Counter[str] = Counter()
    for row in rows:
        groups.setdefault(row["label"], set()).add(row["group"] or row["sha256"])
        pictures[row["label"]] += 1
    return sorted(label for label, names in groups.items() if len(names) == 1 and pictures[label] > 1)


def split(items: list[tuple[str, str]], valid_pct: float, seed: int) -> list[bool]:
    """Which of `items`, (group, label) each, are for validation. Deterministic, and stable as a dataset grows.

    A group is for validation when the hash of its name and the seed falls into the lowest `valid_pct` of all hashes. A class of two groups or more has at
    least one on each side. That replaces fastai's RandomSplitter, whose split changes entirely with one picture more, so that two versions of a dataset
    could not be compared.
    """
    position = {group: int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8]) / 2**64 for group, _ in items}
    valid = {group for group, p in position.items() if p < valid_pct}
    members: dict[str, set[str]] = {}
    for group, label in items:
        members.setdefault(label, set()).add(group)
    for groups in members.values():
        if len(groups) < 2:
            continue
        if not groups & valid:
            valid.add(min(groups, key=position.__getitem__))
        elif groups <= valid:
            valid.remove(max(groups, key=position.__getitem__))
    return [group in valid for group, _ in items]
