"""The evaluation of a model on its validation images: what `shared.models.report` promises, but for the curves."""

from collections import Counter
from typing import Any

import torch
from fastai.learner import Learner
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from shared.compare import wilson
from shared.errors import DarkroomError
from worker.progress import Progress
from worker.training.live import Watch
from worker.training.pictures import Sample

TOP_LOSSES = 24
MISTAKES = 500
CONFUSED = 50
BINS = 10  # of the reliability diagram
PRECISION = 0.95  # that the suggested threshold is to reach

Rows = list[dict[str, Any]]


def evaluate(learner: Learner, valid: list[Sample], progress: Progress) -> tuple[Rows, torch.Tensor]:
    """What the learner says of each validation image: rows of sha256, ext, actual, predicted, probability, loss; and all probabilities, (N, C).

    Raises Cancelled, and DarkroomError for probabilities that are no numbers.
    """
    with learner.no_bar():
        probabilities, targets, losses = learner.get_preds(ds_idx=1, with_loss=True, cbs=Watch(progress))
    if not bool(torch.isfinite(probabilities).all()):
        raise DarkroomError("The trained network answers with values that are no numbers. Choose a smaller learning rate.")
    classes = list(learner.dls.vocab)
    best, predicted = probabilities.max(dim=1)
    columns = zip(valid, targets.tolist(), predicted.tolist(), best.tolist(), losses.tolist(), strict=True)
    rows = [
        {"sha256": s.sha256, "ext": s.ext, "actual": classes[t], "predicted": classes[p], "probability": b, "loss": loss}
        for s, t, p, b, loss in columns
    ]
    return rows, probabilities


def report_of(classes: list[str], rows: Rows) -> dict[str, Any]:
    """The report of what `evaluate` has found."""
    rows = sorted(rows, key=lambda row: -row["loss"])
    mistakes = [{k: v for k, v in row.items() if k != "loss"} for row in rows if row["actual"] != row["predicted"]]
    confused = Counter((m["actual"], m["predicted"]) for m in mistakes)
    actual, predicted = ([row[name] for row in rows] for name in ("actual", "predicted"))
    return {
        "classes": classes,
        "confusion": confusion_matrix(actual, predicted, labels=classes).tolist(),
        "per_class": _per_class(classes, actual, predicted),
        "top_losses": rows[:TOP_LOSSES],
        "most_confused": [{"actual": a, "predicted": p, "count": n} for (a, p), n in confused.most_common(CONFUSED)],
        "error_rate": len(mistakes) / len(rows),
        "interval": list(wilson(len(mistakes), len(rows))),
        "mistakes": mistakes[:MISTAKES],
        "calibration": calibration(rows),
        "threshold": threshold(rows),
    }


def calibration(rows: Rows) -> dict[str, Any]:
    """Whether the probabilities can be believed: `{"bins": [{low, high, images, probability, right}], "error": share}`.

    `probability` is the mean of a bin, `right` the share of its labels that are right; `error` is the expected calibration error (Naeini
    2015): the mean distance of the two, weighted by images.
    """
    bins = []
    for i in range(BINS):
        inside = [row for row in rows if min(int(row["probability"] * BINS), BINS - 1) == i]
        if inside:
            mean = sum(row["probability"] for row in inside) / len(inside)
            right = sum(row["actual"] == row["predicted"] for row in inside) / len(inside)
            bins.append({"low": i / BINS, "high": (i + 1) / BINS, "images": len(inside), "probability": mean, "right": right})
    return {"bins": bins, "error": sum(b["images"] * abs(b["probability"] - b["right"]) for b in bins) / len(rows)}


def threshold(rows: Rows) -> dict[str, Any] | None:
    """The lowest probability from which labels are right as often as `PRECISION`: {probability, precision, review}; None: there is none.

    `review` is the share of images below it, which a person has to look at.
    """
    ordered = sorted(rows, key=lambda row: -row["probability"])
    found, right = None, 0
    for n, row in enumerate(ordered, 1):
        right += row["actual"] == row["predicted"]
        tied = n < len(ordered) and ordered[n]["probability"] == row["probability"]
        if not tied and right / n >= PRECISION:
            found = {"probability": row["probability"], "precision": right / n, "review": 1 - n / len(ordered)}
    return found


def _per_class(classes: list[str], actual: list[str], predicted: list[str]) -> list[dict[str, Any]]:
    figures = precision_recall_fscore_support(actual, predicted, labels=classes, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(classes, *figures, strict=True)
    ]
