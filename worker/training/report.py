"""The evaluation of a model on its validation images: what `shared.models.report` promises, but for the curves."""

from collections import Counter
from typing import Any

import pyarrow as pa
import torch
from fastai.learner import Learner
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from shared import validation
from shared.compare import wilson
from shared.errors import DarkroomError
from worker.progress import Progress
from worker.training.live import Watch
from worker.training.pictures import Sample
from worker.training.temperature import fitted, fold

TOP_LOSSES = 24
MISTAKES = 500
CONFUSED = 50

Rows = list[dict[str, Any]]


def evaluate(learner: Learner, valid: list[Sample], progress: Progress) -> tuple[Rows, torch.Tensor, dict[str, Any]]:
    """Correct how sure a learner is, and say what it then says: rows of sha256, ext, actual, predicted, probability, loss; all probabilities, (N, C); and the calibration.

    The learner's last layer is changed, by the temperature that its validation images ask for. Raises Cancelled, and DarkroomError for
    logits that are no numbers.
    """
    with learner.no_bar():
        logits, targets = learner.get_preds(ds_idx=1, act=lambda logits: logits, cbs=Watch(progress))
    if not bool(torch.isfinite(logits).all()):
        raise DarkroomError("The trained network answers with values that are no numbers. Choose a smaller learning rate.")
    classes = list(learner.dls.vocab)
    temperature, why = fitted(logits, targets)
    fold(learner.model, temperature)
    rows = _rows(classes, valid, logits / temperature, targets)
    before = _rows(classes, valid, logits, targets)
    calibration = {"temperature": temperature, "why": why, "before": validation.calibration(pa.Table.from_pylist(before))}
    return rows, (logits / temperature).softmax(dim=1), {**validation.calibration(pa.Table.from_pylist(rows)), **calibration}


def _rows(classes: list[str], valid: list[Sample], logits: torch.Tensor, targets: torch.Tensor) -> Rows:
    best, predicted = logits.softmax(dim=1).max(dim=1)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    columns = zip(valid, targets.tolist(), predicted.tolist(), best.tolist(), losses.tolist(), strict=True)
    return [
        {"sha256": s.sha256, "ext": s.ext, "actual": classes[t], "predicted": classes[p], "probability": b, "loss": loss}
        for s, t, p, b, loss in columns
    ]


def report_of(classes: list[str], rows: Rows, calibration: dict[str, Any]) -> dict[str, Any]:
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
        "calibration": calibration,
        "threshold": validation.threshold(pa.Table.from_pylist(rows)),
    }


def _per_class(classes: list[str], actual: list[str], predicted: list[str]) -> list[dict[str, Any]]:
    figures = precision_recall_fscore_support(actual, predicted, labels=classes, zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(classes, *figures, strict=True)
    ]
