"""`darkroom gc`: what nothing refers to is found and freed, and nothing that anybody needs or is about to need."""

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from image_server import picture
from test_importing import Room

from cli.main import cli
from shared import datasets, edits, garbage, portions, results
from shared.errors import DarkroomError, Invalid, NotFound, Unavailable
from shared.items import FILES, ITEMS, blob_key, files_key, list_key
from shared.jobs import JobStore, State, connect, keep_record, new_id
from shared.specs import parse
from shared.storage import Storage, image_key
from web import create_app
from worker.examiner import examine
from worker.examining import Collection
from worker.importing import import_dataset
from worker.progress import Progress

NAME = "pets"
DAY = 86400


@pytest.fixture
def room(tmp_path, settings):
    """The dataset `pets`, two classes of three pictures each, on a storage with a ledger."""
    room = Room(tmp_path, redis_url=settings.redis_url)
    room.put(*(f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(3)))
    room.run(dataset=NAME)
    room.store = JobStore(connect(settings.redis_url))
    return room


def age(storage, days=3, below=""):
    """Make every file of the storage older."""
    for path in Path(storage.root, below).rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - days * DAY
            os.utime(path, (then, then))


def found(room, older_than="1d"):
    """By kind, the keys that would be freed; kinds without any are left out."""
    heaps = garbage.find(room.store, room.storage, garbage.seconds(older_than))
    return {heap.kind: sorted(file.key for file in heap.files) for heap in heaps if heap.files}


def free(room, older_than="1d"):
    """Free it; by kind, how many files that were."""
    heaps = garbage.find(room.store, room.storage, garbage.seconds(older_than))
    return {kind: told["files"] for kind, told in garbage.free(room.store, room.storage, heaps).items() if told["files"]}


def stored(storage, name="stray", days=0):
    """The key of a picture that nothing refers to, last written so many days ago."""
    data = picture(name)
    key = image_key(hashlib.sha256(data).hexdigest(), "jpg")
    storage.write(key, data)
    then = time.time() - days * DAY
    if storage.is_local:
        os.utime(Path(storage.root, key), (then, then))
    return key


def sha_of(key):
    return key.rpartition("/")[2].partition(".")[0]


def begin(room, kind="import", **spec):
    """A job that is ordered, and may have begun at any moment since."""
    return room.store.create(kind, {"dataset": "other", "source": {"kind": "folder", "path": "/"}} | spec, "main")


def end(room, job, state=State.DONE, days=3, unit="main"):
    """End a job, and let that be days ago."""
    claim = room.store.claim(job, unit, "w")
    if state is State.CANCELLED:
        room.store.cancel(job)
        room.store.release(claim)
    else:
        room.store.finish(claim, state, "It failed." if state is State.FAILED else "", {"x": 1})
    then = int((time.time() - days * DAY) * 1000)
    room.store.redis.hset(f"darkroom:job:{job}", mapping={"created": then, "ended": then})


# -- images -----------------------------------------------------------------------------------------------------------


def test_what_a_dataset_has_is_no_garbage(room):
    age(room.storage)
    assert found(room) == {}
    assert free(room) == {}
    assert len(list(room.storage.files("images"))) == 6


def test_an_image_that_nothing_has_is_shown_and_freed_only_when_asked(room):
    stray = stored(room.storage, days=2)
    assert found(room) == {"images": [stray]}
    assert room.storage.exists(stray)
    assert free(room) == {"images": 1}
    assert not room.storage.exists(stray)
    assert len(list(room.storage.files("images"))) == 6


def test_what_is_younger_than_the_grace_stays(room):
    stray = stored(room.storage, days=2)
    heaps = {heap.kind: heap for heap in garbage.find(room.store, room.storage, garbage.seconds("3d"))}
    assert (heaps["images"].files, [file.key for file in heaps["images"].young]) == ([], [stray])
    assert found(room, "36h") == {"images": [stray]}


def test_the_image_of_a_dropped_row_stays(room):
    gone = datasets.rows(room.storage, NAME, 1)[0]
    edits.decide(room.storage, NAME, edits.parse_edit({"sha256": gone["sha256"], "action": "remove"}))
    room.run({"kind": "edits"}, dataset=NAME, job="job2")
    datasets.delete(room.storage, NAME, 2)
    age(room.storage)
    free(room)
    assert room.storage.exists(image_key(gone["sha256"], gone["ext"]))


def test_the_image_of_a_decision_stays(room):
    key = stored(room.storage, days=2)
    entry = edits.Edit(new_id(), 1.0, sha_of(key), "jpg", "remove", None, "cat", "", 1)
    where, said = f"datasets/{NAME}/edits/{entry.id}.json", edits.as_json([entry])[0]
    room.storage.write_json(where, said)
    assert found(room) == {}
    room.storage.write_json(where, {"id": entry.id, "at": 1.0, "version": 1, "edits": [said]})  # an entry about many
    assert found(room) == {}
    room.storage.delete(where)
    assert found(room) == {"images": [key]}


def make_batch(room, rows=(), items=(), over=False):
    """A batch with rows that are done, and items that are still to be labelled."""
    batch = room.store.create("classify", {"model": "pets/v1", "source": {"kind": "urls", "urls": []}}, "plan")
    row = {"uri": "", "label": "cat", "probability": 0.9, "decision": "accept", "error_code": "", "error": ""}
    table = pa.Table.from_pylist([{**row, "item_id": n, "sha256": sha256} for n, sha256 in enumerate(rows)], results.ROWS)
    if rows:
        room.storage.write(results.shard_key(batch, results.shard_name(0, len(rows))), results.shard_bytes(table))
    if items:
        listed = [{"item_id": len(rows) + n, "uri": "", "locator": locator} for n, locator in enumerate(items)]
        portions.write(room.storage, batch, len(rows), pa.Table.from_pylist(listed, ITEMS), 4, "", True)
    return batch


def test_the_images_of_a_batch_stay_labelled_or_not(room):
    labelled, listed, stray = (stored(room.storage, name, days=2) for name in ("labelled", "listed", "stray"))
    batch = make_batch(room, [sha_of(labelled)], [f"image:{sha_of(listed)}.jpg"])
    end(room, batch, State.CANCELLED, unit="plan")
    assert found(room) == {"images": [stray]}


def test_the_images_of_a_batch_that_is_gathered_stay(room):
    labelled, stray = (stored(room.storage, name, days=2) for name in ("labelled", "stray"))
    batch = make_batch(room, [sha_of(labelled)])
    rows, _ = results.shard(room.storage, batch, results.shard_name(0, 1))
    with room.storage.writing(f"batches/{batch}/results.parquet") as f:
        pa.parquet.write_table(rows.select(results.TOLD.names), f)
    room.storage.delete(f"batches/{batch}/shards")
    room.storage.write_json(f"batches/{batch}/info.json", {"items": 1})
    end(room, batch, unit="plan")
    assert found(room) == {"images": [stray]}


def test_thumbnails_go_with_their_images_and_stay_with_rows_of_batches(room):
    kept = datasets.rows(room.storage, NAME, 1)[0]["sha256"]
    shown, gone = sha_of(stored(room.storage, "gone", days=2)), "f" * 64
    make = [f"thumbs/{sha256[:2]}/{sha256}-224.webp" for sha256 in (kept, "e" * 64, shown, gone)]
    for key in make:
        room.storage.write(key, b"webp")
    end(room, make_batch(room, ["e" * 64]), unit="plan")
    assert found(room) == {"images": [image_key(shown, "jpg")], "thumbs": sorted(make[2:])}
    free(room)
    assert [file.key for file in room.storage.files("thumbs")] == sorted(make[:2])


def test_a_manifest_that_cannot_be_read_frees_nothing(room):
    stray = stored(room.storage, days=2)
    room.storage.write("datasets/pets/v0001/manifest.parquet", b"PAR1 damaged")
    with pytest.raises(DarkroomError, match="it is not known what is in use"):
        free(room)
    assert room.storage.exists(stray)


def test_without_redis_nothing_is_freed(room):
    stray = stored(room.storage, days=2)
    room.store = JobStore(connect("unix:///nowhere/redis.sock"))
    with pytest.raises(Unavailable):
        free(room)
    assert room.storage.exists(stray)


# -- while jobs run ---------------------------------------------------------------------------------------------------


def test_what_was_written_since_the_oldest_running_job_began_stays(room):
    old, new = stored(room.storage, "old", days=9), stored(room.storage, "new", days=2)
    job = begin(room)
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - 5 * DAY) * 1000))
    assert found(room) == {"images": [old]}
    end_of = room.store.redis.hset
    end_of(f"darkroom:job:{job}", "state", "done")
    assert found(room) == {"images": sorted([old, new])}


def test_a_job_that_only_the_storage_knows_counts(room):
    stray = stored(room.storage, days=2)
    job = begin(room)
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - 5 * DAY) * 1000))
    keep_record(room.store, room.storage, job)
    room.store.redis.flushall()
    assert found(room) == {}
    room.storage.delete(f"jobs/{job}.json")
    assert found(room) == {"images": [stray]}


def test_an_image_that_an_import_finds_there_counts_as_new(room):
    data = picture("stray")
    stray = stored(room.storage, "stray", days=2)
    examine(data, room.storage, room.settings.max_image_bytes)
    assert found(room) == {}
    assert found(room, "0") == {"images": [stray]}


def test_an_image_that_is_wanted_after_it_was_looked_for_stays(room):
    stray = stored(room.storage, days=2)
    heaps = garbage.find(room.store, room.storage, DAY)
    collection = Collection(room.storage, NAME, Progress(lambda _: None))  # an import that begins now
    collection.add(
        {"label": "cat", "name": "stray.jpg", "source": "folder"}, examine(picture("stray"), room.storage, room.settings.max_image_bytes)
    )
    assert garbage.free(room.store, room.storage, heaps)["images"] == {"files": 0, "bytes": 0}
    collection.publish("job2", {"kind": "folder"})
    assert room.storage.exists(stray)


def test_an_import_and_gc_at_once_never_lose_an_image(room):
    """Whoever wins, what an import has examined is there when it has examined it, and stays there."""
    names = [f"race {n}" for n in range(60)]
    pictures = {name: picture(name) for name in names}
    for round_ in range(5):
        keys = [stored(room.storage, name, days=2) for name in names]
        heaps = garbage.find(room.store, room.storage, DAY)
        start = threading.Barrier(2)

        def sweep(heaps=heaps, start=start):
            start.wait()
            return garbage.free(room.store, room.storage, heaps)["images"]["files"]

        def import_(start=start, step=1 if round_ % 2 else -1):
            start.wait()
            for name in names[::step]:
                examine(pictures[name], room.storage, room.settings.max_image_bytes)

        with ThreadPoolExecutor(2) as threads:
            freeing, importing = threads.submit(sweep), threads.submit(import_)
            importing.result()
            freeing.result()
        assert [key for key in keys if not room.storage.exists(key)] == []
        assert not [file for file in room.storage.files("images") if file.name.startswith(".")]


def test_a_file_that_is_touched_while_it_is_put_aside_is_put_back(room, monkeypatch):
    """The narrowest moment: a job touches the image after gc has listed it, and before it puts it aside."""
    stray = stored(room.storage, days=2)
    heaps = garbage.find(room.store, room.storage, DAY)
    rename = Path.rename

    def touch_first(path, target):
        assert room.storage.touch(stray)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", touch_first)
    assert garbage.free(room.store, room.storage, heaps)["images"]["files"] == 0
    assert room.storage.read(stray) == picture("stray")
    assert [file.key for file in room.storage.files("images") if file.name.startswith(".")] == []


def test_a_file_that_a_killed_gc_had_put_aside_is_put_back(room):
    stray = stored(room.storage)
    path = Path(room.storage.root, stray)
    path.rename(path.with_name(f".{path.name}.0123abcd.aside"))
    assert found(room) == {}
    assert path.read_bytes() == picture("stray")


def test_a_version_that_is_published_meanwhile_keeps_its_images(room):
    job = begin(room, dataset="other")
    spec = parse("import", {"dataset": "other", "source": {"kind": "folder", "path": str(room.source)}})
    heaps = garbage.find(room.store, room.storage, 0)
    import_dataset(spec, job, room.storage, room.settings, Progress(lambda _: None))
    garbage.free(room.store, room.storage, heaps)
    assert all(room.storage.exists(image_key(r["sha256"], r["ext"])) for r in datasets.rows(room.storage, "other", 1))


# -- deleted versions -------------------------------------------------------------------------------------------------


def test_images_of_a_deleted_dataset_are_freed_after_the_grace(room):
    datasets.delete(room.storage, NAME, 1)
    age(room.storage, 3, "images")
    assert found(room) == {}  # the version was deleted just now: a job may have read it before
    age(room.storage, 3, "datasets")
    freed = free(room)
    assert (freed["images"], set(freed)) == (6, {"images", "versions"})
    assert [file.key for file in room.storage.files("datasets")] == ["datasets/pets/v0001/deleted.json"]
    assert found(room, "0") == {}


def test_images_that_another_dataset_has_too_stay(room):
    room.run(dataset="other", job="job2")
    datasets.delete(room.storage, NAME, 1)
    age(room.storage)
    assert set(free(room)) == {"versions"}
    assert len(list(room.storage.files("images"))) == 6


def test_a_job_that_began_before_a_version_was_deleted_keeps_its_images(room):
    job = begin(room)
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - 5 * DAY) * 1000))
    datasets.delete(room.storage, NAME, 1)
    age(room.storage)
    assert found(room) == {}


def test_a_version_that_was_never_finished_is_freed_when_its_job_is_over(room):
    room.storage.write("datasets/pets/v0002/manifest.parquet", b"half")
    room.storage.write("models/pets/v0001/model.safetensors", b"half")
    with pytest.raises(DarkroomError, match="not known what is in use"):
        found(room)  # it is young, so its images would count
    age(room.storage)
    assert free(room) == {"versions": 2}
    assert room.storage.exists("datasets/pets/v0001/manifest.parquet")


# -- uploads ----------------------------------------------------------------------------------------------------------


def upload(room, name, data=b"zip"):
    room.storage.write(f"uploads/{name}", data)
    return f"uploads/{name}"


def test_an_upload_stays_while_its_job_has_not_ended(room):
    key = upload(room, "0000000001.zip")
    age(room.storage)
    job = begin(room, source={"kind": "upload", "id": "0000000001"})
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - DAY) * 1000))
    assert found(room) == {}
    end(room, job, State.FAILED, days=0)
    assert found(room) == {}  # somebody may retry it
    room.store.redis.hset(f"darkroom:job:{job}", "ended", int((time.time() - 2 * DAY) * 1000))
    assert found(room) == {"uploads": [key]}


def test_an_upload_that_nobody_asked_for_goes(room):
    upload(room, "0000000001.zip")
    age(room.storage)
    upload(room, "0000000002.zip")
    assert found(room) == {"uploads": ["uploads/0000000001.zip"]}


def test_the_files_of_a_cancelled_import_of_a_model_go(room):
    keys = [upload(room, "0000000001.info.json"), upload(room, "0000000001.model.safetensors")]
    job = begin(room, "adopt", upload="0000000001", model="pets")
    end(room, job, State.CANCELLED)
    age(room.storage)
    assert found(room) == {"uploads": keys}


def test_uploads_of_batches_with_rows_stay_and_so_do_their_files(room):
    names = ["a" * 64, "b" * 64, "c" * 64]
    for sha256 in names:
        room.storage.write(blob_key(sha256), b"jpg")
    with room.storage.writing(files_key("0000000001")) as f:
        pa.parquet.write_table(pa.table([["1.jpg", "2.jpg"], [f"blob:{sha256}" for sha256 in names[:2]]], schema=FILES), f)
    upload(room, "0000000002.list.parquet")
    batch = make_batch(room, ["d" * 64])
    spec = {"model": "pets/v1", "source": {"kind": "upload", "id": "0000000001"}}
    room.store.redis.hset(f"darkroom:job:{batch}", "spec", json.dumps(spec))
    end(room, batch, unit="plan")
    age(room.storage)
    assert found(room) == {"uploads": sorted([blob_key(names[2]), list_key("0000000002")])}
    room.storage.delete(f"batches/{batch}")
    assert found(room) == {"uploads": sorted([*map(blob_key, names), files_key("0000000001"), list_key("0000000002")])}


def test_a_file_that_a_sender_was_told_is_there_stays_until_it_is_named(room):
    data = b"jpg"
    sha256 = hashlib.sha256(data).hexdigest()
    room.storage.write(blob_key(sha256), data)
    age(room.storage)
    heaps = garbage.find(room.store, room.storage, DAY)
    assert [file.key for heap in heaps for file in heap.files] == [blob_key(sha256)]
    client = create_app(room.settings).test_client()
    assert client.post("/api/v1/uploads/missing", json={"sha256": [sha256]}).json["missing"] == []
    assert garbage.free(room.store, room.storage, heaps)["uploads"]["files"] == 0
    line = json.dumps(["cat.jpg", sha256])
    assert client.post("/api/v1/uploads/manifest", data=line, content_type="application/jsonl").status_code == 201


def test_an_upload_that_is_ordered_again_meanwhile_stays_with_its_files(room):
    data = b"jpg"
    sha256 = hashlib.sha256(data).hexdigest()
    room.storage.write(blob_key(sha256), data)
    with room.storage.writing(files_key("0000000001")) as f:
        pa.parquet.write_table(pa.table([["1.jpg"], [f"blob:{sha256}"]], schema=FILES), f)
    age(room.storage)
    heaps = garbage.find(room.store, room.storage, DAY)
    assert [len(heap.files) for heap in heaps if heap.kind == "uploads"] == [2]
    order = {"source": {"kind": "upload", "id": "0000000001"}}
    assert create_app(room.settings).test_client().post("/api/v1/datasets/new/import", json=order).status_code == 202
    assert garbage.free(room.store, room.storage, heaps)["uploads"]["files"] == 0


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_checkpoints_of_trainings_that_are_done_go_and_those_to_resume_stay(room):
    jobs = {}
    for state in (State.DONE, State.FAILED, State.CANCELLED):
        jobs[state] = begin(room, "train", model="pets", dataset=NAME, version=1)
        room.storage.write(f"checkpoints/{jobs[state]}/last.safetensors", b"weights")
    running = begin(room, "train", model="pets", dataset=NAME, version=1, continues=jobs[State.DONE])
    room.storage.write(f"checkpoints/{running}/last.safetensors", b"weights")
    for state, job in jobs.items():
        room.store.redis.hset(
            f"darkroom:job:{job}", mapping={"state": state.value, "created": 1, "ended": int((time.time() - 2 * DAY) * 1000)}
        )
    age(room.storage)
    room.store.redis.hset(f"darkroom:job:{running}", "created", int(time.time() * 1000))
    assert found(room) == {}  # one goes on from it
    room.store.redis.hset(f"darkroom:job:{running}", mapping={"state": "failed", "ended": int(time.time() * 1000)})
    assert found(room) == {"checkpoints": [f"checkpoints/{jobs[State.DONE]}/last.safetensors"]}


def test_exports_go_after_the_grace_and_not_while_one_is_made(room):
    key = "exports/pets/v0001/coco.zip"
    room.storage.write(key, b"zip")
    assert found(room) == {}
    age(room.storage)
    assert found(room) == {"exports": [key]}
    job = begin(room, "pack")
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - 5 * DAY) * 1000))
    assert found(room) == {}


def test_looks_go_after_the_grace(room):
    room.storage.write("looks/pets/v0001/224-0.5-course/index.json", b"{}")
    assert found(room) == {}
    age(room.storage)
    assert list(found(room)) == ["looks"]


def test_files_of_killed_writers_go_after_an_hour_at_least(room):
    for key in ("uploads/.big.zip.0123abcd.tmp", "images/ab/.x.0123abcd.tmp", "batches/1/shards/.y.0123abcd.tmp"):
        room.storage.write(key, b"half")
    assert found(room, "0") == {}
    age(room.storage)
    assert free(room) == {"unfinished": 3}


def test_what_a_scrape_had_decided_stays_until_it_has_ended(room):
    job = begin(room, "scrape")
    key = f"scrapes/{job}/00000000.jsonl"
    room.storage.write(key, b"{}")
    age(room.storage)
    assert found(room) == {}
    room.store.redis.hset(f"darkroom:job:{job}", mapping={"state": "failed", "ended": 1})
    assert found(room) == {"unfinished": [key]}


def test_a_folder_that_was_moved_to_another_disk_is_followed(room, tmp_path):
    moved = tmp_path / "disk"
    Path(room.storage.root, "datasets").rename(moved)
    Path(room.storage.root, "datasets").symlink_to(moved)
    age(room.storage)
    age(room.storage, 3, str(moved))
    assert found(room) == {}


def test_files_that_are_none_of_ours_stay(room):
    for key in ("images/readme.txt", "thumbs/readme.txt", "notes/mine.txt"):
        room.storage.write(key, b"mine")
    age(room.storage)
    assert found(room) == {}


@pytest.mark.parametrize(("text", "expected"), [("1d", 86400), ("12h", 43200), ("30 min", 1800), ("90s", 90), ("0", 0), ("2W", 1209600)])
def test_a_grace_is_told_as_people_write_it(text, expected):
    assert garbage.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "d", "-1d", "1.5h", "1 year", "1d2h", "nan"])
def test_a_grace_that_is_no_length_of_time_is_refused(text):
    with pytest.raises(Invalid, match="no length of time"):
        garbage.seconds(text)


# -- buckets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(room, tmp_path):
    """The same dataset on an object store, which knows no touch."""
    disk = room.storage
    room.storage = Storage(f"memory://{tmp_path.name}", room.settings.cache)
    for file in [*disk.files("images"), *disk.files("datasets")]:
        room.storage.write(file.key, disk.read(file.key))
    return room


def test_a_bucket_is_freed_while_no_job_brings_images(bucket):
    stray = stored(bucket.storage)
    time.sleep(0.01)
    job = begin(bucket)
    heaps = {heap.kind: heap for heap in garbage.find(bucket.store, bucket.storage, -DAY)}
    assert "while no import, scrape or batch" in heaps["images"].waits
    garbage.free(bucket.store, bucket.storage, heaps.values())
    assert bucket.storage.exists(stray)
    end(bucket, job)
    assert free_bucket(bucket) == 1
    assert not bucket.storage.exists(stray)
    assert len(list(bucket.storage.files("images"))) == 6


def free_bucket(room, meanwhile=lambda: None):
    """How many images are freed; of a bucket nobody can make a file older."""
    heaps = garbage.find(room.store, room.storage, -DAY)
    meanwhile()
    return garbage.free(room.store, room.storage, heaps)["images"]["files"]


def test_a_job_that_begins_meanwhile_keeps_a_bucket_as_it_is(bucket):
    stored(bucket.storage)

    def import_at_once():
        job = begin(bucket)
        end(bucket, job, days=0)

    assert free_bucket(bucket, import_at_once) == 0


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_shows_first_and_frees_when_asked(room, monkeypatch):
    stray = stored(room.storage, days=2)
    monkeypatch.setenv("DARKROOM_REDIS_URL", room.settings.redis_url)
    monkeypatch.setenv("DARKROOM_STORAGE", room.settings.storage)
    shown = CliRunner().invoke(cli, ["gc"])
    assert (shown.exit_code, stray in shown.output) == (0, True)
    assert "Nothing was deleted. `darkroom gc --delete` frees" in shown.output
    assert room.storage.exists(stray)
    told = json.loads(CliRunner().invoke(cli, ["gc", "--json"]).output)
    assert [(h["kind"], h["files"], h["examples"]) for h in told["found"] if h["files"]] == [("images", 1, [stray])]
    assert told["freed"] == {}
    assert "1 file was deleted" in CliRunner().invoke(cli, ["gc", "--delete"]).output
    assert not room.storage.exists(stray)
    assert CliRunner().invoke(cli, ["gc"]).output == "There is nothing to free.\n"
    assert CliRunner().invoke(cli, ["gc", "--older-than", "soon"]).exit_code == 1


def test_the_command_names_the_job_that_holds_things_back(room, monkeypatch):
    stored(room.storage, days=2)
    job = begin(room)
    room.store.redis.hset(f"darkroom:job:{job}", "created", int((time.time() - 5 * DAY) * 1000))
    monkeypatch.setenv("DARKROOM_REDIS_URL", room.settings.redis_url)
    monkeypatch.setenv("DARKROOM_STORAGE", room.settings.storage)
    told = CliRunner().invoke(cli, ["gc"]).output
    assert f"What was written since the job {job} was ordered is too young until that has ended." in told
    assert "There is nothing to free." in told


def test_several_at_once_free_everything_once(room):
    keys = [stored(room.storage, f"stray {n}", days=2) for n in range(40)]
    with ThreadPoolExecutor(4) as threads:
        freed = list(threads.map(lambda _: free(room), range(4)))
    assert [key for key in keys if room.storage.exists(key)] == []
    assert sum(told.get("images", 0) for told in freed) >= len(keys)
    assert not [file for file in room.storage.files("images") if file.name.startswith(".")]
    assert len(list(room.storage.files("images"))) == 6


def test_what_the_command_frees_is_no_longer_found(room):
    stray = stored(room.storage, days=2)
    free(room)
    with pytest.raises(NotFound):
        room.storage.read(stray)
