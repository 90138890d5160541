"""Measures of how a picture looks, told of a small copy."""

import numpy as np
import pytest
from photographs import LOOKS, jpeg, photograph
from PIL import Image

from shared import datasets
from shared.duplicates import CHROMA, PIXELS
from shared.findings import BLURRY
from shared.storage import Storage
from worker.examiner import examine
from worker.measuring import complete, measure


def bits(a, b):
    return (int(a["phash"], 16) ^ int(b["phash"], 16)).bit_count()


def test_black_white_and_grey_are_at_the_ends_of_their_scales():
    black, white, red = (measure(Image.new("RGB", (300, 200), colour)) for colour in ("black", "white", "red"))
    assert (black["brightness_p99"], white["brightness_p5"]) == (0, 1)
    assert (black["chroma"], white["chroma"], red["chroma"] > 0.9) == (0, 0, True)
    assert black["sharpness"] == black["entropy"] == 0


@pytest.mark.parametrize("n", range(8))
def test_measures_and_hash_are_the_same_at_any_size(n):
    picture = photograph(n)
    large, small = measure(picture.resize((1600, 1200))), measure(picture.resize((512, 384)))
    assert bits(large, small) <= 4
    for column in ("brightness_p5", "brightness_p99", "chroma"):
        assert large[column] == pytest.approx(small[column], abs=0.06)


@pytest.mark.parametrize("n", range(8))
def test_a_blur_takes_the_sharpness_whatever_the_light(n):
    picture = photograph(n)
    dark = LOOKS["dark"](picture, n)
    for sharp in (picture, dark):
        assert measure(sharp)["sharpness"] > 0.3
        assert measure(LOOKS["blurry"](sharp, n))["sharpness"] < BLURRY


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (900, 2), (5, 5), (3000, 1), (257, 256)])
def test_any_shape_is_measured(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    measures = measure(Image.fromarray(noise))
    assert all(np.isfinite(value) for value in measures.values() if isinstance(value, float))
    assert len(measures["phash"]) == 16
    assert len(measures["thumb"]) == (PIXELS + CHROMA + 2) // 3 * 4


def test_pictures_of_an_earlier_version_are_measured_once_and_keep_their_hash(tmp_path, settings):
    storage = Storage(settings.storage, settings.cache)
    facts = [examine(jpeg(photograph(n)), storage, settings.max_image_bytes) for n in range(12)]
    rows = [datasets.blank_row(**{**each, "sharpness": None, "thumb": "", "phash": "f" * 16}, status="kept") for each in facts]
    rows[3]["sha256"] = "0" * 64  # its file is gone
    rows[5]["status"] = "dropped"
    told, known = [], {}
    assert complete(rows, storage, known, lambda done, total: told.append((done, total))) == 11
    assert told == [(n, 11) for n in range(1, 12)]
    assert [n for n, row in enumerate(rows) if row["sharpness"] is None] == [3, 5]
    assert {row["phash"] for row in rows} == {"f" * 16}
    assert rows[0]["sharpness"] == pytest.approx(facts[0]["sharpness"], rel=0.2)
    assert complete(rows, storage, known) == 0
