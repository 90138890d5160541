"""Importing a model: model.safetensors and info.json of another installation in, a model version out.

Both files are hostile until proven otherwise. `shared.weights` has looked at them from outside; here they are held against each other, the
cheapest first: names, shapes and types, with a network that takes no memory, then the numbers, then what comes out for an image.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shared import models, weights
from shared.errors import DarkroomError
from shared.settings import Settings
from shared.specs import AdoptSpec
from shared.storage import Storage, versions
from shared.weights import ModelInfo
from worker.classifying.network import build, check_image_size, load_network
from worker.progress import Progress

FILES = ("model.safetensors", "info.json")
NO_INT8 = "The 8-bit form is made when a model is trained, and this one was imported."
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
NAMED = 3  # layers in an error


def adopt(spec: AdoptSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Publish an uploaded model as the next version of its name; returns {model, version}.

    Raises Cancelled, and Invalid or DarkroomError with the reason why the files are no model that Darkroom can use. What was uploaded is
    deleted, unless the job was cancelled.
    """
    for version in versions(storage, f"models/{spec.model}"):  # a worker that died right after it had published
        if models.info(storage, spec.model, version).get("job") == job:
            return {"model": spec.model, "version": version}
    progress.update(phase="checking")
    try:
        version = _checked_and_published(spec, job, storage, settings, progress)
    except DarkroomError:  # no second look will find them better
        _forget(spec, storage)
        raise
    _forget(spec, storage)
    return {"model": spec.model, "version": version}


def _checked_and_published(spec: AdoptSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> int:
    told = weights.read_info(storage.read(weights.key(spec.upload, "info.json")))
    path = storage.local(weights.key(spec.upload, "model.safetensors"))
    with path.open("rb") as file:
        tensors = weights.check_safetensors(file, path.stat().st_size)
    check_layers(told, tensors)
    info = _info(spec.model, job, told)
    cache = settings.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="adopting-", dir=cache) as name:
        folder = Path(name)
        (folder / "model.safetensors").symlink_to(path.absolute())
        progress.check()
        check_numbers(folder, info)
        progress.update(phase="publishing")
        return storage.publish_version(f"models/{spec.model}", folder, info)


def _forget(spec: AdoptSpec, storage: Storage) -> None:
    for file in FILES:
        storage.delete(weights.key(spec.upload, file))


def check_layers(told: ModelInfo, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raises DarkroomError unless a file's header names just the tensors of the network that info.json asks for. No number is read."""
    with torch.device("meta"):
        network = build(told.arch, len(told.classes), told.image_size)
    wanted = {name: (value.dtype, tuple(value.shape)) for name, value in network.state_dict().items()}
    found = {name: (DTYPES.get(dtype), shape) for name, (dtype, shape) in tensors.items()}
    asked = f"a {told.arch} with {len(told.classes)} classes and images of {told.image_size} pixels, which info.json asks for"
    for names, what in ((wanted.keys() - found.keys(), "lacks"), (found.keys() - wanted.keys(), "holds what is not of it:")):
        if names:
            raise DarkroomError(
                f"The weights do not fit {asked}: the file {what} {_some(names)}. Take both files from the same model version."
            )
    if names := {name for name in wanted if wanted[name][1] != found[name][1]}:
        raise DarkroomError(
            f"The weights do not fit {asked}: {_some(names)} has another shape. Take both files from the same model version."
        )
    if names := {name for name in wanted if wanted[name][0] != found[name][0]}:
        raise DarkroomError(
            f"The weights have numbers of another type than Darkroom's, in {_some(names)}. Save them as float32 (`model.float()`)."
        )


def check_numbers(folder: Path, info: dict[str, Any]) -> None:
    """Raises DarkroomError unless every weight is a finite number and the network makes probabilities of an image."""
    if names := {name for name, value in load_file(folder / "model.safetensors").items() if not bool(torch.isfinite(value).all())}:
        raise DarkroomError(
            f"The weights hold values that are no finite numbers, in {_some(names)}. Train the model again where it comes from."
        )
    network = load_network(folder, info)
    size = info["image_size"]
    check_image_size(network.network, info["arch"], size)
    with torch.inference_mode():
        pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 255
        probabilities = network(pixels).softmax(dim=1)
    if not bool(torch.isfinite(probabilities).all()):
        raise DarkroomError("The network answers with values that are no numbers. Train the model again where it comes from.")


def _some(names: set[str]) -> str:
    """A few names of layers; they come from a stranger, and are cut short."""
    shown = ", ".join(json.dumps(name[:80]) for name in sorted(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _info(name: str, job: str, told: ModelInfo) -> dict[str, Any]:
    """What info.json says of an imported model: what was taken over, and nothing of what is not known."""
    now = time.time()
    known = {field: getattr(told, field) for field in ("arch", "classes", "image_size", "resize", "mean", "std")}
    carried = {"temperature": told.temperature, "fast": told.fast.model_dump() if told.fast else None}
    came = {field: getattr(told, field) for field in ("model", "version", "error_rate", "created")}
    return {
        "model": name,
        "created": now,
        "job": job,
        **known,
        **_given(carried),
        "int8": {"offered": False, "why": NO_INT8},
        "imported": {"at": now, "job": job, "from": _given(came)},
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
