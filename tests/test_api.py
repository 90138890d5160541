"""The JSON API, against a real Redis and a real storage folder; the tests play the worker."""

import csv
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.test import TestResponse

from shared import datasets, models, results, review
from shared.items import walk
from shared.jobs import JobStore, State, new_id
from shared.settings import Settings
from shared.specs import ListSource
from shared.storage import Storage
from web import create_app

API = "/api/v1"


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def store(app: Flask) -> JobStore:
    return app.extensions["darkroom"].store  # type: ignore[no-any-return]


@pytest.fixture
def storage(app: Flask) -> Storage:
    return app.extensions["darkroom"].storage  # type: ignore[no-any-return]


def make_dataset(storage: Storage, folder: Path, name: str = "animals", labels: tuple[str, ...] = ("cat", "dog")) -> int:
    rows = [datasets.blank_row(sha256=f"{i:064x}", ext="png", label=label, status="kept", bytes=10) for i, label in enumerate(labels * 3)]
    folder.mkdir(exist_ok=True)
    (folder / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
    info = {"dataset": name, "created": 1.0, "job": new_id(), "source": "folder", **datasets.summary(rows)}
    return storage.publish_version(f"datasets/{name}", folder, info)


def make_model(storage: Storage, folder: Path, name: str = "animals", **more: Any) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "report.json").write_text('{"error_rate": 0.1}')
    info = {"model": name, "created": 1.0, "job": new_id(), "arch": "resnet18", "classes": ["cat", "dog"], "error_rate": 0.1, "spec": {}}
    return storage.publish_version(f"models/{name}", folder, {**info, **more})


def result_row(item: int, label: str = "cat", **values: Any) -> dict[str, Any]:
    row = {
        "item_id": item, "uri": f"{item}.png", "locator": f"file:/secret/{item}.png", "sha256": "", "label": label, "probability": 0.75,
        "top_labels": [label], "top_probabilities": [0.75], "margin": 0.5, "entropy": 0.1, "decision": "accept", "error_code": "", "error": "",
        "model": "animals", "model_version": 1, "width": 8, "height": 8, "ms": 1.0,
    }  # fmt: skip
    return {**row, **values}


def order_batch(client: FlaskClient, storage: Storage, tmp_path: Path) -> str:
    make_model(storage, tmp_path / "model")
    spec = {"model": "animals", "source": {"kind": "urls", "urls": ["http://example.org/1.png"]}}
    return str(client.post(f"{API}/batches", json=spec).json["id"])  # type: ignore[index]


def plan(store: JobStore, batch: str) -> None:
    """Four items in two shards."""
    claim = store.claim(batch, "plan", "tester")
    assert claim
    store.commit(claim, {"counts": {"items": 4}}, stretches=[(0, 4, 2)], last="finish")


def work(store: JobStore, storage: Storage, batch: str, first: int, rows: list[dict[str, Any]]) -> None:
    shard = results.shard_name(first, first + len(rows))
    claim = store.claim(batch, shard, "tester")
    assert claim
    table = pa.Table.from_pylist(rows, schema=results.ROWS)
    storage.write(results.shard_key(batch, shard), results.shard_bytes(table))
    store.commit(claim, results.tally(table))


def half_done_batch(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> str:
    """A batch of four items with two rows: a cat, and an error."""
    batch = order_batch(client, storage, tmp_path)
    plan(store, batch)
    bad = result_row(1, "", uri="=cmd()", probability=None, decision="", error_code="truncated", error="The picture cannot be decoded.")
    work(store, storage, batch, 0, [result_row(0), bad])
    return batch


def end(store: JobStore, job_id: str, state: State, unit: str = "main", **result: Any) -> None:
    claim = store.claim(job_id, unit, "tester")
    assert claim
    assert store.finish(claim, state, "It went wrong." if state is State.FAILED else "", result)


def scrape_spec(**more: Any) -> dict[str, Any]:
    return {"classes": [{"name": "Taj Mahal"}, {"name": "Petra", "query": "Petra Jordan ruins"}], **more}


def assert_problem(response: TestResponse, status: int, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.mimetype == "application/problem+json"
    problem: dict[str, Any] = json.loads(response.data)
    assert problem["status"] == status
    assert problem["title"]
    for word in words:
        assert word in problem["detail"]
    return problem


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(out, "PNG")
    return out.getvalue()


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


# -- ordering ---------------------------------------------------------------------------------------------------------


def test_an_order_answers_202_with_the_job_and_where_it_is(client: FlaskClient) -> None:
    response = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(per_class=10))
    job = response.json
    assert job
    assert response.status_code == 202
    assert response.headers["Location"] == f"{API}/jobs/{job['id']}"
    assert (job["kind"], job["state"], job["queue"], job["title"]) == ("scrape", "queued", "scrape", "Scrape wonders")
    assert (job["spec"]["dataset"], job["spec"]["per_class"]) == ("wonders", 10)
    assert client.get(response.headers["Location"]).json == job


def test_an_order_puts_one_message_into_its_queue(client: FlaskClient) -> None:
    client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec())
    assert client.get(f"{API}/workers").json == {"workers": [], "queues": {"predict": 0, "classify": 0, "train": 0, "scrape": 1}}


def test_an_order_repeated_with_its_idempotency_key_is_one_job(client: FlaskClient) -> None:
    key = {"Idempotency-Key": "once"}
    first, second = (client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(), headers=key).json for _ in range(2))
    assert first["id"] == second["id"]  # type: ignore[index]
    assert len(client.get(f"{API}/jobs").json["jobs"]) == 1  # type: ignore[index]


def test_an_idempotency_key_of_another_kind_of_job_is_a_conflict(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    key = {"Idempotency-Key": "once"}
    client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(), headers=key)
    assert_problem(client.post(f"{API}/trainings", json={"dataset": "animals"}, headers=key), 409, "of the kind scrape")


def test_an_order_is_kept_on_storage(client: FlaskClient, storage: Storage) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    assert storage.read_json(f"jobs/{job_id}.json")["spec"]["dataset"] == "wonders"


def test_a_training_gets_the_newest_version_and_the_name_of_its_dataset(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "a")
    make_dataset(storage, tmp_path / "b")
    spec = client.post(f"{API}/trainings", json={"dataset": "animals"}).json["spec"]  # type: ignore[index]
    assert (spec["version"], spec["model"], spec["arch"]) == (2, "animals", "resnet18")


def test_a_server_folder_is_imported(client: FlaskClient, tmp_path: Path) -> None:
    response = client.post(f"{API}/datasets/animals/import", json={"source": {"kind": "folder", "path": str(tmp_path)}})
    assert response.status_code == 202


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"dataset": "animals", "epoch": 3}, "epoch", "Extra inputs are not permitted"),
        ({"dataset": "animals", "epochs": 0}, "epochs", "greater than or equal to 1"),
        ({"dataset": "animals", "arch": "<script>"}, "arch", "unknown architecture"),
        ({"dataset": "../../etc"}, "dataset", "a name is lower-case letters"),
        ({"dataset": "animals", "model": "a/b"}, "model", "a name is lower-case letters"),
        ({}, "dataset", "Field required"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_with_its_field(client: FlaskClient, spec: dict[str, Any], field: str, words: str) -> None:
    assert assert_problem(client.post(f"{API}/trainings", json=spec), 422, words)["field"] == field
    assert client.get(f"{API}/jobs").json == {"jobs": [], "next": None}


def test_a_training_starts_from_a_version_of_a_model_that_fits(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    make_model(storage, tmp_path / "m", "zoo")
    order = {"dataset": "animals", "start": "zoo"}
    answer = client.post(f"{API}/trainings", json={**order, "arch": "squeezenet1_0"})
    assert assert_problem(answer, 422, "zoo/v1 is a resnet18")["field"] == "start"
    assert_problem(client.post(f"{API}/trainings", json={**order, "start": "nobody"}), 404, "no model 'nobody'")
    assert client.post(f"{API}/trainings", json=order).json["spec"]["start"] == "zoo/v1"  # type: ignore[index]


def test_a_training_that_was_cancelled_is_resumed_from_the_epoch_it_has_left(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    first = client.post(f"{API}/trainings", json={"dataset": "animals"}).json["id"]  # type: ignore[index]
    assert_problem(client.post(f"{API}/jobs/{first}/resume"), 409, "not paused")
    client.post(f"{API}/jobs/{first}/cancel")
    assert_problem(client.post(f"{API}/jobs/{first}/resume"), 409, "nothing to go on from")
    storage.write(models.checkpoint_key(first), b"weights")
    second = client.post(f"{API}/jobs/{first}/resume").json
    assert (second["state"], second["spec"]["continues"]) == ("queued", first)  # type: ignore[index]
    client.post(f"{API}/jobs/{second['id']}/cancel")  # type: ignore[index]
    third = client.post(f"{API}/jobs/{second['id']}/resume").json  # type: ignore[index]
    assert third["spec"]["continues"] == first  # type: ignore[index]


def test_an_alias_is_moved_read_taken_back_and_used(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    for n in range(2):
        make_model(storage, tmp_path / str(n))
    alias = f"{API}/models/animals/aliases/production"
    assert_problem(client.get(alias), 404, "no alias 'production'")
    assert_problem(client.put(alias, json={"version": 9}), 404, "no version 9")
    assert_problem(client.put(alias, json={}), 422, "valid integer")
    for version in (1, 2):
        assert client.put(alias, json={"version": version}).json["version"] == version  # type: ignore[index]
    assert client.post(f"{alias}/rollback").json["version"] == 1  # type: ignore[index]
    assert client.get(f"{API}/models/animals").json["aliases"] == {"production": 1}  # type: ignore[index]
    assert [move["version"] for move in client.get(alias).json["log"]] == [1, 2, 1]  # type: ignore[index]
    order = {"model": "animals@production", "source": {"kind": "folder", "path": str(tmp_path)}}
    assert client.post(f"{API}/batches", json=order).json["spec"]["model"] == "animals/v1"  # type: ignore[index]
    assert_problem(client.delete(f"{API}/models/animals/versions/1"), 409, "animals/v1 is in use by the job")
    client.post(f"{API}/jobs/{client.get(f'{API}/jobs').json['jobs'][0]['id']}/cancel")  # type: ignore[index]
    assert_problem(client.delete(f"{API}/models/animals/versions/1"), 409, "is production")
    assert client.delete(alias).status_code == 204
    assert client.delete(f"{API}/models/animals/versions/1").status_code == 204
    assert_problem(client.get(f"{API}/models/animals/versions/1"), 404, "no version 1")


def test_a_training_that_is_done_gets_more_epochs(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    job = client.post(f"{API}/trainings", json={"dataset": "animals", "epochs": 5}).json["id"]  # type: ignore[index]
    assert_problem(client.post(f"{API}/jobs/{job}/extend", json={"epochs": 2}), 409, "this train is queued")
    claim = store.claim(job, "main", "w")
    assert claim
    assert store.finish(claim, State.DONE, result={"model": "animals", "version": 1})
    storage.write(models.checkpoint_key(job), b"weights")
    assert_problem(client.post(f"{API}/jobs/{job}/extend", json={}), 422, "valid integer")
    more = client.post(f"{API}/jobs/{job}/extend", json={"epochs": 2}).json["spec"]  # type: ignore[index]
    assert (more["epochs"], more["frozen_epochs"], more["continues"], more["parent"]) == (2, 0, job, "animals/v1")


def test_a_dataset_of_one_class_cannot_be_trained_on(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d", labels=("cat",))
    assert_problem(client.post(f"{API}/trainings", json={"dataset": "animals"}), 422, "needs two or more")


@pytest.mark.parametrize("name", ["Wonders", "a b", "<b>x", "%2e%2e", "x" * 64])
def test_a_dataset_name_that_is_not_plain_is_refused(client: FlaskClient, name: str) -> None:
    assert_problem(client.post(f"{API}/datasets/{name}/scrape", json=scrape_spec()), 422, "a name is lower-case letters")


def test_a_dataset_name_with_a_slash_is_no_address(client: FlaskClient) -> None:
    assert_problem(client.post(f"{API}/datasets/a%2Fb/scrape", json=scrape_spec()), 404)


def test_a_body_that_names_another_dataset_than_the_address_is_refused(client: FlaskClient) -> None:
    assert_problem(client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(dataset="other")), 422, "another dataset")


def test_class_names_are_data_whatever_they_hold(client: FlaskClient) -> None:
    names = ["<img src=x onerror=alert(1)>", "../../etc/passwd", "=1+1", "日本"]
    job = client.post(f"{API}/datasets/odd/scrape", json={"classes": [{"name": name} for name in names]}).json
    assert [c["name"] for c in job["spec"]["classes"]] == names  # type: ignore[index]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
def test_a_body_that_is_not_called_json_is_refused(client: FlaskClient, kind: str) -> None:
    response = client.post(f"{API}/trainings", data=b'{"dataset": "animals"}', content_type=kind)
    assert_problem(response, 415, "Content-Type: application/json")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"\xff\xfe{", 400), (b'{"base_lr": NaN}', 400), (b"[" * 100_000, 400), (b"[1]", 422), (b"null", 422), (b"", 422)],
    ids=["cut", "no unicode", "NaN", "deep", "list", "null", "empty"],
)
def test_a_body_that_is_no_json_object_is_refused(client: FlaskClient, body: bytes, status: int) -> None:
    assert_problem(client.post(f"{API}/trainings", data=body, content_type="application/json"), status)


def test_what_an_order_refers_to_must_be_there(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "m")
    upload = {"kind": "upload", "id": "0" * 20}
    for path, spec in [
        ("trainings", {"dataset": "nothing"}),
        ("batches", {"model": "nothing", "source": upload}),
        ("batches", {"model": "animals/v7", "source": upload}),
        ("batches", {"model": "animals", "source": upload}),
        ("datasets/x/import", {"source": upload}),
    ]:
        assert_problem(client.post(f"{API}/{path}", json=spec), 404, "There is no")


def test_a_dataset_is_classified_in_the_version_that_is_newest_now(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "model")
    make_dataset(storage, tmp_path / "a")
    make_dataset(storage, tmp_path / "b")
    spec = client.post(f"{API}/batches", json={"model": "animals", "source": {"kind": "dataset", "dataset": "animals"}}).json["spec"]  # type: ignore[index]
    assert spec["source"] == {"kind": "dataset", "dataset": "animals", "version": 2}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "was not tried"),
        ({"agreement": 0.9, "offered": False}, "keeps only 90.0% of the labels"),
        ({"offered": False, "why": "The package nncf is not installed where this model was trained."}, "nncf is not installed"),
    ],
)
def test_int8_is_refused_for_a_model_that_has_none(
    client: FlaskClient, storage: Storage, tmp_path: Path, found: dict[str, Any] | None, words: str
) -> None:
    make_model(storage, tmp_path / "model", **({"int8": found} if found else {}))
    spec = {"model": "animals", "precision": "int8", "source": {"kind": "urls", "urls": ["http://example.org/1.png"]}}
    assert assert_problem(client.post(f"{API}/batches", json=spec), 422, words, "Choose fast or exact")["field"] == "precision"


def test_int8_is_taken_for_a_model_that_has_it(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "model", int8={"agreement": 0.995, "offered": True})
    spec = {"model": "animals", "precision": "int8", "source": {"kind": "urls", "urls": ["http://example.org/1.png"]}}
    assert client.post(f"{API}/batches", json=spec).status_code == 202


def test_the_failed_items_of_a_batch_are_ordered_again(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    assert_problem(client.post(f"{API}/batches/{batch}/retry-failed"), 409, "still runs")
    store.cancel(batch)
    again = client.post(f"{API}/batches/{batch}/retry-failed")
    assert again.status_code == 202, again.text
    assert again.json["spec"]["source"] == {"kind": "failed", "batch": batch}  # type: ignore[index]
    assert_problem(client.post(f"{API}/batches/{'0' * 20}/retry-failed"), 404)


def test_a_batch_without_failed_items_has_nothing_to_retry(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    batch = order_batch(client, storage, tmp_path)
    plan(store, batch)
    work(store, storage, batch, 0, [result_row(0), result_row(1)])
    store.cancel(batch)
    assert_problem(client.post(f"{API}/batches/{batch}/retry-failed"), 409, "nothing to retry")


def test_what_was_reviewed_becomes_an_import_once_something_was(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    spec = {"source": {"kind": "review", "batch": batch}}
    assert_problem(client.post(f"{API}/datasets/animals/import", json=spec), 422, "Nobody has reviewed")
    review.decide(storage, batch, result_row(0), "dog")
    assert client.post(f"{API}/datasets/animals/import", json=spec).status_code == 202


# -- who may ask ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:9999"])
def test_an_order_from_a_page_of_another_site_is_refused(client: FlaskClient, origin: str) -> None:
    response = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(), headers={"Origin": origin})
    assert_problem(response, 403, "another site")


def test_an_order_from_our_own_page_is_taken(client: FlaskClient) -> None:
    response = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec(), headers={"Origin": "http://localhost"})
    assert response.status_code == 202


def test_a_name_of_another_site_is_not_answered(client: FlaskClient) -> None:
    assert client.get(f"{API}/jobs", headers={"Host": "evil.example"}).status_code == 400


# -- datasets and models ----------------------------------------------------------------------------------------------


def test_datasets_are_listed_and_shown_with_their_versions(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "a")
    make_dataset(storage, tmp_path / "b", labels=("cat", "dog", "owl"))
    listed = client.get(f"{API}/datasets").json["datasets"]  # type: ignore[index]
    shown = client.get(f"{API}/datasets/animals").json
    assert [(d["dataset"], d["version"]) for d in listed] == [("animals", 2)]
    assert [v["version"] for v in shown["versions"]] == [2, 1]  # type: ignore[index]
    assert client.get(f"{API}/datasets/animals/versions/1").json["classes"] == {"cat": 3, "dog": 3}  # type: ignore[index]


def test_models_are_listed_and_shown_with_their_report(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "m")
    assert [m["model"] for m in client.get(f"{API}/models").json["models"]] == ["animals"]  # type: ignore[index]
    assert client.get(f"{API}/models/animals").json["versions"][0]["version"] == 1  # type: ignore[index]
    assert client.get(f"{API}/models/animals/versions/1").json["arch"] == "resnet18"  # type: ignore[index]
    assert client.get(f"{API}/models/animals/versions/1/report").json == {"error_rate": 0.1}


def test_a_file_of_a_model_is_a_download(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "m")
    response = client.get(f"{API}/models/animals/versions/1/files/model.safetensors")
    assert response.data == b"weights"
    assert response.headers["Content-Disposition"] == "attachment; filename=animals-v1-model.safetensors"


@pytest.mark.parametrize("file", ["secret.txt", "..", "..%2finfo.json", "%2e%2e%2finfo.json", "export.pkl"])
def test_only_the_files_that_a_model_has_can_be_downloaded(client: FlaskClient, storage: Storage, tmp_path: Path, file: str) -> None:
    make_model(storage, tmp_path / "m")
    assert_problem(client.get(f"{API}/models/animals/versions/1/files/{file}"), 404)


@pytest.mark.parametrize(
    "path",
    [
        "datasets/nothing", "datasets/nothing/versions/1", "models/nothing", "models/nothing/versions/1", "models/nothing/versions/1/report",
        "jobs/00000000000000000000", "jobs/x", "jobs/00000000000000000000:epochs", "batches/00000000000000000000",
        "batches/00000000000000000000/rows", "batches/00000000000000000000/results.csv", "batches/x/results.exe",
        "datasets/a/versions/99999999999999999999", "nothing", "", "jobs/a/b/c",
    ],
)  # fmt: skip
def test_what_does_not_exist_is_a_problem_404(client: FlaskClient, path: str) -> None:
    assert_problem(client.get(f"{API}/{path}"), 404)


def test_a_part_of_a_job_in_redis_is_no_job(client: FlaskClient, store: JobStore) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    claim = store.claim(job_id, "main", "tester")
    assert claim
    store.append(claim, "epochs", 0, [{"epoch": 1}])
    assert_problem(client.get(f"{API}/jobs/{job_id}:epochs"), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("DELETE", "jobs", "GET"), ("PUT", "trainings", "POST"), ("GET", "trainings", "POST")]
)
def test_a_method_that_an_address_does_not_take_is_405(client: FlaskClient, method: str, path: str, allowed: str) -> None:
    response = client.open(f"{API}/{path}", method=method)
    assert_problem(response, 405, f"takes {allowed}")
    assert response.headers["Allow"] == allowed


# -- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_shown_with_its_histograms_and_newest_rows(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    shown = client.get(f"{API}/batches/{batch}").json
    assert shown
    assert shown["counts"]["done"] == 2
    assert shown["histograms"] == {"labels": {"cat": 1}, "confidence": {"15": 1}, "reasons": {"truncated": 1}}
    assert {row["item_id"] for row in shown["latest"]} == {0, 1}
    assert [b["id"] for b in client.get(f"{API}/batches").json["batches"]] == [batch]  # type: ignore[index]


def test_addresses_of_an_order_are_kept_as_a_list_and_not_in_the_ledger(
    client: FlaskClient, store: JobStore, storage: Storage, settings: Settings, tmp_path: Path
) -> None:
    make_model(storage, tmp_path / "model")
    urls = [f"http://example.org/{i}.png" for i in range(1000)]
    job = client.post(f"{API}/batches", json={"model": "animals", "source": {"kind": "urls", "urls": urls}}).json
    source = job["spec"]["source"]  # type: ignore[index]
    assert (set(source), source["kind"]) == ({"kind", "id"}, "list")
    assert store.get(job["id"]).spec["source"] == source  # type: ignore[index]
    assert [uri for uri, _, _ in walk(ListSource(id=source["id"]), storage, settings)] == urls


def test_a_job_that_is_no_batch_is_not_shown_as_one(client: FlaskClient) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    assert_problem(client.get(f"{API}/batches/{job_id}"), 404, "is no batch")


def test_rows_are_filtered_and_paged_without_paths_of_the_server(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)

    def items(query: str) -> tuple[list[int], int | None]:
        answer = client.get(f"{API}/batches/{batch}/rows?{query}").json
        assert answer
        return [row["item_id"] for row in answer["rows"]], answer["next"]

    assert items("") == ([0, 1], None)
    assert items("limit=1") == ([0], 1)
    assert items("limit=1&start=1") == ([1], None)
    assert items("label=cat") == ([0], None)
    assert items("decision=review") == ([], None)
    assert items("error=any") == items("error=truncated") == ([1], None)
    assert items("low=0.7&high=0.8&order=margin") == ([0], None)
    assert items("order=-confidence&limit=1") == ([0], 1)
    assert client.get(f"{API}/batches/{batch}/rows?limit=1").json["total"] == 2  # type: ignore[index]
    assert b"/secret/" not in client.get(f"{API}/batches/{batch}/rows").data


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "start=-1", "start=1e3", "start=٣", "decision=maybe", "low=2", "high=nan", "low=.", "order=label"],
)
def test_a_query_that_does_not_fit_is_refused(client: FlaskClient, storage: Storage, tmp_path: Path, query: str) -> None:
    batch = order_batch(client, storage, tmp_path)
    assert_problem(client.get(f"{API}/batches/{batch}/rows?{query}"), 422, "must be")


def test_a_person_accepts_relabels_and_takes_it_back(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    work(store, storage, batch, 2, [result_row(2), result_row(3)])
    base = f"{API}/batches/{batch}/review"
    for _ in range(2):
        assert client.put(f"{base}/0", json={"accept": True}).json["action"] == "accept"  # type: ignore[index]
    given = client.put(f"{base}/2", json={"label": "=lynx"}).json
    assert given
    assert (given["model_label"], given["given_label"], "locator" in given) == ("cat", "=lynx", False)
    client.put(f"{base}/3", json={"label": "dog"})
    assert client.delete(f"{base}/3").status_code == client.delete(f"{base}/3").status_code == 204
    listed = client.get(f"{base}?limit=1").json
    assert listed
    assert ([d["item_id"] for d in listed["decisions"]], listed["next"], listed["total"]) == ([0], 2, 2)
    assert [d["item_id"] for d in client.get(f"{base}?start=2").json["decisions"]] == [2]  # type: ignore[index]
    lines = list(csv.DictReader(io.StringIO(client.get(f"{base}.csv").text, newline="")))
    assert [(line["item_id"], line["given_label"]) for line in lines] == [("0", "cat"), ("2", "'=lynx")]
    assert len(client.get(f"{base}.jsonl").text.splitlines()) == 2
    assert client.get(f"{API}/batches/{batch}/rows?start=2").json["rows"][0]["label"] == "cat"  # type: ignore[index]


@pytest.mark.parametrize("said", [{}, {"accept": False}, {"label": 1}, {"label": ""}, {"label": "a", "accept": True}, {"label": "x" * 101}])
def test_a_decision_that_makes_no_sense_is_refused(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path, said: dict[str, Any]
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    assert_problem(client.put(f"{API}/batches/{batch}/review/0", json=said), 422)
    assert client.get(f"{API}/batches/{batch}/review").json["decisions"] == []  # type: ignore[index]


def test_only_rows_with_a_label_are_decided_on_and_only_as_json(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    base = f"{API}/batches/{batch}/review"
    assert_problem(client.put(f"{base}/1", json={"accept": True}), 422, "could not be read")
    assert_problem(client.put(f"{base}/7", json={"accept": True}), 404)
    assert_problem(client.put(f"{base}/0", data='{"accept": true}', content_type="text/plain"), 415)


def test_results_of_a_running_batch_are_what_is_done_so_far(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    base = f"{API}/batches/{batch}/results"
    table = list(csv.DictReader(io.StringIO(client.get(f"{base}.csv").text)))
    lines = [json.loads(line) for line in client.get(f"{base}.jsonl").text.splitlines()]
    parquet = pq.read_table(io.BytesIO(client.get(f"{base}.parquet").data))
    assert [row["item_id"] for row in table] == ["0", "1"]
    assert [row["error_code"] for row in lines] == ["", "truncated"]
    assert parquet["label"].to_pylist() == ["cat", ""]
    assert client.get(f"{base}.csv").headers["Content-Disposition"] == f"attachment; filename=batch-{batch}.csv"


def test_a_batch_without_rows_yet_has_results_with_columns_alone(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    batch = order_batch(client, storage, tmp_path)
    assert client.get(f"{API}/batches/{batch}/results.csv").text.startswith("item_id,uri,")
    assert client.get(f"{API}/batches/{batch}/results.jsonl").text == ""
    assert pq.read_table(io.BytesIO(client.get(f"{API}/batches/{batch}/results.parquet").data)).num_rows == 0


def test_a_file_name_that_a_spreadsheet_would_run_is_defused_in_csv(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    rows = list(csv.DictReader(io.StringIO(client.get(f"{API}/batches/{batch}/results.csv").text)))
    assert rows[1]["uri"] == "'=cmd()"


def test_results_of_a_finished_batch_are_the_files_on_storage(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    batch = half_done_batch(client, store, storage, tmp_path)
    work(store, storage, batch, 2, [result_row(2), result_row(3)])
    storage.write(f"batches/{batch}/results.csv", b"the finished file")
    end(store, batch, State.DONE, "finish", csv=f"batches/{batch}/results.csv")
    assert client.get(f"{API}/batches/{batch}/results.csv").data == b"the finished file"
    assert len(client.get(f"{API}/batches/{batch}/results.jsonl").text.splitlines()) == 4


# -- one image --------------------------------------------------------------------------------------------------------


@pytest.fixture
def answering(store: JobStore) -> Any:
    """A worker that answers the questions it finds with what `replies` says of each image."""
    stop = threading.Event()
    replies: dict[bytes, dict[str, Any]] = {}

    def serve() -> None:
        store.announce("tester", {"name": "tester", "queues": ["predict"]})
        while not stop.is_set():
            if asked := store.next_question(0.1):
                question_id, question, image = asked
                store.answer(question_id, {**replies.get(image, {"label": "cat"}), "asked": question})

    thread = threading.Thread(target=serve)
    thread.start()
    while not store.workers():
        stop.wait(0.01)
    yield replies
    stop.set()
    thread.join()


def test_one_image_is_labelled_while_the_client_waits(client: FlaskClient, storage: Storage, tmp_path: Path, answering: Any) -> None:
    make_model(storage, tmp_path / "m")
    raw = client.post(f"{API}/predict?model=animals", data=picture(), content_type="image/png")
    form = client.post(f"{API}/predict?model=animals/v1", data={"image": (io.BytesIO(picture()), "x.png")})
    assert raw.json == form.json == {"label": "cat", "asked": {"model": "animals/v1"}}


def test_an_image_that_cannot_be_labelled_is_422_with_the_sentence(
    client: FlaskClient, storage: Storage, tmp_path: Path, answering: Any
) -> None:
    make_model(storage, tmp_path / "m")
    answering[b"text"] = {"error": "The file is not a picture."}
    assert_problem(client.post(f"{API}/predict?model=animals", data=b"text", content_type="image/png"), 422, "not a picture")


def test_without_a_worker_for_single_images_the_answer_says_how_to_start_one(
    client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path
) -> None:
    make_model(storage, tmp_path / "m")
    store.announce("trainer", {"name": "trainer", "queues": ["train"]})
    response = client.post(f"{API}/predict?model=animals", data=picture(), content_type="image/png")
    assert_problem(response, 503, "darkroom worker --queues predict,classify")


@pytest.mark.parametrize(
    ("query", "kind", "data", "status"),
    [
        ("model=nothing", "image/png", b"x", 404),
        ("model=../../etc", "image/png", b"x", 422),
        ("", "image/png", b"x", 422),
        ("model=animals", "image/png", b"", 422),
        ("model=animals", "text/html", b"x", 415),
        ("model=animals", "application/json", b"{}", 415),
    ],
)
def test_a_question_that_makes_no_sense_is_refused_before_a_worker_is_asked(
    client: FlaskClient, storage: Storage, tmp_path: Path, query: str, kind: str, data: bytes, status: int
) -> None:
    make_model(storage, tmp_path / "m")
    assert_problem(client.post(f"{API}/predict?{query}", data=data, content_type=kind), status)


def test_an_image_that_is_too_large_is_refused(settings: Settings, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "m")
    client = create_app(settings.model_copy(update={"max_image_bytes": 1000})).test_client()
    response = client.post(f"{API}/predict?model=animals", data=b"x" * 100_000, content_type="image/png")
    assert_problem(response, 413, "larger than")


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_are_paged_by_a_cursor_newest_first(client: FlaskClient) -> None:
    ordered = [client.post(f"{API}/datasets/d{i}/scrape", json=scrape_spec()).json["id"] for i in range(5)]  # type: ignore[index]
    seen, query = [], "limit=2"
    while query:
        page = client.get(f"{API}/jobs?{query}").json
        assert page
        seen += [job["id"] for job in page["jobs"]]
        query = f"limit=2&before={page['next']}" if page["next"] else ""
    assert seen == ordered[::-1]


def test_jobs_are_filtered_by_kind_and_state(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    training = client.post(f"{API}/trainings", json={"dataset": "animals"}).json["id"]  # type: ignore[index]
    scrape = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    end(store, scrape, State.FAILED)
    assert [j["id"] for j in client.get(f"{API}/jobs?kind=train").json["jobs"]] == [training]  # type: ignore[index]
    assert [j["id"] for j in client.get(f"{API}/jobs?state=failed").json["jobs"]] == [scrape]  # type: ignore[index]
    assert_problem(client.get(f"{API}/jobs?state=lost"), 422, "must be one of queued")
    assert_problem(client.get(f"{API}/jobs?before={new_id()}"), 404)


def test_a_training_is_shown_with_its_epochs_and_loss(client: FlaskClient, store: JobStore, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    job_id = client.post(f"{API}/trainings", json={"dataset": "animals"}).json["id"]  # type: ignore[index]
    claim = store.claim(job_id, "main", "tester")
    assert claim
    store.append(claim, "epochs", 0, [{"epoch": 1, "error_rate": 0.5}])
    store.append(claim, "loss", 0, [[1, 0.7], [2, 0.6]])
    store.renew(claim, {"phase": "training", "done": 2, "total": 10})
    shown = client.get(f"{API}/jobs/{job_id}").json
    assert shown
    assert (shown["epochs"], shown["loss"]) == ([{"epoch": 1, "error_rate": 0.5}], [[1, 0.7], [2, 0.6]])
    assert (shown["state"], shown["progress"]["phase"]) == ("running", "training")
    assert "loss" not in client.get(f"{API}/jobs/{job_id}?lists=epochs").json  # type: ignore[operator]


def test_a_poll_answers_304_until_something_has_changed(client: FlaskClient, store: JobStore) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    etag = client.get(f"{API}/jobs/{job_id}").headers["ETag"]
    again = client.get(f"{API}/jobs/{job_id}", headers={"If-None-Match": etag})
    assert (again.status_code, again.data) == (304, b"")
    store.claim(job_id, "main", "tester")
    changed = client.get(f"{API}/jobs/{job_id}", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json["state"]) == (200, "running")  # type: ignore[index]


def test_a_waiting_job_is_cancelled_at_once_and_kept_so(client: FlaskClient, storage: Storage) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    response = client.post(f"{API}/jobs/{job_id}/cancel")
    assert (response.status_code, response.json["state"]) == (202, "cancelled")  # type: ignore[index]
    assert storage.read_json(f"jobs/{job_id}.json")["state"] == "cancelled"
    assert_problem(client.post(f"{API}/jobs/{job_id}/cancel"), 409, "it is cancelled")


def test_a_batch_rests_and_goes_on(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    batch = order_batch(client, storage, tmp_path)
    paused = client.post(f"{API}/jobs/{batch}/pause")
    assert (paused.status_code, paused.json["state"]) == (202, "paused")  # type: ignore[index]
    resumed = client.post(f"{API}/jobs/{batch}/resume")
    assert (resumed.status_code, resumed.json["state"]) == (202, "queued")  # type: ignore[index]
    assert_problem(client.post(f"{API}/jobs/{batch}/resume"), 409, "not paused; it is queued")
    client.post(f"{API}/jobs/{batch}/cancel")
    assert_problem(client.post(f"{API}/jobs/{batch}/pause"), 409, "it is cancelled")


def test_only_batches_can_rest(client: FlaskClient) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    assert_problem(client.post(f"{API}/jobs/{job_id}/pause"), 409, "Only a batch can be paused")


def test_a_running_job_is_asked_to_stop(client: FlaskClient, store: JobStore) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    store.claim(job_id, "main", "tester")
    job = client.post(f"{API}/jobs/{job_id}/cancel").json
    assert job
    assert (job["state"], job["cancel"]) == ("running", True)


def test_a_failed_job_is_ordered_again_as_a_new_one(client: FlaskClient, store: JobStore) -> None:
    job_id = client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()).json["id"]  # type: ignore[index]
    assert_problem(client.post(f"{API}/jobs/{job_id}/retry"), 409, "this one is queued")
    end(store, job_id, State.FAILED)
    again = client.post(f"{API}/jobs/{job_id}/retry").json
    assert again
    assert again["id"] != job_id
    assert again["spec"] == client.get(f"{API}/jobs/{job_id}").json["spec"]  # type: ignore[index]


# -- uploads ----------------------------------------------------------------------------------------------------------


def test_an_uploaded_zip_can_be_imported(client: FlaskClient) -> None:
    response = client.post(f"{API}/uploads", data=zipped(**{"cat/1.png": picture()}), content_type="application/zip")
    assert response.status_code == 201
    ordered = client.post(f"{API}/datasets/animals/import", json={"source": response.json["source"]})  # type: ignore[index]
    assert ordered.status_code == 202


def test_a_tar_and_a_csv_are_uploads_that_can_be_imported(client: FlaskClient) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("cat/1.png")
        info.size = len(picture())
        archive.addfile(info, io.BytesIO(picture()))
    table = "url,label\nhttps://example.org/1.png,cat\n"
    for data, kind in ((out.getvalue(), "application/gzip"), (table, "text/csv")):
        response = client.post(f"{API}/uploads", data=data, content_type=kind)
        assert response.status_code == 201, response.text
        source = response.json["source"]  # type: ignore[index]
        assert client.post(f"{API}/datasets/animals/import", json={"source": source, "classes": {"cat": "kitty"}}).status_code == 202


def test_a_dataset_is_made_of_another_in_the_version_that_is_newest_now(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    order = {
        "source": {"kind": "dataset", "dataset": "animals", "classes": ["cat"]},
        "classes": {"cat": "kitty", "dog": ""},
        "note": "A note.",
    }
    spec = client.post(f"{API}/datasets/other/import", json=order).json["spec"]  # type: ignore[index]
    assert spec["source"] == {"kind": "dataset", "dataset": "animals", "version": 1, "classes": ["cat"]}
    assert (spec["classes"], spec["note"]) == ({"cat": "kitty", "dog": None}, "A note.")


@pytest.mark.parametrize(
    ("source", "classes", "status", "words"),
    [
        ({"dataset": "nothing"}, {}, 404, "no dataset 'nothing'"),
        ({"dataset": "animals", "version": 1}, {"cat": "kitty"}, 409, "not its newest version, v2"),
        ({"dataset": "animals"}, {}, 422, "Say which class is called otherwise"),
        ({"dataset": "animals"}, {"cta": "kitty"}, 422, "has no class 'cta'"),
        ({"dataset": "animals", "classes": ["cat"]}, {"cat": "kitty"}, 422, "Name the classes to leave out"),
        ({"dataset": "animals"}, {"cat": "a\nb"}, 422, "a class name cannot hold control"),
        ({"dataset": "animals"}, {"cat": "X", "dog": "x"}, 422, "differ by upper and lower case alone"),
        ({"dataset": "animals"}, ["cat"], 422, "classes"),
    ],
)
def test_a_renaming_that_makes_no_sense_is_refused_before_it_is_ordered(
    client: FlaskClient, storage: Storage, tmp_path: Path, source: dict[str, Any], classes: Any, status: int, words: str
) -> None:
    for _ in range(2):
        make_dataset(storage, tmp_path / "d")
    order = {"source": {"kind": "dataset", **source}, "classes": classes}
    assert_problem(client.post(f"{API}/datasets/animals/import", json=order), status, words)


def test_a_version_is_exported_and_downloaded_once_it_is_there(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_dataset(storage, tmp_path / "d")
    there = f"{API}/datasets/animals/versions/1/exports"
    assert_problem(client.get(f"{there}/coco"), 404, "was not exported as 'coco'")
    ordered = client.post(f"{there}/coco")
    assert ordered.status_code == 202, ordered.text
    assert (ordered.json["kind"], ordered.json["queue"], ordered.json["title"]) == ("pack", "scrape", "Export animals v1 as coco")  # type: ignore[index]
    assert ordered.json["spec"] == {"dataset": "animals", "version": 1, "format": "coco"}  # type: ignore[index]
    storage.write("exports/animals/v0001/coco.zip", b"PK")
    assert client.get(there).json == {"exports": [{"format": "coco", "bytes": 2}]}
    download = client.get(f"{there}/coco")
    assert (download.data, download.mimetype) == (b"PK", "application/zip")
    assert download.headers["Content-Disposition"] == "attachment; filename=animals-v1-coco.zip"


@pytest.mark.parametrize("path", ["versions/2/exports/coco", "versions/1/exports/pickle", "versions/1/exports/..%2f..%2fx"])
def test_what_cannot_be_exported_is_refused(client: FlaskClient, storage: Storage, tmp_path: Path, path: str) -> None:
    make_dataset(storage, tmp_path / "d")
    assert client.post(f"{API}/datasets/animals/{path}").status_code in {404, 422}
    assert_problem(client.get(f"{API}/datasets/animals/{path}"), 404)


def test_the_files_of_a_form_become_one_upload(client: FlaskClient, storage: Storage) -> None:
    files = [(io.BytesIO(picture()), name) for name in ("cat/1.png", "dog/1.png", "../../evil.png")]
    upload = client.post(f"{API}/uploads", data={"files": files}).json
    assert upload
    with zipfile.ZipFile(storage.open(f"uploads/{upload['id']}.zip")) as archive:
        assert archive.namelist() == ["cat/1.png", "dog/1.png", "evil.png"]


@pytest.mark.parametrize(
    "content", [b"", b"just text", zipped(), zipped(**{"../x.png": b"x"})], ids=["empty", "text", "empty zip", "dot-dot"]
)
def test_an_upload_that_cannot_be_used_is_refused_and_not_kept(client: FlaskClient, storage: Storage, content: bytes) -> None:
    assert_problem(client.post(f"{API}/uploads", data=content, content_type="application/zip"), 422)
    assert storage.list("uploads") == []


def test_files_are_sent_by_their_content_only_once_and_become_an_upload(client: FlaskClient, settings: Settings, storage: Storage) -> None:
    sha256 = hashlib.sha256(picture()).hexdigest()
    asked = client.post(f"{API}/uploads/missing", json={"sha256": [sha256]}).json
    assert asked == {"missing": [sha256], "max_bytes": settings.max_image_bytes}
    assert [client.put(f"{API}/uploads/blobs/{sha256}", data=picture()).status_code for _ in range(2)] == [201, 200]
    names = json.dumps(["cat/1.png", sha256]) + "\n" + json.dumps(["dog/1.png", sha256])
    kept = client.post(f"{API}/uploads/manifest", data=names, content_type="application/jsonl")
    assert (kept.status_code, kept.json["items"]) == (201, 2)  # type: ignore[index]
    ordered = client.post(f"{API}/datasets/animals/import", json={"source": kept.json["source"]})  # type: ignore[index]
    assert ordered.status_code == 202


def test_a_file_with_other_bytes_than_its_name_says_is_refused(client: FlaskClient, storage: Storage) -> None:
    assert_problem(client.put(f"{API}/uploads/blobs/{'0' * 64}", data=picture()), 422, "send the file again")
    assert_problem(client.put(f"{API}/uploads/blobs/..%2f..%2fevil", data=picture()), 404)
    assert_problem(client.put(f"{API}/uploads/blobs/evil", data=picture()), 422, "is no SHA-256")
    assert_problem(client.post(f"{API}/uploads/blobs/{'0' * 64}", data=picture()), 405, "PUT")


def test_a_list_is_kept_and_can_be_classified(client: FlaskClient, storage: Storage, tmp_path: Path) -> None:
    make_model(storage, tmp_path / "model")
    kept = client.post(f"{API}/uploads/list", data="url,label\nhttp://example.org/1.png,cat\n/srv/2.png,dog\n", content_type="text/csv")
    assert (kept.status_code, kept.json["items"]) == (201, 2)  # type: ignore[index]
    ordered = client.post(f"{API}/batches", json={"model": "animals", "source": kept.json["source"]})  # type: ignore[index]
    assert ordered.status_code == 202
    assert_problem(client.post(f"{API}/uploads/list", data="x", content_type="image/png"), 415, "text/plain or text/csv")
    assert_problem(client.post(f"{API}/uploads/manifest", data="x", content_type="text/plain"), 415, "application/jsonl")


def test_an_upload_beyond_the_limit_is_refused(settings: Settings) -> None:
    client = create_app(settings.model_copy(update={"max_upload_bytes": 1000})).test_client()
    assert_problem(client.post(f"{API}/uploads", data=b"x" * 2000, content_type="application/zip"), 413, "1,000 bytes")


# -- when something is away -------------------------------------------------------------------------------------------


@pytest.fixture
def without_redis(settings: Settings, tmp_path: Path) -> FlaskClient:
    return create_app(settings.model_copy(update={"redis_url": f"unix://{tmp_path}/nobody.sock"})).test_client()


@pytest.mark.parametrize("path", ["jobs", "workers", "jobs/00000000000000000000", "health"])
def test_with_redis_away_an_answer_is_503(without_redis: FlaskClient, path: str) -> None:
    response = without_redis.get(f"{API}/{path}")
    assert response.status_code == 503
    assert "Redis cannot be reached" in response.text


def test_with_redis_away_nothing_is_ordered_and_a_sentence_says_so(without_redis: FlaskClient, storage: Storage) -> None:
    assert_problem(without_redis.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()), 503, "Redis cannot be reached", "darkroom up")
    assert storage.list("jobs") == []


def test_an_order_that_cannot_be_kept_on_storage_is_taken_back(client: FlaskClient, storage: Storage) -> None:
    storage.write("jobs", b"a file where the folder should be")
    assert_problem(client.post(f"{API}/datasets/wonders/scrape", json=scrape_spec()), 503, "nothing was ordered")
    assert client.get(f"{API}/jobs").json["jobs"][0]["state"] == "cancelled"  # type: ignore[index]


def test_the_probes_say_whether_the_web_lives_and_is_ready(client: FlaskClient, without_redis: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").json == {"status": "ok", "checks": {"redis": "ok", "storage": "ok"}}
    assert (without_redis.get("/healthz").status_code, without_redis.get("/readyz").status_code) == (200, 503)


def test_a_bug_tells_nothing_of_the_inside(client: FlaskClient, storage: Storage) -> None:
    storage.write("datasets/broken/v0001/info.json", b"no json")
    problem = assert_problem(client.get(f"{API}/datasets"), 500, "This is a bug in Darkroom")
    assert "JSON" not in problem["detail"]


def test_a_backend_without_an_address_of_redis_says_how_to_get_one(settings: Settings) -> None:
    client = create_app(settings.model_copy(update={"redis_url": None})).test_client()
    assert_problem(client.get(f"{API}/jobs"), 400, "DARKROOM_REDIS_URL is not set")
