"""Training: a dataset version and a TrainSpec in, a model version out.

`pictures.py` makes local files of the images, `recipe.py` builds fastai's learner, `weights.py` finds the ImageNet
weights, `memory.py` keeps what a batch frees for the next, `live.py` tells how far it is, `checkpoints.py` keeps each epoch, `report.py` looks at what came out, `temperature.py` corrects how sure it is,
`suspects.py` finds labels that may be wrong, `precisions.py` makes the 8-bit form and
measures the quicker ones. Nothing is published before all of it exists.
"""

import gc
import importlib.metadata
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from safetensors.torch import save_file

from shared import datasets
from shared.errors import DarkroomError
from shared.settings import Settings
from shared.specs import TrainSpec
from shared.storage import Storage
from worker.classifying.network import takes_any_size
from worker.progress import Progress
from worker.training import checkpoints, memory
from worker.training.checkpoints import Checkpoint, Keep, Standing
from worker.training.live import Live, Watch
from worker.training.pictures import Sample, alike_remarks, samples_of
from worker.training.precisions import measured
from worker.training.recipe import build_learner, find_rate, fit, mixes, normalisation
from worker.training.report import Rows, evaluate, report_of
from worker.training.suspects import suspects_of
from worker.training.weights import Origin, class_remarks, origin_of, weights_name

READER_DEATHS = 2  # after which more of them say that the machine cannot do it
SMALLEST_BATCH = 2  # batch normalisation needs two images
LIBRARIES = ("torch", "torchvision", "fastai", "timm", "openvino", "nncf")


def train(spec: TrainSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Train a model and publish it as the next version; returns {model, version, error_rate, train_seconds}.

    It goes on from the job's own checkpoint if there is one, else from that of the job that the spec continues. When the device
    runs out of memory the batch is halved. Raises Cancelled, and DarkroomError for a dataset that cannot be learned from,
    missing weights, too little memory, or a loss that is no number. In each of these cases no model is published, no temporary
    file stays, and the checkpoint of the last epoch does.
    """
    progress.update(phase="preparing")
    if spec.gpus > 1:
        from worker.training.several import check_machine  # here, for its processes import this module

        check_machine(spec.gpus, torch.cuda.device_count() if torch.cuda.is_available() else 0, len(os.sched_getaffinity(0)))
    dataset = datasets.info(storage, spec.dataset, spec.version)
    samples = samples_of(spec, dataset["version"], storage, settings, progress)
    origin = origin_of(spec, storage)
    storage.clear_unfinished(f"checkpoints/{job}")  # of a process that was killed while it wrote
    kept = checkpoints.found(storage, job, spec)
    batch_size = kept.standing.batch_size if kept else spec.batch_size
    deaths = 0
    while True:
        try:
            fitted = _fit(spec, batch_size, job, samples, origin, kept, storage, settings, progress)
            break
        except RuntimeError as error:
            if str(error).startswith("DataLoader worker") and deaths < READER_DEATHS:
                deaths, remark = deaths + 1, "A process that reads images was ended; training went on from its last finished epoch."
            else:
                batch_size = _halved(error, spec, batch_size)
                remark = _halving(spec, batch_size)
        progress.update(remark=remark)
        _let_go()
        kept = checkpoints.found(storage, job, spec)
    info = _info(spec, job, dataset, samples, fitted.report, origin) | fitted.made
    info["remarks"] += alike_remarks(datasets.rows(storage, spec.dataset, dataset["version"]))
    version = _publish(fitted, samples, info, storage, settings, progress)
    return {"model": info["model"], "version": version, "error_rate": info["error_rate"], "train_seconds": info["train_seconds"]}


@dataclass(frozen=True)
class Fitted:
    """What comes out of training: the learner, what info.json says of the run, the report, and what it says of each validation image."""

    learner: Learner
    made: dict[str, Any]
    report: dict[str, Any]
    rows: Rows


def _fit(
    spec: TrainSpec,
    batch_size: int,
    job: str,
    samples: list[Sample],
    origin: Origin | None,
    kept: Checkpoint | None,
    storage: Storage,
    settings: Settings,
    progress: Progress,
) -> Fitted:
    """Train to the end and evaluate."""
    learner = build_learner(spec.model_copy(update={"batch_size": batch_size}), samples, origin)
    standing = kept.standing if kept else Standing(batch_size)
    standing.batch_size = batch_size
    if spec.gpus > 1 and not standing.over:
        from worker.training import several

        kept = several.fit(several.Order(spec, job, samples, standing, settings), storage, progress)
        standing = kept.standing
    live, keep = learn(learner, spec, job, kept, standing, storage, progress)
    progress.update(phase="evaluating")
    learner.dls.valid.bs //= spec.gpus  # what one of them had before it, as it may be as much as fits
    if spec.keep_best and standing.best < len(standing.rows):
        learner.model.load_state_dict(keep.best)
    learner.loss_func = CrossEntropyLossFlat()  # the loss of an image is the same whatever the training smoothed and weighted
    rows, probabilities, calibration = evaluate(learner, [s for s in samples if s.valid], progress)
    report = {**report_of(list(learner.dls.vocab), rows, calibration), **live.history(), "lr_curve": standing.lr_curve}
    report["suspects"] = suspects_of(report["classes"], rows, probabilities)
    report["best_epoch"] = standing.best if spec.keep_best else len(standing.rows)
    training = [s for s in samples if not s.valid]
    made = {
        "train_seconds": round(sum(row["seconds"] for row in standing.rows), 1),
        "device": live.device,
        "mixed_precision": mixes(spec, learner.dls.device),
        "gpus": spec.gpus,
        "base_lr": standing.base_lr or spec.base_lr,
        "batch_size": learner.dls.train.bs,
        "best_epoch": report["best_epoch"],
        "temperature": calibration["temperature"],
        "remarks": [
            *([_halving(spec, batch_size)] if batch_size < spec.batch_size else _few(spec, len(training))),
            *(class_remarks(report["classes"], origin) if origin else []),
        ],
    }
    return Fitted(learner, made, report, rows)


@memory.kept()
def learn(
    learner: Learner,
    spec: TrainSpec,
    job: str,
    kept: Checkpoint | None,
    standing: Standing,
    storage: Storage | None,
    progress: Progress,
) -> tuple[Live, Keep]:
    """Train from where `standing` is to the end of the spec's epochs. `storage`: None where another of several processes writes."""
    if kept:
        checkpoints.put_weights_back(learner, kept)
    if spec.find_lr and not standing.epochs:
        progress.update(phase="finding the learning rate")
        standing.base_lr, standing.lr_curve = find_rate(learner, spec, Watch(progress))
    # more epochs of a finished training are all in full size
    grows = spec.progressive and not standing.earlier and takes_any_size(spec.arch)
    recipe = spec.model_copy(update={"base_lr": standing.base_lr or spec.base_lr, "progressive": grows})
    live = Live(progress, recipe, learner.dls, standing)
    keep = Keep(storage, job, spec, standing, kept, progress)
    fit(learner, recipe, live, keep)
    return live, keep


def _halved(error: RuntimeError, spec: TrainSpec, batch_size: int) -> int:
    """Half a batch, if too little memory was the error; any other is raised again, or told. torch has a class for CUDA alone."""
    if str(error).startswith("DataLoader worker"):
        raise DarkroomError(
            f"Processes that read images for training were ended, {READER_DEATHS + 1} times. Usually the machine ran out of memory, or of shared memory (/dev/shm)."
        ) from error
    if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
        raise error
    if batch_size < 2 * SMALLEST_BATCH * spec.gpus:
        raise DarkroomError(
            f"The device has not enough memory even for batches of {batch_size} images of {spec.image_size} pixels. Choose a smaller image size."
        ) from None
    return batch_size // 2


def _let_go() -> None:
    """Give memory back that an attempt has used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _halving(spec: TrainSpec, batch_size: int) -> str:
    return f"The device ran out of memory with batches of {2 * batch_size} images, so the batch size was {batch_size} instead of {spec.batch_size}."


def _few(spec: TrainSpec, images: int) -> list[str]:
    if images >= spec.batch_size:
        return []
    return [f"There are only {images} images to train on, so the batch size was {images} instead of {spec.batch_size}."]


def _info(
    spec: TrainSpec, job: str, dataset: dict[str, Any], samples: list[Sample], report: dict[str, Any], origin: Origin | None
) -> dict[str, Any]:
    """What info.json says; its keys are those of `shared.models.info`, and what is needed to see as training validated."""
    mean, std = normalisation(spec, origin) or (None, None)
    training = [s for s in samples if not s.valid]
    return {
        "model": spec.model or spec.dataset,
        "created": time.time(),
        "job": job,
        "arch": spec.arch,
        "weights": weights_name(spec.arch) if spec.start == "imagenet" else None,
        "classes": report["classes"],
        "image_size": spec.image_size,
        "resize": spec.resize,
        "mean": mean,
        "std": std,
        "spec": spec.model_dump(),
        "dataset": {"name": spec.dataset, "version": dataset["version"], "hash": dataset["hash"], "images": len(samples)},
        "parent": spec.parent or (origin.ref if origin else None),
        "error_rate": report["error_rate"],
        "train_images": len(training),
        "valid_images": len(samples) - len(training),
        "test_images": dataset["images"] - len(samples),  # that its import keeps for tests: neither trained nor validated on
        "epochs": report["epochs"],
        "libraries": {d.name: d.version for d in importlib.metadata.distributions() if d.name in LIBRARIES},
    }


def _publish(
    fitted: Fitted,
    samples: list[Sample],
    info: dict[str, Any],
    storage: Storage,
    settings: Settings,
    progress: Progress,
) -> int:
    cache = settings.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="training-", dir=cache) as name:
        folder = Path(name)
        learner = fitted.learner
        progress.update(phase="saving")
        learner.model.to(memory_format=torch.contiguous_format)  # as fastai leaves it, whatever training found quicker
        learner.export(folder / "export.pkl")
        # contiguous, for safetensors writes no views
        save_file(
            {key: value.detach().cpu().contiguous() for key, value in learner.model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "report.json").write_text(json.dumps(fitted.report, ensure_ascii=False), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(fitted.rows), folder / "validation.parquet", compression="zstd")
        (folder / "info.json").write_text(json.dumps(info), encoding="utf-8")  # what the engines read; the published one comes last
        progress.update(phase="quantising")
        info |= measured(folder, info, samples, cache, progress)
        (folder / "info.json").unlink()
        progress.check()  # the last moment at which a cancel leaves nothing
        return storage.publish_version(f"models/{info['model']}", folder, info)
