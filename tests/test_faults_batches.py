"""Batches in a bad world: pictures that kill, a disk that is full, workers that come and go, users who change their mind.

The oracle is that of tests/test_faults.py.
"""

import csv
import io
import os
import re
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest
from conftest import until
from faults import (
    done,
    ended,
    explain,
    fault,
    kill_all_of,
    many,
    nothing_is_left,
    one_row_an_item,
    order_batch,
    rows_of,
    shard_files,
    working,
)
from PIL import Image

from shared.jobs import State
from web.orders import cancel, pause, predict, resume

pytestmark = pytest.mark.fault

# -- pictures that are no pictures, and pictures that kill --------------------------------------------------------------


def claiming(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


POISON = {
    b"cmyk.jpg": "",
    b"deep.png": "",
    b"empty.jpg": "empty",
    b"film.gif": "",
    b"folder.jpg/inside.png": "",
    b"huge.png": "too_large",
    b"page.jpg": "unsupported",
    b"palette.png": "",
    b"drawing.png": "unsupported",
    b"torn.jpg": "truncated",
    b"turned.jpg": "",
    b"\xff\xfe broken name.png": "",
    "\N{CAMERA} \N{FAMILY}.png".encode(): "",
    b"line\nbreak.png": "",
    b'quote" comma,.png': "",
    b"=cmd().png": "",
    b"+1.png": "",
    b"-1.png": "",
    b"@sum.png": "",
}


def make_poison(folder: Path, good: bytes) -> None:
    (folder / "folder.jpg").mkdir(parents=True)
    for name in POISON:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(good)
    noise = Image.effect_noise((60, 40), 80)
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    noise.convert("P").save(folder / "palette.png")
    noise.convert("RGB").save(folder / "turned.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
    noise.save(folder / "torn.jpg")
    (folder / "torn.jpg").write_bytes((folder / "torn.jpg").read_bytes()[:-400])
    Image.new("I;16", (60, 40), 999).save(folder / "deep.png")
    noise.convert("P").save(folder / "film.gif", save_all=True, append_images=[Image.new("P", (60, 40), n % 256) for n in range(1000)])
    (folder / "huge.png").write_bytes(claiming(60_000, 60_000))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!doctype html><title>404</title>")
    (folder / "drawing.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (folder / "link.png").symlink_to(folder / "+1.png")
    os.mkfifo(folder / "pipe.jpg")  # whoever opens it waits for ever


def test_whatever_lies_in_a_folder_is_one_row_each_with_a_stable_code(backend, start_worker, digits, tmp_path):
    make_poison(tmp_path / "poison", next(digits.rglob("*.png")).read_bytes())
    start_worker()
    job = order_batch(backend, tmp_path / "poison")
    one_row_an_item(backend, job, len(POISON), errors=5)
    rows = rows_of(backend, job)
    named = {os.fsdecode(name).encode("utf-8", "replace").decode(): code for name, code in POISON.items()}
    assert {row["uri"]: row["error_code"] for row in rows} == named
    (turned,) = (row for row in rows if row["uri"] == "turned.jpg")
    assert (turned["width"], turned["height"]) == (40, 60)
    text = backend.storage.read(f"batches/{job}/results.csv").decode()
    told = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["uri"].removeprefix("'") for row in told] == [row["uri"] for row in rows]
    assert not [cell for row in told for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


DECODER_CRASHES = """
    real = module.decode
    def decode(data, *args, **more):
        if data.endswith(b"deadly"):
            os.abort()
        return real(data, *args, **more)
    module.decode = decode
"""


def deadly(folder: Path, *numbers: int) -> None:
    """Give the files of these places in the order of names the ending on which the decoder crashes."""
    paths = sorted(folder.rglob("*.png"))
    for path in [paths[n] for n in numbers]:
        data = path.read_bytes()
        path.unlink()  # its other names keep their bytes
        path.write_bytes(data + b"deadly")


@pytest.mark.slow
def test_pictures_on_which_the_decoder_crashes_are_rows_and_their_neighbours_are_labelled(backend, start_worker, digits, tmp_path):
    folder = many(digits, tmp_path)
    deadly(folder, 100, 102, 109)
    start_worker(settings=backend.settings.model_copy(update={"max_attempts": 2}), **fault(tmp_path, "shared.images", DECODER_CRASHES))
    job = order_batch(backend, folder)
    one_row_an_item(backend, job, 360, errors=3)
    assert {row["item_id"]: row["error_code"] for row in rows_of(backend, job) if row["error_code"]} == dict.fromkeys(
        (100, 102, 109), "worker_died"
    )


def test_a_picture_that_kills_at_the_only_attempt_takes_no_neighbour_with_it(backend, start_worker, digits, tmp_path):
    """The shard at work when the child died may not be the one at fault: the next is read already."""
    folder = many(digits, tmp_path, copies=1)
    deadly(folder, 30, 60, 90)
    start_worker(settings=backend.settings.model_copy(update={"max_attempts": 1}), **fault(tmp_path, "shared.images", DECODER_CRASHES))
    job = order_batch(backend, folder, shard_size=1)
    one_row_an_item(backend, job, 120, errors=3)
    assert [row["item_id"] for row in rows_of(backend, job) if row["error_code"]] == [30, 60, 90]


OUT_OF_MEMORY = """
    real = module._infer
    def infer(reads, engine):
        if len(reads) > 1 and any(read.item["item_id"] == 5 for read in reads):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(reads, engine)
    module._infer = infer
"""


def test_a_shard_that_never_fits_into_memory_is_split_until_it_does(backend, start_worker, digits, tmp_path):
    settings = backend.settings.model_copy(update={"max_attempts": 2})
    start_worker(settings=settings, **fault(tmp_path, "worker.classifying.shards", OUT_OF_MEMORY))
    job = order_batch(backend, digits / "digit 0")
    one_row_an_item(backend, job, 30)
    assert "00000005-00000006.parquet" in backend.storage.list(f"batches/{job}/shards")


def test_a_batch_with_too_many_bad_pictures_stops_and_says_how_many(backend, start_worker, digits, tmp_path):
    folder = many(digits, tmp_path, copies=1)
    for path in list(folder.rglob("*.png"))[::2]:
        path.with_suffix(".jpg").write_text("no picture")
    start_worker()
    job = order_batch(backend, folder, max_failure_rate=0.1)
    until(lambda: ended(backend, job), 60, explain(backend, job))
    state = backend.store.get(job)
    assert state.state == State.FAILED
    numbers = re.fullmatch(
        r"Stopped: (\d+) of the first (\d+) images could not be labelled, more than the 10% that max_failure_rate allows\. What was done stays\.",
        state.error,
    )
    assert [int(n) for n in numbers.groups()] == [state.counts["errors"], state.counts["done"]]
    assert 100 <= state.counts["done"] < 180
    assert len(shard_files(backend, job)) * 4 >= state.counts["done"]
    nothing_is_left(backend)


# -- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(backend):
    """A disk of 64 KiB in the storage, for the results; a test may make it larger."""
    folder = Path(backend.settings.storage) / "batches"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_batch_rests_while_the_disk_is_full_and_goes_on_when_there_is_room(backend, start_worker, digits, small_disk):
    start_worker()
    job = order_batch(backend, digits)
    until(lambda: backend.store.get(job).state == State.PAUSED, explain=explain(backend, job))
    assert "No space left on device" in backend.store.get(job).note
    nothing_is_left(backend)
    written = shard_files(backend, job)
    assert len(written) * 4 == done(backend, job) < 120
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    resume(backend, job)
    one_row_an_item(backend, job, 120)
    assert shard_files(backend, job).items() >= written.items()


# -- workers that come and go -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_come_and_go_in_the_middle_and_share_the_work(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path, copies=24), shard_size=1)
    working(backend, job, 20)
    more = [start_worker() for _ in range(3)]
    until(lambda: len(backend.store.workers()) == 4 and all(w["busy"] for w in backend.store.workers()), explain=explain(backend, job))
    for worker in more:
        worker.terminate()
    for worker in more:
        worker.wait(30)
    assert not ended(backend, job)
    one_row_an_item(backend, job, 2880)


# -- users who change their mind --------------------------------------------------------------------------------------


def test_a_job_cancelled_while_no_worker_runs_never_starts(backend, start_worker, digits):
    job = order_batch(backend, digits)
    cancel(backend, job)
    start_worker()
    until(lambda: backend.store.redis.llen("classify") == 0)
    time.sleep(1)
    state = backend.store.get(job)
    assert (state.state, state.started) == (State.CANCELLED, None)


def test_a_running_batch_is_cancelled_and_what_was_done_stays(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    cancel(backend, job)
    until(lambda: ended(backend, job), 20, explain(backend, job))
    assert backend.store.get(job).state == State.CANCELLED
    assert 40 < done(backend, job) < 360
    assert len(shard_files(backend, job)) * 4 == done(backend, job)


def test_a_batch_cancelled_while_all_workers_are_dead_does_not_go_on_with_the_next(backend, start_worker, digits, tmp_path):
    victim = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    kill_all_of(victim)
    before = done(backend, job)
    cancel(backend, job)
    start_worker()
    until(lambda: ended(backend, job), 30, explain(backend, job))
    assert (backend.store.get(job).state, done(backend, job)) == (State.CANCELLED, before)


def rests(backend, job):
    """Wait until a batch is paused, and see that nothing happens then."""
    until(lambda: backend.store.get(job).state == State.PAUSED, 20, explain(backend, job))
    before = backend.storage.list(f"batches/{job}/shards")
    time.sleep(2)
    assert backend.storage.list(f"batches/{job}/shards") == before
    assert backend.store.redis.zcard("darkroom:leases") == 0


def test_a_batch_is_paused_in_the_middle_and_goes_on_where_it_was(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    pause(backend, job)
    rests(backend, job)
    written = shard_files(backend, job)
    resume(backend, job)
    one_row_an_item(backend, job, 360)
    assert shard_files(backend, job).items() >= written.items()


def test_a_batch_paused_while_all_workers_are_dead_waits_to_be_resumed(backend, start_worker, digits, tmp_path):
    victim = start_worker()
    job = order_batch(backend, many(digits, tmp_path))
    working(backend, job)
    kill_all_of(victim)
    pause(backend, job)
    start_worker()
    rests(backend, job)
    resume(backend, job)
    one_row_an_item(backend, job, 360)


def test_a_batch_paused_before_it_began_begins_when_it_is_resumed_and_may_be_cancelled_while_it_rests(backend, start_worker, digits):
    job, unwanted = order_batch(backend, digits), order_batch(backend, digits)
    assert pause(backend, job) == pause(backend, unwanted) == State.PAUSED
    start_worker()
    until(lambda: backend.store.redis.llen("classify") == 0)
    rests(backend, job)
    assert cancel(backend, unwanted) == State.CANCELLED
    resume(backend, job)
    one_row_an_item(backend, job, 120)
    assert backend.store.get(unwanted).started is None


# -- taking turns -----------------------------------------------------------------------------------------------------


def test_a_single_image_is_answered_while_the_only_worker_labels_a_batch(backend, start_worker, digits, tmp_path):
    start_worker()
    job = order_batch(backend, many(digits, tmp_path, copies=4), shard_size=1)
    working(backend, job)
    answer = predict(backend, "digits/v1", next(digits.rglob("*.png")).read_bytes())
    assert not ended(backend, job)
    assert answer["label"].startswith("digit")
    one_row_an_item(backend, job, 480)


def test_a_small_batch_does_not_wait_for_the_end_of_a_large_one(backend, start_worker, digits, tmp_path):
    start_worker()
    large = order_batch(backend, many(digits, tmp_path, copies=4), shard_size=1)
    working(backend, large)
    small = order_batch(backend, digits / "digit 0")
    until(lambda: ended(backend, small), explain=explain(backend, small))
    assert not ended(backend, large)
    one_row_an_item(backend, large, 480)
    one_row_an_item(backend, small, 30)


def test_batches_of_a_higher_priority_are_served_first(backend, start_worker, digits):
    low, normal, high = (order_batch(backend, digits / "digit 0", priority=priority) for priority in ("low", "normal", "high"))
    start_worker()
    for job in (low, normal, high):
        one_row_an_item(backend, job, 30)
    assert sorted((low, normal, high), key=lambda job: backend.store.get(job).ended) == [high, normal, low]
