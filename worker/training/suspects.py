"""Validation images whose label the model doubts: confident learning (Northcutt, Jiang and Chuang 2021), as the package cleanlab does it."""

from typing import Any

import numpy as np
import torch

MOST = 200  # suspects a report holds


def suspects_of(classes: list[str], rows: list[dict[str, Any]], probabilities: torch.Tensor) -> list[dict[str, Any]]:
    """The images whose given label is probably wrong, the worst first, at most MOST: {sha256, ext, actual, suggested, probability, given}.

    `rows`: what `evaluate` says of each image, and `probabilities`: (N, C) float in [0, 1], its columns in the order of `classes`.
    `probability` is that of the suggested label, `given` that of the actual one. An image is suspect when the model gives another class at
    least as much as it gives the images of that class on average. Where all images are of one class there is nothing to go by, and
    none is suspect.
    """
    from cleanlab.filter import find_label_issues  # brings pandas; a training needs it once, at its end

    if len({row["actual"] for row in rows}) < 2:
        return []
    index = {label: i for i, label in enumerate(classes)}
    actual = np.array([index[row["actual"]] for row in rows])
    told = probabilities.double().clamp(0, 1).numpy()
    # other filters of cleanlab's pass over classes of a few images, which the validation images of a small dataset are
    worst = find_label_issues(actual, told, return_indices_ranked_by="normalized_margin", filter_by="confident_learning", n_jobs=1)
    return [_suspect(classes, rows[i], told[i], told[i, actual[i]]) for i in worst[:MOST]]


def _suspect(classes: list[str], row: dict[str, Any], told: np.ndarray, given: float) -> dict[str, Any]:
    best = int(told.argmax())
    named = {key: row[key] for key in ("sha256", "ext", "actual")}
    return {**named, "suggested": classes[best], "probability": float(told[best]), "given": float(given)}
