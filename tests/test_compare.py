"""Two models beside each other on the same images."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import datasets
from shared.compare import compare, mcnemar, wilson
from shared.errors import Invalid, NotFound
from shared.storage import Storage


def publish(storage, folder, rows, **info):
    """A model version that says (sha256, actual, predicted) of its validation images; its version."""
    folder.mkdir()
    told = [{"sha256": s, "ext": "png", "actual": a, "predicted": p, "probability": 0.9, "loss": 0.1} for s, a, p in rows]
    if told:
        pq.write_table(pa.Table.from_pylist(told), folder / "validation.parquet")
    return storage.publish_version("models/m", folder, {"model": "m", "job": folder.name, "created": 0, **info})


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"), tmp_path / "cache")


def test_flips_and_classes_are_counted_on_the_images_in_common(storage, tmp_path):
    old = [("a", "cat", "cat"), ("b", "cat", "dog"), ("c", "dog", "dog"), ("d", "dog", "cat"), ("e", "dog", "dog"), ("x", "cat", "cat")]
    new = [("a", "cat", "cat"), ("b", "cat", "cat"), ("c", "dog", "cat"), ("d", "dog", "cat"), ("e", "cat", "cat"), ("y", "dog", "dog")]
    publish(storage, tmp_path / "old", old)
    publish(storage, tmp_path / "new", new)
    found = compare(storage, ("m", 1), ("m", 2))
    assert (found["images"], found["left_out"], found["relabelled"], found["both_wrong"]) == (5, [1, 1], 1, 1)
    assert found["error_rate"] == [3 / 5, 2 / 5]
    assert [row["sha256"] for row in found["fixed"]] == ["b", "e"]
    assert [row["sha256"] for row in found["broken"]] == ["c"]
    assert found["fixed"][0] == {"sha256": "b", "ext": "png", "actual": "cat", "old": "dog", "new": "cat", "probability": [0.9, 0.9]}
    assert found["classes"] == [
        {"label": "cat", "images": 3, "recall": [1 / 3, 1.0]},
        {"label": "dog", "images": 2, "recall": [0.5, 0.0]},
    ]
    assert found["interval"][0] == list(wilson(3, 5))


@pytest.mark.parametrize(
    ("fixed", "broken", "verdict"), [(9, 0, "better"), (0, 9, "worse"), (5, 4, "even"), (0, 0, "even"), (3, 0, "even")]
)
def test_the_verdict_is_that_of_the_test_and_not_of_the_rates(storage, tmp_path, fixed, broken, verdict):
    right, wrong = ("cat", "cat"), ("cat", "dog")
    flips = [(wrong, right)] * fixed + [(right, wrong)] * broken + [(right, right)]
    for name, side in (("old", 0), ("new", 1)):
        publish(storage, tmp_path / name, [(str(i), *flip[side]) for i, flip in enumerate(flips)])
    assert compare(storage, ("m", 1), ("m", 2))["verdict"] == verdict


def test_models_without_a_common_image_are_not_compared(storage, tmp_path):
    publish(storage, tmp_path / "old", [("a", "cat", "cat")])
    publish(storage, tmp_path / "new", [("b", "cat", "cat")])
    with pytest.raises(Invalid, match="no image in common"):
        compare(storage, ("m", 1), ("m", 2))


def test_an_image_of_which_one_model_alone_knows_a_near_duplicate_is_left_out(storage, tmp_path):
    said = [(name, "cat", "cat") for name in "abc"]
    for version, groups in ((1, {}), (2, {"a": "a", "x": "a", "b": "b", "y": "b"})):
        folder = tmp_path / f"dataset {version}"
        folder.mkdir()
        rows = [datasets.blank_row(sha256=name, group=groups.get(name, ""), label="cat", status="kept") for name in "abcxy"]
        (folder / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
        storage.publish_version("datasets/pets", folder, {"dataset": "pets", "job": str(version)})
        # the first was trained on x and y; of the second, x moved to validation with a, and y is not there
        more = [("x", "cat", "cat"), ("y", "cat", "cat")] if version == 2 else []
        publish(storage, tmp_path / f"model {version}", said + more, dataset={"name": "pets", "version": version})
    found = compare(storage, ("m", 1), ("m", 2))
    assert (found["images"], found["near_duplicates"], found["left_out"]) == (1, 2, [0, 2])


def test_a_near_duplicate_that_both_models_know_is_fair(storage, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    rows = [
        datasets.blank_row(sha256=name, group="a", label="cat", status="kept", split=side)
        for name, side in (("a", "valid"), ("x", "train"))
    ]
    (folder / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
    storage.publish_version("datasets/pets", folder, {"dataset": "pets", "job": "1"})
    for name in ("old", "new"):
        publish(storage, tmp_path / name, [("a", "cat", "cat")], dataset={"name": "pets", "version": 1})
    assert compare(storage, ("m", 1), ("m", 2))["images"] == 1


def test_a_model_that_kept_no_predictions_says_so(storage, tmp_path):
    publish(storage, tmp_path / "old", [])
    publish(storage, tmp_path / "new", [("b", "cat", "cat")])
    with pytest.raises(NotFound, match="m/v1 was trained before predictions were kept"):
        compare(storage, ("m", 1), ("m", 2))


def test_chance_is_that_of_mcnemars_exact_test():
    # scipy.stats.binomtest(k, n, 0.5).pvalue
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(10, 2) == pytest.approx(0.03857421875)
    assert mcnemar(2, 10) == mcnemar(10, 2)
    assert mcnemar(20, 5) == pytest.approx(0.004077315330505371)
