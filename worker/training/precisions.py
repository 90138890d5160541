"""The quicker forms of a trained model: 16 bits, and 8 bits made here by NNCF, right after training, while its images are at hand.

Fewer bits change the label of images whose two best classes are nearly as probable. So the exact network looks again at such
**close calls**; how close they have to be is measured here, on the validation images, and told with the model. An 8-bit form
that this does not help enough is not offered.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from shared.errors import Cancelled
from worker.classifying import engines
from worker.classifying.decoding import look
from worker.classifying.engines import Engine
from worker.progress import Progress
from worker.training.pictures import Sample

log = structlog.get_logger()
CALIBRATION = 300  # training images that the ranges of the activations are measured on
JUDGED = 1000  # validation images, at most, that the agreement is measured on
# of the best class over the second, below which a call may be close, nats before the logits were divided by the model's temperature
LEADS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)
MOST_TWICE = 0.05  # share of images looked at twice, from which it costs more than it is worth
WANTED = 0.999  # share of equal labels for which the smallest lead is chosen: other images will differ a little more often
ENOUGH = 0.99  # share of equal labels below which int8 is not offered
# the head that fastai puts on a body is a hundredth of the work, and its batch normalisation makes 8 bits of its input too few
HEAD = r".*network\.network\.1\..*"


def measured(folder: Path, info: dict[str, Any], samples: list[Sample], cache: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    """What info.json says of `fast`, where this processor has 16 bits, and of `int8`, which is made on the way. Raises Cancelled.

    `folder` holds the safetensors; int8.xml and int8.bin are written into it, and stay only if they are offered.
    """
    exact, fast = (engines.load(folder, precision, cache) for precision in ("exact", "fast"))
    forms = {"fast": replace(fast, judge=None)} if fast.judge else {}
    why = _quantise(folder, info, samples, progress)
    if not why:
        forms["int8"] = engines.quantised(folder, info)
    found = _judged(info, exact, forms, [s for s in samples if s.valid], progress) | (
        {"int8": {"offered": False, "why": why}} if why else {}
    )
    if not found["int8"]["offered"]:
        for file in folder.glob("int8.*"):
            file.unlink()
    return found


def _quantise(folder: Path, info: dict[str, Any], samples: list[Sample], progress: Progress) -> str:
    """Write the 8-bit form; a sentence when it cannot be made."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as in worker/classifying/engines.py
    try:
        import nncf
        import openvino
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        return f"The package {error.name} is not installed where this model was trained."
    nncf.set_log_level("ERROR")
    training = _spread([s for s in samples if not s.valid], CALIBRATION)
    try:
        model = nncf.quantize(
            engines.convert(folder, info),
            nncf.Dataset(_Images(training, info, progress)),
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
        return f"{info['arch']} could not be quantised: {str(error).strip().splitlines()[0][:200]}"
    return ""


def _judged(
    info: dict[str, Any], exact: Engine, forms: dict[str, Engine], valid: list[Sample], progress: Progress
) -> dict[str, dict[str, Any]]:
    judged = _spread(valid, JUDGED)
    wrong: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    lead: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    for start in range(0, len(judged), exact.batch):
        progress.check()
        some = judged[start : start + exact.batch]
        labels = exact(exact.stack([_pixels(sample, info) for sample in some])).argmax(axis=1)
        quick = np.stack([_pixels(sample, info, exact=False) for sample in some])
        for name, engine in forms.items():
            found = engine(quick)
            wrong[name].append(found.argmax(axis=1) != labels)
            lead[name].append(engines.leads(found))
    return {name: told(np.concatenate(wrong[name]), np.concatenate(lead[name]), info["temperature"]) for name in forms}


def told(wrong: np.ndarray, lead: np.ndarray, temperature: float = 1.0) -> dict[str, Any]:
    """What info.json says of a form, from (N,) bool, whether its label is another than the exact one, and (N,) its leads, nats.

    `{"offered": bool, "agreement": share of equal labels, "images": N, "close": lead, "twice": share of images looked at twice}`,
    with the smallest lead that brings the labels to what is wanted, or the best of those that do not look twice too often.
    """

    def with_second_look(close: float) -> dict[str, float]:
        agreement, twice = 1 - float((wrong & (lead >= close)).mean()), float((lead < close).mean())
        return {"agreement": round(agreement, 4), "close": close, "twice": round(twice, 4)}

    leads = [round(nats / temperature, 5) for nats in LEADS]
    affordable = [found for found in map(with_second_look, leads) if found["twice"] <= MOST_TWICE]
    chosen = max(affordable, key=lambda found: (min(found["agreement"], WANTED), -found["close"]))
    return {"offered": chosen["agreement"] >= ENOUGH, "images": len(wrong), **chosen}


class _Images:
    """Training images as the network sees them, one at a time; NNCF goes through them more than once."""

    def __init__(self, samples: list[Sample], info: dict[str, Any], progress: Progress) -> None:
        self.samples, self.info, self.progress = samples, info, progress

    def __iter__(self) -> Iterator[np.ndarray]:
        for sample in self.samples:
            self.progress.check()
            yield _pixels(sample, self.info)[None]


def _pixels(sample: Sample, info: dict[str, Any], exact: bool = True) -> np.ndarray:
    """What a batch would make of the file as it is on storage."""
    return look(sample.original.read_bytes(), info["image_size"], exact, sys.maxsize, info["resize"])[0]


def _spread(samples: list[Sample], most: int) -> list[Sample]:
    """At most so many of them, evenly spread."""
    return samples[:: -(-len(samples) // most)] if samples else []
