"""A dataset as the network will see it, before anything is trained: the course's three `show_batch` pictures, and the batch.

Each picture is a strip of tiles, `looks/<dataset>/v0001/<key>/<name>.webp` (`shared.looks`); index.json comes last.
"""

import io
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.transforms import IntToFloatTensor, ToTensor
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import PadMode, RandomResizedCrop, Resize, ResizeMethod
from fastai.vision.core import PILImage
from PIL import Image, ImageOps

from shared import datasets, looks
from shared.errors import DarkroomError
from shared.settings import Settings
from shared.specs import LookSpec
from shared.storage import Storage
from worker.progress import Progress
from worker.training.pictures import prepare
from worker.training.recipe import augmentation

TILES = 8
SIDE = 224  # of a tile, pixels; larger ones are reduced
GAP = 6
SEED = 0


def look(spec: LookSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Make the pictures; returns {dataset, version, look}. Raises Cancelled, and DarkroomError when there is no image or one cannot be opened."""
    version = datasets.info(storage, spec.dataset, spec.version)["version"]
    rows = datasets.rows(storage, spec.dataset, version)
    if not rows:
        raise DarkroomError(f"The dataset {spec.dataset!r} v{version} has no images.")
    chosen = random.Random(SEED).sample(rows, min(TILES, len(rows)))
    cache = settings.cache.expanduser() / "prepared"
    images = [PILImage.create(prepare(row, storage, cache)) for row in chosen]
    set_seed(SEED)
    key = looks.key(spec)
    for n, (name, tiles) in enumerate(_strips(spec, images).items()):
        progress.update(phase="looking", done=n, total=len(looks.STRIPS))
        storage.write(looks.path(spec.dataset, version, key, f"{name}.webp"), _strip(tiles))
    labels = [row["label"] for row in chosen]
    storage.write_json(
        looks.path(spec.dataset, version, key, "index.json"), {**spec.model_dump(), "version": version, "job": job, "labels": labels}
    )
    return {"dataset": spec.dataset, "version": version, "look": key}


def _strips(spec: LookSpec, images: list[PILImage]) -> dict[str, list[Image.Image]]:
    """The tiles of each of `looks.STRIPS`."""
    first, size = images[0], spec.image_size
    crop = RandomResizedCrop(size, min_scale=spec.min_scale)
    ways = (ResizeMethod.Crop, ResizeMethod.Squish, ResizeMethod.Pad)
    return {
        "files": list(images),
        "batch": _augmented(spec, [crop(image, split_idx=0) for image in images]),
        "resize": [Resize(size, method=way, pad_mode=PadMode.Zeros)(first, split_idx=1) for way in ways],
        "crop": [crop(first, split_idx=0) for _ in range(TILES)],
        "augment": _augmented(spec, [Resize(size)(first, split_idx=1)] * TILES),
    }


def _augmented(spec: LookSpec, images: Sequence[PILImage]) -> list[Image.Image]:
    """What is done to a batch of training images after the crop."""
    batch = IntToFloatTensor()(TensorImage(torch.stack([ToTensor()(image) for image in images])))
    for transform in augmentation(spec):
        batch = transform(batch, split_idx=0)
    pixels = (batch.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.asarray(each)) for each in pixels]


def _strip(tiles: list[Image.Image]) -> bytes:
    """Tiles side by side, transparent between, as WebP."""
    out = Image.new("RGBA", (len(tiles) * (SIDE + GAP) - GAP, SIDE))
    for i, tile in enumerate(tiles):
        small = ImageOps.contain(tile.convert("RGB"), (SIDE, SIDE))
        out.paste(small, (i * (SIDE + GAP) + (SIDE - small.width) // 2, (SIDE - small.height) // 2))
    data = io.BytesIO()
    out.save(data, "WEBP", quality=88)
    return data.getvalue()
