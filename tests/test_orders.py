"""What an order leads to: corrections become a version, the version a training, the training a comparison; each once, whoever dies."""

import signal
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from conftest import until
from faults import ended, explain, fault
from werkzeug.serving import make_server

from cli.main import cli
from shared import datasets, models, results, review
from shared.errors import Conflict, NotFound, Unwritable
from shared.items import locator_of
from shared.jobs import JobStore, State, connect
from shared.orders import submit
from shared.storage import Storage
from web import create_app
from worker.run import Worker, run_unit

BATCH = "0" * 20


@pytest.fixture
def worker(with_model):
    store = JobStore(connect(with_model.redis_url), with_model.lease_seconds)
    return Worker(with_model, "w1", ["scrape"], store, Storage(with_model.storage, with_model.cache), lambda *_: None)


def reviewed(desk, digits, label, count=2, batch=BATCH):
    """Rows of a batch of pictures of a zero, of which a person has said that the first `count` are a `label`."""
    common = {
        "sha256": "",
        "top_labels": [],
        "top_probabilities": [],
        "margin": 0.1,
        "entropy": 0.1,
        "error_code": "",
        "error": "",
        "ms": 1.0,
    }
    common |= {
        "decision": "review",
        "model": "digits",
        "model_version": 1,
        "width": 32,
        "height": 32,
        "probability": 0.4,
        "label": "digit 0",
    }
    paths = sorted((digits / "digit 0").iterdir())[:4]
    rows = [{**common, "item_id": i, "uri": path.name, "locator": locator_of(str(path))} for i, path in enumerate(paths)]
    table = pa.Table.from_pylist(rows, schema=results.ROWS)
    desk.storage.write(results.shard_key(batch, results.shard_name(0, 4)), results.shard_bytes(table))
    for row in rows[:count]:
        review.decide(desk.storage, batch, row, label)


def corrections(**more):
    return {"dataset": "digits", "source": {"kind": "review", "batch": BATCH}, "then": "digits", **more}


def trainings(store):
    return store.page(kind="train")


def test_corrections_become_a_version_a_retrained_model_and_a_comparison(backend, start_worker, digits):
    reviewed(backend, digits, "digit 1")
    job = submit(backend, "import", corrections())
    assert job.spec["then"] == "digits/v1"
    start_worker("scrape,train")
    until(lambda: backend.store.get(job.id).state == State.DONE, explain=explain(backend, job.id))
    training = backend.store.get(job.id).result["training"]
    until(lambda: ended(backend, training), 240, explain(backend, training))
    spec, made = backend.store.get(training).spec, models.info(backend.storage, "digits", 2)
    assert (spec["version"], spec["start"], spec["epochs"], made["parent"]) == (2, "digits/v1", 6, "digits/v1")
    assert datasets.info(backend.storage, "digits", 2)["classes"]["digit 1"] == 32
    app = create_app(backend.settings)
    client = app.test_client()
    assert f"/jobs/{training}" in client.get(f"/jobs/{job.id}").text
    page = client.get(f"/jobs/{training}").text
    assert "Compare with digits/v1" in page
    assert "Promote v2 to production" in page
    assert "digits/v2 and digits/v1 may be equally good." in page
    page = client.get("/models/digits/v/2").text
    assert "Compare with digits/v1" in page
    assert 'id="parent"' in page
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told = CliRunner().invoke(cli, ["--url", f"http://127.0.0.1:{server.port}", "job", "show", training, "--wait"])
    server.shutdown()
    thread.join()
    assert "digits/v2 and digits/v1 may be equally good: " in told.output
    models.delete(backend.storage, "digits", 1)
    assert "It cannot be compared with what it came from." in client.get(f"/jobs/{training}").text
    assert client.get("/models/digits/v/2").status_code == 200


def test_a_worker_killed_after_it_ordered_the_training_is_followed_by_one_that_orders_no_second(backend, start_worker, digits, tmp_path):
    reviewed(backend, digits, "digit 1")
    killer = """
    real = module.submit
    def submit(*args, **more):
        job = real(*args, **more)
        if once():
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return job
    module.submit = submit
    """
    victim = start_worker("scrape", **fault(tmp_path, "worker.run", killer))
    job = submit(backend, "import", corrections())
    assert victim.wait(60) == -signal.SIGKILL
    assert len(trainings(backend.store)) == 1
    start_worker("scrape")
    until(lambda: ended(backend, job.id), explain=explain(backend, job.id))
    (training,) = trainings(backend.store)
    assert backend.store.get(job.id).result["training"] == training.id
    assert training.spec["version"] == 2


def test_decisions_that_change_nothing_make_no_version_and_say_so(worker, digits):
    reviewed(worker, digits, "digit 0", 3)
    job = submit(worker, "import", corrections())
    run_unit(worker, job.id, "main")
    found = worker.store.get(job.id)
    assert found.state == State.FAILED
    assert "change nothing: 3 of the images are in the dataset 'digits' already, with the labels they were given" in found.error
    assert datasets.latest(worker.storage, "digits") == 1
    assert trainings(worker.store) == []


def test_a_model_that_is_gone_when_the_version_is_there_is_told_and_the_version_stays(worker, digits):
    reviewed(worker, digits, "digit 1")
    job = submit(worker, "import", corrections())
    models.delete(worker.storage, "digits", 1)
    run_unit(worker, job.id, "main")
    found = worker.store.get(job.id)
    assert (found.state, found.result["version"]) == (State.DONE, 2)
    assert "There is no model 'digits'" in found.result["not_retrained"]
    assert "was not retrained" in create_app(worker.settings).test_client().get(f"/jobs/{job.id}").text


def test_a_model_that_is_not_there_cannot_follow(backend, digits):
    reviewed(backend, digits, "digit 1")
    with pytest.raises(NotFound, match="no model 'others'"):
        submit(backend, "import", corrections(then="others"))
    assert backend.store.page() == []


def test_an_order_that_could_not_be_kept_may_be_given_again_under_its_key(backend):
    jobs = Path(backend.settings.storage) / "jobs"
    jobs.write_text("no folder")
    with pytest.raises(Unwritable):
        submit(backend, "look", {"dataset": "digits"}, "key")
    jobs.unlink()
    job = submit(backend, "look", {"dataset": "digits"}, "key")
    assert job.state == State.QUEUED
    assert submit(backend, "look", {"dataset": "digits"}, "key").id == job.id
    with pytest.raises(Conflict, match="kind look"):
        submit(backend, "train", {"dataset": "digits"}, "key")


def test_a_batch_is_retrained_from_on_its_pages(backend, digits):
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(digits)}}
    batch = submit(backend, "classify", spec)
    app = create_app(backend.settings)
    app.config["WTF_CSRF_ENABLED"] = False
    client = app.test_client()
    reviewed(backend, digits, "digit 1", 0, batch.id)
    refused = client.post(f"/batches/{batch.id}/review/retrain")
    assert refused.status_code == 422
    assert "Nobody has reviewed" in refused.text
    reviewed(backend, digits, "digit 1", batch=batch.id)
    backend.store.cancel(batch.id)
    assert "Retrain with 2 corrections" in client.get(f"/batches/{batch.id}").text
    assert "train the next version of digits/v1" in client.get(f"/batches/{batch.id}/review").text
    assert client.post(f"/batches/{batch.id}/review/retrain").status_code == 303
    (job,) = backend.store.page(kind="import")
    assert (job.spec["dataset"], job.spec["then"], job.spec["source"]["batch"]) == ("digits", "digits/v1", batch.id)
    assert "is retrained on it" in client.get(f"/jobs/{job.id}").text


def test_the_retrain_form_and_the_command_line_begin_with_the_parent(backend):
    client = create_app(backend.settings).test_client()
    page = client.get("/trainings/new?retrain=digits&version=1").text
    start = page[page.index('id="start"') : page.index('id="epochs"')]
    assert start.index("<option selected>digits/v1") < start.index("<option>imagenet")
    server = make_server("127.0.0.1", 0, create_app(backend.settings), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    runs = [
        CliRunner().invoke(cli, ["--url", url, "model", "retrain", "digits", *more])
        for more in ([], ["--start", "imagenet", "--epochs", "2"], ["--epochs", "0"])
    ]
    rule = CliRunner().invoke(cli, ["--url", url, "rule", "add", "digits", "digits", "--gained", "10"])
    listed = CliRunner().invoke(cli, ["--url", url, "rule", "list"])
    gone = CliRunner().invoke(cli, ["--url", url, "rule", "delete", listed.output.splitlines()[-1].split("\t")[0]])
    server.shutdown()
    thread.join()
    assert [run.exit_code for run in (*runs, rule, listed, gone)] == [0, 0, 2, 0, 0, 0], [run.output for run in runs]
    changed, plain = trainings(backend.store)
    assert (plain.spec["start"], plain.spec["epochs"], plain.spec["parent"], plain.spec["image_size"]) == ("digits/v1", 6, "digits/v1", 32)
    assert (changed.spec["start"], changed.spec["epochs"], changed.spec["parent"]) == ("imagenet", 2, "digits/v1")
    assert "not looked at yet" in listed.output
