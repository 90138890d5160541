"""Pictures in a bucket, and a whole installation that keeps its files in one: moto's S3 server, over real HTTP, as s3fs's own tests use it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from conftest import until
from faults import ended, explain, one_row_an_item, order_batch
from test_items import resumed_everywhere
from test_packing import HOSTILE, Room

from cli.start import free_port
from shared import buckets, datasets, garbage
from shared.errors import Invalid
from shared.images import BadImage
from shared.items import ItemReader, walk
from shared.jobs import JobStore, State, connect
from shared.queries import Filter, Queries
from shared.recovery import recover
from shared.results import csv_lines, tables
from shared.settings import Settings
from shared.specs import FolderSource
from shared.storage import Storage
from web import create_app
from web.backend import Backend

ROOT = "s3://photos/allowed"


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """The environment of a client of a real HTTP server that speaks S3."""
    port = free_port("127.0.0.1")
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=out, stderr=out)
    environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    os.environ |= environ
    until(lambda: process.poll() is not None or "Running on" in log.read_text(), 60)
    assert process.poll() is None, log.read_text()
    yield fsspec.filesystem("s3", use_listings_cache=False)
    for name in environ:
        del os.environ[name]
    process.terminate()
    process.wait()


@pytest.fixture
def bucket(s3):
    """An empty bucket `photos`."""
    s3.mkdir("photos")
    yield s3
    s3.rm("photos", recursive=True)


@pytest.fixture
def limits(settings):
    return settings.model_copy(update={"import_roots": ["/srv/pictures", f"{ROOT}/"]})


def put(bucket, **files: bytes) -> None:
    for name, data in files.items():
        bucket.pipe_file(f"photos/{name}", data)


@pytest.mark.parametrize(
    "address",
    [
        "s3://photos",
        "s3://photos/allowedly",
        "s3://photos/allowed/../private",
        "s3://photos/allowed::file:///etc",
        "gs://photos/allowed",
        "file:///etc",
    ],
)
def test_only_addresses_below_the_allowed_ones_may_be_named(limits, address):
    with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
        buckets.check(address, limits)
    with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
        buckets.check(f"{ROOT}/cats", Settings())


def test_an_address_that_cannot_be_read_is_a_sentence(bucket, limits, monkeypatch):
    put(bucket, **{"allowed/cats/1.png": b"1"})
    assert buckets.check(f"{ROOT}/cats/", limits) == f"{ROOT}/cats"
    with pytest.raises(Invalid, match="nothing below s3://photos/allowed/dogs"):
        buckets.check(f"{ROOT}/dogs", limits)
    with pytest.raises(Invalid, match="Nothing here can read nope://x"):
        buckets.check("nope://x", limits.model_copy(update={"import_roots": ["nope://x"]}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port('127.0.0.1')}")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(Invalid, match="cannot be read"):
        buckets.check(f"{ROOT}/cats", limits)
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_prefix_is_walked_in_order_as_a_folder_is(bucket, limits, tmp_path):
    names = ["a.png", "b/2.jpg", "b/=cmd.png", "b/é %41.png", "b.png", "c/d/3.png"]
    put(
        bucket,
        **{f"allowed/{name}": name.encode() for name in [*names, ".hidden.png", "notes.txt", "b/", "empty/"]},
        **{"private.png": b""},
    )
    storage = Storage(limits.storage, limits.cache)
    items = resumed_everywhere(FolderSource(path=ROOT), storage, limits)
    assert [uri for uri, _, _ in items] == sorted(names, key=lambda name: name.split("/"))
    reader = ItemReader(storage, 100, limits)
    assert [reader.read(locator) for _, locator, _ in items] == [uri.encode() for uri, _, _ in items]


def test_a_file_that_is_gone_or_too_large_is_one_bad_item(bucket, limits):
    put(bucket, **{"allowed/a.png": b"12345", "allowed/b.png": b"", "allowed/c.png": b"123456"})
    storage = Storage(limits.storage, limits.cache)
    (_, five, _), (_, none, _), (_, six, _) = walk(FolderSource(path=ROOT), storage, limits)
    reader = ItemReader(storage, 5, limits)
    assert (reader.read(five), reader.read(none)) == (b"12345", b"")
    with pytest.raises(BadImage, match="more than 5 bytes"):
        reader.read(six)
    bucket.rm("photos/allowed/c.png")
    with pytest.raises(BadImage) as error:
        reader.read(six)
    assert error.value.code == "not_found"


def test_a_batch_labels_what_lies_in_a_bucket(backend, start_worker, digits, bucket):
    for path in (digits / "digit 0").iterdir():
        bucket.put_file(str(path), f"photos/allowed/zeros/{path.name}")
    put(bucket, **{"allowed/zeros/page.png": b"<!doctype html>"})
    settings = backend.settings.model_copy(update={"import_roots": [ROOT]})
    start_worker(settings=settings)
    job = order_batch(Backend(settings), f"{ROOT}/zeros")
    one_row_an_item(backend, job, 31, errors=1)
    page = create_app(settings).test_client().get(f"/batches/{job}/items/0/thumb?side=96")
    assert (page.status_code, page.mimetype) == (200, "image/webp")


def test_an_installation_may_keep_its_files_in_a_bucket(with_model, start_worker, digits, bucket):
    """Everything but Redis and the cache: models in, shards, results, records and what the pages ask for."""
    bucket.put(str(Path(with_model.storage) / "models"), "photos/store/models", recursive=True)
    shutil.rmtree(with_model.storage)
    settings = with_model.model_copy(update={"storage": "s3://photos/store"})
    backend = Backend(settings)
    backend.storage.check()
    start_worker(settings=settings)
    job = order_batch(backend, digits, shard_size=16)
    until(lambda: ended(backend, job), 120, explain(backend, job))
    state = backend.store.get(job)
    assert state.state == State.DONE, explain(backend, job)()
    assert (state.counts["done"], state.counts["errors"]) == (120, 0)
    assert [row["item_id"] for table in tables(backend.storage, job) for row in table.to_pylist()] == list(range(120))
    page = Queries(backend.storage).page(job, Filter(decision="accept"), "-confidence", limit=5)
    assert len(page.rows) == 5
    client = create_app(settings).test_client()
    assert client.get(f"/api/v1/batches/{job}/results.csv").data == b"".join(csv_lines(tables(backend.storage, job)))
    assert client.get(f"/batches/{job}").status_code == 200
    backend.store.redis.flushall()
    assert recover(backend.store, backend.storage) == [job]
    assert backend.store.get(job).state == State.DONE


def test_a_version_is_exported_into_a_bucket_and_comes_back_from_there_as_the_same_dataset(bucket, tmp_path):
    room = Room(tmp_path)
    room.settings = Settings(storage="s3://photos/store", cache=tmp_path / "cache")
    room.storage = Storage(room.settings.storage, room.settings.cache)
    made = room.make(HOSTILE, ("train", "valid"))
    result = room.pack("folder")
    assert room.storage.size(result["file"]) == result["bytes"]
    assert room.take_in(room.storage.read(result["file"]))["hash"] == made["hash"]


def test_what_nothing_refers_to_is_freed_in_a_bucket_too(bucket, settings):
    storage = Storage("s3://photos/store", settings.cache)
    store = JobStore(connect(settings.redis_url))
    wanted, stray = (f"images/{letter * 2}/{letter * 64}.jpg" for letter in "ab")
    for key in (wanted, stray):
        storage.write(key, b"jpg")
    row = datasets.blank_row(sha256="a" * 64, ext="jpg", label="cat", status="kept")
    storage.write("datasets/pets/v0001/manifest.parquet", datasets.manifest_bytes([row]))
    storage.write_json("datasets/pets/v0001/info.json", {"dataset": "pets", "version": 1})
    assert {(file.key, file.size) for file in storage.files("images")} == {(wanted, 3), (stray, 3)}
    assert [heap.kind for heap in garbage.find(store, storage, 60) if heap.files] == []  # younger than a minute
    heaps = garbage.find(store, storage, -60)
    assert [(heap.kind, [file.key for file in heap.files]) for heap in heaps if heap.files] == [("images", [stray])]
    assert garbage.free(store, storage, heaps)["images"] == {"files": 1, "bytes": 3}
    assert [file.key for file in storage.files("images")] == [wanted]
