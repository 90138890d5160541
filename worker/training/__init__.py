"""Training: a dataset version and a TrainSpec in, a model version out.

`pictures.py` makes local files of the images, `recipe.py` builds fastai's learner, `weights.py` finds the ImageNet
weights, `live.py` tells how far it is, `report.py` looks at what came out, `precisions.py` makes the 8-bit form and
measures the quicker ones. Nothing is published before all of it exists.
"""

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastai.learner import Learner
from safetensors.torch import save_file

from shared import datasets
from shared.errors import DarkroomError
from shared.settings import Settings
from shared.specs import TrainSpec
from shared.storage import Storage
from worker.progress import Progress
from worker.training.live import Live
from worker.training.pictures import Sample, samples_of
from worker.training.precisions import measured
from worker.training.recipe import build_learner, effective_batch_size, fit, mixes, normalisation
from worker.training.report import evaluate
from worker.training.weights import Origin, class_remarks, origin_of, weights_file

LIBRARIES = ("torch", "torchvision", "fastai", "openvino", "nncf")


def train(spec: TrainSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Train a model and publish it as the next version; returns {model, version, error_rate, train_seconds}.

    Raises Cancelled, and DarkroomError for a dataset that cannot be learned from, missing weights, too little memory, or a
    loss that is no number. In each of these cases nothing is published and no file stays.
    """
    progress.update(phase="preparing")
    dataset = datasets.info(storage, spec.dataset, spec.version)
    samples = samples_of(spec, dataset["version"], storage, settings, progress)
    with _told_when_memory_runs_out(spec):
        origin = origin_of(spec, storage)
        learner = build_learner(spec, samples, origin)
        live = Live(progress, spec, learner.dls)
        started = time.monotonic()
        fit(learner, spec, live)
        seconds = round(time.monotonic() - started, 1)
        progress.update(phase="evaluating")
        report = {**evaluate(learner, [s for s in samples if s.valid], progress), **live.history()}
    made = {"train_seconds": seconds, "device": live.device, "mixed_precision": mixes(spec, learner.dls.device)}
    info = _info(spec, job, dataset, samples, report, origin) | made
    version = _publish(learner, samples, report, info, storage, settings, progress)
    return {"model": info["model"], "version": version, "error_rate": report["error_rate"], "train_seconds": seconds}


@contextmanager
def _told_when_memory_runs_out(spec: TrainSpec) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has a class for CUDA alone
        if str(error).startswith("DataLoader worker"):
            raise DarkroomError(
                "A process that reads images for training was ended. Usually the machine ran out of memory, or of shared memory (/dev/shm)."
            ) from error
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise DarkroomError(
            f"The device has not enough memory for batches of {spec.batch_size} images of {spec.image_size} pixels. "
            "Choose a smaller batch size or a smaller image size."
        ) from None


def _info(
    spec: TrainSpec, job: str, dataset: dict[str, Any], samples: list[Sample], report: dict[str, Any], origin: Origin | None
) -> dict[str, Any]:
    """What info.json says; its keys are those of `shared.models.info`, and what is needed to see as training validated."""
    mean, std = normalisation(spec, origin) or (None, None)
    training = [s for s in samples if not s.valid]
    batch_size = effective_batch_size(spec, training)
    return {
        "model": spec.model or spec.dataset,
        "created": time.time(),
        "job": job,
        "arch": spec.arch,
        "weights": weights_file(spec.arch).name if spec.start == "imagenet" else None,
        "classes": report["classes"],
        "image_size": spec.image_size,
        "mean": mean,
        "std": std,
        "batch_size": batch_size,
        "remarks": [*_remarks(spec, batch_size), *(class_remarks(report["classes"], origin) if origin else [])],
        "spec": spec.model_dump(),
        "dataset": {"name": spec.dataset, "version": dataset["version"], "hash": dataset["hash"], "images": len(samples)},
        "parent": spec.parent or (origin.ref if origin else None),
        "error_rate": report["error_rate"],
        "train_images": len(training),
        "valid_images": len(samples) - len(training),
        "epochs": report["epochs"],
        "libraries": {d.name: d.version for d in importlib.metadata.distributions() if d.name in LIBRARIES},
    }


def _remarks(spec: TrainSpec, batch_size: int) -> list[str]:
    if batch_size == spec.batch_size:
        return []
    return [f"There are only {batch_size} images to train on, so the batch size was {batch_size} instead of {spec.batch_size}."]


def _publish(
    learner: Learner,
    samples: list[Sample],
    report: dict[str, Any],
    info: dict[str, Any],
    storage: Storage,
    settings: Settings,
    progress: Progress,
) -> int:
    cache = settings.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=cache) as name:
        folder = Path(name)
        progress.update(phase="saving")
        learner.model.to(memory_format=torch.contiguous_format)  # as fastai leaves it, whatever training found quicker
        learner.export(folder / "export.pkl")
        # contiguous, for safetensors writes no views
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in learner.model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "report.json").write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
        (folder / "info.json").write_text(json.dumps(info), encoding="utf-8")  # what the engines read; the published one comes last
        progress.update(phase="quantising")
        info |= measured(folder, info, samples, cache, progress)
        (folder / "info.json").unlink()
        progress.check()  # the last moment at which a cancel leaves nothing
        return storage.publish_version(f"models/{info['model']}", folder, info)
