"""A trained network, rebuilt from info.json and safetensors: no pickle is ever opened.

It sees an image exactly as training validated on it: fastai's own transform, and the normalisation that info.json names.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from fastai.vision.augment import RandomResizedCrop
from fastai.vision.core import image2tensor
from fastai.vision.learner import create_vision_model
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.errors import DarkroomError
from shared.specs import ARCHITECTURES


@dataclass(frozen=True)
class Network:
    """A network ready to classify. `mean` and `std` are (1, 3, 1, 1) float32 on `device`, or None."""

    model: torch.nn.Module
    classes: list[str]
    image_size: int
    device: torch.device
    mean: torch.Tensor | None
    std: torch.Tensor | None

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """An upright RGB image -> (3, S, S) uint8: fastai's validation-time resize and centre crop. Any thread may call it."""
        crop = RandomResizedCrop(self.image_size)  # one a call: it keeps the size of the image it is working on
        return torch.Tensor(image2tensor(crop(image, split_idx=1))).to(torch.uint8)

    @torch.inference_mode()
    def probabilities(self, batch: torch.Tensor) -> np.ndarray:
        """(N, 3, S, S) uint8 -> (N, C) float32, each row summing to 1. Raises torch.OutOfMemoryError."""
        pixels = batch.to(self.device).contiguous(memory_format=torch.channels_last).float().div_(255)
        if self.mean is not None:
            pixels = (pixels - self.mean) / self.std
        return self.model(pixels).softmax(dim=1).cpu().numpy()  # type: ignore[no-any-return]


def load_network(folder: Path) -> Network:
    """The network of a model version's local folder, in eval mode, on the GPU if there is one.

    Raises DarkroomError when info.json or model.safetensors is missing or damaged, or when they do not fit each other.
    """
    info = _read_info(folder / "info.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fastai builds some networks in a way that torchvision has deprecated
        model = create_vision_model(getattr(torchvision.models, info["arch"]), len(info["classes"]), pretrained=False)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, SafetensorError) as error:
        raise DarkroomError(f"The weights {folder / 'model.safetensors'} cannot be read: {error}. Train the model again.") from None
    except RuntimeError:  # its message is a page of layer names
        raise DarkroomError(
            f"The weights in {folder} do not fit {info['arch']} with {len(info['classes'])} classes, which its info.json asks for. Train the model again."
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (_channels(info[key], device) for key in ("mean", "std"))
    return Network(model.eval().to(device, memory_format=torch.channels_last), info["classes"], info["image_size"], device, mean, std)


def _read_info(path: Path) -> dict[str, Any]:
    """The info, with only what may be built from it. Raises DarkroomError."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DarkroomError(f"The model's {path} cannot be read: {error}.") from None
    if info.get("arch") not in ARCHITECTURES:
        raise DarkroomError(
            f"The model in {path.parent} has the architecture {info.get('arch')!r}, which is none of {', '.join(ARCHITECTURES)}."
        )
    missing = [key for key in ("classes", "image_size", "mean", "std") if key not in info]
    if missing:
        raise DarkroomError(f"The model's {path} does not say {', '.join(missing)}. Train the model again.")
    return info  # type: ignore[no-any-return]


def _channels(values: list[float] | None, device: torch.device) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
