"""One unit of work from claim to end, with a real Redis and real child processes, without Celery."""

import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import descendants, until
from image_server import ImageServer
from PIL import Image

from shared import models, results
from shared.images import decode
from shared.items import ItemReader, upload_key
from shared.jobs import JobStore, State, connect
from shared.specs import parse
from shared.storage import Storage
from worker.run import Worker, _stretches, run_unit
from worker.training import checkpoints


@pytest.fixture
def image_server():
    with ImageServer() as server:
        yield server


@pytest.fixture
def worker(with_model, image_server):
    sent = []
    addresses = {"openverse_url": f"{image_server.url}/openverse", "commons_url": f"{image_server.url}/commons"}
    with_model = with_model.model_copy(update={**addresses, "fetch_allow": ["127.0.0.0/8"], "operator_contact": "https://example.org"})
    store = JobStore(connect(with_model.redis_url), with_model.lease_seconds)
    worker = Worker(with_model, "w1", ["classify"], store, Storage(with_model.storage, with_model.cache), lambda *unit: sent.append(unit))
    worker.sent = sent
    yield worker
    worker.drop_warm()


def order(worker, kind, spec, unit="main"):
    return worker.store.create(kind, parse(kind, spec).model_dump(mode="json"), unit)


def batch(worker, folder, **more):
    spec = {"model": "digits/v1", "source": {"kind": "folder", "path": str(folder)}, "shard_size": 8, **more}
    return order(worker, "classify", spec, "plan")


def work_off(worker, job, limit=200):
    """Do what was sent until nothing more is, as a worker with a queue would."""
    run_unit(worker, job, worker.store.waiting()[0][1] if worker.store.waiting() else "main")
    while worker.sent and limit:
        _, job_id, unit = worker.sent.pop(0)
        run_unit(worker, job_id, unit)
        limit -= 1


def others_wait(worker):
    """Work of other jobs in the queue, so that this worker does one unit at a time."""
    worker.store.redis.rpush("classify", *["another job's"] * 5)


def rows_of(worker, job):
    with worker.storage.open(f"batches/{job}/results.parquet") as f:
        return pq.read_table(f).to_pylist()


def test_a_batch_has_one_row_an_item_in_order(worker, digits):
    job = batch(worker, digits)
    work_off(worker, job)
    state = worker.store.get(job)
    assert (state.state, state.counts["items"], state.counts["done"], state.counts["errors"]) == (State.DONE, 120, 120, 0)
    rows = rows_of(worker, job)
    assert [r["item_id"] for r in rows] == list(range(120))
    assert [r["uri"] for r in rows] == sorted(p.relative_to(digits).as_posix() for p in digits.rglob("*.png"))
    assert all(abs(sum(r["top_probabilities"]) - 1) < 0.5 and r["label"].startswith("digit") for r in rows)
    assert sum(worker.store.histogram(job, "labels").values()) == 120
    right = sum(r["label"] == r["uri"].split("/")[0] for r in rows)
    assert right > 60  # six epochs on few images; by chance it would be 30


def test_bad_images_are_rows_with_a_code_and_a_sentence(worker, digits, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = next(digits.rglob("*.png")).read_bytes()
    (folder / "0 good.png").write_bytes(good)
    (folder / "1 empty.jpg").write_bytes(b"")
    (folder / "2 text.jpg").write_text("I am no picture")
    (folder / "3 half.png").write_bytes(good[: len(good) // 2])
    (folder / "4 <b>&=cmd.png").write_bytes(good)
    Image.new("CMYK", (50, 50)).save(folder / "5 cmyk.jpg")
    Image.new("I;16", (50, 50), 999).save(folder / "6 deep.png")
    Image.new("P", (1, 1)).save(folder / "7 dot.gif")
    job = batch(worker, folder)
    work_off(worker, job)
    rows = rows_of(worker, job)
    assert [r["error_code"] for r in rows] == ["", "empty", "unsupported", "truncated", "", "", "", ""]
    assert all(r["error"].endswith(".") for r in rows if r["error_code"])
    assert worker.store.get(job).result["errors"] == 3


def test_an_upload_is_classified_without_being_unpacked(worker, digits, tmp_path):
    import shutil

    archive = shutil.make_archive(str(tmp_path / "up"), "zip", digits / "digit 0")
    worker.storage.write(upload_key("0123456789"), Path(archive).read_bytes())
    job = batch(worker, "/", source={"kind": "upload", "id": "0123456789"})
    work_off(worker, job)
    assert len(rows_of(worker, job)) == 30


def test_a_batch_without_pictures_fails_with_a_sentence(worker, tmp_path):
    (tmp_path / "nothing").mkdir()
    job = batch(worker, tmp_path / "nothing")
    work_off(worker, job)
    assert (worker.store.get(job).state, worker.store.get(job).error) == (
        State.FAILED,
        "There are no images in what was given; nothing was classified.",
    )
    assert worker.storage.read_json(f"jobs/{job}.json")["state"] == "failed"


def test_a_shard_that_was_written_but_not_counted_is_counted_and_not_computed_again(worker, digits):
    others_wait(worker)
    job = batch(worker, digits / "digit 0")
    run_unit(worker, job, "plan")
    unit = worker.sent[0][2]
    run_unit(worker, job, unit)
    written = worker.storage.read(results.shard_key(job, unit))
    # the worker died between writing and counting: the ledger knows nothing of it
    worker.store.redis.hset(f"darkroom:unit:{job}:{unit}", mapping={"state": "waiting"})
    worker.store.redis.hincrby(f"darkroom:job:{job}", "waiting", 1)
    worker.store.redis.hincrby(f"darkroom:job:{job}", "units_done", -1)
    worker.store.redis.hincrby(f"darkroom:job:{job}", "done", -8)
    work_off(worker, job)
    assert worker.storage.read(results.shard_key(job, unit)) == written
    assert worker.store.get(job).result["items"] == 30


def test_every_message_may_come_three_times(worker, digits):
    others_wait(worker)
    job = batch(worker, digits / "digit 1")
    run_unit(worker, job, "plan")
    while worker.sent:
        unit = worker.sent.pop(0)[2]
        for _ in range(3):
            run_unit(worker, job, unit)
    state = worker.store.get(job)
    assert (state.state, state.counts["done"], state.counts["items"]) == (State.DONE, 30, 30)
    assert len(rows_of(worker, job)) == 30


def die_on(worker, job, unit):
    """Play a worker that dies on a unit, as often as it is tried."""
    hasty = JobStore(worker.store.redis, 0.01)
    for n in range(worker.settings.max_attempts):
        claim = hasty.claim(job, unit, f"victim {n}")
        worker.sent += [("classify", job, name) for name in claim.send]  # as the sweeper would, in the end
        time.sleep(0.02)


def test_an_item_on_which_workers_die_becomes_a_row_and_the_rest_is_labelled(worker, digits):
    others_wait(worker)
    job = batch(worker, digits / "digit 2")
    run_unit(worker, job, "plan")
    poison = 11
    done = 0
    while worker.sent:
        unit = worker.sent.pop(0)[2]
        if unit != "finish" and results.shard_range(unit)[0] <= poison < results.shard_range(unit)[1]:
            die_on(worker, job, unit)
            done += 1
        run_unit(worker, job, unit)
    rows = rows_of(worker, job)
    assert done == 4  # 8 items, 4, 2, 1
    assert [r["item_id"] for r in rows] == list(range(30))
    assert [r["item_id"] for r in rows if r["error_code"]] == [poison]
    assert rows[poison]["error_code"] == "worker_died"


def children():
    """Ids of the child processes that work for this one."""
    return [pid for pid in descendants(os.getpid()) if b"worker.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill_child_when(ready):
    """Kill the child process that works, as the kernel does when memory runs out."""

    def watch():
        until(ready, 60)
        os.kill(children()[0], signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


LONG = {"dataset": "digits", "version": 1, "model": "slow", "start": "scratch", "image_size": 32, "epochs": 200, "batch_size": 16}


def test_a_training_whose_process_is_killed_goes_on_from_its_last_epoch(worker):
    job = order(worker, "train", {**LONG, "epochs": 6})
    thread = kill_child_when(lambda: len(worker.store.rows(job, "epochs")) >= 2)
    run_unit(worker, job, "main")
    thread.join()
    state = worker.store.get(job)
    assert state.state == State.QUEUED
    assert state.note.startswith("Attempt 1: the process was killed (signal 9)")
    assert state.note.endswith("It goes on from its last finished epoch.")
    kept = checkpoints.read(worker.storage, job).standing.rows
    run_unit(worker, job, "main")
    assert worker.store.get(job).state == State.DONE
    rows = worker.store.rows(job, "epochs")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[: len(kept)] == kept
    batches = [batch for batch, _ in worker.store.rows(job, "loss")]
    assert batches == sorted(set(batches))
    assert models.info(worker.storage, "slow", 1)["epochs"] == rows


def test_a_training_whose_process_is_killed_again_and_again_before_an_epoch_ends_failed_and_says_so(worker):
    job = order(worker, "train", LONG)
    for _ in range(worker.settings.max_attempts):
        thread = kill_child_when(children)
        run_unit(worker, job, "main")
        thread.join()
    state = worker.store.get(job)
    assert state.state == State.FAILED
    assert state.error.startswith("3 times in a row the training process was killed (signal 9)")
    assert worker.storage.list("models") == ["digits"]


WHOLE_LARGE = {**LONG, "min_scale": 0.001, "model": "large"}  # crops so small that no smaller copies of the pictures are made


def large_pictures(worker, tmp_path):
    """The name of a dataset of pictures so large that processes of their own read them."""
    noise = Image.effect_noise((1200, 1000), 80).convert("RGB")
    for n in range(60):
        path = tmp_path / "large" / f"class {n % 2}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise.putpixel((n, n), (255, 0, 0))
        noise.save(path)
    source = {"kind": "folder", "path": str(tmp_path / "large")}
    run_unit(worker, order(worker, "import", {"dataset": "large", "source": source}), "main")
    return "large"


def test_a_training_on_large_pictures_has_loader_processes_and_ends(worker, tmp_path):
    """Loader processes are forked from the child, in which a thread waits for commands."""
    job = order(worker, "train", {**WHOLE_LARGE, "dataset": large_pictures(worker, tmp_path), "epochs": 1})
    seen = []
    stop = threading.Event()

    def watch():
        while not stop.wait(0.05):
            seen.extend(pid for child in children() for pid in descendants(child))

    thread = threading.Thread(target=watch)
    thread.start()
    run_unit(worker, job, "main")
    stop.set()
    thread.join()
    assert worker.store.get(job).state == State.DONE
    assert seen


def test_a_training_whose_reading_process_is_killed_goes_on(worker, tmp_path):
    pictures = large_pictures(worker, tmp_path)
    job = order(worker, "train", {**WHOLE_LARGE, "dataset": pictures, "epochs": 3})

    def watch():
        until(lambda: worker.store.rows(job, "epochs") and descendants(children()[0]), 60)
        os.kill(descendants(children()[0])[-1], signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    run_unit(worker, job, "main")
    thread.join()
    state = worker.store.get(job)
    assert state.state == State.DONE
    assert state.progress["remark"] == "A process that reads images was ended; training went on from its last finished epoch."
    assert [row["epoch"] for row in worker.store.rows(job, "epochs")] == [1, 2, 3]


def test_a_cancelled_training_stops_and_leaves_no_model(worker):
    job = order(worker, "train", LONG)
    thread = threading.Thread(target=run_unit, args=(worker, job, "main"))
    thread.start()
    until(lambda: worker.store.rows(job, "epochs"))
    worker.store.cancel(job)
    thread.join(30)
    assert worker.store.get(job).state == State.CANCELLED
    assert worker.storage.list("models") == ["digits"]
    assert [name for name in worker.storage.list("models/digits") if name != "v0001"] == []


def test_a_worker_that_lost_its_lease_commits_nothing(worker):
    job = order(worker, "train", LONG)
    thread = threading.Thread(target=run_unit, args=(worker, job, "main"))
    thread.start()
    until(lambda: worker.store.rows(job, "epochs"))
    worker.store.redis.hset(f"darkroom:unit:{job}:main", "until", 0)
    assert worker.store.claim(job, "main", "w2")
    thread.join(30)
    assert not thread.is_alive()
    assert worker.store.get(job).state == State.RUNNING  # w2 has it


def test_work_on_which_workers_died_three_times_failed(worker, digits):
    job = order(worker, "import", {"dataset": "again", "source": {"kind": "folder", "path": str(digits)}})
    die_on(worker, job, "main")
    run_unit(worker, job, "main")
    assert (worker.store.get(job).state, worker.store.get(job).error) == (
        State.FAILED,
        "The worker stopped answering, 3 times; the work was given up.",
    )


def test_a_dataset_is_made_in_a_child_process(worker, digits):
    job = order(worker, "import", {"dataset": "again", "source": {"kind": "folder", "path": str(digits)}})
    run_unit(worker, job, "main")
    assert worker.store.get(job).result == {"dataset": "again", "version": 1, "images": 120, "dropped": 0}


def test_a_dataset_is_looked_at_in_a_child_process(worker):
    job = order(worker, "look", {"dataset": "digits", "version": 1, "image_size": 32})
    run_unit(worker, job, "main")
    state = worker.store.get(job)
    assert (state.state, state.result) == (State.DONE, {"dataset": "digits", "version": 1, "look": "32-0.5-course"})
    assert len(worker.storage.list("looks/digits/v0001/32-0.5-course")) == 6


def test_class_names_become_a_dataset_in_a_child_process(worker, image_server):
    for query in ("cat", "dog"):
        image_server.hits["openverse"][query] = [f"/img/{query}-{n}.jpg" for n in range(4)]
    classes = [{"name": "cat"}, {"name": "dog"}]
    job = order(worker, "scrape", {"dataset": "pets", "classes": classes, "per_class": 3, "sources": ["openverse"]})
    run_unit(worker, job, "main")
    state = worker.store.get(job)
    assert (state.state, state.error) == (State.DONE, None)
    assert state.result == {"dataset": "pets", "version": 1, "images": 6, "dropped": 0}
    assert state.progress["classes"] == {"cat": 3, "dog": 3}
    assert len(state.progress["latest"]) == 6


def test_a_list_of_addresses_is_classified_and_each_has_its_row(worker, image_server):
    urls = [
        f"{image_server.url}/img/a.jpg",
        f"{image_server.url}/nothing/here.jpg",
        "http://10.0.0.1/secret.jpg",
        f"{image_server.url}/img/b.jpg",
    ]
    job = batch(worker, "/", source={"kind": "urls", "urls": urls})
    work_off(worker, job)
    rows = rows_of(worker, job)
    assert [r["uri"] for r in rows] == urls
    assert [r["error_code"] for r in rows] == ["", "not_found", "blocked_address", ""]
    assert "locator" not in rows[0]  # where a file lies on the server is nobody's business
    kept, _ = results.shard(worker.storage, job, results.shards(worker.storage, job)[0])
    shown = ItemReader(worker.storage, 10**7).read(kept["locator"][0].as_py())  # the page shows it without fetching it again
    assert decode(shown).format == "JPEG"


def test_a_batch_begins_with_small_shards_and_they_cover_every_item():
    assert _stretches(0, 1000, 256) == [(0, 32, 32), (32, 64, 32), (64, 128, 64), (128, 256, 128), (256, 1000, 256)]
    assert _stretches(32_768, 40_000, 256) == [(32_768, 40_000, 256)]
    for last, size in [(1, 256), (33, 256), (256, 256), (257, 256), (300, 50), (100, 8), (32_768, 10_000)]:
        stretches = _stretches(0, last, size)
        assert [stop for _, stop, _ in stretches[:-1]] == [first for first, _, _ in stretches[1:]]
        assert (stretches[0][0], stretches[-1][1]) == (0, last)
