"""Datasets on storage, and the split that stays."""

import hashlib

import pyarrow as pa
import pytest

from shared import datasets
from shared.errors import Invalid, NotFound
from shared.storage import Storage


def items(n, classes=4, start=0):
    return [(hashlib.sha256(str(i).encode()).hexdigest(), f"c{i % classes}") for i in range(start, start + n)]


def test_about_the_share_asked_for_is_for_validation():
    assert 0.17 < sum(datasets.split(items(4000), 0.2, 42)) / 4000 < 0.23


def test_the_split_is_the_same_each_time_and_another_with_another_seed():
    pictures = items(1000)
    assert datasets.split(pictures, 0.2, 42) == datasets.split(pictures, 0.2, 42) != datasets.split(pictures, 0.2, 43)


def test_the_split_stays_when_a_dataset_grows():
    pictures = items(1000)
    assert datasets.split(pictures + items(500, start=1000), 0.2, 42)[:1000] == datasets.split(pictures, 0.2, 42)


def test_equal_pictures_are_on_the_same_side():
    twice = [p for p in items(300) for _ in range(2)]
    sides = datasets.split(twice, 0.2, 42)
    assert sides[::2] == sides[1::2]


@pytest.mark.parametrize("seed", range(20))
def test_a_class_of_two_has_one_on_each_side(seed):
    assert sorted(datasets.split(items(2, classes=1), 0.2, seed)) == [False, True]


def test_a_summary_counts_what_was_kept_and_what_was_dropped():
    rows = [
        datasets.blank_row(sha256="a", label="cat", status="kept", licence="CC0", bytes=10),
        datasets.blank_row(sha256="b", label="dog", status="kept", bytes=5),
        datasets.blank_row(status="dropped", reason="empty"),
    ]
    summary = datasets.summary(rows)
    assert (summary["images"], summary["classes"], summary["dropped"]) == (2, {"cat": 1, "dog": 1}, {"empty": 1})
    assert (summary["licences"], summary["bytes"]) == ({"CC0": 1, "unknown": 1}, 15)


def test_the_hash_of_a_version_knows_its_pictures_and_labels_but_not_their_order():
    a, b = (datasets.blank_row(sha256=s, label="x", status="kept") for s in "ab")
    assert datasets.summary([a, b])["hash"] == datasets.summary([b, a])["hash"] != datasets.summary([a, {**b, "label": "y"}])["hash"]


def test_an_unknown_dataset_or_version_is_a_sentence(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    with pytest.raises(NotFound, match="no dataset 'wonders'"):
        datasets.info(storage, "wonders")
    with pytest.raises(Invalid):
        datasets.info(storage, "../wonders")


def rows_of(*pictures):
    """Manifest rows of (sha256, group, split)."""
    return [datasets.blank_row(sha256=sha, group=group, split=split, label="x", status="kept") for sha, group, split in pictures]


def test_near_duplicates_are_on_the_side_of_their_group_and_single_pictures_where_they_were():
    alone = rows_of(*((sha256, "", "") for sha256, _ in items(400)))
    before = datasets.sides(alone, 0.2, 42)
    assert before == ["valid" if valid else "train" for valid in datasets.split([(row["sha256"], "x") for row in alone], 0.2, 42)]
    copies = [{**row, "sha256": f"copy of {n}", "group": row["sha256"]} for n, row in enumerate(alone)]
    originals = [{**row, "group": row["sha256"]} for row in alone]
    assert datasets.sides([*originals, *copies], 0.2, 42) == before * 2


def test_validation_pictures_of_an_import_are_all_there_are():
    said = ["", "train", "valid", "test", "", "valid"]
    rows = rows_of(*((str(n), "", side) for n, side in enumerate(said)))
    assert datasets.sides(rows, 0.9, 42) == ["train", "train", "valid", "test", "train", "valid"]


def test_test_pictures_of_an_import_are_on_neither_side_and_change_no_other():
    rows = rows_of(*((sha256, "", "") for sha256, _ in items(200)))
    kept_out = [{**row, "split": "test"} for row in rows[:50]]
    assert datasets.sides([*kept_out, *rows[50:]], 0.2, 42) == ["test"] * 50 + datasets.sides(rows[50:], 0.2, 42)


def test_a_manifest_of_before_pictures_were_measured_is_completed(tmp_path):
    assert datasets.blank_row()["sharpness"] is None
    (row,) = datasets._completed(pa.table({"sha256": ["a"], "width": pa.array([3], pa.int32())})).to_pylist()
    assert row == datasets.blank_row(sha256="a", width=3)


def test_a_class_of_pictures_that_are_all_alike_is_split_picture_by_picture():
    rows = [{"sha256": sha256, "label": "bolt", "split": "", "group": "first"} for sha256, _ in items(40)]
    rows += [{"sha256": f"{sha256}0", "label": "nut", "split": "", "group": ""} for sha256, _ in items(40)]
    bolts = datasets.sides(rows, 0.2, 42)[:40]
    assert datasets.all_alike(rows) == ["bolt"]
    assert {"train", "valid"} == set(bolts)
    assert bolts == datasets.sides([{**row, "group": ""} for row in rows], 0.2, 42)[:40]
