"""The 8-bit form of a trained model, for processors: made by NNCF right after training, while its images are at hand.

It is about twice as fast as 16 bits on a processor with VNNI. How often its label is that of the exact network is measured on
the validation images. Where that is too seldom, the exact network is to look again at the images whose two best classes are
closest; how close, is measured too, and told with the model. If that does not help either, the form is not offered.
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
CALIBRATION = 300  # training images that the ranges of the activations are measured on
JUDGED = 1000  # validation images, at most, that the agreement is measured on
ENOUGH = 0.99  # share of equal labels below which int8 is not offered
MARGINS = (0.0, 0.01, 0.02, 0.05)  # between the two best classes, below which the exact network may have to look again
MOST_TWICE = 0.1  # share of images looked at twice from which int8 is no faster than 16 bits
# the head that fastai puts on a body is a hundredth of the work, and its batch normalisation makes 8 bits of its input too few
HEAD = r".*network\.network\.1\..*"


def quantise(folder: Path, info: dict[str, Any], samples: list[Sample], cache: Path, progress: Progress) -> dict[str, Any]:
    """Write `int8.xml` and `int8.bin` into a model's folder, which holds its safetensors; returns what info.json says of it.

    `{"offered": True, "agreement": share, "images": n, "close": margin, "twice": share}`, `{"offered": False, "agreement", "images"}`
    without a second look, or `{"offered": False, "why": a sentence}` when the network cannot be quantised. Raises Cancelled.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as in worker/classifying/engines.py
    try:
        import nncf
        import openvino
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        return {"offered": False, "why": f"The package {error.name} is not installed where this model was trained."}
    nncf.set_log_level("ERROR")
    training = _spread([s for s in samples if not s.valid], CALIBRATION)
    try:
        model = nncf.quantize(
            engines.convert(folder, info),
            nncf.Dataset(_Images(training, info["image_size"], progress)),
            subset_size=len(training),
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(patterns=[HEAD], validate=False),
            # the whole range that was seen: cutting off what is rare costs many labels
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX),
        )
        openvino.save_model(model, folder / "int8.xml")
    except Cancelled:
        raise
    except (RuntimeError, ValueError, TypeError, nncf.ValidationError, nncf.InternalError, nncf.UnsupportedModelError) as error:
        log.warning("not quantised", error=str(error))
        return {"offered": False, "why": f"{info['arch']} could not be quantised: {str(error).strip().splitlines()[0][:200]}"}
    return _judged(folder, info, [s for s in samples if s.valid], cache, progress)


def _judged(folder: Path, info: dict[str, Any], valid: list[Sample], cache: Path, progress: Progress) -> dict[str, Any]:
    exact, int8 = engines.load(folder, "exact", cache), engines.quantised(folder, info, cache, close=0)
    judged = _spread(valid, JUDGED)
    wrong, margin = [], []
    for batch in _batches(judged, info["image_size"], exact.batch):
        progress.check()
        found = int8(int8.stack(batch))
        wrong.append(exact(exact.stack(batch)).argmax(axis=1) != found.argmax(axis=1))
        margin.append(engines.margins(found))
    return told(np.concatenate(wrong), np.concatenate(margin))


def told(wrong: np.ndarray, margin: np.ndarray) -> dict[str, Any]:
    """What info.json says of int8, from (N,) bool, whether its label is another than the exact one, and (N,) its margins."""
    for close in MARGINS:
        agreement, twice = 1 - float((wrong & (margin >= close)).mean()), float((margin < close).mean())
        if agreement >= ENOUGH and twice <= MOST_TWICE:
            return {"offered": True, "agreement": round(agreement, 4), "images": len(wrong), "close": close, "twice": round(twice, 4)}
    return {"offered": False, "agreement": round(1 - float(wrong.mean()), 4), "images": len(wrong)}


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


def _batches(samples: list[Sample], size: int, batch: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(samples), batch):
        yield [_pixels(sample, size) for sample in samples[start : start + batch]]


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many of them, evenly spread."""
    return samples[:: -(-len(samples) // most)] if samples else []
