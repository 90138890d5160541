"""Near duplicates: found among many, told from what only looks alike, and in groups that stay."""

import numpy as np
import pytest
from photographs import again, blank, blurred, jpeg, photograph
from PIL import Image
from sklearn.datasets import load_digits

from shared import datasets, duplicates
from shared.errors import Cancelled
from shared.images import decode
from worker.measuring import measure


def row(picture, name, **values):
    measures = measure(decode(jpeg(picture) if not isinstance(picture, bytes) else picture).image)
    return datasets.blank_row(sha256=name, status="kept", label="x", **measures, **values)


def hashes(count, seed=0):
    """Random perceptual hashes, half of whose bits are set, as those of real pictures are."""
    rng = np.random.default_rng(seed)
    bits = rng.permuted(np.tile(np.arange(64) < 32, (count, 1)), axis=1)
    return [int("".join(map(str, line.astype(int))), 2) for line in bits]


def bare(numbers):
    """Rows of an earlier Darkroom, which have a hash and nothing else."""
    return [datasets.blank_row(sha256=str(n), phash=f"{number:016x}", status="kept") for n, number in enumerate(numbers)]


def flipped(number, bits, seed):
    for bit in np.random.default_rng(seed).choice(64, bits, replace=False):
        number ^= 1 << int(bit)
    return number


@pytest.mark.parametrize("n", range(10))
def test_the_same_picture_again_is_found(n):
    assert duplicates.near_pairs([row(photograph(n), "a"), row(again(photograph(n), n), "b")]).tolist() == [[0, 1]]


def test_a_copy_without_colour_is_the_same_picture_and_one_in_other_colours_is_not():
    picture = photograph(3)
    swapped = Image.merge("RGB", picture.split()[::-1])
    rows = [row(picture, "a"), row(picture.convert("L").convert("RGB"), "b"), row(swapped, "c")]
    assert [0, 1] in duplicates.near_pairs(rows).tolist()
    assert [0, 2] not in duplicates.near_pairs(rows).tolist()


def test_pictures_of_one_colour_are_like_no_other():
    rows = [row(blank(photograph(n), n), str(n)) for n in range(30) if n % 5]
    assert duplicates.near_pairs(rows).tolist() == []


def test_soft_pictures_whose_hashes_collide_are_told_apart():
    rows = [row(blurred(photograph(n), 4), str(n)) for n in range(60)]
    twins = [{**each, "phash": rows[0]["phash"]} for each in rows]
    assert duplicates.near_pairs(twins).tolist() == []


def test_small_scans_of_one_digit_are_not_the_same_scan_and_one_saved_again_is():
    data = load_digits()
    scans = [
        Image.fromarray(scan.astype(np.uint8) * 15).resize((64, 64), Image.Resampling.BICUBIC) for scan in data.images[data.target == 0]
    ]
    size = {"width": 64, "height": 64}
    rows = [row(scan.convert("RGB"), str(n), **size) for n, scan in enumerate(scans)]
    again = decode(jpeg(scans[7].convert("RGB"), 60))
    pairs = duplicates.near_pairs([*rows, row(again.image, "again", **size)]).tolist()
    assert [7, len(rows)] in pairs
    assert len(pairs) < 0.05 * len(rows)


def test_exactly_the_pairs_within_the_radius_are_looked_at():
    numbers = hashes(300)
    numbers += [flipped(numbers[n], n % 15, n) for n in range(60)]
    expected = {(i, j) for j in range(360) for i in range(j) if (numbers[i] ^ numbers[j]).bit_count() <= duplicates.RADIUS}
    found = {(i, int(j)) for i, near in duplicates._within(np.array(numbers, np.uint64)) for j in near}
    assert found == expected
    assert len(expected) > 40


def test_without_a_thumbnail_only_hashes_that_are_nearly_the_same_count():
    one, other = hashes(2)
    rows = bare([one, flipped(one, 2, 0), flipped(one, 4, 1), other])
    assert duplicates.near_pairs(rows).tolist() == [[0, 1]]


def test_a_search_can_be_cancelled():
    def stop():
        raise Cancelled

    with pytest.raises(Cancelled):
        duplicates.near_pairs(bare(hashes(50)), stop)


def grouped(*pairs):
    """The groups of rows named by letters, after `assign`; pairs of (letter, hash)."""
    rows = [datasets.blank_row(sha256=name, phash=f"{number:016x}", status="kept") for name, number in pairs]
    duplicates.assign(rows)
    return {each["sha256"]: each["group"] for each in rows}


def test_a_group_has_the_name_of_its_first_picture_and_a_picture_alone_has_none():
    one, other = hashes(2)
    assert grouped(("a", one), ("b", other), ("c", flipped(one, 1, 0)), ("d", flipped(one, 2, 9))) == {
        "a": "a",
        "b": "",
        "c": "a",
        "d": "a",
    }


def grown(rows, *numbers):
    """Rows of the next version, to which pictures with these hashes were added."""
    names = "nopq"
    rows = [*rows, *(datasets.blank_row(sha256=names[n], phash=f"{number:016x}", status="kept") for n, number in enumerate(numbers))]
    duplicates.assign(rows)
    return rows


def test_a_new_picture_joins_the_group_of_what_it_is_like():
    (one,) = hashes(1)
    rows = grown(bare([one, flipped(one, 1, 0)]), flipped(one, 2, 3))
    assert [each["group"] for each in rows] == ["0", "0", "0"]


def test_groups_that_a_new_picture_brings_together_keep_the_name_of_the_older():
    (one,) = hashes(1)
    a, b, bridge = one, one ^ 0b1111, one ^ 0b0011
    rows = grown(bare([a, a ^ 0b1000000, b, b ^ 0b100000]))
    assert [each["group"] for each in rows] == ["0", "0", "2", "2"]
    assert {each["group"] for each in grown(rows, bridge)} == {"0"}


def test_a_group_keeps_its_name_when_its_first_picture_is_removed():
    (one,) = hashes(1)
    rows = grown(bare([one, one ^ 1]))[1:]
    assert [each["group"] for each in grown(rows, one ^ 2)] == ["0", "0"]


def test_rows_that_are_dropped_are_in_no_group():
    (one,) = hashes(1)
    rows = bare([one, one])
    rows[1]["status"] = "dropped"
    duplicates.assign(rows)
    assert [each["group"] for each in rows] == ["", ""]
    assert duplicates.groups(rows) == []
