"""Two model versions on the same validation images: which is better, where, and whether that may be chance."""

import math
from collections import Counter, defaultdict
from typing import Any

import pyarrow.compute as pc

from shared import datasets, models, validation
from shared.errors import Invalid, NotFound
from shared.storage import Storage

Z = 1.959964  # normal quantile of 97.5 %
CHANCE = 0.05  # a difference that comes by chance more often than this is told to be no difference


def compare(storage: Storage, old: tuple[str, int], new: tuple[str, int]) -> dict[str, Any]:
    """Compare (name, version) with another on the images that both were validated on. Raises NotFound, Invalid.

    Keys: images; left_out (of each: images the other was not validated on); near_duplicates (images left out because one of the two, and
    not the other, was trained on a near duplicate); error_rate and interval (of each, 95 %); fixed and broken
    (images that the new one alone, or the old one alone, has right; rows of sha256, ext, actual, old, new, probability of each);
    both_wrong; chance (McNemar's exact test: how often chance alone makes such a difference); verdict (`better` or `worse`, of the new
    one, or `even`: the difference may be chance); classes (rows of label, images, and
    recall of each). The labels are those of the new one's dataset; `relabelled` counts images whose label was another before.
    """
    rows = [{row["sha256"]: row for row in validation.read(storage, *ref).to_pylist()} for ref in (old, new)]
    both = [sha256 for sha256 in rows[1] if sha256 in rows[0]]
    known = _known_to_one(storage, (old, new), rows)
    common = [sha256 for sha256 in both if sha256 not in known]
    if not common:
        raise Invalid("The two models were validated on no image in common, so they cannot be compared.", field="with")
    wrong = [0, 0]
    support: Counter[str] = Counter()
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    flips: dict[str, list[dict[str, Any]]] = {"fixed": [], "broken": []}
    both_wrong = relabelled = 0
    for sha256 in common:
        before, now = rows[0][sha256], rows[1][sha256]
        label = now["actual"]
        hit = [before["predicted"] == label, now["predicted"] == label]
        relabelled += before["actual"] != label
        support[label] += 1
        both_wrong += not any(hit)
        for i in (0, 1):
            wrong[i] += not hit[i]
            right[label][i] += hit[i]
        if hit[0] != hit[1]:
            flips["fixed" if hit[1] else "broken"].append(
                {
                    "sha256": sha256, "ext": now["ext"], "actual": label, "old": before["predicted"], "new": now["predicted"],
                    "probability": [before["probability"], now["probability"]],
                }
            )  # fmt: skip
    chance = mcnemar(len(flips["fixed"]), len(flips["broken"]))
    better = len(flips["fixed"]) > len(flips["broken"])
    return {
        "images": len(common),
        "left_out": [len(each) - len(both) for each in rows],
        "near_duplicates": len(both) - len(common),
        "error_rate": [n / len(common) for n in wrong],
        "interval": [list(wilson(n, len(common))) for n in wrong],
        **flips,
        "both_wrong": both_wrong,
        "relabelled": relabelled,
        "chance": chance,
        "verdict": "even" if chance > CHANCE else "better" if better else "worse",
        "classes": [{"label": c, "images": n, "recall": [r / n for r in right[c]]} for c, n in sorted(support.items())],
    }


def _known_to_one(storage: Storage, refs: tuple[tuple[str, int], tuple[str, int]], validated: list[dict[str, Any]]) -> set[str]:
    """Images of which one of two models, and not the other, was trained on a near duplicate, as versions of before there were groups allowed."""
    group_of: dict[str, str] = {}
    trained: list[set[str]] = []
    for (name, version), own in zip(refs, validated, strict=True):
        dataset = models.info(storage, name, version).get("dataset") or {}
        try:
            rows = _split_of(storage, dataset["name"], dataset["version"]) if dataset else []
        except NotFound:
            rows = []  # the dataset was deleted; what is in groups, the other's may tell
        group_of |= {row["sha256"]: row["group"] for row in rows if row["group"]}
        trained.append({row["sha256"] for row in rows if row["sha256"] not in own and row["split"] != "test"})
    taught = [{group_of[sha256] for sha256 in each if sha256 in group_of} for each in trained]
    return {sha256 for sha256, group in group_of.items() if group in taught[0] ^ taught[1]}


def _split_of(storage: Storage, name: str, version: int) -> list[dict[str, str]]:
    whole = datasets.table(storage, name, version)
    return whole.filter(pc.equal(whole["status"], "kept")).select(["sha256", "group", "split"]).to_pylist()  # type: ignore[no-any-return]


def wilson(errors: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate (Wilson 1927), which holds for few images and for rates near 0, too."""
    rate, z2 = errors / images, Z * Z
    middle = (rate + z2 / (2 * images)) / (1 + z2 / images)
    half = Z / (1 + z2 / images) * math.sqrt(rate * (1 - rate) / images + z2 / (4 * images * images))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(fixed: int, broken: int) -> float:
    """How often chance alone makes a difference as large (McNemar 1947, the exact two-sided form), 0 to 1."""
    flips = fixed + broken
    if not flips:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(fixed, broken) + 1))
    return min(1.0, float(2 * tail / 2**flips))
