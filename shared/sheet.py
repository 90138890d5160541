"""A dataset version as the contact sheet that a person reviews: its kept images as a few narrow columns, and what is known of each of them.

Everything here names an image by its row, its number among the kept ones in manifest order, and text by its place in a list, so that 50,000
images are three megabytes and a browser can filter and sort them by itself. What never changes (`index`) is apart from what does.
"""

import base64
import gzip
import json
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared import datasets, edits, models, results, validation
from shared import findings as reports
from shared.errors import NotFound
from shared.storage import Storage, version_name

Columns = dict[str, Any]
VALID_PCT, SEED = 0.2, 42  # what a training takes if nobody says otherwise
TOLD = ("label", "ext", "source", "licence", "split")  # columns of the index, besides the hashes


@lru_cache(maxsize=4)  # versions never change
def index(storage: Storage, name: str, version: int, digest: str) -> bytes:
    """The images of a version as gzipped JSON; `digest` is its hash. Raises NotFound.

    `sha256`: the digests one after the other, 32 bytes each, in base64; a column (label, ext, source, licence, split): `values`, and in `rows`
    which of them each image has. An image has the split train, valid or test.
    """
    table = _kept(storage, name, version)
    columns = {column: _coded(table[column]) for column in TOLD if column != "split"} | {"split": _coded(pa.array(_splits(table)))}
    digests = base64.b64encode(bytes.fromhex("".join(table["sha256"].to_pylist()))).decode()
    whole = {"dataset": name, "version": version, "hash": digest, "images": len(table), "sha256": digests, "columns": columns}
    return packed(whole)


def packed(value: Any) -> bytes:
    """JSON without spaces, gzipped; the same value gives the same bytes."""
    return gzip.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), compresslevel=5, mtime=0)


def decisions(storage: Storage, name: str, version: int) -> Columns:
    """What people have decided about the images of a version, and what of it no version includes yet. Raises Invalid or NotFound.

    `rows`, `action` (keep, relabel, remove) and `label` (of a relabel, else null) have an element a decision; `newest` is the version that
    one decides about, and `waiting` counts its changes by action. A label that somebody gave and that the version has counts as kept.
    """
    table = edits.images(storage, datasets.info(storage, name, version))
    waiting = edits.standing(storage, name)
    relabelled = {sha256: edit for sha256, edit in edits.decided(storage, name).items() if edit.action == "relabel"}
    told = {**relabelled, **waiting}
    label_of = table["label"].to_pylist() if told else []
    found: list[tuple[int, str, str | None]] = []
    for row, edit in zip(_places(table, list(told)), told.values(), strict=True):
        if row is not None and edit.sha256 in waiting and edit.action != "keep":
            found.append((row, edit.action, edit.label))
        elif row is not None and (edit.label or edit.before) == label_of[row]:
            found.append((row, "keep", None))
    counts = {action: sum(edit.action == action for edit in waiting.values()) for action in ("relabel", "remove")}
    columns = {key: [each[i] for each in found] for i, key in enumerate(("rows", "action", "label"))}
    return {"newest": datasets.latest(storage, name), "waiting": counts, **columns}


def findings(storage: Storage, name: str, version: int) -> dict[str, list[int]]:
    """By kind of finding, the rows of the images that have it, without those of which a person lets it stand. Raises NotFound."""
    table = edits.images(storage, datasets.info(storage, name, version))
    stand = reports.accepted(storage, name)
    found = {
        kind: [sha256 for sha256 in images if sha256 not in stand[kind]]
        for kind, images in reports.of_version(storage, name, version).items()
    }
    return {kind: [row for row in _places(table, images) if row is not None] for kind, images in found.items() if images}


def models_of(storage: Storage, name: str) -> list[str]:
    """The model versions, newest first, that were validated on images of a dataset, as `clothing/v2`."""
    found = []
    for model in models.names(storage):
        for info in models.all_versions(storage, model):
            known = (info.get("dataset") or {}).get("name") == name
            if known and storage.exists(models.key(info["model"], info["version"], validation.FILE)):
                found.append((info["created"], f"{info['model']}/v{info['version']}"))
    return [ref for _, ref in sorted(found, reverse=True)]


def validated(storage: Storage, model: str) -> pa.Table:
    """What a model said of its validation images: sha256, predicted, probability. Raises Invalid or NotFound."""
    said = validation.read(storage, *models.resolve(storage, model))
    return said.select(["sha256", "predicted", "probability"])


def labelled(storage: Storage, batch: str) -> pa.Table:
    """What a batch said of its images, a shard at a time: sha256, predicted, probability."""
    told = [
        table.filter(pc.equal(table["error_code"], "")).select(["sha256", "label", "probability"])
        for table in results.tables(storage, batch)
    ]
    if not told:
        raise NotFound("This batch has no rows yet.")
    return pa.concat_tables(told).rename_columns(["sha256", "predicted", "probability"])


def verdicts(storage: Storage, name: str, version: int, said: pa.Table) -> Columns:
    """What was `said` (sha256, predicted, probability) of the images of a version: `rows`, `label` as `values` and `rows`, `probability`. Raises NotFound."""
    table = edits.images(storage, datasets.info(storage, name, version))
    said = said.append_column("row", pc.index_in(said["sha256"], value_set=table["sha256"].combine_chunks()))
    said = said.filter(pc.is_valid(said["row"]))
    probability = [round(p, 4) for p in said["probability"].to_pylist()]
    return {"rows": said["row"].to_pylist(), "label": _coded(said["predicted"]), "probability": probability}


def facts(storage: Storage, name: str, version: int, sha256: str) -> dict[str, Any]:
    """The manifest row of an image that a version keeps. Raises NotFound."""
    for batch in datasets.row_batches(storage, name, version, datasets.MANIFEST.names):
        there = pc.and_(pc.equal(batch["sha256"], sha256), pc.equal(batch["status"], "kept"))
        if found := batch.filter(there).to_pylist():
            return datasets.blank_row(**found[0])
    raise NotFound(f"The dataset {name!r} v{version} has no image {sha256[:12]}….")


def _kept(storage: Storage, name: str, version: int) -> pa.Table:
    """The columns of the index, read as a stream; a manifest of an earlier Darkroom lacks some."""
    parts = []
    for batch in datasets.row_batches(storage, name, version, ["sha256", *TOLD, "group", "status"]):
        table = pa.Table.from_batches([batch]).filter(pc.equal(batch["status"], "kept"))
        for column in {"split", "group"} - {*table.column_names}:
            table = table.append_column(column, pa.array([""] * len(table), pa.string()))
        for column in ("source", "licence"):
            known = pc.if_else(pc.equal(table[column], ""), "unknown", table[column])
            table = table.set_column(table.column_names.index(column), column, known)
        parts.append(table.select(["sha256", *TOLD, "group"]))
    if not parts:
        raise NotFound(f"{name} {version_name(version)} has no images.")
    return pa.concat_tables(parts)


def _splits(table: pa.Table) -> list[str]:
    """The side of each image: that which its import fixed, else the one that a training with the usual share and seed puts it on."""
    return datasets.sides(table.select(["sha256", "label", "split", "group"]).to_pylist(), VALID_PCT, SEED)


def _coded(column: Any) -> Columns:
    """A column of text as its distinct `values`, sorted, and in `rows` which of them each has."""
    plain = column.to_pylist()
    values = sorted(set(plain))
    place = {value: i for i, value in enumerate(values)}
    return {"values": values, "rows": [place[value] for value in plain]}


def _places(table: pa.Table, sha256s: list[str]) -> list[int | None]:
    """The row of each image, None for one that is not there."""
    known = pc.index_in(pa.array(sha256s, pa.string()), value_set=table["sha256"].combine_chunks())
    return known.to_pylist()  # type: ignore[no-any-return]
