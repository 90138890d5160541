"""What a training starts from: published weights, in the cache of torch or of the Hugging Face hub or downloaded into it, or a model of ours.

Never silently none. torchvision's weights are pickles, opened only as far as tensors go; timm's are taken as safetensors, and from nothing else.
"""

import http.client
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from fastai.vision.learner import model_meta
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import WeightsEnum

from shared import models
from shared.errors import DarkroomError
from shared.specs import ARCHITECTURES, TrainSpec
from shared.storage import Storage

PATIENCE = 20.0  # seconds without a byte before a download is given up
SAFETENSORS = "model.safetensors"  # what the hub calls them


def weights_of(arch: str) -> WeightsEnum:
    """The torchvision weights that fastai starts from."""
    found = torchvision.models.get_model_weights(arch)
    known = getattr(torchvision.models, arch) in model_meta
    # networks that fastai has no entry for are built with torchvision's older `pretrained=True`, which means these
    return found.DEFAULT if known else found.IMAGENET1K_V1  # type: ignore[attr-defined]


def weights_file(arch: str) -> Path:
    """Where torch keeps the weights: under TORCH_HOME, or ~/.cache/torch."""
    return Path(torch.hub.get_dir()).absolute() / "checkpoints" / weights_of(arch).url.rsplit("/", 1)[-1]


def weights_name(arch: str) -> str:
    """What info.json calls the weights: torchvision's file, or where timm's are on the hub."""
    return weights_file(arch).name if arch in ARCHITECTURES else str(_hub(arch))


def timm_stats(arch: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in [0, 1], that timm's weights were trained with."""
    known = timm.get_pretrained_cfg(arch)
    return list(known.mean), list(known.std)


def fetch_weights(arch: str) -> Path:
    """Make sure that the weights are on this machine, and say where. Raises DarkroomError with what to do when they are not."""
    return _fetch_torchvision(arch) if arch in ARCHITECTURES else _fetch_timm(arch)


def _fetch_torchvision(arch: str) -> Path:
    """Its file: torch downloads into a file beside it, compares the hash, and renames: a half file never has the name."""
    path = weights_file(arch)
    there = path.exists()
    try:
        with _patience():
            # tensors and nothing else: whatever would run code is refused here, before the network's own loader reads the file again
            weights_of(arch).get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, http.client.HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        if there:
            raise DarkroomError(
                f"The file {path} does not hold the ImageNet weights of {arch}. Delete it and put a good one there."
            ) from error
        raise DarkroomError(
            f"The ImageNet weights of {arch} are not on this machine and could not be downloaded ({error}). "
            f"Put the file {path.name} at {path}, or train from scratch (`--start scratch`)."
        ) from error
    return path


def _fetch_timm(arch: str) -> Path:
    """The hub's client has a cache of its own (HF_HOME), time limits, and gives up after some tries."""
    repository = _hub(arch)
    if repository is None:
        raise DarkroomError(f"The weights of {arch} are published as a pickle alone, which Darkroom does not open. Choose another network.")
    try:
        path = Path(hf_hub_download(repository, SAFETENSORS, token=False, etag_timeout=PATIENCE / 2))
        load_file(path)
    except SafetensorError as error:
        raise DarkroomError(f"The file {path} cannot be read as safetensors ({error}). Delete it and put a good one there.") from error
    except (OSError, HfHubHTTPError) as error:
        raise DarkroomError(
            f"The weights of {arch} are not on this machine and could not be downloaded: {str(error).strip().splitlines()[0]} "
            f"Fetch them where there is internet, with `hf download {repository} {SAFETENSORS}`, and copy the folder that HF_HOME names "
            f"(else ~/.cache/huggingface), or train from scratch (`--start scratch`)."
        ) from error
    return path


def _hub(arch: str) -> str | None:
    """Where timm's weights are on the hub."""
    return timm.get_pretrained_cfg(arch).hf_hub_id  # type: ignore[no-any-return]


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
    remarks = [f"New since {origin.ref}, and so learned from nothing: {named(new)}."] if new else []
    return [*remarks, *([f"In {origin.ref} but not in this dataset, and so forgotten: {named(gone)}."] if gone else [])]


def named(labels: list[str]) -> str:
    """The classes in a sentence, at most ten by name."""
    return ", ".join(map(repr, labels[:10])) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
