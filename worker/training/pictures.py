"""The images of a dataset version as local files that fastai opens by itself: upright, 8 bits, RGB or grey.

Most files are that already and are read where they lie. The others are decoded by `shared.images`, as everywhere, and kept
as PNG in the cache, so that the learner needs no transform of ours and its export loads in any notebook.
"""

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
from shared.storage import Storage
from worker.progress import Progress

ORIENTATION = 0x0112  # EXIF tag; 1 is upright


@dataclass(frozen=True)
class Sample:
    """An image to train or validate on, as a local file."""

    sha256: str
    ext: str
    label: str
    valid: bool
    path: Path
    pixels: int  # width times height


def samples_of(spec: TrainSpec, version: int, storage: Storage, settings: Settings, progress: Progress) -> list[Sample]:
    """The kept images of a dataset version, split and prepared, in manifest order.

    Raises Cancelled, and DarkroomError when the dataset cannot be learned from or an image cannot be opened.
    """
    rows = datasets.rows(storage, spec.dataset, version)
    check_classes(spec.dataset, Counter(row["label"] for row in rows))
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], spec.valid_pct, spec.seed)
    samples = []
    for row, on_valid, path in zip(rows, valid, _prepared(rows, storage, settings), strict=True):
        samples.append(Sample(row["sha256"], row["ext"], row["label"], on_valid, path, row["width"] * row["height"]))
        if len(samples) % 50 == 0 or len(samples) == len(rows):
            progress.update(done=len(samples), total=len(rows))
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


def _prepared(rows: list[dict[str, Any]], storage: Storage, settings: Settings) -> Iterator[Path]:
    """The local files in order. Threads, for remote storage is slow and Pillow decodes in parallel."""
    cache = settings.cache.expanduser() / "prepared"
    threads = ThreadPoolExecutor(4 * (os.cpu_count() or 1))
    try:
        yield from threads.map(lambda row: prepare(row, storage, cache), rows)
    finally:
        threads.shutdown(cancel_futures=True)  # a cancel need not wait for thousands of images


def prepare(row: dict[str, Any], storage: Storage, cache: Path) -> Path:
    """The image of a manifest row as a local file. Raises DarkroomError when it cannot be opened, NotFound when it is gone."""
    original = storage.local(datasets.image_key(row["sha256"], row["ext"]))
    if is_plain(original):
        return original
    path = cache / f"{row['sha256']}.png"
    if path.exists():
        return path
    try:
        image = decode(original.read_bytes()).image
    except BadImage as error:
        raise DarkroomError(f"The image {original.name} of the class {row['label']!r} cannot be trained on. {error}") from None
    cache.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    image.save(part, "PNG", compress_level=1)  # read many times, written once, kept for a while: speed before size
    part.replace(path)
    return path


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
