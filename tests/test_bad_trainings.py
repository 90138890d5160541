"""Trainings that cannot be: each ends with a sentence, and none leaves half a model."""

import subprocess
from pathlib import Path

import pytest
from conftest import until
from faults import ended, explain, nothing_is_left, order_training
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import datasets, models
from shared.jobs import JobStore, State, connect
from shared.orders import submit
from shared.storage import Storage, versions
from web import create_app
from web.orders import resume
from worker.run import Worker, run_unit
from worker.training import checkpoints

SMALL = {"arch": "squeezenet1_1", "epochs": 4}


@pytest.fixture
def worker(with_model):
    store = JobStore(connect(with_model.redis_url), with_model.lease_seconds)
    return Worker(with_model, "w1", ["train"], store, Storage(with_model.storage, with_model.cache), lambda *_: None)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"arch": "resnet9000"}, 422, "unknown architecture 'resnet9000'"),
        ({"arch": "<script>"}, 422, "unknown architecture"),
        ({"epochs": 0}, 422, "epochs: "),
        ({"epochs": 10**9}, 422, "epochs: "),
        ({"batch_size": 1}, 422, "batch_size: "),
        ({"image_size": 100_000}, 422, "image_size: "),
        ({"base_lr": -1}, 422, "base_lr: "),
        ({"base_lr": "fast"}, 422, "base_lr: "),
        ({"valid_pct": 0}, 422, "valid_pct: "),
        ({"valid_pct": 1}, 422, "valid_pct: "),
        ({"seed": 2**40}, 422, "seed: "),
        ({"augment": "wild"}, 422, "augment: "),
        ({"notes": "x" * 3000}, 422, "notes: "),
        ({"model": "../digits"}, 422, "model: a name is lower-case"),
        ({"parent": "digits; rm -rf"}, 422, "parent: a model is named"),
        ({"rule": "../../jobs"}, 422, "rule: "),
        ({"continues": "x"}, 422, "continues: "),
        ({"colour": "red"}, 422, "colour: "),
        ({"start": "digits/v9"}, 404, "There is no version 9 of the model 'digits'"),
        ({"start": "digits", "arch": "resnet34"}, 422, "digits/v1 is a resnet18, and its weights do not fit a resnet34"),
        ({"version": 7}, 404, "There is no version 7 of the dataset 'digits'"),
        ({"dataset": "nothing"}, 404, "There is no dataset 'nothing'"),
    ],
)
def test_a_spec_out_of_bounds_is_refused_and_nothing_is_ordered(backend, change, status, words):
    answer = create_app(backend.settings).test_client().post("/api/v1/trainings", json={"dataset": "digits", **change})
    assert (answer.status_code, words in answer.json["detail"]) == (status, True), answer.json
    assert backend.store.page() == []


def test_a_number_that_is_none_is_refused(backend):
    client = create_app(backend.settings).test_client()
    answer = client.post("/api/v1/trainings", data='{"dataset": "digits", "base_lr": NaN}', content_type="application/json")
    assert (answer.status_code, "NaN is no number" in answer.json["detail"]) == (400, True)
    assert backend.store.page() == []


def test_an_architecture_that_does_not_exist_is_told_at_its_field_and_what_was_typed_stays(backend):
    app = create_app(backend.settings)
    app.config["WTF_CSRF_ENABLED"] = False
    page = app.test_client().post("/trainings/new", data={"dataset": "digits", "arch": "resnet9000", "epochs": "7"})
    assert page.status_code == 422
    assert 'id="wrong-arch"' in page.text
    assert 'value="7"' in page.text
    assert backend.store.page() == []


def test_images_of_which_none_can_be_read_make_no_dataset_and_so_no_training(worker, tmp_path):
    for label in ("hat", "shoe"):
        (tmp_path / "junk" / label).mkdir(parents=True)
        for n in range(3):
            (tmp_path / "junk" / label / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50 + n))
    job = submit(worker, "import", {"dataset": "junk", "source": {"kind": "folder", "path": str(tmp_path / "junk")}})
    run_unit(worker, job.id, "main")
    assert worker.store.get(job.id).state == State.FAILED
    assert "No usable images were found" in worker.store.get(job.id).error
    assert "junk" not in datasets.names(worker.storage)


@given(sizes=st.lists(st.integers(2, 9), min_size=2, max_size=5), share=st.floats(0.01, 0.9), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=60)
def test_no_dataset_that_can_be_imported_lacks_images_to_train_or_to_validate_on(sizes, share, seed):
    items = [(f"{label}-{n}", str(label)) for label, size in enumerate(sizes) for n in range(size)]
    valid = datasets.split(items, share, seed)
    for label in range(len(sizes)):
        assert {side for side, (_, given) in zip(valid, items, strict=True) if given == str(label)} == {True, False}


# -- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(backend):
    """A function that puts a small disk in the place of a folder of the storage; a second call makes it another size."""
    mounted = []

    def put(folder: str, size: str) -> None:
        place = Path(backend.settings.storage) / folder
        options = f"remount,size={size}" if place in mounted else f"size={size}"
        place.mkdir(parents=True, exist_ok=True)
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, check=False)
        if made.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
        mounted.append(place)

    yield put
    for place in dict.fromkeys(mounted):
        subprocess.run(["umount", "-l", place], check=True)


def failed(backend, job):
    until(lambda: ended(backend, job), 120, explain(backend, job))
    found = backend.store.get(job)
    assert found.state == State.FAILED, explain(backend, job)()
    assert "No space left on device" in found.error
    assert "`resume`" in found.error
    assert versions(backend.storage, f"models/{found.spec['model']}") == []
    nothing_is_left(backend)
    return found


def test_a_disk_that_is_full_when_a_checkpoint_is_written_keeps_the_one_before(backend, start_worker, small_disk):
    small_disk("checkpoints", "24m")  # room for one checkpoint of this network, and not for the next beside it
    start_worker("train")
    job = order_training(backend, **SMALL)
    failed(backend, job)
    assert len(checkpoints.read(backend.storage, job).standing.rows) == 1
    assert "Resume from epoch 1" in create_app(backend.settings).test_client().get(f"/jobs/{job}").text


def test_a_disk_that_is_full_when_a_model_is_published_leaves_no_half_of_it_and_nothing_is_trained_again(backend, start_worker, small_disk):
    small_disk("models", "3m")
    start_worker("train")
    job = order_training(backend, **SMALL | {"epochs": 1})
    failed(backend, job)
    assert backend.storage.list("models/slow") == []
    small_disk("models", "200m")
    again = resume(backend, job).id
    until(lambda: ended(backend, again), 120, explain(backend, again))
    assert backend.store.get(again).state == State.DONE, explain(backend, again)()
    rows = models.info(backend.storage, "slow", 1)["epochs"]
    assert len(rows) == 1
    assert rows == checkpoints.read(backend.storage, job).standing.rows
