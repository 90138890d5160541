"""A folder per class, on the server or in a zip, becomes a dataset version."""

import subprocess
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from image_server import ImageServer, bomb, picture

from shared import datasets, review
from shared.errors import Cancelled, DarkroomError, Invalid
from shared.items import upload_key
from shared.settings import Settings
from shared.specs import ImportSpec
from shared.storage import Storage, image_key
from worker.examiner import examine
from worker.examining import Collection
from worker.importing import import_dataset
from worker.layouts import Renaming, by_folder
from worker.progress import Progress

UPLOAD = "0123456789ab"


class Room:
    """Settings and storage of one test, and what its jobs told."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.settings = Settings(storage=str(folder / "store"), cache=folder / "cache", **values)
        self.storage = Storage(self.settings.storage, self.settings.cache)
        self.source = folder / "photos"
        self.told: list[dict[str, Any]] = []

    def put(self, *names: str, data: bytes | None = None) -> None:
        """Write files below the source folder; each a picture of its own unless `data` is given."""
        for name in names:
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(name) if data is None else data)

    def put_zip(self, files: dict[str, bytes]) -> None:
        with self.storage.writing(upload_key(UPLOAD)) as f, zipfile.ZipFile(f, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    def run(
        self,
        source: dict[str, Any] | None = None,
        dataset: str = "pets",
        job: str = "job1",
        stop: threading.Event | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        spec = ImportSpec.model_validate({"dataset": dataset, "source": source or {"kind": "folder", "path": str(self.source)}, **more})
        return import_dataset(spec, job, self.storage, self.settings, Progress(self.told.append, stop))

    def rows(self, status: str = "kept", version: int = 1) -> list[dict[str, Any]]:
        return datasets.rows(self.storage, "pets", version, status=status)

    def reasons(self) -> dict[str, str]:
        """name -> reason of what was dropped."""
        return {row["name"]: row["reason"] for row in self.rows("dropped")}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def four(prefix: str = "") -> list[str]:
    return [f"{prefix}{label}/{n}.jpg" for label in ("cat", "dog") for n in (1, 2)]


def zipped(*names: str) -> dict[str, bytes]:
    return {name: picture(name) for name in names}


# -- what a version holds ------------------------------------------------------------------------------------------------


def test_a_folder_per_class_becomes_a_version(room):
    room.put(*four())
    assert room.run() == {"dataset": "pets", "version": 1, "images": 4, "dropped": 0}
    info = datasets.info(room.storage, "pets")
    assert info["classes"] == {"cat": 2, "dog": 2}
    assert info["source"] == {"kind": "folder", "path": str(room.source)}
    assert (info["job"], info["parent"]) == ("job1", None)


def test_the_bytes_are_kept_as_they_came_under_their_hash(room):
    room.put(*four())
    room.run()
    for row in room.rows():
        assert room.storage.read(image_key(row["sha256"], row["ext"])) == (room.source / row["name"]).read_bytes()
        assert (row["width"], row["height"], row["format"], len(row["phash"])) == (96, 80, "JPEG", 16)


def test_the_extension_follows_the_bytes_and_not_the_name(room):
    room.put(*four())
    room.put("cat/really-a-png.jpg", data=picture("png", kind="PNG"))
    room.run()
    assert [row["ext"] for row in room.rows() if row["name"] == "cat/really-a-png.jpg"] == ["png"]


def test_a_zip_makes_the_same_dataset_as_its_folder(room):
    room.put(*four())
    room.put_zip(zipped(*four()))
    room.run()
    room.run({"kind": "upload", "id": UPLOAD}, dataset="zipped")
    assert datasets.info(room.storage, "zipped")["hash"] == datasets.info(room.storage, "pets")["hash"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html><title>404</title>", "unsupported"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
        (picture("x")[:600], "truncated"),
        (bomb(), "too_large"),
    ],
    ids=["empty", "html", "svg", "truncated", "bomb"],
)
def test_a_file_that_is_no_good_picture_is_a_dropped_row_with_a_reason(room, fault, reason):
    room.put(*four())
    room.put("dog/bad.jpg", data=fault)
    assert room.run()["dropped"] == 1
    (row,) = room.rows("dropped")
    assert (row["name"], row["label"], row["reason"]) == ("dog/bad.jpg", "dog", reason)
    assert row["detail"].endswith(".")


def test_a_file_larger_than_the_setting_is_dropped(tmp_path):
    room = Room(tmp_path, max_image_bytes=20_000)
    room.put(*four())
    room.put("dog/large.jpg", data=picture("x") + bytes(20_000))
    room.run()
    assert room.reasons() == {"dog/large.jpg": "too_large"}


def test_the_same_bytes_are_kept_once_and_the_other_row_says_in_which_class(room):
    room.put(*four())
    room.put("dog/3.jpg", data=picture("cat/1.jpg"))
    room.run()
    (row,) = room.rows("dropped")
    assert (row["name"], row["reason"]) == ("dog/3.jpg", "duplicate")
    assert "'cat'" in row["detail"]


def test_a_symbolic_link_is_not_followed(room, tmp_path):
    room.put(*four())
    (tmp_path / "secret.jpg").write_bytes(picture("secret"))
    (room.source / "cat" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    assert room.run()["images"] == 4


def test_a_file_name_that_is_no_valid_text_is_imported(room):
    room.put(*four())
    Path(str(room.source / "cat" / "\udcff.jpg")).write_bytes(picture("odd"))
    assert room.run()["images"] == 5


# -- which folder is the class -------------------------------------------------------------------------------------------


def labels(*paths: str) -> list[str]:
    return [offer.said["label"] for offer in by_folder([(path, "") for path in paths], Renaming({}))]


def test_folders_below_a_class_belong_to_it():
    assert labels("cat/a.jpg", "cat/indoor/night/b.jpg", "dog/c.jpg") == ["cat", "cat", "dog"]


def test_a_single_folder_around_everything_is_no_class():
    assert labels("photos/2026/cat/a.jpg", "photos/2026/dog/b.jpg") == ["cat", "dog"]


def test_the_classes_of_training_and_validation_folders_are_merged():
    assert labels("clothing/train/hat/a.jpg", "clothing/Validation/hat/b.jpg", "clothing/train/dress/c.jpg") == ["hat", "hat", "dress"]


def test_classes_that_are_called_train_and_test_stay_classes():
    assert labels("train/a.jpg", "test/b.jpg") == ["train", "test"]


def test_a_folder_beside_train_makes_train_a_class():
    assert labels("train/a/1.jpg", "plane/b/1.jpg") == ["train", "plane"]


def test_a_path_with_backslashes_is_a_path():
    assert labels("photos\\cat\\a.jpg", "photos\\dog\\b.jpg") == ["cat", "dog"]


def test_a_file_in_no_class_folder_is_dropped_and_says_so(room):
    room.put(*four(), "stray.jpg")
    room.run()
    assert room.reasons() == {"stray.jpg": "no_class"}


def test_a_class_name_may_be_any_text(room):
    room.put("Füße & =1+1/1.jpg", "Füße & =1+1/2.jpg", "犬/1.jpg", "犬/2.jpg")
    room.run()
    assert set(datasets.info(room.storage, "pets")["classes"]) == {"Füße & =1+1", "犬"}


@pytest.mark.parametrize("name", ["a\nb", "x" * 101, "left\u202eright"])
def test_a_folder_that_cannot_be_a_class_is_named(name):
    with pytest.raises(Invalid, match="cannot be a class"):
        labels(f"{name}/a.jpg", "dog/b.jpg")


def test_two_classes_that_differ_by_case_alone_are_refused(room):
    room.put(*four(), "Dog/1.jpg", "Dog/2.jpg")
    with pytest.raises(Invalid, match="'Dog' and 'dog'"):
        room.run()


# -- what is refused -----------------------------------------------------------------------------------------------------


def refused(room: Room, *words: str, source: dict[str, Any] | None = None, **more: Any) -> None:
    """The job fails with a sentence that holds all `words`, and no dataset is left."""
    with pytest.raises(DarkroomError) as caught:
        room.run(source, **more)
    for word in words:
        assert word in str(caught.value)
    assert datasets.names(room.storage) == []
    assert room.storage.list("datasets/pets") == []


def test_a_class_with_a_single_usable_picture_is_named_with_its_count(room):
    room.put(*four(), "bird/1.jpg")
    room.put("bird/2.jpg", data=b"")
    refused(room, "'bird' has 1", "1 empty")


def test_a_single_class_is_refused(room):
    room.put("cat/1.jpg", "cat/2.jpg")
    refused(room, "two classes", "'cat'")


def test_pictures_without_any_class_folder_are_refused(room):
    room.put("1.jpg", "2.jpg")
    refused(room, "No usable images", "2 no_class")


def test_a_folder_without_pictures_is_refused(room):
    room.source.mkdir()
    (room.source / "notes.txt").write_text("hello")
    refused(room, "no pictures")


def test_a_folder_outside_the_allowed_ones_is_refused(tmp_path):
    room = Room(tmp_path, import_roots=[str(tmp_path / "elsewhere")])
    room.put(*four())
    refused(room, "DARKROOM_IMPORT_ROOTS")


def test_an_upload_that_is_gone_is_told(room):
    refused(room, "no upload", source={"kind": "upload", "id": UPLOAD})


def test_a_zip_with_a_path_outside_itself_is_refused(room, tmp_path):
    room.put_zip({**zipped(*four()), "../../evil.jpg": picture("evil")})
    refused(room, "outside itself", source={"kind": "upload", "id": UPLOAD})
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_member_of_a_zip_is_a_dropped_row(room):
    room.put_zip(zipped(*four(), "cat/3.jpg"))
    data = bytearray(room.storage.read(upload_key(UPLOAD)))
    start = data.index(picture("cat/3.jpg"))
    data[start + 300 : start + 310] = b"0123456789"
    room.storage.write(upload_key(UPLOAD), bytes(data))
    room.run({"kind": "upload", "id": UPLOAD})
    assert room.reasons() == {"cat/3.jpg": "unreadable"}


# -- adding to a dataset, running twice, cancelling ----------------------------------------------------------------------


def test_an_import_into_an_existing_dataset_adds_to_it(room):
    room.put(*four())
    room.run()
    room.put_zip(zipped("cat/9.jpg", "cat/1.jpg", "bird/1.jpg", "bird/2.jpg"))
    assert room.run({"kind": "upload", "id": UPLOAD}, job="job2") == {"dataset": "pets", "version": 2, "images": 7, "dropped": 1}
    info = datasets.info(room.storage, "pets")
    assert info["classes"] == {"bird": 2, "cat": 3, "dog": 2}
    assert info["parent"] == 1
    assert datasets.info(room.storage, "pets", 1)["images"] == 4


def test_a_version_that_another_job_published_meanwhile_is_carried_over_too(room):
    collection = Collection(room.storage, "pets", Progress(room.told.append))
    for label, n in [("bird", 1), ("bird", 2), ("cat", 1)]:
        facts = examine(picture(f"{label}/{n}.jpg"), room.storage, room.settings.max_image_bytes)
        collection.add({"label": label}, facts)
    room.put(*four())
    room.run()
    assert collection.publish("job2", {"kind": "test"}) == {"dataset": "pets", "version": 2, "images": 6, "dropped": 0}
    assert datasets.info(room.storage, "pets")["parent"] == 1


def test_a_class_that_differs_from_an_older_one_by_case_alone_is_refused(room):
    room.put(*four())
    room.run()
    room.put_zip(zipped("CAT/5.jpg", "CAT/6.jpg", "dog/5.jpg", "dog/6.jpg"))
    with pytest.raises(Invalid, match="'cat' and 'CAT'"):
        room.run({"kind": "upload", "id": UPLOAD}, job="job2")


def test_a_job_that_runs_again_after_it_published_answers_the_same(room):
    room.put(*four())
    first = room.run()
    assert room.run() == first
    assert datasets.latest(room.storage, "pets") == 1


def test_progress_counts_every_file(room):
    room.put(*four())
    room.put("dog/bad.jpg", data=b"")
    room.run()
    last = room.told[-1]["progress"]
    assert (last["done"], last["total"], last["kept"], last["dropped"], last["reasons"]) == (5, 5, 4, 1, {"empty": 1})


def test_a_cancelled_import_leaves_no_dataset(room):
    room.put(*four())
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        room.run(stop=stop)
    assert datasets.names(room.storage) == []


# -- which side of the split ---------------------------------------------------------------------------------------------


def sides(room: Room, dataset: str = "pets") -> dict[str, str]:
    """name -> split of what was kept."""
    return {row["name"]: row["split"] for row in datasets.rows(room.storage, dataset, 1)}


def test_folders_of_training_validation_and_test_say_on_which_side_each_image_is(room):
    room.put("train/cat/1.jpg", "train/dog/1.jpg", "Val/cat/2.jpg", "test/dog/2.jpg")
    room.run()
    assert sides(room) == {"train/cat/1.jpg": "train", "train/dog/1.jpg": "train", "Val/cat/2.jpg": "valid", "test/dog/2.jpg": "test"}


def test_a_folder_around_the_sides_changes_nothing(room):
    room.put_zip(zipped("pets/train/cat/1.jpg", "pets/train/dog/1.jpg", "pets/valid/cat/2.jpg", "pets/valid/dog/2.jpg"))
    room.run({"kind": "upload", "id": UPLOAD})
    assert sorted(sides(room).values()) == ["train", "train", "valid", "valid"]


def test_without_such_folders_no_image_has_a_side(room):
    room.put(*four("photos/"))
    room.run()
    assert set(sides(room).values()) == {""}


# -- tables --------------------------------------------------------------------------------------------------------------


def told(room: Room, name: str, text: str | bytes, *images: str) -> None:
    """Pictures, and a table beside them."""
    room.put(*images)
    room.put(name, data=text.encode() if isinstance(text, str) else text)


def kept(room: Room) -> dict[str, str]:
    """name -> label of what was kept."""
    return {row["name"]: row["label"] for row in room.rows()}


FOUR = ("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg")


def test_a_csv_says_which_class_and_side_each_image_beside_it_is_of(room):
    lines = ["a.jpg,cat,train", "b.jpg,cat,validation", "c.jpg,Füße & =1,test", "d.jpg,Füße & =1,"]
    told(room, "labels.csv", "path,label,split\r\n" + "\r\n".join(f"images/{line}" for line in lines), *FOUR)
    room.run()
    assert kept(room) == {"images/a.jpg": "cat", "images/b.jpg": "cat", "images/c.jpg": "Füße & =1", "images/d.jpg": "Füße & =1"}
    assert list(sides(room).values()) == ["train", "valid", "test", ""]


def test_paths_of_a_csv_are_relative_to_its_place_and_what_else_it_knows_is_kept(room):
    head = "filename;class;license;license_url;creator;page_url\n"
    rows = [
        f"images/{n}.jpg;{label};CC0;https://cc.org/0;Ann;javascript:alert(1)\n"
        for n, label in zip("abcd", ["x", "x", "y", "y"], strict=True)
    ]
    told(room, "around/set/anything.csv", head + "".join(rows), *(f"around/set/{name}" for name in FOUR))
    room.run()
    row = room.rows()[0]
    assert (row["name"], row["label"], row["licence"], row["licence_url"], row["creator"]) == (
        "around/set/images/a.jpg",
        "x",
        "CC0",
        "https://cc.org/0",
        "Ann",
    )
    assert row["page_url"] == ""  # no address that a page may link to


def test_every_line_of_a_table_and_every_file_ends_as_a_row(room, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(picture("secret"))
    lines = [*(f"images/{n}.jpg,{label}" for n, label in zip("abcd", ["x", "x", "y", "y"], strict=True))]
    lines += [
        "../secret.jpg,x",
        f"{tmp_path}/secret.jpg,x",
        "images/gone.jpg,x",
        ",x",
        "images/e.jpg,",
        "images/a.jpg,y",
        f"images/f.jpg,{'n' * 101}",
    ]
    told(room, "labels.csv", "path,label\n" + "\n".join(lines), *FOUR, "images/e.jpg", "images/f.jpg", "images/untold.jpg")
    assert room.run()["images"] == 4
    assert [(row["name"], row["reason"]) for row in room.rows("dropped")] == [
        ("labels.csv, line 6", "forbidden"),
        ("labels.csv, line 7", "forbidden"),
        ("images/gone.jpg", "not_found"),
        ("labels.csv, line 9", "bad_line"),
        ("images/e.jpg", "no_class"),
        ("images/a.jpg", "duplicate"),
        ("images/f.jpg", "bad_label"),
        ("images/untold.jpg", "no_class"),
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"path\nimages/a.jpg\n", ["labels.csv has no column `label`", "'path'"]),
        (b"name,label\na,b\n", ["labels.csv has no column `path` or `url`"]),
        (b"path,label\nimages/a.jpg,\xff\xfe\x00\n", ["no UTF-8 text near its line 2"]),
        (bytes(range(256)) * 8, ["no UTF-8 text"]),
        (b'path,label\nimages/a.jpg,"cat\n', ["labels.csv cannot be read near its line"]),
        (b"", ["labels.csv has no column"]),
        (b"path,label\n" + b"x" * 200_000, ["labels.csv cannot be read", "field larger"]),
    ],
    ids=["no label", "no path", "binary value", "binary", "endless quotes", "empty", "long line"],
)
def test_a_csv_that_cannot_be_used_is_refused_with_a_sentence(room, table, words):
    told(room, "labels.csv", table, *FOUR)
    refused(room, *words)


def test_a_csv_of_a_gigabyte_in_one_line_is_refused_without_being_read(room):
    told(room, "labels.csv", "path,label\n", *FOUR)
    with (room.source / "labels.csv").open("ab") as file:
        file.truncate(10**9)
    refused(room, "A table that says what the images are cannot be read", "more than 268,435,456 bytes")


def test_a_table_of_something_else_beside_class_folders_is_passed_over(room):
    room.put(*four())
    room.put("notes.csv", data=b"day,weather\n1,rain\n")
    room.run()
    assert set(kept(room).values()) == {"cat", "dog"}


def test_an_image_folder_of_hugging_face_is_understood(room):
    room.put("train/1.jpg", "train/2.jpg", "train/3.jpg", "validation/4.jpg", "validation/5.jpg")
    lines = [
        '{"file_name": "1.jpg", "label": "cat", "text": "ignored"}',
        '{"file_name": "2.jpg", "labels": ["dog"]}',
        "",
        '{"file_name": "3.jpg", "label": 7}',
    ]
    room.put("train/metadata.jsonl", data="\n".join(lines).encode())
    room.put("validation/metadata.csv", data=b"file_name,label\n4.jpg,cat\n5.jpg,dog\n")
    room.put("train/6.jpg", "train/7.jpg")
    with (room.source / "train/metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "6.jpg", "label": "7"}')
    room.run()
    assert kept(room) == {
        "train/1.jpg": "cat",
        "train/2.jpg": "dog",
        "train/3.jpg": "7",
        "train/6.jpg": "7",
        "validation/4.jpg": "cat",
        "validation/5.jpg": "dog",
    }
    assert sides(room)["validation/5.jpg"] == "valid"
    assert room.reasons() == {"train/7.jpg": "no_class"}


def test_where_metadata_says_no_class_the_folder_does(room):
    room.put(*four("train/"), *(name.replace("1.jpg", "3.jpg") for name in four("test/")))
    room.put("metadata.jsonl", data=b"".join(b'{"file_name": "%s", "text": "a"}\n' % name.encode() for name in four("train/")))
    room.run()
    assert kept(room) == {name: name.split("/")[1] for name in four("train/")}


def test_broken_lines_of_metadata_are_rows_and_the_others_stay(room):
    good = [f'{{"file_name": "{name}", "label": "{label}"}}' for name, label in zip(FOUR, ["x", "x", "y", "y"], strict=True)]
    bad = [
        '{"file_name": ',
        "[1, 2]",
        '{"file_name": 3.5}',
        '{"file_name": "images/a.jpg", "label": ["p", "q"]}',
        '{"file_name": "images/a.jpg", "label": "x", "split": "holdout"}',
        "[" * 100_000,
        '{"file_name": "' + "x" * 140_000,
        '{"label": "\\ud800"}',
    ]
    told(room, "metadata.jsonl", "\n".join(good + bad), *FOUR)
    assert room.run() == {"dataset": "pets", "version": 1, "images": 4, "dropped": 8}
    assert {(row["name"], row["reason"]) for row in room.rows("dropped")} == {
        (f"metadata.jsonl, line {n}", "bad_line") for n in range(5, 13)
    }


def test_a_zip_with_a_table_is_read_as_its_folder_is(room):
    rows = "path,label\n" + "".join(f"{name},{label}\n" for name, label in zip(FOUR, ["x", "x", "y", "y"], strict=True))
    room.put_zip({**zipped(*FOUR), "labels.csv": rows.encode()})
    room.run({"kind": "upload", "id": UPLOAD})
    assert kept(room) == dict(zip(FOUR, ["x", "x", "y", "y"], strict=True))


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as running:
        yield running


def test_addresses_of_a_csv_are_fetched_with_the_limits_of_every_download(tmp_path, server):
    room = Room(tmp_path, fetch_allow=["127.0.0.0/8"])
    lines = [f"{server.url}/img/{label}-{n}.jpg,{label},valid" for label in ("cat", "dog") for n in range(20)]
    lines += [
        f"{server.url}/bad/gone/x.jpg,cat,",
        f"{server.url}/bad/noai/x.jpg,cat,",
        "file:///etc/passwd,cat,",
        "http://10.0.0.1/x.jpg,dog,",
    ]
    room.put_zip({"labels.csv": "\n".join(["url,label,split", *lines]).encode()})
    room.run({"kind": "upload", "id": UPLOAD})
    info = datasets.info(room.storage, "pets")
    assert (info["classes"], info["dropped"]) == (
        {"cat": 20, "dog": 20},
        {"not_found": 1, "opted_out": 1, "bad_line": 1, "blocked_address": 1},
    )
    row = room.rows()[0]
    assert (row["url"], row["label"], row["split"]) == (f"{server.url}/img/cat-0.jpg", "cat", "valid")


def test_addresses_and_paths_may_stand_in_one_column(tmp_path, server):
    room = Room(tmp_path, fetch_allow=["127.0.0.0/8"])
    told(
        room,
        "labels.csv",
        "\n".join(["path,label", *(f"{server.url}/img/{n}.jpg,x" for n in (1, 2)), "images/a.jpg,y", "images/b.jpg,y"]),
        *FOUR[:2],
    )
    room.run()
    assert [(row["label"], row["url"]) for row in room.rows()] == [
        ("x", f"{server.url}/img/1.jpg"),
        ("x", f"{server.url}/img/2.jpg"),
        ("y", ""),
        ("y", ""),
    ]


def test_without_the_setting_no_address_of_this_machine_is_fetched(room, server):
    room.put_zip({"labels.csv": f"url,label\n{server.url}/img/a.jpg,cat\n".encode()})
    refused(room, "No usable images", "1 blocked_address", source={"kind": "upload", "id": UPLOAD})
    assert server.paths() == []


def test_an_import_of_addresses_that_is_cancelled_ends_at_once(tmp_path, server):
    room, stop = Room(tmp_path, fetch_allow=["127.0.0.0/8"]), threading.Event()
    lines = [f"{server.url}/img/quick.jpg,cat", *(f"{server.url}/bad/drip/{n}.jpg,cat" for n in range(100))]
    room.put_zip({"labels.csv": "\n".join(["url,label", *lines]).encode()})
    threading.Timer(1, stop.set).start()
    with pytest.raises(Cancelled):
        room.run({"kind": "upload", "id": UPLOAD}, stop=stop)
    assert datasets.names(room.storage) == []


# -- archives that want to do harm ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_a_zip_with_a_hundred_thousand_files_every_file_is_a_row(room):
    room.put(*four())
    room.run()
    with room.storage.writing(upload_key(UPLOAD)) as f, zipfile.ZipFile(f, "w") as archive:
        for n in range(100_000):
            archive.writestr(f"cat/{n}.jpg", picture(f"new {n}") if n < 2 else b"")
    assert room.run({"kind": "upload", "id": UPLOAD}, job="job2") == {"dataset": "pets", "version": 2, "images": 6, "dropped": 99_998}
    assert datasets.info(room.storage, "pets")["dropped"] == {"empty": 99_998}


@pytest.mark.parametrize("harm", ["too many", "zeros", "outside", "gone"])
def test_what_was_there_before_an_import_that_is_refused_is_still_there(tmp_path, harm):
    room = Room(tmp_path, max_zip_members=100)
    room.put(*four())
    room.run()
    before = {path: path.read_bytes() for path in Path(room.storage.url, "datasets").rglob("*") if path.is_file()}
    files = zipped(*four("new/"))
    if harm == "too many":
        files |= {f"cat/{n}.jpg": b"" for n in range(100)}
    if harm == "outside":
        files["../x.jpg"] = b"x"
    with room.storage.writing(upload_key(UPLOAD)) as f, zipfile.ZipFile(f, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        if harm == "zeros":
            for member in archive.filelist:
                member.file_size = 2_500_000_000
    if harm == "gone":
        room.storage.delete(upload_key(UPLOAD))
    with pytest.raises(DarkroomError):
        room.run({"kind": "upload", "id": UPLOAD}, job="job2")
    assert {path: path.read_bytes() for path in Path(room.storage.url, "datasets").rglob("*") if path.is_file()} == before


def test_members_that_unpack_to_more_than_they_promised_are_rows(room):
    with room.storage.writing(upload_key(UPLOAD)) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**zipped(*four()), "cat/bomb.jpg": bytes(10_000_000)}.items():
            archive.writestr(name, data)
        archive.filelist[-1].file_size = 1000
    room.run({"kind": "upload", "id": UPLOAD})
    assert room.reasons() == {"cat/bomb.jpg": "unreadable"}


def test_a_disk_that_fills_ends_the_import_with_its_cause_and_leaves_what_was_there(tmp_path):
    room = Room(tmp_path)
    room.put(*four())
    room.run()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "store" / "images")], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
    try:
        room.put(*(f"cat/{n}.jpg" for n in range(10, 90)))
        with pytest.raises(OSError, match="No space left on device"):
            room.run(job="job2")
        assert datasets.latest(room.storage, "pets") == 1
        assert not list(Path(room.storage.url).rglob(".*.tmp"))
    finally:
        subprocess.run(["umount", str(tmp_path / "store" / "images")], check=True)
    room.run(job="job3")
    assert datasets.info(room.storage, "pets")["classes"] == {"cat": 82, "dog": 2}


# -- classes that are renamed, merged and left out -----------------------------------------------------------------------


def test_classes_are_renamed_merged_and_left_out_as_they_come_in(room):
    room.put_zip(zipped("kitty/1.jpg", "kitten/2.jpg", "dog/3.jpg", "dog/4.jpg", "junk/5.jpg"))
    room.run({"kind": "upload", "id": UPLOAD}, classes={"kitty": "cat", "kitten": "cat", "junk": ""}, note="tidied")
    info = datasets.info(room.storage, "pets")
    assert (info["classes"], info["dropped"], info["note"]) == ({"cat": 2, "dog": 2}, {"left_out": 1}, "tidied")
    assert info["source"]["renamed"] == {"kitty": "cat", "kitten": "cat", "junk": None}


def test_a_folder_that_cannot_be_a_class_can_be_renamed(room):
    room.put(*four(), *(f"{'x' * 120}/{n}.jpg" for n in (1, 2)))
    room.run(classes={"x" * 120: "bird"})
    assert datasets.info(room.storage, "pets")["classes"] == {"bird": 2, "cat": 2, "dog": 2}


def test_a_class_to_rename_that_is_not_there_is_told(room):
    room.put(*four())
    refused(room, "no class 'cta' to rename", "'cat', 'dog'", classes={"cta": "kitty"})


def test_the_classes_of_a_dataset_are_renamed_and_nothing_else_changes(room):
    room.put(*(f"train/{name}" for name in four()), "test/bird/1.jpg", "test/bird/2.jpg", "test/puppy/1.jpg")
    room.put("train/puppy/2.jpg")
    room.run()
    before = {row["sha256"]: row for row in room.rows()}
    renames = {"cat": "dog", "dog": "cat", "puppy": "cat", "bird": None}
    room.run({"kind": "dataset", "dataset": "pets"}, job="job2", classes=renames)
    info = datasets.info(room.storage, "pets")
    assert (info["version"], info["parent"], info["classes"], info["dropped"]) == (2, 1, {"cat": 4, "dog": 2}, {"left_out": 2})
    for row in room.rows(version=2):
        assert row == {**before[row["sha256"]], "label": renames[before[row["sha256"]]["label"]]}


def test_images_that_another_job_publishes_meanwhile_are_renamed_too(room):
    room.put(*four())
    room.run()
    collection = Collection(room.storage, "pets", Progress(room.told.append))
    collection.rename({"cat": "dog", "dog": "cat"}.__getitem__)
    room.put_zip(zipped("cat/8.jpg"))
    room.run({"kind": "upload", "id": UPLOAD}, job="job2")
    collection.publish("job3", {"kind": "test"})
    labels = {row["name"]: row["label"] for row in room.rows(version=3)}
    assert labels == {"cat/1.jpg": "dog", "cat/2.jpg": "dog", "dog/1.jpg": "cat", "dog/2.jpg": "cat", "cat/8.jpg": "dog"}


@pytest.mark.parametrize(
    ("renames", "words"),
    [
        ({}, "would be called otherwise"),
        ({"cat": "cat"}, "would be called otherwise"),
        ({"cta": "x", "cat": "y"}, "no class 'cta'"),
        ({"cat": "DOG"}, "differ by upper and lower case"),
    ],
    ids=["none", "the same", "mistyped", "by case alone"],
)
def test_a_renaming_that_makes_no_sense_leaves_the_dataset_as_it_is(room, renames, words):
    room.put(*four())
    room.run()
    with pytest.raises(DarkroomError, match=words):
        room.run({"kind": "dataset", "dataset": "pets"}, job="job2", classes=renames)
    assert datasets.latest(room.storage, "pets") == 1


# -- another dataset -----------------------------------------------------------------------------------------------------


def test_a_version_of_another_dataset_comes_in_with_all_that_is_known_of_it(room):
    room.put(*(f"valid/{name}" for name in four()))
    told(
        room,
        "labels.csv",
        "path,label,split,licence,attribution\n"
        + "".join(f"{name},{name[6:9]},valid,CC0,by Ann\n" for name in map("valid/{}".format, four())),
    )
    room.run()
    room.run({"kind": "dataset", "dataset": "pets", "version": 1}, dataset="other", job="job2")
    assert datasets.rows(room.storage, "other", 1) == room.rows()
    info = datasets.info(room.storage, "other")
    assert (info["hash"], info["parent"]) == (datasets.info(room.storage, "pets")["hash"], None)
    assert info["source"] == {"kind": "dataset", "dataset": "pets", "version": 1, "classes": None}


def test_of_another_dataset_some_classes_may_be_taken_and_renamed(room):
    room.put(*four(), "bird/1.jpg", "bird/2.jpg")
    room.run()
    source = {"kind": "dataset", "dataset": "pets", "classes": ["bird", "cat"]}
    room.run(source, dataset="other", job="job2", classes={"cat": "kitty"})
    assert datasets.info(room.storage, "other")["classes"] == {"bird": 2, "kitty": 2}
    with pytest.raises(Invalid, match="no class 'fish'"):
        room.run({**source, "classes": ["fish"]}, dataset="other", job="job3")


# -- the same name twice at once -----------------------------------------------------------------------------------------


def test_imports_of_the_same_name_at_the_same_moment_all_end_well_and_the_newest_version_has_all_of_them(room):
    sources = []
    for n in range(3):
        room.put(*(f"{n}/{name}" for name in four()))
        sources.append({"kind": "folder", "path": str(room.source / str(n))})
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda pair: room.run(pair[1], job=f"job{pair[0]}"), enumerate(sources)))
    assert sorted(result["version"] for result in made) == [1, 2, 3]
    assert [datasets.info(room.storage, "pets", version)["parent"] for version in range(1, 4)] == [None, 1, 2]
    assert datasets.info(room.storage, "pets")["classes"] == {"cat": 6, "dog": 6}


# -- what a person decided about a batch --------------------------------------------------------------------------------

BATCH = "0" * 20


def decide(room: Room, item: int, name: str, label: str) -> None:
    row = {
        "item_id": item, "uri": name, "locator": f"file:{room.source / name}", "sha256": "", "model": "pets", "model_version": 1,
        "probability": 0.5, "label": "cat", "error_code": "",
    }  # fmt: skip
    review.decide(room.storage, BATCH, row, label)


def test_reviewed_images_are_added_with_the_labels_they_were_given(room):
    room.put(*four(), "x/1.jpg", "x/2.jpg")
    room.run()
    room.put("new/1.jpg", "new/2.jpg")
    decide(room, 0, "new/1.jpg", "cat")
    decide(room, 1, "new/2.jpg", "bird")
    decide(room, 2, "x/1.jpg", "bird")
    decide(room, 3, "x/2.jpg", "dog")
    result = room.run({"kind": "review", "batch": BATCH}, job="job2")
    info = datasets.info(room.storage, "pets")
    assert result == {"dataset": "pets", "version": 2, "images": 8, "dropped": 0}
    assert info["classes"] == {"bird": 2, "cat": 3, "dog": 3}
    corrected = next(row for row in datasets.rows(room.storage, "pets", 2, "bird") if row["name"] == "x/1.jpg")
    assert corrected["source"] == "folder"  # where it came from is still known
    assert datasets.info(room.storage, "pets", 1)["classes"] == {"cat": 2, "dog": 2, "x": 2}


def test_of_two_decisions_about_equal_bytes_the_newer_counts(room):
    room.put(*four())
    room.run()
    room.put("new/1.jpg", "new/2.jpg", data=picture("same"))
    decide(room, 5, "new/1.jpg", "dog")
    decide(room, 1, "new/2.jpg", "cat")
    room.run({"kind": "review", "batch": BATCH}, job="job2")
    assert datasets.info(room.storage, "pets")["classes"] == {"cat": 3, "dog": 2}


def test_a_batch_that_nobody_reviewed_makes_no_dataset(room):
    refused(room, "Nobody has reviewed", source={"kind": "review", "batch": BATCH})
