"""What a training starts from: ImageNet weights, in torch's own cache or downloaded into it, or a model of ours. Never silently none."""

import http.client
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from fastai.vision.learner import model_meta
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import WeightsEnum

from shared import models
from shared.errors import DarkroomError
from shared.specs import TrainSpec
from shared.storage import Storage

PATIENCE = 20.0  # seconds without a byte before a download is given up


def weights_of(arch: str) -> WeightsEnum:
    """The torchvision weights that fastai starts from."""
    found = torchvision.models.get_model_weights(arch)
    known = getattr(torchvision.models, arch) in model_meta
    # networks that fastai has no entry for are built with torchvision's older `pretrained=True`, which means these
    return found.DEFAULT if known else found.IMAGENET1K_V1  # type: ignore[attr-defined]


def weights_file(arch: str) -> Path:
    """Where torch keeps the weights: under TORCH_HOME, or ~/.cache/torch."""
    return Path(torch.hub.get_dir()).absolute() / "checkpoints" / weights_of(arch).url.rsplit("/", 1)[-1]


def fetch_weights(arch: str) -> None:
    """Make sure that the weights are in torch's cache. Raises DarkroomError with what to do when they are not.

    torch downloads into a file beside it, compares the hash, and renames: a half file never has the name.
    """
    path = weights_file(arch)
    there = path.exists()
    try:
        with _patience():
            weights_of(arch).get_state_dict(progress=False, check_hash=True)
    except (OSError, http.client.HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        if there:
            raise DarkroomError(
                f"The file {path} does not hold the ImageNet weights of {arch}. Delete it and put a good one there."
            ) from error
        raise DarkroomError(
            f"The ImageNet weights of {arch} are not on this machine and could not be downloaded ({error}). "
            f"Put the file {path.name} at {path}, or train from scratch (`--start scratch`)."
        ) from error


@contextmanager
def _patience() -> Iterator[None]:
    """A time limit for a download, for torch has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@dataclass(frozen=True)
class Origin:
    """A model of ours that a training starts from: its info, and its weights by name."""

    info: dict[str, Any]
    weights: dict[str, torch.Tensor]

    @property
    def ref(self) -> str:
        """The model as a spec names it."""
        return f"{self.info['model']}/v{self.info['version']}"


def origin_of(spec: TrainSpec, storage: Storage) -> Origin | None:
    """The model that the spec starts from, if it does. Raises NotFound, and DarkroomError when it has another architecture."""
    if not spec.from_model:
        return None
    name, version = models.resolve(storage, spec.start)
    info = models.info(storage, name, version)
    models.check_start(info, spec.arch)
    path = storage.local(models.key(name, version, "model.safetensors"))
    try:
        return Origin(info, load_file(path))
    except (OSError, SafetensorError) as error:
        raise DarkroomError(f"The weights of {spec.start} cannot be read: {error}. Start from another model.") from None


def last_linear(network: torch.nn.Module) -> str:
    """The name of the layer that a network's logits come from: every one of ours ends in fastai's head."""
    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)][-1]


def take_over(network: torch.nn.Module, classes: list[str], origin: Origin) -> None:
    """Give a network the weights of another. What the last layer knows of a class follows the class; new classes stay as they are.

    The temperature that was folded into the last layer is taken out: training goes on from what training had reached.
    Raises DarkroomError when the weights do not fit.
    """
    weights = dict(origin.weights)
    last = last_linear(network)
    place = {label: i for i, label in enumerate(origin.info["classes"])}
    for key, fresh in network.state_dict().items():
        if key.rpartition(".")[0] == last and key in weights:
            known = weights[key] * origin.info.get("temperature", 1.0)
            weights[key] = torch.stack([known[place[label]] if label in place else fresh[i].cpu() for i, label in enumerate(classes)])
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError:  # its message is a page of layer names
        raise DarkroomError(f"The weights of {origin.ref} do not fit its info.json. Start from another model.") from None


def class_remarks(classes: list[str], origin: Origin) -> list[str]:
    """What a person should know when a model is trained on other classes than the one it started from."""
    new = [label for label in classes if label not in origin.info["classes"]]
    gone = [label for label in origin.info["classes"] if label not in classes]
    remarks = [f"New since {origin.ref}, and so learned from nothing: {_named(new)}."] if new else []
    return [*remarks, *([f"In {origin.ref} but not in this dataset, and so forgotten: {_named(gone)}."] if gone else [])]


def _named(labels: list[str]) -> str:
    return ", ".join(map(repr, labels[:10])) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
