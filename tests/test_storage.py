"""The one door to files: whole or not at all."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.errors import NotFound, Unavailable
from shared.storage import Storage, versions


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"), tmp_path / "cache")


def test_what_was_written_is_read(storage):
    storage.write_json("a/b.json", {"x": "é"})
    assert storage.read_json("a/b.json") == {"x": "é"}
    assert storage.list("a") == ["b.json"]


def test_a_missing_file_is_not_found(storage):
    with pytest.raises(NotFound):
        storage.read("nothing/here")


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "a/../../b", "a\0b"])
def test_no_key_leaves_the_storage(storage, key):
    with pytest.raises(ValueError, match="not a storage key"):
        storage.read(key)


def fail_while_writing(storage):
    with storage.writing("model.bin") as f:
        f.write(b"half")
        raise RuntimeError("the disk is gone")


def test_a_write_that_breaks_off_leaves_nothing(storage, tmp_path):
    with pytest.raises(RuntimeError):
        fail_while_writing(storage)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_write_that_breaks_off_leaves_the_old_file(storage):
    storage.write("model.bin", b"old")
    with pytest.raises(RuntimeError):
        fail_while_writing(storage)
    assert storage.read("model.bin") == b"old"


def test_a_reader_never_sees_half_a_file(storage):
    storage.write("f", b"a" * 100_000)
    stop = threading.Event()
    seen = set()

    def read():
        while not stop.is_set():
            seen.add(storage.read("f"))

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        for n in range(50):
            storage.write("f", bytes([97 + n % 2]) * 100_000)
        stop.set()
        reading.result()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}


def test_a_file_that_must_not_be_replaced_stays(storage):
    storage.write("shard", b"first", replace=False)
    storage.write("shard", b"second", replace=False)
    assert storage.read("shard") == b"first"


def test_versions_count_up_and_exist_by_their_info(storage, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    assert storage.publish_version("models/x", folder, {"job": "1"}) == 1
    assert storage.publish_version("models/x", folder, {"job": "2"}) == 2
    storage.write("models/x/v0003/weights", b"half-made")
    assert versions(storage, "models/x") == [1, 2]
    assert storage.publish_version("models/x", folder, {"job": "3"}) == 4


def test_a_job_publishes_once(storage, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    assert storage.publish_version("models/x", folder, {"job": "1"}) == storage.publish_version("models/x", folder, {"job": "1"}) == 1


def test_two_jobs_at_once_get_two_versions(storage, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(lambda n: storage.publish_version("models/x", folder, {"job": str(n)}), range(16)))
    assert sorted(numbers) == list(range(1, 17))


def test_a_storage_that_cannot_be_written_is_a_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(Unavailable, match="cannot be written"):
        Storage(str(blocked / "store"), tmp_path / "cache").check()


def test_leftovers_of_killed_writers_are_cleared(storage, tmp_path):
    storage.write("shards/a.parquet", b"")
    (tmp_path / "store" / "shards" / ".b.parquet.0123abcd.tmp").write_bytes(b"half")
    assert storage.list("shards") == ["a.parquet"]
    storage.clear_unfinished("shards")
    assert os.listdir(tmp_path / "store" / "shards") == ["a.parquet"]  # noqa: PTH208


def test_an_object_store_works_as_a_folder_does(tmp_path):
    storage = Storage("memory://bucket/prefix", tmp_path / "cache")
    storage.check()
    storage.write_json("datasets/x/v0001/info.json", {"images": 3})
    assert storage.read_json("datasets/x/v0001/info.json") == {"images": 3}
    assert versions(storage, "datasets/x") == [1]
    assert storage.local("datasets/x/v0001/info.json").read_text().strip().startswith("{")
    storage.delete("datasets")
    assert not storage.exists("datasets/x/v0001/info.json")


def test_the_files_below_a_folder_are_listed_with_size_and_time(storage):
    storage.write("images/ab/x.jpg", b"123")
    storage.write("images/.y.0123abcd.tmp", b"")
    found = {file.key: file for file in storage.files("images")}
    assert set(found) == {"images/ab/x.jpg", "images/.y.0123abcd.tmp"}
    assert (found["images/ab/x.jpg"].size, found["images/ab/x.jpg"].name) == (3, "x.jpg")
    assert list(storage.files("nothing")) == []


def test_the_files_of_an_object_store_are_listed_by_the_same_keys(tmp_path):
    storage = Storage(f"memory://{tmp_path.name}/prefix", tmp_path / "cache")
    storage.write("images/ab/x.jpg", b"123")
    (file,) = storage.files("images")
    assert (file.key, file.size) == ("images/ab/x.jpg", 3)
    assert file.at == pytest.approx(time.time(), abs=60)


def test_a_file_is_discarded_unless_somebody_has_touched_it(storage):
    for key in ("old", "touched"):
        storage.write(key, b"x")
        os.utime(f"{storage.root}/{key}", (1, 1))
    assert storage.touch("touched")
    assert not storage.touch("nothing")
    assert [storage.discard(key, before=1000) for key in ("old", "touched", "nothing")] == [True, False, False]
    assert (storage.exists("old"), storage.read("touched")) == (False, b"x")


def test_who_is_alone_with_a_folder_is_alone_until_the_block_ends_however_it_does(storage):
    inside: list[int] = []
    most: list[int] = []

    def work(n):
        with storage.alone("datasets/pets", lambda: None):
            inside.append(n)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(n)
            if n % 2:
                raise RuntimeError

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(work, n) for n in range(8)]:
            future.exception()
    assert most == [1] * 8


def test_who_waits_to_be_alone_can_give_up_and_others_are_not_waited_for(storage):
    with storage.alone("datasets/pets", lambda: None):
        with pytest.raises(KeyError), storage.alone("datasets/pets", lambda: {}["cancelled"]):
            pass
        with storage.alone("datasets/others", lambda: None):
            pass
