"""The pages, asked through Flask's test client on a real Redis and a real storage folder."""

import hashlib
import html
import io
import json
import math
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from shared import datasets, models, results, review
from shared.jobs import Claim, JobStore, State, connect
from shared.settings import Settings
from shared.specs import parse
from shared.storage import Storage, image_key
from web import charts, create_app
from web.forms import SpecForm, class_lines

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = ["hat", HOSTILE]
EPOCH = {"epoch": 0, "frozen": True, "train_loss": 0.9, "valid_loss": 0.7, "error_rate": 0.25, "seconds": 3.0}
PAGES = ["/", "/datasets", "/datasets/new", "/trainings/new", "/models", "/batches", "/batches/new", "/jobs", "/workers"]


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (300, 200), (shade, 40, 90)).save(out, "JPEG")
    return out.getvalue()


def publish(storage: Storage, parent: str, files: dict[str, bytes], info: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        storage.publish_version(parent, Path(folder), info)


def make_dataset(storage: Storage) -> list[dict[str, object]]:
    rows = []
    for i in range(8):
        data = picture(i * 20)
        sha256 = hashlib.sha256(data).hexdigest()
        storage.write(image_key(sha256, "jpg"), data)
        rows.append(
            datasets.blank_row(
                sha256=sha256,
                ext="jpg",
                label=CLASSES[i % 2],
                status="kept",
                name=f"{HOSTILE}.jpg",
                width=300,
                height=200,
                format="JPEG",
                bytes=len(data),
            )
        )
    dropped = datasets.blank_row(label=HOSTILE, status="dropped", reason="truncated", detail=f"{HOSTILE} is cut off.", name=HOSTILE)
    info = {"dataset": "clothing", "created": time.time(), "job": "", "source": {"kind": "folder", "path": f"/data/{HOSTILE}"}}
    publish(
        storage,
        "datasets/clothing",
        {"manifest.parquet": datasets.manifest_bytes([*rows, dropped])},
        {**info, **datasets.summary([*rows, dropped])},
    )
    return rows


def make_model(storage: Storage, rows: list[dict[str, object]]) -> None:
    epoch = EPOCH
    mistake = {"sha256": rows[1]["sha256"], "ext": "jpg", "actual": HOSTILE, "predicted": "hat", "probability": 0.8}
    report = {
        "classes": CLASSES,
        "confusion": [[4, 0], [1, 3]],
        "per_class": [{"label": c, "precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 4} for c in CLASSES],
        "top_losses": [{**mistake, "loss": 1.6}],
        "most_confused": [{"actual": HOSTILE, "predicted": "hat", "count": 1}],
        "error_rate": 0.125,
        "interval": [0.02, 0.47],
        "epochs": [epoch],
        "loss": [[1, 1.2], [2, 0.9], [3, math.nan]],
        "mistakes": [mistake],
        "calibration": {"bins": [{"low": 0.7, "high": 0.8, "images": 8, "probability": 0.75, "right": 0.875}], "error": 0.125},
        "threshold": {"probability": 0.81234, "precision": 0.97, "review": 0.25},
        "lr_curve": [[1e-6, 1.0], [1e-4, 0.9], [1e-2, 0.4]],
    }
    spec = parse("train", {"dataset": "clothing", "version": 1, "model": "clothing", "epochs": 7, "notes": HOSTILE}).model_dump(mode="json")
    info = {
        "model": "clothing", "created": time.time(), "job": "", "arch": "resnet18", "classes": CLASSES, "image_size": 224, "spec": spec,
        "dataset": {"name": "clothing", "version": 1, "hash": "0" * 64, "images": 8}, "parent": None, "error_rate": 0.125, "valid_images": 8,
        "train_images": 24, "base_lr": 2e-3, "train_seconds": 9.5, "epochs": [epoch], "device": "CPU", "libraries": {"fastai": "2.8.4"},
    }  # fmt: skip
    files = {"report.json": json.dumps(report).encode(), "model.safetensors": b"0" * 64, "validation.parquet": predictions(rows)}
    publish(storage, "models/clothing", files, info)


def predictions(rows: list[dict[str, object]], wrong: int = 1) -> bytes:
    """What a model says of the images of a dataset, each surer than the one before, all right but one."""
    told = [
        {"sha256": row["sha256"], "ext": "jpg", "actual": row["label"], "predicted": row["label"], "probability": p, "loss": -math.log(p)}
        for p, row in ((0.7 + i % 8 / 40, row) for i, row in enumerate(rows))
    ]
    told[wrong]["predicted"] = next(c for c in CLASSES if c != told[wrong]["actual"])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(told), out)
    return out.getvalue()


def make_batch(store: JobStore, storage: Storage, folder: Path) -> str:
    """A batch of three items: sure, unsure, and one that cannot be read."""
    folder.mkdir()
    (folder / "a.jpg").write_bytes(picture(200))
    spec = parse("classify", {"model": "clothing/v1", "source": {"kind": "folder", "path": str(folder)}})
    batch = store.create("classify", spec.model_dump(mode="json"), "plan")
    plan = store.claim(batch, "plan", "w")
    assert plan
    store.commit(plan, {"counts": {"items": 6}}, stretches=[(0, 6, 3)], last="finish")
    common = {
        "locator": f"file:{folder}/a.jpg",
        "sha256": "",
        "top_labels": CLASSES,
        "top_probabilities": [0.9, 0.1],
        "margin": 0.8,
        "entropy": 0.1,
    }
    common |= {
        "decision": "accept",
        "error_code": "",
        "error": "",
        "model": "clothing",
        "model_version": 1,
        "width": 300,
        "height": 200,
        "ms": 2.0,
    }
    rows = [
        {**common, "item_id": 0, "uri": "a.jpg", "label": "hat", "probability": 0.9},
        {**common, "item_id": 1, "uri": f"{HOSTILE}.jpg", "label": HOSTILE, "probability": 0.4, "margin": 0.1, "decision": "review"},
        {**common, "item_id": 2, "uri": "gone.jpg", "locator": "file:/gone.jpg", "label": "", "probability": None, "decision": "", "error_code": "truncated", "error": f"Cut off: {HOSTILE}."},
    ]  # fmt: skip
    shard = store.claim(batch, "00000000-00000003", "w")
    assert shard
    table = pa.Table.from_pylist(rows, schema=results.ROWS)
    storage.write(results.shard_key(batch, "00000000-00000003"), results.shard_bytes(table))
    store.commit(shard, results.tally(table))
    return batch


def make_job(
    store: JobStore, kind: str, spec: dict[str, object], progress: dict[str, object], end: State | None = None, error: str = ""
) -> str:
    job = store.create(kind, parse(kind, spec).model_dump(mode="json"), "main")
    claim = store.claim(job, "main", "w")
    assert claim
    store.renew(claim, progress)
    if end:
        store.finish(claim, end, error, {"dataset": "clothing", "version": 1, "images": 8, "dropped": 1} if end == State.DONE else None)
    return job


@pytest.fixture
def app(settings: Settings) -> Flask:
    return create_app(settings)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def filled(settings: Settings, tmp_path: Path) -> SimpleNamespace:
    """An installation at work: a dataset, a model, a batch, and jobs in several states."""
    storage, store = Storage(settings.storage, settings.cache), JobStore(connect(settings.redis_url or ""))
    rows = make_dataset(storage)
    make_model(storage, rows)
    scrape = {"dataset": "street", "classes": [{"name": HOSTILE}, {"name": "tram"}]}
    latest = [{"sha256": rows[0]["sha256"], "ext": "jpg", "label": HOSTILE}]
    running = {
        "phase": "downloading",
        "done": 3,
        "total": 100,
        "kept": 2,
        "dropped": 1,
        "reasons": {"truncated": 1},
        "classes": {HOSTILE: 2},
        "latest": latest,
    }
    train = make_job(
        store,
        "train",
        {"dataset": "clothing", "version": 1, "model": "clothing"},
        {"phase": "training", "done": 3, "total": 9, "epochs": 3, "epoch": 1},
    )
    return SimpleNamespace(
        storage=storage,
        store=store,
        rows=rows,
        batch=make_batch(store, storage, tmp_path / "pictures"),
        scrape=make_job(store, "scrape", scrape, running),
        train=train,
        failed=make_job(store, "scrape", scrape, {}, State.FAILED, f"Nothing was found for {HOSTILE}."),
        done=make_job(store, "scrape", scrape, {}, State.DONE),
        queued=store.create("train", parse("train", {"dataset": "clothing", "version": 1, "model": "m"}).model_dump(mode="json"), "main"),
    )


def addresses(filled: SimpleNamespace) -> list[str]:
    jobs = [
        f"/jobs/{job}{part}" for job in (filled.scrape, filled.train, filled.failed, filled.done, filled.queued) for part in ("", "/live")
    ]
    of_dataset = [
        "",
        "/look",
        "?label=hat",
        "?label=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E",
        "?dropped=1",
        f"/images/{filled.rows[1]['sha256']}",
    ]
    of_model = ["", "/compare?with=clothing/v1", "?actual=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&predicted=hat"]
    of_batch = [
        "",
        "/live",
        "?decision=review",
        "?error=any",
        "?label=hat&low=0.85&high=0.95",
        "?order=margin",
        "?as=table",
        "?page=9",
        "?low=nan&high=x&page=0&order=x",
        "/review",
        "/review?item=0&decision=",
        "/review?item=0&last=1",
        "/review?label=nothing",
        "/items/0",
        "/items/1",
        "/items/2",
    ]
    return [
        *PAGES, "/now", "/pulse", "/jobs/live", "/workers/live", "/jobs?kind=scrape&state=failed", "/datasets/new?way=zip", "/batches/new?model=clothing/v1",
        "/trainings/new?dataset=clothing", "/trainings/new?retrain=clothing/v1", *jobs, *(f"/datasets/clothing/v/1{a}" for a in of_dataset),
        *(f"/models/clothing/v/1{a}" for a in of_model), *(f"/batches/{filled.batch}{a}" for a in of_batch),
    ]  # fmt: skip


def token(client: FlaskClient, page: str) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get(page).text)
    assert found
    return found[1]


def post(client: FlaskClient, page: str, to: str = "", **form: object) -> object:
    return client.post(to or page, data={"csrf_token": token(client, page), **form})


# -- every page -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_installation_says_what_to_do_first(client: FlaskClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 200
    assert "darkroom " in answer.text or page == "/jobs"


def test_every_page_renders_with_data(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert {page: client.get(page).status_code for page in addresses(filled)} == dict.fromkeys(addresses(filled), 200)


def test_hostile_names_are_escaped_on_every_page(client: FlaskClient, filled: SimpleNamespace) -> None:
    shown = 0
    for page in addresses(filled):
        text = client.get(page).text
        assert "<img src=x" not in text, page
        shown += "&lt;img src=x" in text
    assert shown > 15


def test_no_page_needs_inline_script_or_style(client: FlaskClient, filled: SimpleNamespace) -> None:
    for page in addresses(filled):
        text = client.get(page).text
        assert not re.search(r"<script(?![^>]+src=)|\sstyle=|\son[a-z]+=\"|javascript:", text), page


def test_pages_forbid_everything_from_elsewhere(client: FlaskClient) -> None:
    assert client.get("/").headers["Content-Security-Policy"].startswith("default-src 'self'")


def test_every_form_that_posts_has_a_token(client: FlaskClient, filled: SimpleNamespace) -> None:
    for page in addresses(filled):
        forms = re.findall(r'<form[^>]+method="post".*?</form>', client.get(page).text, re.DOTALL)
        assert all('name="csrf_token"' in form for form in forms), page


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_unknown_address_is_a_page_with_a_sentence(client: FlaskClient) -> None:
    answer = client.get("/nothing/here")
    assert answer.status_code == 404
    assert "There is no page at this address." in answer.text


def test_an_unknown_address_of_the_api_is_a_problem(client: FlaskClient) -> None:
    assert client.get("/api/v1/nothing").mimetype == "application/problem+json"


@pytest.mark.parametrize("page", ["/jobs/nothing", "/jobs/%0a", "/datasets/none/v/1", "/models/none/v/1", "/batches/" + "0" * 20])
def test_what_does_not_exist_is_404_with_its_sentence(client: FlaskClient, page: str) -> None:
    answer = client.get(page)
    assert answer.status_code == 404
    assert "There is no" in answer.text


def test_without_redis_datasets_and_models_are_shown_under_a_banner(settings: Settings, filled: SimpleNamespace) -> None:
    client = create_app(settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})).test_client()
    for page in ("/", "/datasets", "/datasets/clothing/v/1", "/models", "/models/clothing/v/1", "/trainings/new", "/batches/new"):
        answer = client.get(page)
        assert (answer.status_code, "Redis cannot be reached" in answer.text) == (200, True), page


@pytest.mark.parametrize("page", ["/jobs", "/workers", "/batches", f"/jobs/{'0' * 20}"])
def test_without_redis_pages_of_the_queue_are_503_with_the_sentence(settings: Settings, page: str) -> None:
    answer = create_app(settings.model_copy(update={"redis_url": "unix:///nowhere/redis.sock"})).test_client().get(page)
    assert answer.status_code == 503
    assert "Redis cannot be reached" in answer.text


# -- forms ------------------------------------------------------------------------------------------------------------


def test_a_post_without_a_token_is_refused(client: FlaskClient) -> None:
    assert client.post("/datasets/new", data={"dataset": "clothing"}).status_code == 400


def test_a_wrong_value_is_told_at_its_field_and_all_values_stay(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(
        client, "/trainings/new?dataset=clothing", "/trainings/new", dataset="clothing", epochs="9999", arch="resnet34", notes="keep <me>"
    )
    assert answer.status_code == 422
    assert re.search(r'id="wrong-epochs">[^<]*500', answer.text)
    assert all(part in answer.text for part in ('value="9999"', 'value="resnet34"', "keep &lt;me&gt;"))


def test_every_wrong_field_is_told_at_once(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/trainings/new", "/trainings/new", dataset="clothing", epochs="none", image_size="1", base_lr="7")
    assert all(f'id="wrong-{field}"' in answer.text for field in ("epochs", "image_size", "base_lr"))


def test_the_train_form_shows_the_defaults_of_the_spec(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get("/trainings/new?dataset=clothing").text
    assert re.search(r'name="epochs" value="4"[^>]*min="1"[^>]*max="500"', text)
    assert (
        '8 images in 2 classes (<a href="/datasets/clothing/v/1">clothing v1</a>; licence: unknown&nbsp;<span class="soft count">8</span>), resnet18'
        in text
    )
    assert "resnet18, 5 epochs" in text


def test_retrain_is_filled_in_with_what_made_the_model(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get("/trainings/new?retrain=clothing/v1").text
    assert "Filled in with what made clothing/v1" in text
    assert re.search(r'name="epochs" value="7"', text)
    assert 'name="parent" value="clothing/v1"' in text


def test_a_training_is_ordered_and_its_job_shown(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/trainings/new?dataset=clothing", "/trainings/new", dataset="clothing", epochs="2", start="scratch", parent="")
    assert answer.status_code == 303
    job = filled.store.get(answer.location.rsplit("/", 1)[1])
    assert (job.kind, job.spec["epochs"], job.spec["version"], job.spec["start"]) == ("train", 2, 1, "scratch")


def test_a_dataset_is_looked_at_as_the_network_sees_it(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = "/datasets/clothing/v/1/look"
    assert "A worker makes the pictures" in client.get(page).text
    assert "less than or equal to 1024" in post(client, page, page, image_size="4096", min_scale="0.5", augment="course").text
    job = post(client, page, page, image_size="64", min_scale="0.5", augment="light").location.rsplit("/", 1)[1]
    assert filled.store.get(job).spec == {"dataset": "clothing", "version": 1, "image_size": 64, "min_scale": 0.5, "augment": "light"}
    filled.storage.write_json("looks/clothing/v0001/64-0.5-light/index.json", {"labels": [HOSTILE], "min_scale": 0.5, "augment": "light"})
    filled.storage.write("looks/clothing/v0001/64-0.5-light/crop.webp", picture(1))
    text = client.get(f"{page}?image_size=64&augment=light").text
    assert "RandomResizedCrop" in text
    assert "<img src=x" not in text
    assert client.get(f"{page}/64-0.5-light/crop.webp").mimetype == "image/webp"
    for wrong in ("64-0.5-light/other.webp", "..%2f..%2fx/crop.webp", "9-0.5-light/crop.webp"):
        assert client.get(f"{page}/{wrong}").status_code == 404


def test_a_class_too_small_to_validate_is_named(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert "2 classes are too small to validate" in client.get("/datasets/clothing/v/1").text


def test_a_model_says_how_far_to_trust_it_and_a_batch_takes_its_threshold(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get("/models/clothing/v/1").text
    assert "12.5\N{NO-BREAK SPACE}% apart on average" in text
    assert "Learning rates tried" in text
    link = html.unescape(re.search(r'href="(/batches/new[^"]*review_below[^"]*)"', text)[1])  # type: ignore[index]
    assert re.search(r'name="review_below" value="0.75"', client.get(link).text)


def test_two_versions_are_compared_and_the_better_one_promoted_and_rolled_back(client: FlaskClient, filled: SimpleNamespace) -> None:
    info = filled.storage.read_json("models/clothing/v0001/info.json")
    report = filled.storage.read("models/clothing/v0001/report.json")
    publish(
        filled.storage,
        "models/clothing",
        {"report.json": report, "validation.parquet": predictions(filled.rows, 2)},
        {**info, "parent": "clothing/v1", "job": "second"},
    )
    page = client.get("/models/clothing/v/2/compare").text
    assert "clothing/v2 beside clothing/v1" in page
    assert "The two may be equally good." in page
    assert page.count('class="sheet"') == 2
    for version in (1, 2):
        post(client, f"/models/clothing/v/{version}", f"/models/clothing/v/{version}/promote")
    text = client.get("/models/clothing/v/2").text
    assert "Roll back to v1" in text
    assert "Promote to production" not in text
    assert post(client, "/models/clothing/v/2", "/models/clothing/aliases/production/rollback").location == "/models/clothing/v/1"
    assert '<span class="chip">production</span>' in client.get("/models").text


def test_a_training_that_left_an_epoch_is_resumed_on_its_page(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = post(client, "/trainings/new?dataset=clothing", "/trainings/new", dataset="clothing", parent="").location
    job = page.rsplit("/", 1)[1]
    post(client, page, f"/jobs/{job}/cancel")
    assert f"/jobs/{job}/resume" not in client.get(page).text
    filled.storage.write(models.checkpoint_key(job), b"weights")
    assert "Resume from epoch" in client.get(page).text
    again = post(client, page, f"/jobs/{job}/resume").location.rsplit("/", 1)[1]
    assert filled.store.get(again).spec["continues"] == job


def test_a_running_training_tells_how_it_does_and_a_cancelled_one_what_it_has_left(client: FlaskClient, filled: SimpleNamespace) -> None:
    progress = {"phase": "training", "done": 4, "total": 9, "epoch": 1, "epochs": 3, "loss": 0.51, "lr": 0.00192, "seconds_left": 65}
    told = {**progress, "device": HOSTILE, "images_per_second": 412.4, "memory_mb": 1369, "gpu_memory_mb": 512}
    job = make_job(filled.store, "train", {"dataset": "clothing", "version": 1, "model": "clothing"}, told)
    page = client.get(f"/jobs/{job}/live").text
    for words in ("0.5100", "0.0019", "412<small>images a second", "1.4 GB<small>512 MB on the GPU", "about 1 min 5 s left"):
        assert words in page, words
    filled.store.redis.rpush(f"darkroom:job:{job}:epochs", json.dumps({**EPOCH, "epoch": 1}))
    filled.storage.write(models.checkpoint_key(job), b"weights")
    filled.store.cancel(job)
    token = filled.store.redis.hget(f"darkroom:unit:{job}:main", "token").decode()
    filled.store.release(Claim(job, "main", token, 1), counted=False)  # its worker has stopped
    page = client.get(f"/jobs/{job}").text
    assert "1 epoch is finished and kept" in page
    assert "Resume from epoch 1" in page


def test_a_scrape_is_ordered_from_lines(client: FlaskClient, filled: SimpleNamespace) -> None:
    lines = "hat\r\n\r\nt-shirt = white t-shirt\r\n"
    answer = post(client, "/datasets/new", way="scrape", dataset="street", classes=lines, per_class="5", sources="openverse")
    spec = filled.store.get(answer.location.rsplit("/", 1)[1]).spec
    assert [(c["name"], c["query"]) for c in spec["classes"]] == [("hat", ""), ("t-shirt", "white t-shirt")]


def test_a_class_named_twice_is_told_at_the_classes(client: FlaskClient) -> None:
    answer = post(client, "/datasets/new", way="scrape", dataset="street", classes="hat\nHat", sources="openverse")
    assert answer.status_code == 422
    assert re.search(r'id="wrong-classes">[^<]*twice', answer.text)
    assert "hat\nHat</textarea>" in answer.text


def test_a_folder_that_is_not_there_is_told_at_the_source(client: FlaskClient) -> None:
    answer = post(client, "/datasets/new", way="folder", dataset="clothing", path="/not/there")
    assert answer.status_code == 422
    assert re.search(r'id="wrong-source"[^>]*>There is no folder /not/there', answer.text)
    assert 'value="/not/there"' in answer.text


def test_a_dataset_is_made_of_another_with_its_classes_renamed(client: FlaskClient, filled: SimpleNamespace) -> None:
    # what the form sends of the other ways is passed over
    form = {"way": "dataset", "dataset": "street", "from": "clothing/v1", "only": "hat\r\n", "renames": "hat = cap\r\n", "classes": "x\ny"}
    answer = post(client, "/datasets/new", **form)
    assert answer.status_code == 303, answer.text
    spec = filled.store.get(answer.location.rsplit("/", 1)[1]).spec
    assert spec["source"] == {"kind": "dataset", "dataset": "clothing", "version": 1, "classes": ["hat"]}
    assert spec["classes"] == {"hat": "cap"}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"way": "dataset", "from": ""}, r'id="wrong-source"[^>]*>Name a dataset'),
        ({"way": "dataset", "from": "nothing"}, r'id="wrong-source"[^>]*>[^<]*no dataset'),
        ({"way": "dataset", "from": "clothing", "renames": "hat"}, r'class="wrong">[^<]*does not say which class'),
        ({"way": "folder", "path": "/", "renames": "a = x\nb = X"}, r'class="wrong">[^<]*upper and lower case'),
    ],
)
def test_what_is_wrong_with_an_import_is_told_at_its_field(client: FlaskClient, form: dict[str, str], words: str) -> None:
    answer = post(client, "/datasets/new", dataset="street", **form)
    assert answer.status_code in {404, 422}
    assert re.search(words, answer.text)
    assert form.get("renames", "") in answer.text


def test_a_version_is_exported_from_its_page_and_downloaded_there(client: FlaskClient, filled: SimpleNamespace, settings: Settings) -> None:
    page = "/datasets/clothing/v/1"
    answer = post(client, page, f"{page}/export", format="huggingface")
    job = filled.store.get(answer.location.rsplit("/", 1)[1])
    assert (job.kind, job.spec) == ("pack", {"dataset": "clothing", "version": 1, "format": "huggingface"})
    Storage(settings.storage, settings.cache).write("exports/clothing/v0001/huggingface.zip", b"PK")
    assert 'href="/api/v1/datasets/clothing/versions/1/exports/huggingface"' in client.get(page).text
    assert post(client, page, f"{page}/export", format="pickle").status_code == 422


def test_an_upload_is_not_kept_for_a_form_that_is_wrong_elsewhere(client: FlaskClient, settings: Settings) -> None:
    answer = post(client, "/datasets/new", way="zip", dataset="Bad Name", zip=(io.BytesIO(b"PK"), "a.zip"))
    assert 'id="wrong-dataset"' in answer.text
    assert Storage(settings.storage, settings.cache).list("uploads") == []


def test_pictures_of_a_form_become_a_batch(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/batches/new", way="files", model="clothing/v1", files=[(io.BytesIO(picture(i)), f"{i}.jpg") for i in range(2)])
    assert answer.status_code == 303
    assert filled.store.get(answer.location.rsplit("/", 1)[1]).spec["source"]["kind"] == "upload"


def test_addresses_of_a_form_become_a_batch(client: FlaskClient, filled: SimpleNamespace) -> None:
    pasted = post(client, "/batches/new", way="urls", model="clothing", urls="https://example.org/a.jpg\nhttps://example.org/b.jpg")
    sent = post(client, "/batches/new", way="urls", model="clothing", list=(io.BytesIO(b"url\nhttps://example.org/a.jpg\n"), "a.csv"))
    specs = [filled.store.get(answer.location.rsplit("/", 1)[1]).spec for answer in (pasted, sent)]
    assert [(spec["model"], spec["source"]["kind"]) for spec in specs] == [("clothing/v1", "list")] * 2
    both = post(client, "/batches/new", way="urls", model="clothing", urls="https://a.example/1", list=(io.BytesIO(b"x"), "a.txt"))
    assert re.search(r'id="wrong-source"[^>]*>Paste the lines or choose a file', both.text)


def test_a_dataset_of_a_form_becomes_a_batch(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert ">clothing/v1</option>" in client.get("/batches/new").text
    answer = post(client, "/batches/new", way="dataset", model="clothing", dataset="clothing/v1")
    source = filled.store.get(answer.location.rsplit("/", 1)[1]).spec["source"]
    assert source == {"kind": "dataset", "dataset": "clothing", "version": 1}
    assert client.get(answer.location).status_code == 200


def test_a_batch_is_classified_again_with_changes(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = client.get(f"/batches/new?from={filled.batch}").text
    assert re.search(r'value="same" checked', page)
    assert f'name="from" value="{filled.batch}"' in page
    answer = post(client, "/batches/new", way="same", model="clothing/v1", precision="exact", top_k="5", **{"from": filled.batch})
    spec, before = (filled.store.get(batch).spec for batch in (answer.location.rsplit("/", 1)[1], filled.batch))
    assert (spec["source"], spec["precision"], spec["top_k"]) == (before["source"], "exact", 5)
    assert client.get(f"/batches/new?from={'0' * 20}").status_code == 404


def test_int8_is_offered_only_when_a_model_has_it(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert "<option>int8</option>" not in client.get("/batches/new").text
    info = filled.storage.read_json("models/clothing/v0001/info.json")
    filled.storage.write_json("models/clothing/v0001/info.json", {**info, "int8": {"agreement": 0.99, "offered": True}})
    assert "<option>int8</option>" in client.get("/batches/new").text


def test_a_file_address_is_refused_at_the_source(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/batches/new", way="urls", model="clothing", urls="file:///etc/passwd")
    assert answer.status_code == 422
    assert re.search(r'id="wrong-source"[^>]*>Not an http', answer.text)


# -- jobs and batches -------------------------------------------------------------------------------------------------


def test_a_running_job_is_polled_and_an_ended_one_is_not(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert 'hx-trigger="every 1s' in client.get(f"/jobs/{filled.train}/live").text
    assert "hx-get" not in client.get(f"/jobs/{filled.done}/live").text


def test_a_fragment_that_has_not_changed_is_304(client: FlaskClient, filled: SimpleNamespace) -> None:
    address = f"/jobs/{filled.failed}/live"
    pause = client.get(address)  # times are shown by the second at first
    answers = [client.get(address, headers={"If-None-Match": pause.headers["ETag"]}).status_code for _ in range(2)]
    assert 304 in answers


def test_cancel_asks_and_shows_the_job_again(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, f"/jobs/{filled.train}", f"/jobs/{filled.train}/cancel")
    assert (answer.status_code, answer.location) == (303, f"/jobs/{filled.train}")
    assert filled.store.get(filled.train).cancel


def test_a_batch_is_paused_and_resumed_on_its_page(client: FlaskClient, filled: SimpleNamespace) -> None:
    batch = post(
        client, f"/batches/new?from={filled.batch}", "/batches/new", way="same", model="clothing/v1", **{"from": filled.batch}
    ).location
    job = batch.rsplit("/", 1)[1]
    assert f"/jobs/{job}/pause" in client.get(batch).text
    assert post(client, batch, f"/jobs/{job}/pause").location == batch
    text = client.get(batch).text
    assert f"/jobs/{job}/resume" in text
    assert 'class="state paused"' in text
    post(client, batch, f"/jobs/{job}/resume")
    assert filled.store.get(job).state == "queued"


def test_retry_of_a_failed_job_is_a_new_one(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, f"/jobs/{filled.failed}", f"/jobs/{filled.failed}/retry")
    assert answer.status_code == 303
    assert filled.store.get(answer.location.rsplit("/", 1)[1]).spec == filled.store.get(filled.failed).spec


def test_rows_of_a_batch_are_filtered(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get(f"/batches/{filled.batch}?decision=review").text.partition('id="rows"')[2]
    assert f"/batches/{filled.batch}/items/1" in text
    assert f"/batches/{filled.batch}/items/0" not in text


def test_the_least_sure_row_comes_first(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get(f"/batches/{filled.batch}?order=margin").text.partition('id="rows"')[2]
    assert text.index("/items/1") < text.index("/items/0")


def test_the_bars_of_the_confidence_lead_to_their_rows(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get(f"/batches/{filled.batch}").text
    link = re.search(r'<svg class="chart".*?<a href="([^"]+)"', text, re.DOTALL)
    assert link
    shown = client.get(html.unescape(link[1])).text.partition('id="rows"')[2]
    assert ("/items/1?" in shown, "/items/0?" in shown) == (True, False)


def test_a_row_opened_from_a_filtered_sheet_has_the_neighbours_of_that_sheet(client: FlaskClient, filled: SimpleNamespace) -> None:
    text = client.get(f"/batches/{filled.batch}/items/0?error=none&order=confidence").text
    assert "2 of 2" in text
    assert f'rel="prev" data-key href="/batches/{filled.batch}/items/1?error=none&amp;order=confidence"' in text


# -- reviewing --------------------------------------------------------------------------------------------------------


def test_review_begins_with_the_least_sure_and_goes_on_to_what_nobody_decided(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = f"/batches/{filled.batch}/review?decision="
    assert client.get(page).text.index('id="view-1"') < client.get(page).text.index('id="view-0"')
    assert 'id="view-2"' not in client.get(page).text  # it could not be read
    answer = post(client, page, f"/batches/{filled.batch}/review/1?decision=", label="scarf")
    assert answer.status_code == 303
    assert "item=0" in answer.location
    text = client.get(answer.location).text
    assert re.search(r'id="reviewed"[^>]*>1</strong> of 2', text)
    assert client.get(page).text.index('id="view-0"') > 0
    assert [d["given_label"] for d in review.decisions(filled.storage, filled.batch)] == ["scarf"]


def test_without_a_script_a_decision_is_accepted_and_undone(client: FlaskClient, filled: SimpleNamespace) -> None:
    page, one = f"/batches/{filled.batch}/review", f"/batches/{filled.batch}/review/1"
    answer = post(client, page, one, accept="1")
    assert "All 1 are reviewed" in client.get(answer.location).text
    answer = post(client, answer.location, one, undo="1")
    assert 'id="view-1"' in client.get(answer.location).text
    assert review.decided(filled.storage, filled.batch) == []


def test_a_label_that_is_no_class_name_is_told_at_its_field_and_kept(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, f"/batches/{filled.batch}/review", f"/batches/{filled.batch}/review/1", label="y" * 101)
    assert answer.status_code == 422
    assert re.search(r'id="wrong-label"[^>]*>[^<]*at most 100', answer.text)
    assert "y" * 101 in answer.text


def test_what_was_decided_becomes_a_dataset_by_a_job(client: FlaskClient, filled: SimpleNamespace) -> None:
    page = f"/batches/{filled.batch}/review"
    post(client, page, f"{page}/1", label="scarf")
    assert 'name="dataset" value="clothing"' in client.get(page).text
    answer = post(client, page, f"{page}/dataset", dataset="clothing")
    job = filled.store.get(answer.location.rsplit("/", 1)[1])
    assert (job.kind, job.spec["dataset"], job.spec["source"]) == ("import", "clothing", {"kind": "review", "batch": filled.batch})
    refused = post(client, page, f"{page}/dataset", dataset="No Name")
    assert refused.status_code == 422
    assert 'id="wrong-dataset"' in refused.text


def test_trying_an_image_without_a_worker_says_so(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/models/clothing/v/1", "/models/clothing/v/1/try", image=(io.BytesIO(picture(9)), "a.jpg"))
    assert answer.status_code == 503
    assert "No worker answers single images" in answer.text


def test_trying_what_is_no_image_says_so(client: FlaskClient, filled: SimpleNamespace) -> None:
    answer = post(client, "/models/clothing/v/1", "/models/clothing/v/1/try", image=(io.BytesIO(b"<svg onload=alert(1)>"), "a.jpg"))
    assert answer.status_code == 422
    assert "it is an SVG drawing" in answer.text


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_webp_for_ever_and_kept(client: FlaskClient, filled: SimpleNamespace) -> None:
    sha256 = filled.rows[0]["sha256"]
    answer = client.get(f"/images/{sha256}.jpg/thumb?side=96")
    assert (answer.mimetype, Image.open(io.BytesIO(answer.data)).size) == ("image/webp", (96, 64))
    assert "immutable" in answer.headers["Cache-Control"]
    assert filled.storage.exists(f"thumbs/{sha256[:2]}/{sha256}-96.webp")


def test_an_original_is_a_download_that_no_browser_opens(client: FlaskClient, filled: SimpleNamespace) -> None:
    headers = client.get(f"/images/{filled.rows[0]['sha256']}.jpg/original").headers
    assert headers["Content-Disposition"].startswith("attachment")
    assert (headers["X-Content-Type-Options"], headers["Content-Security-Policy"]) == ("nosniff", "default-src 'none'; sandbox")


@pytest.mark.parametrize("name", ["../secret.jpg", "0" * 64 + ".exe", "0" * 63 + ".jpg", "0" * 64 + ".jpg"])
def test_pictures_that_are_not_there_are_404(client: FlaskClient, name: str) -> None:
    assert client.get(f"/images/{name}/thumb").status_code == 404


def test_a_side_out_of_thin_air_is_refused(client: FlaskClient, filled: SimpleNamespace) -> None:
    assert client.get(f"/images/{filled.rows[0]['sha256']}.jpg/thumb?side=9999").status_code == 422


def test_an_item_has_a_thumbnail_and_a_lost_one_a_neutral_square(client: FlaskClient, filled: SimpleNamespace) -> None:
    found, lost = (client.get(f"/batches/{filled.batch}/items/{i}/thumb?side=96") for i in (0, 2))
    assert Image.open(io.BytesIO(found.data)).size == (96, 64)
    assert (lost.mimetype, Image.open(io.BytesIO(lost.data)).size) == ("image/webp", (96, 96))
    assert "immutable" not in lost.headers["Cache-Control"]


# -- charts and forms by themselves -----------------------------------------------------------------------------------


def test_text_in_a_chart_is_escaped() -> None:
    assert "<img" not in charts.element("text", HOSTILE, class_=HOSTILE)


def test_a_loss_that_is_no_number_is_left_out_of_the_curve() -> None:
    assert "nan" not in charts.loss_by_batch([[1, 2.0], [2, math.nan], [3, 1.0]], 1, 3)


def test_ticks_are_round_numbers_within_the_range() -> None:
    assert charts.ticks(0, 0.9) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_a_matrix_of_many_classes_keeps_those_most_often_mistaken() -> None:
    names = [f"c{i}" for i in range(50)]
    confusion = [[10 if i == j else 5 if i == 49 and j == 0 else 0 for j in range(50)] for i in range(50)]
    heat = charts.heat_map(names, confusion)
    assert (len(heat["rows"]), heat["left_out"], "c49" in heat["classes"]) == (30, 20, True)


def test_a_field_knows_its_bounds_from_the_spec() -> None:
    field = SpecForm("train")["epochs"]
    assert (field.kind, field.low, field.high, field.value) == ("number", 1, 500, 4)


def test_lines_of_classes_may_name_what_to_search() -> None:
    assert class_lines("a\n b = c d \n\n") == [{"name": "a", "query": ""}, {"name": "b", "query": "c d"}]
