"""fastai's augmentation, with the same draws and the same pixels, in a fifth of the time on a processor.

fastai works through whole batches, an operation at a time, which is as much time as memory takes; here an image goes through
all operations before the next, and stays in the processor's cache. The rotations, zooms and warps of an image are one projective
map, so that its grid is computed once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.augment import AffineCoordTfm, LightingTfm, RandTransform, find_coeffs
from fasttransform import Pipeline, Transform
from torch.nn.functional import grid_sample

SMALLEST = 1e-7  # share of light that fastai takes black for, and away from white


class Quick(Callback):
    """Lets a learner train and validate with `Augmentation` in place of fastai's transforms, which are there again, for the export, when it has ended.

    On a processor batches are augmented where their images are decoded, in the processes of the loader if it has any.
    """

    order = -5  # before anything wraps the loader

    def before_fit(self) -> None:
        """From here on."""
        self.fastais = [loader.after_batch for loader in self.dls.loaders]
        for loader in self.dls.loaders:
            # fastai's random ones are asked for validation batches too, and leave them as they are
            augment = Augmentation([f for f in loader.after_batch.fs if loader is self.dls.train or not isinstance(f, RandTransform)])
            if self.dls.device.type == "cpu":
                loader.create_batch, loader.after_batch = _augmented(loader.create_batch, augment), Pipeline([])
            else:
                loader.after_batch = Pipeline([augment])

    def after_fit(self) -> None:
        """Until here."""
        for loader, fastais in zip(self.dls.loaders, self.fastais, strict=True):
            loader.after_batch = fastais
            loader.__dict__.pop("create_batch", None)


def _augmented(collate: Callable[[list[Any]], tuple[Any, ...]], augment: "Augmentation") -> Callable[[list[Any]], tuple[Any, ...]]:
    """Collates items as `collate` does, and augments the batch where that is done."""

    def create_batch(items: list[Any]) -> tuple[Any, ...]:
        images, *labels = collate(items)
        with one_thread():
            return augment(TensorImage(images)), *labels  # collating forgets what a tensor is

    return create_batch


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for operations too small to be shared: where processes are more than processors, their threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Augmentation(Transform):
    """What a learner does to a batch of images, in one go."""

    def __init__(self, transforms: list[Any]) -> None:
        """`transforms`: fastai's, of which `IntToFloatTensor`, `aug_transforms` and `Normalize` are known. Raises ValueError for others."""
        self.affine = self.lighting = self.normalise = None
        for each in transforms:
            match each:
                case AffineCoordTfm():
                    self.affine = each
                case LightingTfm():
                    self.lighting = each
                case Normalize():
                    self.normalise = each
                case IntToFloatTensor():
                    pass
                case _:
                    raise ValueError(f"unknown transform {type(each).__name__}")

    def encodes(self, x: TensorImage) -> TensorImage:
        """(N, 3, H, W) uint8 -> (N, 3, H, W) float32, augmented and normalised, channels last."""
        images = x.as_subclass(torch.Tensor)
        frame = torch.zeros(1, device=x.device).expand(x.shape)  # draws depend on how many, how large and where, not on pixels
        maps = None if self.affine is None else _maps(self.affine, frame)
        light = None if self.lighting is None else _light(self.lighting, frame)
        out = torch.empty(x.shape, device=x.device, memory_format=torch.channels_last)
        step = 1 if x.device.type == "cpu" else len(x)
        for i in range(0, len(x), step):
            part = images[i : i + step].float().div_(255)
            if maps is not None:
                part = grid_sample(part, _grid(maps[i : i + step], *x.shape[-2:]), padding_mode="reflection", align_corners=True)
            if light is not None:
                add, times = (change[i : i + step] for change in light)
                part.clamp_(SMALLEST, 1 - SMALLEST).logit_().add_(add).mul_(times).sigmoid_()
            if self.normalise is not None:
                part.sub_(self.normalise.mean.to(x.device)).div_(self.normalise.std.to(x.device))
            out[i : i + step].copy_(part)
        return TensorImage(out)


def _maps(affine: AffineCoordTfm, frame: torch.Tensor) -> torch.Tensor:
    """Draw: (N, 3, 3), where each pixel comes from, in coordinates of -1 to 1."""
    affine.before_call(frame, 0)
    n = len(frame)
    last = torch.tensor([0.0, 0.0, 1.0], device=frame.device).expand(n, 1, 3)
    maps = torch.cat([affine.mat.as_subclass(torch.Tensor), last], 1)
    for warp in affine.coord_fs:
        eight = find_coeffs(warp.orig_pts, warp.targ_pts).as_subclass(torch.Tensor)
        maps = torch.cat([eight, eight.new_ones(n, 1, 1)], 1).view(n, 3, 3) @ maps
    return maps


def _grid(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(N, 3, 3) -> (N, H, W, 2)."""
    x = torch.linspace(-1, 1, width, device=maps.device)
    y = torch.linspace(-1, 1, height, device=maps.device)[:, None]
    to_x, to_y, to_z = (m[:, 0, None, None] * x + (m[:, 1, None, None] * y + m[:, 2, None, None]) for m in maps.unbind(1))
    return torch.stack([to_x.div_(to_z), to_y.div_(to_z)], -1)


def _light(lighting: LightingTfm, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw: what is added to the logit of each pixel (brightness), and what it is multiplied with then (contrast), (N, 1, 1, 1) each."""
    lighting.before_call(frame, 0)
    brightness, contrast = (f.change.as_subclass(torch.Tensor)[:, None, None, None] for f in lighting.fs)
    return brightness.logit(), contrast
