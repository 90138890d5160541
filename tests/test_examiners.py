"""Processes that open pictures: limited in memory and time, and replaced when one dies of a picture."""

import hashlib
import io
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from image_server import bomb, picture
from PIL import Image

from shared.settings import Settings
from shared.storage import Storage, image_key
from worker.examiners import Examiners


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage=str(tmp_path / "store"), cache=tmp_path / "cache")


def test_bytes_and_files_are_examined_alike_and_kept_as_they_are(settings, tmp_path):
    data = picture("a.jpg")
    (tmp_path / "a.part").write_bytes(data)
    with Examiners(settings, 1) as examiners:
        found = examiners.examine(data)
        assert examiners.examine(tmp_path / "a.part") == found
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    storage = Storage(settings.storage, settings.cache)
    assert storage.read(image_key(found["sha256"], found["ext"])) == data


def test_a_bad_picture_is_a_reason_and_the_next_one_is_examined(settings):
    with Examiners(settings, 1) as examiners:
        reasons = [examiners.examine(data).get("reason") for data in (b"", b"<html>", picture("a.jpg")[:900], bomb(), picture("b.jpg"))]
    assert reasons == ["empty", "unsupported", "truncated", "too_large", None]


def test_a_file_larger_than_allowed_is_not_read(settings, tmp_path):
    (tmp_path / "big").write_bytes(bytes(2000))
    with Examiners(settings.model_copy(update={"max_image_bytes": 1000}), 1) as examiners:
        assert examiners.examine(tmp_path / "big")["reason"] == "too_large"


def test_many_threads_share_the_processes(settings):
    names = [f"{n}.jpg" for n in range(40)]
    with Examiners(settings, 2) as examiners, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda name: examiners.examine(picture(name)), names))
    assert [facts["sha256"] for facts in found] == [hashlib.sha256(picture(name)).hexdigest() for name in names]


def test_a_process_that_is_killed_is_replaced_and_its_picture_examined_again(settings):
    with Examiners(settings, 1) as examiners:
        examiners.examine(picture("a.jpg"))
        (first,) = examiners._all
        os.kill(first._process.pid, signal.SIGKILL)
        assert examiners.examine(picture("b.jpg"))["ext"] == "jpg"


def test_a_picture_that_takes_too_long_is_a_reason(settings):
    with Examiners(settings, 1, seconds=2) as examiners:
        examiners.examine(picture("a.jpg"))
        stopped = threading.Event()

        def freeze() -> None:  # as a decoder that never comes back
            while not stopped.is_set():
                for process in list(examiners._all):
                    if process._process.poll() is None:
                        os.kill(process._process.pid, signal.SIGSTOP)
                time.sleep(0.01)

        thread = threading.Thread(target=freeze)
        thread.start()
        found = examiners.examine(picture("b.jpg"))
        stopped.set()
        thread.join()
        assert (found["reason"], "2 seconds" in found["detail"]) == ("unreadable", True)
        assert examiners.examine(picture("b.jpg"))["ext"] == "jpg"


def test_a_picture_that_needs_more_memory_than_allowed_is_a_reason(settings):
    out = io.BytesIO()
    Image.new("RGBA", (9000, 9000)).save(out, "PNG")
    with Examiners(settings.model_copy(update={"child_memory_bytes": 2**29}), 1) as examiners:
        assert examiners.examine(out.getvalue())["reason"] == "unreadable"
        assert examiners.examine(picture("a.jpg"))["ext"] == "jpg"


def test_a_storage_that_cannot_be_written_is_told(settings, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "images").write_text("in the way")
    with Examiners(settings, 1) as examiners, pytest.raises(OSError, match="Not a directory"):
        examiners.examine(picture("a.jpg"))


def test_no_process_is_left_when_its_parent_is_gone(settings):
    with Examiners(settings, 1) as examiners:
        examiners.examine(picture("a.jpg"))
        (process,) = examiners._all
        process._process.stdin.close()  # as the kernel does when the parent is killed
        assert process._process.wait(20) == 0
