"""A folder per class, on the server or in a zip, becomes a dataset version."""

import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from image_server import bomb, picture

from shared import datasets, review
from shared.errors import Cancelled, DarkroomError, Invalid
from shared.items import upload_key
from shared.settings import Settings
from shared.specs import ImportSpec
from shared.storage import Storage
from worker.examining import Collection, examine
from worker.importing import import_dataset, label_items
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
        self, source: dict[str, str] | None = None, dataset: str = "pets", job: str = "job1", stop: threading.Event | None = None
    ) -> dict[str, Any]:
        spec = ImportSpec.model_validate({"dataset": dataset, "source": source or {"kind": "folder", "path": str(self.source)}})
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
        assert room.storage.read(datasets.image_key(row["sha256"], row["ext"])) == (room.source / row["name"]).read_bytes()
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
    return [label for label, _, _ in label_items([(path, "") for path in paths])]


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


def refused(room: Room, *words: str, source: dict[str, str] | None = None) -> None:
    """The job fails with a sentence that holds all `words`, and no dataset is left."""
    with pytest.raises(DarkroomError) as caught:
        room.run(source)
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
        facts = examine(picture(f"{label}/{n}.jpg"), room.storage, room.settings)
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
