"""A dataset as the network will see it."""

import io

import numpy as np
import pytest
from handwriting import digits, place, publish
from PIL import Image

from shared import looks
from shared.errors import DarkroomError
from shared.specs import LookSpec
from worker.progress import Progress
from worker.training.looks import GAP, SIDE, TILES, look

SPEC = LookSpec(dataset="digits", image_size=64)


def tiles(storage, name, spec=SPEC):
    """The tiles of a strip, (SIDE, SIDE, 4) uint8 each."""
    data = storage.read(looks.path("digits", 1, looks.key(spec), f"{name}.webp"))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    return [pixels[:, i : i + SIDE] for i in range(0, pixels.shape[1], SIDE + GAP)]


def test_the_pictures_are_made_once_and_kept(ready):
    settings, storage = ready
    assert looks.index(storage, SPEC, 1) is None
    assert look(SPEC, "job1", storage, settings, Progress(lambda _: None)) == {"dataset": "digits", "version": 1, "look": "64-0.5-course"}
    index = looks.index(storage, SPEC, 1)
    assert (len(index["labels"]), index["image_size"], index["job"]) == (TILES, 64, "job1")
    assert {name: len(tiles(storage, name)) for name in looks.STRIPS} == {"files": 8, "batch": 8, "resize": 3, "crop": 8, "augment": 8}


def test_the_same_image_is_another_under_each_crop_and_augmentation_and_the_same_without(ready):
    settings, storage = ready
    look(SPEC, "job1", storage, settings, Progress(lambda _: None))
    plain = SPEC.model_copy(update={"augment": "none", "min_scale": 1.0})
    look(plain, "job2", storage, settings, Progress(lambda _: None))
    for name in ("crop", "augment"):
        first, *others = tiles(storage, name)
        assert min(apart(first, other) for other in others) > 5
    first, *others = tiles(storage, "augment", plain)
    assert max(apart(first, other) for other in others) < 2  # WebP loses a little


def apart(one, other):
    """Mean difference of two tiles, of 255."""
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_an_image_that_cannot_be_opened_is_a_sentence(tmp_path):
    settings, storage = place(tmp_path)
    rows = publish(storage, tmp_path / "files", digits(per_class=2, classes=2))
    for row in rows:
        storage.write(f"images/{row['sha256'][:2]}/{row['sha256']}.png", b"not a picture")
    with pytest.raises(DarkroomError, match="cannot be trained on"):
        look(SPEC, "job1", storage, settings, Progress(lambda _: None))
    assert looks.index(storage, SPEC, 1) is None
