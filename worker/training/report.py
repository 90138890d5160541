"""The evaluation of a model on its validation images: what `shared.models.report` promises, but for the curves."""

import math
from collections import Counter
from typing import Any

import torch
from fastai.learner import Learner
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from shared.errors import DarkroomError
from worker.progress import Progress
from worker.training.live import Watch
from worker.training.pictures import Sample

TOP_LOSSES = 24
MISTAKES = 500
CONFUSED = 50
Z = 1.959964  # normal quantile of 97.5 %


def evaluate(learner: Learner, valid: list[Sample], progress: Progress) -> dict[str, Any]:
    """Predict the validation images and report on them. Raises Cancelled, and DarkroomError for probabilities that are no numbers."""
    with learner.no_bar():
        probabilities, targets, losses = learner.get_preds(ds_idx=1, with_loss=True, cbs=Watch(progress))
    if not bool(torch.isfinite(probabilities).all()):
        raise DarkroomError("The trained network answers with values that are no numbers. Choose a smaller learning rate.")
    return report_of(list(learner.dls.vocab), valid, probabilities, targets, losses)


def report_of(
    classes: list[str], valid: list[Sample], probabilities: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor
) -> dict[str, Any]:
    """The report of (N, C) probabilities, (N,) true classes and (N,) losses of the N images in `valid`."""
    best, predicted = probabilities.max(dim=1)
    findings = [
        {"sha256": s.sha256, "ext": s.ext, "actual": classes[t], "predicted": classes[p], "probability": b, "loss": loss}
        for s, t, p, b, loss in zip(valid, targets.tolist(), predicted.tolist(), best.tolist(), losses.tolist(), strict=True)
    ]
    findings.sort(key=lambda finding: -finding["loss"])
    mistakes = [{k: v for k, v in f.items() if k != "loss"} for f in findings if f["actual"] != f["predicted"]]
    confused = Counter((m["actual"], m["predicted"]) for m in mistakes)
    return {
        "classes": classes,
        "confusion": confusion_matrix(targets, predicted, labels=range(len(classes))).tolist(),
        "per_class": _per_class(classes, targets, predicted),
        "top_losses": findings[:TOP_LOSSES],
        "most_confused": [{"actual": a, "predicted": p, "count": n} for (a, p), n in confused.most_common(CONFUSED)],
        "error_rate": len(mistakes) / len(valid),
        "interval": list(wilson(len(mistakes), len(valid))),
        "mistakes": mistakes[:MISTAKES],
    }


def _per_class(classes: list[str], targets: torch.Tensor, predicted: torch.Tensor) -> list[dict[str, Any]]:
    figures = precision_recall_fscore_support(targets, predicted, labels=range(len(classes)), zero_division=0)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
        for label, p, r, f, n in zip(classes, *figures, strict=True)
    ]


def wilson(errors: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate (Wilson 1927), which holds for few images and for rates near 0, too."""
    rate, z2 = errors / images, Z * Z
    middle = (rate + z2 / (2 * images)) / (1 + z2 / images)
    half = Z / (1 + z2 / images) * math.sqrt(rate * (1 - rate) / images + z2 / (4 * images * images))
    return max(0.0, middle - half), min(1.0, middle + half)
