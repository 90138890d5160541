"""What a model said of its validation images, `validation.parquet`: the rows of a cell, the best and worst of a class, how far to trust it.

A row an image: sha256, ext, actual, predicted, probability (of the predicted class), loss (nats, of the actual one).
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared import models
from shared.errors import NotFound
from shared.storage import Storage

FILE = "validation.parquet"
BINS = 10  # of the reliability diagram
PRECISION = 0.95  # that a threshold is to reach where nobody asks for another

Row = dict[str, Any]


def read(storage: Storage, name: str, version: int) -> pa.Table:
    """The rows of a model version. Raises NotFound, also for a model from before they were kept, and for one that was imported."""
    if "imported" in models.info(storage, name, version):
        raise NotFound(f"{name}/v{version} was imported without what it said of its validation images, so it cannot be compared.")
    try:
        with storage.open(models.key(name, version, FILE)) as f:
            return pq.read_table(f)
    except NotFound:
        raise NotFound(f"{name}/v{version} was trained before predictions were kept with a model; train it again.") from None


def of(said: pa.Table, column: str, value: str) -> pa.Table:
    """The rows that have a value: a class in `actual` or `predicted`, an image in `sha256`."""
    return said.filter(pc.equal(said[column], value))


def cell(said: pa.Table, actual: str | None = None, predicted: str | None = None) -> pa.Table:
    """The rows of a cell of the confusion matrix: mistakes, the surest first, or on its diagonal the right ones, the least sure first.

    None stands for any class, and leaves the diagonal out.
    """
    right = actual is not None and actual == predicted
    said = said.filter(_right(said) if right else pc.invert(_right(said)))
    for column, label in (("actual", actual), ("predicted", predicted)):
        said = said if label is None else of(said, column, label)
    return said.sort_by([("probability", "ascending" if right else "descending"), ("sha256", "ascending")])


def extremes(said: pa.Table, label: str, most: int) -> tuple[list[Row], list[Row]]:
    """The images of a class that the model is right about and surest of, and those with the highest loss, at most so many each.

    Of a class with fewer than twice as many images each list has half.
    """
    rows = of(said, "actual", label).sort_by([("loss", "ascending"), ("sha256", "ascending")]).to_pylist()
    most = min(most, (len(rows) + 1) // 2)
    return [row for row in rows if row["predicted"] == label][:most], rows[::-1][:most]


def calibration(said: pa.Table) -> dict[str, Any]:
    """Whether the probabilities can be believed: `{"bins": [{low, high, images, probability, right}], "error": share}`.

    `probability` is the mean of a bin, `right` the share of its labels that are right; `error` is the expected calibration error (Naeini
    2015): the mean distance of the two, weighted by images.
    """
    inside: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for probability, right in _sure(said):
        inside[min(int(probability * BINS), BINS - 1)].append((probability, right))
    bins = [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "images": len(pairs),
            "probability": sum(p for p, _ in pairs) / len(pairs),
            "right": sum(right for _, right in pairs) / len(pairs),
        }
        for i, pairs in enumerate(inside)
        if pairs
    ]
    return {"bins": bins, "error": sum(b["images"] * abs(b["probability"] - b["right"]) for b in bins) / len(said)}


def threshold(said: pa.Table, precision: float = PRECISION) -> dict[str, float] | None:
    """The lowest probability from which labels are right as often as `precision`: {probability, precision, review}; None: there is none.

    `review` is the share of images below it, which a person has to look at.
    """
    ordered = sorted(_sure(said), reverse=True)
    found, hits = None, 0
    for n, (probability, right) in enumerate(ordered, 1):
        hits += right
        tied = n < len(ordered) and ordered[n][0] == probability
        if not tied and hits / n >= precision:
            found = {"probability": probability, "precision": hits / n, "review": 1 - n / len(ordered)}
    return found


def _right(said: pa.Table) -> Any:
    return pc.equal(said["actual"], said["predicted"])


def _sure(said: pa.Table) -> list[tuple[float, bool]]:
    """How sure the model was of each label, and whether it was right."""
    return list(zip(said["probability"].to_pylist(), _right(said).to_pylist(), strict=True))
