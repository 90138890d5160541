"""What is odd about the images of a dataset version: findings, which a person looks at. Nothing is removed by itself.

They are told from the manifest alone, when a version is published (`findings.json` in its folder, counts in its info.json), or when somebody asks for those
of an earlier Darkroom's version. That a person has seen a finding and lets it stand is no change of the dataset, and so no edit: it is a file of its own that
never changes, `datasets/<name>/accepted/<id>.json`, and the last word about an image and a finding counts.

Kinds of finding, in the order in which they are shown:

    near_duplicate  the same picture again, resized, saved again, trimmed or retouched (shared/duplicates.py)
    duplicate       the same bytes were offered more than once; they are kept once
    unreadable      files that were dropped because they are torn, empty or no picture; kept ones that cannot be opened any more
    placeholder     the same bytes came from several addresses: what a server says in place of a picture
    blank           one colour, or hardly anything
    blurry          without a sharp edge
    dark, light     everything is dark, or everything is light
    too_small       a side of few pixels; dropped where a smallest side was asked for
    odd_size        far from the size of the others
    odd_aspect      long and narrow
    grayscale       without colour
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from shared import datasets, duplicates
from shared.errors import Invalid, NotFound
from shared.jobs import new_id
from shared.specs import Name, Spec, TrainSpec, check, invalid
from shared.storage import Storage, version_name

KINDS = (
    "near_duplicate", "duplicate", "unreadable", "placeholder", "blank", "blurry", "dark", "light", "too_small", "odd_size", "odd_aspect", "grayscale",
)  # fmt: skip
DARK = 0.32  # brightness_p99 below it: cleanvision's threshold
LIGHT = 0.85  # brightness_p5 above it; cleanvision's 0.95 leaves out what everybody calls faded. Of 3,409 photographs of clothing none has more than 0.63
BLURRY = (
    0.12  # sharpness below it; of the clothing the least is 0.22, and of the same blurred by 2 pixels of 256 nearly all have less than 0.1
)
SPREAD = 0.05  # brightness_p99 less brightness_p5: a picture with less is of one colour
ENTROPY = 1.4  # bits of luma below which there is hardly anything: cleanvision's 3 bits of all three channels
GREY = 0.02  # chroma below it: two or three of 255, as much as saving a grey picture as JPEG brings in
SMALL = 64  # pixels of the shorter side below which a network for 224 sees a picture enlarged more than three times
ASPECT = 0.35  # shorter side by longer below it: cleanvision's threshold
ODD_SIZE = 3.0  # times the interquartile range beyond the quartiles, of the logarithm of the size: cleanvision's, which it takes of the size itself
LEAST_ODD = math.log(
    4
)  # and at least four times larger or smaller than half of the others, or any second size in a uniform dataset were odd
URLS = 3  # addresses that give the same bytes
LOOKS = ("blank", "blurry", "dark", "light", "too_small", "odd_aspect", "grayscale")  # kinds that most of a dataset may have
USUAL = 0.5  # share of a version from which a look is how the dataset is, and no finding: cleanvision's `max_prevalence`
UNREADABLE = ("unreadable", "truncated", "empty", "unsupported")  # reasons for which a file was dropped

Row = dict[str, Any]


def find(rows: list[Row], groups: list[list[Row]], before: Iterable[str] = ()) -> dict[str, Any]:
    """The findings of a version with these rows, kept and dropped. `groups`: of near duplicates; `before`: placeholders of the version it adds to.

    Keys: images ({kind: sha256 of kept images, the worst first}); groups (of near duplicates, those across classes or across the split first: images,
    sides, `across`: "classes" and "split" if its images have several or, by their own bytes, would be on both sides); dropped ({kind: files that were
    dropped}); usual ({kind: images}: a look that most of the version has, and so no finding).
    """
    kept = [row for row in rows if row["status"] == "kept"]
    placeholders = _placeholders(rows, kept, set(before))
    found = {"duplicate": _duplicates(rows, kept, set(placeholders)), "placeholder": placeholders, **_looks(kept)}
    grouped = _groups(kept, groups)
    found["near_duplicate"] = [sha256 for group in grouped for sha256 in group["images"]]
    usual = {kind: len(found[kind]) for kind in LOOKS if len(found[kind]) > USUAL * len(kept)}
    reasons = Counter(row["reason"] for row in rows if row["status"] == "dropped")
    dropped = {"duplicate": reasons["duplicate"], "unreadable": sum(reasons[r] for r in UNREADABLE), "too_small": reasons["too_small"]}
    return {
        "images": {kind: found[kind] for kind in KINDS if found.get(kind) and kind not in usual},
        "groups": grouped,
        "dropped": {kind: n for kind, n in dropped.items() if n},
        "usual": usual,
    }


def counts(found: dict[str, Any]) -> dict[str, int]:
    """How many images, kept and dropped, each kind of finding has."""
    several = {kind: len(found["images"].get(kind, ())) for kind in KINDS}
    several["duplicate"] = 0  # their one copy is in order; what counts is how many more were offered
    return {kind: n for kind in KINDS if (n := several[kind] + found["dropped"].get(kind, 0))}


def read(storage: Storage, name: str, version: int) -> dict[str, Any]:
    """The findings of a version, as `find` tells them. Raises NotFound."""
    check(Name, name)
    return _read(storage, name, version, datasets.info(storage, name, version)["hash"])


def of_version(storage: Storage, name: str, version: int) -> dict[str, list[str]]:
    """By kind of finding the sha256 of the kept images of a version that have it, the worst first. Raises NotFound."""
    found: dict[str, list[str]] = read(storage, name, version)["images"]
    return found


@lru_cache(maxsize=16)  # versions never change
def _read(storage: Storage, name: str, version: int, digest: str) -> dict[str, Any]:
    try:
        return storage.read_json(f"datasets/{name}/{version_name(version)}/findings.json")  # type: ignore[no-any-return]
    except NotFound:
        kept, dropped = (datasets.rows(storage, name, version, status=status) for status in ("kept", "dropped"))
        copies = [dict(row) for row in kept]
        duplicates.assign(copies)  # its trainings did not know of groups; who looks may
        return find([*kept, *dropped], duplicates.groups(copies))


# -- what a person has seen and lets stand ----------------------------------------------------------------------------


class Acceptance(Spec):
    """That images may have a finding, or, if not `accepted`, that they may not after all."""

    finding: str
    images: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1, max_length=100_000)
    accepted: bool = True


def parse_acceptance(data: Any) -> Acceptance:
    """Validate what was sent. Raises Invalid with one sentence."""
    try:
        return Acceptance.model_validate(data)
    except ValidationError as error:
        raise invalid(error) from None


def accept(storage: Storage, name: str, kind: str, images: Iterable[str], accepted: bool = True) -> None:
    """Log that these images may have a finding, so that it is not shown again; or, if not `accepted`, that it is. Raises Invalid, NotFound."""
    datasets.latest(storage, name)
    if kind not in KINDS:
        raise Invalid(f"There is no finding {kind!r}; there are {', '.join(KINDS)}.", field="finding")
    entry = {"id": new_id(), "at": time.time(), "finding": kind, "images": sorted(set(images)), "accepted": accepted}
    storage.write_json(f"datasets/{name}/accepted/{entry['id']}.json", entry)


def accepted(storage: Storage, name: str) -> dict[str, set[str]]:
    """By kind of finding the images that may have it. Raises Invalid."""
    check(Name, name)
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    ids = [file.removesuffix(".json") for file in storage.list(f"datasets/{name}/accepted")]
    for entry in sorted((_entry(storage, name, i) for i in ids), key=lambda entry: (entry["at"], entry["id"])):
        change = found[entry["finding"]].update if entry["accepted"] else found[entry["finding"]].difference_update
        change(entry["images"])
    return found


@lru_cache(maxsize=4096)  # entries never change
def _entry(storage: Storage, name: str, entry_id: str) -> dict[str, Any]:
    return storage.read_json(f"datasets/{name}/accepted/{entry_id}.json")  # type: ignore[no-any-return]


# -- kinds ------------------------------------------------------------------------------------------------------------


def _placeholders(rows: list[Row], kept: list[Row], before: set[str]) -> list[str]:
    urls: dict[str, set[str]] = {}
    for row in rows:
        if row["url"] and row["sha256"]:
            urls.setdefault(row["sha256"], set()).add(row["url"])
    return [row["sha256"] for row in kept if len(urls.get(row["sha256"], ())) >= URLS or row["sha256"] in before]


def _duplicates(rows: list[Row], kept: list[Row], placeholders: set[str]) -> list[str]:
    """Kept images whose bytes were offered again; first those that were offered in another class or side of the split, for one of the two is wrong."""
    places: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        if row["reason"] == "duplicate":
            places.setdefault(row["sha256"], set()).add((row["label"], row["split"]))
    found = [row for row in kept if row["sha256"] in places and row["sha256"] not in placeholders]
    return [row["sha256"] for row in sorted(found, key=lambda row: not places[row["sha256"]] - {(row["label"], row["split"])})]


def _groups(kept: list[Row], groups: list[list[Row]]) -> list[dict[str, Any]]:
    split = (TrainSpec.model_fields["valid_pct"].default, TrainSpec.model_fields["seed"].default)
    shas = [row["sha256"] for row in kept]
    side = dict(zip(shas, datasets.sides(kept, *split), strict=True))
    alone = dict(zip(shas, datasets.sides([{**row, "group": ""} for row in kept], *split), strict=True)) if groups else {}
    found = []
    for members in groups:
        images = [row["sha256"] for row in members]
        across = {"classes": {row["label"] for row in members}, "split": {alone[sha256] for sha256 in images}}
        sides = [side[sha256] for sha256 in images]
        found.append({"images": images, "sides": sides, "across": [what for what, values in across.items() if len(values) > 1]})
    return sorted(found, key=lambda group: (-len(group["across"]), group["across"] != ["classes"], -len(group["images"])))


def _looks(kept: list[Row]) -> dict[str, list[str]]:
    """Kinds that are a matter of how one image looks; what is blank is neither dark nor light, blurry nor grey besides."""
    measured = [row for row in kept if row["sharpness"] is not None]
    blank = [row["sha256"] for row in measured if is_blank(row)]
    nothing = set(blank)
    found = {kind: _worst([row for row in measured if row["sha256"] not in nothing], *look) for kind, look in _MEASURED.items()}
    sized = [row for row in kept if row["width"] and row["height"]]
    small = _worst(sized, lambda row: min(row["width"], row["height"]), SMALL)
    aspect = _worst(sized, lambda row: min(row["width"], row["height"]) / max(row["width"], row["height"]), ASPECT)
    gone = [row["sha256"] for row in kept if row["sharpness"] is None] if measured else []
    return {**found, "blank": blank, "too_small": small, "odd_aspect": aspect, "odd_size": _odd_size(sized, set(small)), "unreadable": gone}


def is_blank(row: Row) -> bool:
    """Whether a measured picture shows one colour, or hardly anything."""
    return bool(row["brightness_p99"] - row["brightness_p5"] < SPREAD or row["entropy"] < ENTROPY)


_MEASURED: dict[str, tuple[Callable[[Row], float], float]] = {
    "blurry": (lambda row: row["sharpness"], BLURRY),
    "dark": (lambda row: row["brightness_p99"], DARK),
    "light": (lambda row: 1 - row["brightness_p5"], 1 - LIGHT),
    "grayscale": (lambda row: row["chroma"], GREY),
}


def _worst(rows: list[Row], value: Callable[[Row], float], threshold: float) -> list[str]:
    """The images whose value is under the threshold, the smallest first."""
    return [row["sha256"] for row in sorted((row for row in rows if value(row) < threshold), key=value)]


def _odd_size(sized: list[Row], small: set[str]) -> list[str]:
    if not sized:
        return []
    size = np.log([math.sqrt(row["width"] * row["height"]) for row in sized])
    low, high = np.percentile(size, [25, 75])
    beyond = max(ODD_SIZE * (high - low), LEAST_ODD)
    far = np.maximum(low - size, size - high)
    odd = [i for i in np.argsort(-far, kind="stable").tolist() if far[i] > beyond]
    return [sized[i]["sha256"] for i in odd if sized[i]["sha256"] not in small]
