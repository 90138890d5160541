"""What people decide about the images of a dataset: the label is right (keep), another one is (relabel), or the image does not belong there (remove).

Each decision is a file of its own, `datasets/<name>/edits/<id>.json`, which never changes: the log is the state. Of an image the last
decision counts, and to undo is one more entry, after which nothing is decided about it. A version that is made of edits holds the entries it
includes in its `edits.json`; what no version in the line of the newest one includes is still to be made. Neither a clock nor a counter says
so, and thus an entry that is written while a version is made waits for the next.
"""

import re
import time
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, ValidationError, model_validator

from shared import datasets
from shared.errors import Conflict, Invalid, NotFound
from shared.jobs import new_id
from shared.specs import HIDDEN, ClassName, Name, Spec, check, invalid
from shared.storage import Storage, version_name

SHA256 = re.compile(r"[0-9a-f]{64}")


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


@dataclass(frozen=True)
class Edit:
    """An entry of the log. `at`: seconds since 1970; `before` and `version`: the label that the newest version gave, and its number."""

    id: str
    at: float
    sha256: str
    ext: str
    action: str  # keep, relabel, remove or undo
    label: str | None  # of a relabel
    before: str
    why: str
    version: int


def parse_edit(data: Any) -> EditSpec:
    """Validate what was sent. Raises Invalid with one sentence."""
    try:
        return EditSpec.model_validate(data)
    except ValidationError as error:
        raise invalid(error) from None


def decide(storage: Storage, name: str, said: EditSpec) -> Edit:
    """Log what is decided about an image of the newest version; a relabel to the label it has is a keep.

    Raises NotFound for a dataset or image that is not there, and Invalid for a label that differs from a class by case alone.
    """
    info = datasets.info(storage, name)
    row = image(storage, info, said.sha256)
    if row is None:
        raise NotFound(f"The dataset {name!r} v{info['version']}, its newest version, has no image {said.sha256[:12]}….")
    action, label = (said.action, said.label) if said.label != row["label"] else ("keep", None)
    if label is not None:
        _check_case(label, [*info["classes"], *(edit.label for edit in pending(storage, name) if edit.label)])
    return _write(storage, name, info, row, action, label, said.why)


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
    return _write(storage, name, info, {"sha256": sha256, "ext": last.ext, "label": last.before}, "undo", None, "")


def log(storage: Storage, name: str) -> list[Edit]:
    """Every entry, the oldest first. Raises Invalid or NotFound."""
    included = _included(storage, name)
    ids = [file.removesuffix(".json") for file in storage.list(f"datasets/{name}/edits")]
    return sorted((included[i][1] if i in included else _entry(storage, name, i) for i in ids), key=lambda edit: (edit.at, edit.id))


def decided(storage: Storage, name: str) -> dict[str, Edit]:
    """By sha256, what is decided about an image: a keep, relabel or remove, whether a version includes it or not. Raises Invalid or NotFound."""
    return {sha256: edit for sha256, edit in _last(log(storage, name)).items() if edit.action != "undo"}


def unmade(storage: Storage, name: str) -> list[Edit]:
    """The entries that the newest version and those before it do not include, the oldest first. Raises Invalid or NotFound."""
    included = _included(storage, name)
    return [edit for edit in log(storage, name) if edit.id not in included]


def changes_of(entries: Iterable[Edit]) -> list[Edit]:
    """What entries, the oldest first, change in a dataset: a relabel or remove an image, in the order they were decided."""
    return sorted((e for e in _last(entries).values() if e.action in {"relabel", "remove"}), key=lambda edit: (edit.at, edit.id))


def pending(storage: Storage, name: str) -> list[Edit]:
    """What the next version would change. Raises Invalid or NotFound."""
    return changes_of(unmade(storage, name))


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
    found = _images(storage, info["dataset"], info["version"], info["hash"])
    at = pc.index(found["sha256"], sha256).as_py()
    return None if at < 0 else found.slice(at, 1).to_pylist()[0]


def labels(storage: Storage, info: dict[str, Any], sha256s: list[str]) -> dict[str, str]:
    """The label of each of these images that a version keeps."""
    found = _images(storage, info["dataset"], info["version"], info["hash"])
    rows = found.filter(pc.is_in(found["sha256"], pa.array(sha256s, pa.string()))).to_pylist()
    return {row["sha256"]: row["label"] for row in rows}


def as_json(entries: Iterable[Edit]) -> list[dict[str, Any]]:
    """Entries as a version's `edits.json` keeps them."""
    return [asdict(edit) for edit in entries]


def _last(entries: Iterable[Edit]) -> dict[str, Edit]:
    return {edit.sha256: edit for edit in entries}


def _check_case(label: str, classes: Iterable[str]) -> None:
    for other in classes:
        if other != label and other.casefold() == label.casefold():
            raise Invalid(f"The classes {other!r} and {label!r} differ by upper and lower case alone; write {other!r}.", field="label")


def _write(storage: Storage, name: str, info: dict[str, Any], row: dict[str, str], action: str, label: str | None, why: str) -> Edit:
    edit = Edit(new_id(), time.time(), row["sha256"], row["ext"], action, label, row["label"], why, info["version"])
    storage.write_json(f"datasets/{name}/edits/{edit.id}.json", asdict(edit))
    return edit


def _included(storage: Storage, name: str) -> dict[str, tuple[int, Edit]]:
    """By id, the version and the entry of each edit that the newest version or one before it in its line includes."""
    check(Name, name)
    return {edit.id: (version, edit) for version, entries in _line(storage, name) for edit in entries}


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
def _entry(storage: Storage, name: str, edit_id: str) -> Edit:
    return Edit(**storage.read_json(f"datasets/{name}/edits/{edit_id}.json"))


@lru_cache(maxsize=4)
def _images(storage: Storage, name: str, version: int, digest: str) -> pa.Table:
    """The columns sha256, ext and label of the kept rows; `digest` is the version's hash."""
    kept = [
        pa.Table.from_batches([batch]).filter(pc.equal(batch["status"], "kept"))
        for batch in datasets.row_batches(storage, name, version, ["sha256", "ext", "label", "status"])
    ]
    return pa.concat_tables(kept).select(["sha256", "ext", "label"])
