"""ImageNet weights: in torch's own cache, or downloaded into it, or a sentence. Never silently none."""

import http.client
import pickle
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torchvision
from fastai.vision.learner import model_meta
from torchvision.models import WeightsEnum

from shared.errors import DarkroomError

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
            f"Put the file {path.name} at {path}, or train from scratch with `pretrained` off."
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
