"""A trained network, rebuilt from info.json and safetensors: no pickle is ever opened."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torchvision
from fastai.vision.learner import create_vision_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.errors import DarkroomError


class Normalised(torch.nn.Module):
    """A network behind the normalisation that its training used: (N, 3, S, S) of 0 to 255 -> logits."""

    def __init__(self, network: torch.nn.Module, mean: list[float] | None, std: list[float] | None) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean or [0.0] * 3).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * 3).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) of 0 to 255, of the network's own dtype -> (N, C) logits."""
        return self.network((pixels / 255 - self.mean) / self.std)  # type: ignore[no-any-return]


def load_network(folder: Path, info: dict[str, Any]) -> Normalised:
    """The network of a model version's local folder, in eval mode, on the processor. `info`: its info.json, checked.

    Raises DarkroomError when the weights are missing or damaged, or do not fit the info.
    """
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
    return Normalised(model, info["mean"], info["std"]).eval()
