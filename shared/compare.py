"""Two model versions on the same validation images: which is better, where, and whether that may be chance."""

import math
from collections import Counter, defaultdict
from typing import Any

import pyarrow.parquet as pq

from shared import models
from shared.errors import Invalid, NotFound
from shared.storage import Storage

Z = 1.959964  # normal quantile of 97.5 %
CHANCE = 0.05  # a difference that comes by chance more often than this is told to be no difference


def compare(storage: Storage, old: tuple[str, int], new: tuple[str, int]) -> dict[str, Any]:
    """Compare (name, version) with another on the images that both were validated on. Raises NotFound, Invalid.

    Keys: images; left_out (of each: images the other was not validated on); error_rate and interval (of each, 95 %); fixed and broken
    (images that the new one alone, or the old one alone, has right; rows of sha256, ext, actual, old, new, probability of each);
    both_wrong; chance (McNemar's exact test: how often chance alone makes such a difference); classes (rows of label, images, and
    recall of each). The labels are those of the new one's dataset; `relabelled` counts images whose label was another before.
    """
    rows = [_validation(storage, *ref) for ref in (old, new)]
    common = [sha256 for sha256 in rows[1] if sha256 in rows[0]]
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
    return {
        "images": len(common),
        "left_out": [len(each) - len(common) for each in rows],
        "error_rate": [n / len(common) for n in wrong],
        "interval": [list(wilson(n, len(common))) for n in wrong],
        **flips,
        "both_wrong": both_wrong,
        "relabelled": relabelled,
        "chance": mcnemar(len(flips["fixed"]), len(flips["broken"])),
        "classes": [{"label": c, "images": n, "recall": [r / n for r in right[c]]} for c, n in sorted(support.items())],
    }


def _validation(storage: Storage, name: str, version: int) -> dict[str, dict[str, Any]]:
    """The validation images of a model version by SHA-256."""
    if "imported" in models.info(storage, name, version):
        raise NotFound(f"{name}/v{version} was imported without what it said of its validation images, so it cannot be compared.")
    try:
        with storage.open(models.key(name, version, "validation.parquet")) as f:
            return {row["sha256"]: row for row in pq.read_table(f).to_pylist()}
    except NotFound:
        raise NotFound(f"{name}/v{version} was trained before predictions were kept with a model; train it again to compare it.") from None


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
