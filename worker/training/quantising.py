"""The 8-bit form of a trained model, for processors: made by NNCF right after training, while its images are at hand.

It is two to four times as fast as 16 bits on a processor with VNNI. How often its label is that of the exact network is
measured on the validation images, told with the model, and below `ENOUGH` the form is not offered.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from shared.errors import Cancelled
from shared.images import decode
from worker.classifying import engines
from worker.classifying.decoding import prepare
from worker.progress import Progress
from worker.training.pictures import Sample

log = structlog.get_logger()
CALIBRATION = 128  # training images that the ranges of the activations are measured on
JUDGED = 1000  # validation images, at most, that the agreement is measured on
ENOUGH = 0.99  # share of equal labels below which int8 is not offered


def quantise(folder: Path, info: dict[str, Any], samples: list[Sample], cache: Path, progress: Progress) -> dict[str, Any]:
    """Write `int8.xml` and `int8.bin` into a model's folder, which holds its safetensors; returns what info.json says of it.

    `{"offered": bool, "agreement": share, "images": n}`, or `{"offered": False, "why": a sentence}` when the network cannot be
    quantised. Raises Cancelled.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as in worker/classifying/engines.py
    try:
        import nncf
        import openvino
    except ImportError as error:
        return {"offered": False, "why": f"The package {error.name} is not installed where this model was trained."}
    nncf.set_log_level("ERROR")
    training = _spread([s for s in samples if not s.valid], CALIBRATION)
    try:
        images = nncf.Dataset(_Images(training, info["image_size"], progress))
        model = nncf.quantize(engines.convert(folder, info), images, subset_size=len(training), preset=nncf.QuantizationPreset.MIXED)
        openvino.save_model(model, folder / "int8.xml")
    except Cancelled:
        raise
    except (RuntimeError, ValueError, TypeError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        log.warning("not quantised", error=str(error))
        return {"offered": False, "why": f"{info['arch']} could not be quantised: {str(error).strip().splitlines()[0][:200]}"}
    return _judged(folder, info, [s for s in samples if s.valid], cache, progress)


def _judged(folder: Path, info: dict[str, Any], valid: list[Sample], cache: Path, progress: Progress) -> dict[str, Any]:
    exact = engines.load(folder, "exact", cache)
    int8 = engines.quantised(folder, info)
    judged = _spread(valid, JUDGED)
    same = 0
    for batch in _batches(judged, info["image_size"], exact.batch):
        progress.check()
        same += int((exact(batch).argmax(axis=1) == int8(batch).argmax(axis=1)).sum())
    agreement = same / len(judged)
    return {"offered": agreement >= ENOUGH, "agreement": round(agreement, 4), "images": len(judged)}


class _Images:
    """Training images as the network sees them, one at a time; NNCF goes through them more than once."""

    def __init__(self, samples: list[Sample], size: int, progress: Progress) -> None:
        self.samples, self.size, self.progress = samples, size, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for sample in self.samples:
            self.progress.check()
            yield _pixels(sample, self.size)[None]


def _pixels(sample: Sample, size: int) -> np.ndarray:
    return prepare(decode(sample.path.read_bytes()).image, size, exact=True)


def _batches(samples: list[Sample], size: int, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(samples), batch):
        yield np.stack([_pixels(sample, size) for sample in samples[start : start + batch]])


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many of them, evenly spread."""
    return samples[:: -(-len(samples) // most)] if samples else []
