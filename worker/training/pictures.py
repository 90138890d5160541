"""The images of a dataset version as local files that fastai opens by itself: upright, 8 bits, RGB or grey, and not much larger than needed.

Small files are that already and are read where they lie. The others are decoded by `shared.images`, as everywhere, once for all
epochs and all trainings of a size, and kept in the cache. The learner needs no transform of ours and its export loads in any notebook:
an image to validate on is kept as the very square, pixel by pixel, that fastai's transform would make of it, and makes of it again;
one to train on is so large that a random crop still has as many pixels as the network sees.
"""

import math
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shared import datasets
from shared.errors import DarkroomError
from shared.images import BadImage, decode
from shared.settings import Settings
from shared.specs import TrainSpec
from shared.storage import Storage, image_key
from worker.classifying.decoding import resized_to, squeezed
from worker.progress import Progress
from worker.training.weights import named

WORTH = 2  # times the pixels needed, from which a smaller copy is made: it costs about two readings of the file
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


@dataclass(frozen=True)
class Sample:
    """An image to train or validate on, as a local file."""

    sha256: str
    ext: str
    label: str
    valid: bool
    path: Path  # what training reads
    pixels: int  # width times height of that
    original: Path = Path()  # as it is on storage


def samples_of(spec: TrainSpec, version: int, storage: Storage, settings: Settings, progress: Progress) -> list[Sample]:
    """The kept images of a dataset version, split and prepared, in manifest order; but not those that an import keeps for tests.

    Raises Cancelled, and DarkroomError when the dataset cannot be learned from or an image cannot be opened.
    """
    rows = datasets.rows(storage, spec.dataset, version)
    check_classes(spec.dataset, Counter(row["label"] for row in rows))
    sides = datasets.sides(rows, spec.valid_pct, spec.seed)
    check_sides(spec.dataset, rows, sides)
    used = [(row, side == "valid") for row, side in zip(rows, sides, strict=True) if side != "test"]
    samples: list[Sample] = []
    for sample in _prepared(spec, used, storage, settings):
        samples.append(sample)
        if len(samples) % 50 == 0 or len(samples) == len(used):
            progress.update(done=len(samples), total=len(used))
    return samples


def check_classes(dataset: str, images: Counter[str]) -> None:
    """Raises DarkroomError unless there are two classes or more, with two images or more each."""
    if len(images) < 2:
        has = f"the one class {next(iter(images))!r}" if images else "no images"
        raise DarkroomError(f"The dataset {dataset!r} has {has}; a classifier needs at least two classes.")
    few = [label for label, count in sorted(images.items()) if count < 2]
    if few:
        named = ", ".join(repr(label) for label in few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        raise DarkroomError(
            f"In the dataset {dataset!r} there is a single image of {named}. "
            "Each class needs at least two, one to train on and one to validate on: add images, or leave the class out."
        )


def check_sides(dataset: str, rows: list[dict[str, Any]], sides: list[str]) -> None:
    """Raises DarkroomError unless each class has an image to train on and one to validate on."""
    found = Counter((row["label"], side) for row, side in zip(rows, sides, strict=True))
    for side, purpose in (("train", "train on"), ("valid", "validate on")):
        lacking = sorted({row["label"] for row in rows if not found[row["label"], side]})
        if lacking:
            named = ", ".join(repr(label) for label in lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            why = (
                "Its import said which images are for training, validation and tests"
                if any(row["split"] in {"valid", "test"} for row in rows)
                else "Near duplicates stay on one side of the split, and these classes have few images that are not"
            )
            raise DarkroomError(
                f"In the dataset {dataset!r} there is no image to {purpose} of {named}. {why}: add images, or leave the classes out."
            )


def alike_remarks(rows: list[dict[str, Any]]) -> list[str]:
    """What a model says of classes whose images are all near duplicates, some of which it was therefore validated on."""
    found = datasets.all_alike([row for row in rows if row["split"] != "test"])
    if not found or any(row["split"] == "valid" for row in rows):
        return []
    return [f"All images are near duplicates of one another in {named(found)}: the error rate flatters what the model can do there."]


def _prepared(spec: TrainSpec, used: list[tuple[dict[str, Any], bool]], storage: Storage, settings: Settings) -> Iterator[Sample]:
    """The samples in order. Threads, for remote storage is slow and Pillow decodes in parallel."""
    cache = settings.cache.expanduser() / "prepared"
    threads = ThreadPoolExecutor(4 * (os.cpu_count() or 1))
    try:
        yield from threads.map(lambda each: sample_of(spec, *each, storage, cache), used)
    finally:
        threads.shutdown(cancel_futures=True)  # a cancel need not wait for thousands of images


def sample_of(spec: TrainSpec, row: dict[str, Any], valid: bool, storage: Storage, cache: Path) -> Sample:
    """The image of a manifest row as a sample. Raises DarkroomError when it cannot be opened, NotFound when it is gone."""
    original = storage.local(image_key(row["sha256"], row["ext"]))
    width, height = row["width"], row["height"]
    if valid:
        side = resized_to(spec.image_size) if spec.resize == "squish" else spec.image_size
        to, file = (side, side), f"{row['sha256']}-{spec.resize}-{side}.png"
    else:
        # a random crop keeps `min_scale` of the image or more; it is a square seldom, and so a quarter more than a square needs
        shrink = math.sqrt(1.25 * spec.image_size**2 / spec.min_scale / (width * height))
        to = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        file = f"{row['sha256']}-{to[0]}x{to[1]}.jpg"
    if width * height < WORTH * to[0] * to[1]:
        return Sample(row["sha256"], row["ext"], row["label"], valid, prepare(row, storage, cache), width * height, original)
    path = cache / file
    if not path.exists():
        image = _opened(original, row, reduce_to=None if valid else min(to))
        _keep(squeezed(image, spec.image_size, spec.resize) if valid else image.resize(to, Image.Resampling.BILINEAR), path)
    return Sample(row["sha256"], row["ext"], row["label"], valid, path, to[0] * to[1], original)


def prepare(row: dict[str, Any], storage: Storage, cache: Path) -> Path:
    """The image of a manifest row in its full size. Raises DarkroomError when it cannot be opened, NotFound when it is gone."""
    original = storage.local(image_key(row["sha256"], row["ext"]))
    if is_plain(original):
        return original
    path = cache / f"{row['sha256']}.png"
    if not path.exists():
        _keep(_opened(original, row), path)
    return path


def _opened(original: Path, row: dict[str, Any], reduce_to: int | None = None) -> Image.Image:
    try:
        return decode(original.read_bytes(), reduce_to=reduce_to).image
    except BadImage as error:
        raise DarkroomError(f"The image {original.name} of the class {row['label']!r} cannot be trained on. {error}") from None


def _keep(image: Image.Image, path: Path) -> None:
    """Write a picture into the cache, whole or not at all. Read many times, written once, kept for a while: speed before size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    image.save(part, "PNG" if path.suffix == ".png" else "JPEG", compress_level=1, quality=95)
    part.replace(path)


def is_plain(path: Path) -> bool:
    """Whether fastai, which looks at neither EXIF nor transparency, sees in this file what `shared.images` sees in it."""
    try:
        with Image.open(path) as image:
            return (
                image.format in {"JPEG", "MPO", "PNG"}
                and image.mode in {"RGB", "L"}
                and "transparency" not in image.info
                and image.getexif().get(ORIENTATION, 1) == 1
            )
    except OSError:
        return False  # decoding it says what is wrong
