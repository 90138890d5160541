"""Networks by name, and a trained one rebuilt from info.json and safetensors: no pickle is ever opened.

A name is torchvision's if it is one of `ARCHITECTURES`, and timm's otherwise; both get fastai's head. Training builds its network here, too,
so that what is rebuilt is what was trained.
"""

import warnings
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from fastai.vision.learner import TimmBody, add_head, create_vision_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from shared.errors import DarkroomError
from shared.specs import ARCHITECTURES


def build(arch: str, classes: int, image_size: int) -> torch.nn.Module:
    """A network of a known architecture with random weights, (N, 3, S, S) normalised -> (N, C) logits. Raises DarkroomError.

    `image_size`: S; networks of a fixed size are built for it, the others take any.
    """
    if arch not in ARCHITECTURES:
        return build_timm(arch, classes, image_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fastai builds some networks in a way that torchvision has deprecated
        return create_vision_model(getattr(torchvision.models, arch), classes, pretrained=False)  # type: ignore[no-any-return]


def build_timm(arch: str, classes: int, image_size: int, weights: Path | None = None) -> torch.nn.Module:
    """One of timm's networks with fastai's head, as `fastai.vision.learner.create_timm_model` puts it on. Raises DarkroomError.

    `weights`: a file of safetensors for the body; None: random ones. What timm gives out as (N, H, W, C), such as Swin's, fastai would pool
    the wrong way, so that such a network pools itself.
    """
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(weights)}} if weights else {}
    known = timm.get_pretrained_cfg(arch)
    if known.fixed_input_size and image_size != known.input_size[-1]:
        options["img_size"] = image_size
    try:
        model = timm.create_model(arch, pretrained=weights is not None, num_classes=0, in_chans=3, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise misfit(arch, image_size) from None
    except (AssertionError, ValueError, ZeroDivisionError):
        raise misfit(arch, image_size) from None
    model.pretrained_cfg.pop("file", None)  # a path of this machine, which would go into the export
    body = TimmBody(model, weights is not None)
    body.needs_pool = body.needs_pool and str(getattr(model, "output_fmt", "NCHW")).endswith("NCHW")
    features = model.num_features if body.needs_pool else getattr(model, "head_hidden_size", model.num_features)
    return add_head(body, features, classes, pool=body.needs_pool)  # type: ignore[no-any-return]


def takes_any_size(arch: str) -> bool:
    """Whether a network, once it is built, takes images of other sizes than it was built for."""
    return arch in ARCHITECTURES or not timm.get_pretrained_cfg(arch).fixed_input_size


def misfit(arch: str, image_size: int) -> DarkroomError:
    """Why a network cannot take images of a size."""
    if arch in ARCHITECTURES:
        return DarkroomError(f"Images of {image_size} pixels are too small for {arch}. Choose a larger image size.")
    own = timm.get_pretrained_cfg(arch).input_size[-1]
    if image_size == own:
        return DarkroomError(f"{arch} is built in a way that fastai can put no head on. Choose another architecture.")
    return DarkroomError(f"Images of {image_size} pixels do not fit {arch}. Choose {own} pixels, which it was made for.")


def check_image_size(network: torch.nn.Module, arch: str, image_size: int) -> None:
    """Raises DarkroomError if the network cannot take images of this size: torchvision's shrink small ones to nothing."""
    if image_size >= 64 and arch in ARCHITECTURES:  # enough for all of them
        return
    training, parameter = network.training, next(network.parameters())
    network.eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, image_size, image_size, device=parameter.device))
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError):
        raise misfit(arch, image_size) from None
    network.train(training)


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
    model = build(info["arch"], len(info["classes"]), info["image_size"])
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (OSError, SafetensorError) as error:
        raise DarkroomError(f"The weights {folder / 'model.safetensors'} cannot be read: {error}. Train the model again.") from None
    except RuntimeError:  # its message is a page of layer names
        raise DarkroomError(
            f"The weights in {folder} do not fit {info['arch']} with {len(info['classes'])} classes, which its info.json asks for. Train the model again."
        ) from None
    return Normalised(model, info["mean"], info["std"]).eval()
