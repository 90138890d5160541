"""A dataset version as the contact sheet of a review asks for it, and the page around it. The page itself is driven in test_sheet_browser.py."""

import base64
import gzip
import io
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pages import publish
from test_results import row as result_row

from shared import datasets, edits, findings, results, sheet
from shared.edits import parse_action
from shared.errors import Invalid, NotFound
from shared.jobs import JobStore, State, connect
from shared.specs import parse
from shared.storage import Storage
from web import create_app

NAME = "pets"
CLASSES = ["cat", "dog", "<b>fox</b>"]
API = f"/api/v1/datasets/{NAME}/versions/1"


def rows_of(count):
    """Kept rows, each a class, source and licence by turns, and one dropped row before them."""
    kept = [
        datasets.blank_row(
            sha256=f"{n:064x}", ext=("png", "jpg")[n % 2], label=CLASSES[n % 3], status="kept", source=("folder", "commons")[n % 2],
            licence=("", "by", "by-sa")[n % 3], split=("", "", "test")[n % 3], creator="Ada", name=f"{n}.png", width=8, height=8, format="PNG", bytes=99,
        )
        for n in range(count)
    ]  # fmt: skip
    return [datasets.blank_row(sha256="f" * 64, label="cat", status="dropped", reason="empty"), *kept]


def make_version(storage, rows, schema=datasets.MANIFEST, name=NAME, report=None, **info):
    manifest = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), manifest)
    told = {"dataset": name, "job": str(len(storage.list(f"datasets/{name}"))), "created": 1.5, **datasets.summary(rows), **info}
    files = {"manifest.parquet": manifest.getvalue(), **({"findings.json": json.dumps(report).encode()} if report else {})}
    publish(storage, f"datasets/{name}", files, told)


@pytest.fixture
def site(settings):
    """The pages on a dataset of 60 images."""
    storage = Storage(settings.storage, settings.cache)
    rows = rows_of(60)
    make_version(storage, rows)
    app = create_app(settings)
    app.config["WTF_CSRF_ENABLED"] = False
    store = JobStore(connect(settings.redis_url))
    return SimpleNamespace(client=app.test_client(), storage=storage, rows=rows[1:], settings=settings, store=store)


def plain(column):
    return [column["values"][row] for row in column["rows"]]


def act(storage, *said):
    """One action of (row, action or label) each."""
    return edits.decide_all(storage, NAME, parse_action({"edits": [_edit(n, do) for n, do in said]}).edits)


def _edit(n, do):
    return {"sha256": f"{n:064x}"} | ({"action": do} if do in {"keep", "remove"} else {"action": "relabel", "label": do})


# -- the index --------------------------------------------------------------------------------------------------------


def test_the_index_has_the_kept_images_in_manifest_order(site):
    told = site.client.get(f"{API}/sheet").json
    digests = base64.b64decode(told["sha256"])
    assert [digests[i : i + 32].hex() for i in range(0, len(digests), 32)] == [row["sha256"] for row in site.rows]
    assert (told["dataset"], told["version"], told["images"]) == (NAME, 1, 60)
    for column in ("label", "ext", "source"):
        assert plain(told["columns"][column]) == [row[column] for row in site.rows]
        assert told["columns"][column]["values"] == sorted(set(plain(told["columns"][column])))
    assert plain(told["columns"]["licence"]) == [row["licence"] or "unknown" for row in site.rows]


def test_the_split_is_what_the_import_fixed_or_what_a_training_takes(site):
    told = plain(site.client.get(f"{API}/sheet").json["columns"]["split"])
    valid = datasets.split([(row["sha256"], row["label"]) for row in site.rows], 0.2, 42)
    assert told == [row["split"] or ("valid" if held else "train") for row, held in zip(site.rows, valid, strict=True)]
    assert {"train", "valid", "test"} == set(told)
    make_version(site.storage, [{**row, "split": ("valid", "", "test")[n % 3]} for n, row in enumerate(site.rows)])
    told = plain(site.client.get(f"/api/v1/datasets/{NAME}/versions/2/sheet").json["columns"]["split"])
    assert told[:3] == ["valid", "train", "test"]  # where an import has named validation images, there are no others


def test_the_index_travels_zipped_and_once(site):
    answer = site.client.get(f"{API}/sheet", headers={"Accept-Encoding": "gzip"})
    assert (answer.headers["Content-Encoding"], answer.headers["Vary"]) == ("gzip", "Accept-Encoding")
    assert json.loads(gzip.decompress(answer.data)) == site.client.get(f"{API}/sheet").json
    again = site.client.get(f"{API}/sheet", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_fifty_thousand_images_are_less_than_three_megabytes(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    rows = [
        datasets.blank_row(
            sha256=(n * 0x9E3779B97F4A7C15**4 % 2**256).to_bytes(32).hex(), ext="jpg", label=f"class {n % 200}", status="kept"
        )
        for n in range(50_000)
    ]
    make_version(storage, rows)
    packed = sheet.index(storage, NAME, 1, datasets.info(storage, NAME)["hash"])
    assert len(packed) < 2_000_000
    assert len(gzip.decompress(packed)) < 3_000_000


def test_a_manifest_of_an_earlier_darkroom_is_shown_too(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    old = pa.schema([field for field in datasets.MANIFEST if field.name not in {"split", "group", "query", "creator_url", "attribution"}])
    make_version(storage, [{name: row[name] for name in old.names} for row in rows_of(9)], old)
    told = json.loads(gzip.decompress(sheet.index(storage, NAME, 1, "")))
    assert set(plain(told["columns"]["split"])) == {"train", "valid"}
    assert sheet.facts(storage, NAME, 1, "0" * 64)["attribution"] == ""


def test_the_facts_of_an_image_are_its_manifest_row(site):
    assert site.client.get(f"{API}/images/{site.rows[7]['sha256']}").json == site.rows[7]
    for missing in ("f" * 64, "0" * 63, "x"):  # dropped, not there, no hash
        assert site.client.get(f"{API}/images/{missing}").status_code == 404


def test_what_is_not_there_is_a_sentence(site):
    for address in ("pets/versions/9/sheet", "none/versions/1/sheet", "none/versions/1/sheet/decisions", "none/versions/1/sheet/findings"):
        answer = site.client.get(f"/api/v1/datasets/{address}")
        assert (answer.status_code, answer.mimetype) == (404, "application/problem+json")


# -- decisions --------------------------------------------------------------------------------------------------------


def decided(site, version=1):
    told = site.client.get(f"/api/v1/datasets/{NAME}/versions/{version}/sheet/decisions").json
    return dict(zip(told["rows"], zip(told["action"], told["label"], strict=True), strict=True)), told


def test_decisions_are_told_by_row(site):
    act(site.storage, (0, "keep"), (1, "remove"), (2, "owl"))
    taken_back = act(site.storage, (3, "remove"), (4, "remove"))
    edits.undo_entry(site.storage, NAME, taken_back[0].id)
    found, told = decided(site)
    assert found == {0: ("keep", None), 1: ("remove", None), 2: ("relabel", "owl")}
    assert (told["newest"], told["waiting"]) == (1, {"relabel": 1, "remove": 1})


def test_what_a_version_includes_is_kept_there_and_waits_no_more(site):
    act(site.storage, (0, "keep"), (1, "remove"), (2, "owl"), (5, "owl"))
    rows = [{**row, "label": "owl" if n in {2, 5} else row["label"]} for n, row in enumerate(site.rows) if n != 1]
    manifest = datasets.manifest_bytes(rows)
    files = {"manifest.parquet": manifest, "edits.json": json.dumps(edits.as_json(edits.unmade(site.storage, NAME))).encode()}
    info = {"dataset": NAME, "job": "x", "created": 2, "parent": 1, "edits": {"relabel": 2, "remove": 1}, **datasets.summary(rows)}
    publish(site.storage, f"datasets/{NAME}", files, info)
    found, told = decided(site, version=2)
    assert found == {0: ("keep", None), 1: ("keep", None), 4: ("keep", None)}
    assert (told["newest"], told["waiting"]) == (2, {"relabel": 0, "remove": 0})
    assert decided(site)[1]["newest"] == 2


# -- what models say ------------------------------------------------------------------------------------------------------


def make_model(storage, dataset, name="pets", rows=()):
    out = io.BytesIO()
    said = [
        {"sha256": sha256, "ext": "png", "actual": "cat", "predicted": label, "probability": p, "loss": 1.0} for sha256, label, p in rows
    ]
    pq.write_table(pa.Table.from_pylist(said), out)
    info = {"model": name, "job": str(name), "created": 1, "dataset": {"name": dataset, "version": 1}, "classes": CLASSES}
    publish(storage, f"models/{name}", {"validation.parquet": out.getvalue()}, info)


def make_batch(site, source, rows):
    job = site.store.create("classify", parse("classify", {"model": "pets/v1", "source": source}).model_dump(mode="json"), "plan")
    table = pa.Table.from_pylist(
        [result_row(n, label, p, error, sha256=sha256) for n, (sha256, label, p, error) in enumerate(rows)], schema=results.ROWS
    )
    site.storage.write(results.shard_key(job, results.shard_name(0, len(rows))), results.shard_bytes(table))
    site.store.finish(site.store.claim(job, "plan", "tester"), State.DONE, "", {})
    return job


def test_what_a_model_said_of_its_validation_images_is_told_by_row(site):
    shas = [row["sha256"] for row in site.rows]
    make_model(site.storage, NAME, rows=[(shas[3], "dog", 0.9), (shas[1], "cat", 0.75), ("e" * 64, "cat", 0.5)])
    told = site.client.get(f"{API}/sheet/verdicts?by=pets/v1").json
    assert (told["rows"], plain(told["label"]), told["probability"]) == ([3, 1], ["dog", "cat"], [0.9, 0.75])


def test_what_a_batch_over_the_dataset_said_is_told_by_row_errors_left_out(site):
    shas = [row["sha256"] for row in site.rows]
    batch = make_batch(
        site,
        {"kind": "dataset", "dataset": NAME},
        [(shas[5], "dog", 0.875, ""), (shas[6], "", None, "not_found"), ("e" * 64, "cat", 0.5, "")],
    )
    told = site.client.get(f"{API}/sheet/verdicts?by={batch}").json
    assert (told["rows"], plain(told["label"]), told["probability"]) == ([5], ["dog"], [0.875])
    other = make_batch(site, {"kind": "folder", "path": "/"}, [(shas[5], "dog", 0.9, "")])
    assert site.client.get(f"{API}/sheet/verdicts?by={other}").status_code == 422
    for missing in ("", "x", "0" * 20, "none/v1", "../v1"):
        assert site.client.get(f"{API}/sheet/verdicts?by={missing}").status_code == 404


def test_the_page_offers_the_models_and_batches_that_know_the_dataset(site):
    make_model(site.storage, NAME)
    make_model(site.storage, "others", "other")
    batch = make_batch(site, {"kind": "dataset", "dataset": NAME}, [("e" * 64, "cat", 0.5, "")])
    text = site.client.get(f"/datasets/{NAME}/review").text
    assert '<option value="pets/v1">' in text
    assert f'<option value="{batch}">' in text
    assert "other/v1" not in text


# -- findings, and the page -----------------------------------------------------------------------------------------------


def test_findings_are_told_by_row_without_those_that_a_person_lets_stand(site):
    images = {"blurry": [site.rows[4]["sha256"], site.rows[2]["sha256"], "e" * 64], "dark": [site.rows[1]["sha256"]]}
    site.storage.write_json(f"datasets/{NAME}/v0001/findings.json", {"images": images, "groups": [], "dropped": {}, "usual": {}})
    findings.accept(site.storage, NAME, "dark", [site.rows[1]["sha256"]])
    assert site.client.get(f"{API}/sheet/findings").json == {"blurry": [4, 2]}


def test_the_page_shows_the_newest_version_and_needs_no_redis(site):
    make_version(site.storage, rows_of(30))
    settings = site.settings.model_copy(update={"redis_url": "unix:///nowhere"})
    text = create_app(settings).test_client().get(f"/datasets/{NAME}/review").text
    assert 'data-version="2"' in text
    assert "30 images in 3 classes" in text
    assert "This page needs JavaScript" in text
    assert site.client.get("/datasets/none/review").status_code == 404
    assert f'href="/datasets/{NAME}/review"' in site.client.get(f"/datasets/{NAME}/v/1").text


def test_the_note_of_a_version_goes_into_its_order(site):
    act(site.storage, (1, "remove"))
    there = site.client.post(f"/datasets/{NAME}/edits/version", data={"note": "blurred ones are gone"}).location
    assert site.store.get(there.rsplit("/", 1)[-1]).spec["note"] == "blurred ones are gone"


def test_a_version_without_images_is_told(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    make_version(storage, [])
    with pytest.raises(NotFound, match="has no images"):
        sheet.index(storage, NAME, 1, "")
    with pytest.raises(Invalid):
        sheet.decisions(storage, "../x", 1)
