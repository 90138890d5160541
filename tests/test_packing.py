"""A dataset version as a zip: what is in it, and that it comes back as the same dataset, whatever its classes are called."""

import csv
import io
import json
import tarfile
import threading
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from image_server import picture

from shared import datasets
from shared.errors import Cancelled, DarkroomError, Invalid
from shared.items import upload_key
from shared.jobs import JobStore, connect
from shared.settings import Settings
from shared.specs import ImportSpec, PackSpec
from shared.storage import Storage, image_key
from shared.tables import defused, undefused
from web import create_app
from worker.examiner import examine
from worker.examining import Collection
from worker.importing import import_dataset
from worker.packing import folder_names, pack
from worker.progress import Progress
from worker.run import Worker, run_unit

FORMATS = get_args(PackSpec.model_fields["format"].annotation)
HOSTILE = [
    "../x",
    "..",
    "CON",
    "con.txt",
    "a/b",
    "a\\b",
    "=1+1",
    "'=1",
    "train",
    "<img src=x onerror=alert(1)>",
    '"quoted", twice',
    "😀" * 100,
    "犬",
    "dot.",
    "images",
]
ORIGIN = {
    "name": "=cmd|' /C calc'!A0",
    "source": "openverse",
    "url": "https://example.org/full.jpg",
    "page_url": "https://example.org/page",
    "licence": "CC BY 4.0",
    "licence_url": "https://creativecommons.org/licenses/by/4.0/",
    "creator": 'Ann "A" Lee, née Ü',
    "creator_url": "https://example.org/ann",
    "attribution": "“Cat” by Ann\u2028is licensed",
    "query": "cat photo",
}
SIDES = ("train", "valid", "test")


class Room:
    """Settings, storage, and a dataset whose classes want to do harm."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(storage=str(folder / "store"), cache=folder / "cache")
        self.storage = Storage(self.settings.storage, self.settings.cache)

    def make(self, labels: list[str], sides: tuple[str, ...] = ("",), name: str = "wild") -> dict[str, Any]:
        """A dataset of three images a class; every second knows whose it is, and one was dropped as a duplicate."""
        collection = Collection(self.storage, name, Progress(lambda _: None))
        for n, label in enumerate(label for label in labels for _ in range(3)):
            origin = {**(ORIGIN if n % 2 else {"name": f"{n}.jpg", "source": "folder"}), "label": label, "split": sides[n % len(sides)]}
            collection.add(
                origin, examine(picture(f"{label} {n}", kind="PNG" if n % 5 == 0 else "JPEG"), self.storage, self.settings.max_image_bytes)
            )
        collection.add(
            {"label": labels[-1], "name": "again.jpg"}, examine(picture(f"{labels[0]} 1"), self.storage, self.settings.max_image_bytes)
        )
        collection.publish("job-made", {"kind": "test"})
        return datasets.info(self.storage, name)

    def pack(self, form: str, name: str = "wild", stop: threading.Event | None = None) -> dict[str, Any]:
        spec = PackSpec.model_validate({"dataset": name, "version": 1, "format": form})
        return pack(spec, "job-pack", self.storage, self.settings, Progress(lambda _: None, stop))

    def opened(self, form: str) -> zipfile.ZipFile:
        return zipfile.ZipFile(io.BytesIO(self.storage.read(self.pack(form)["file"])))

    def take_in(self, data: bytes, name: str = "back") -> dict[str, Any]:
        """Import a zip as an upload."""
        self.storage.write(upload_key("0123456789ab"), data)
        spec = ImportSpec.model_validate({"dataset": name, "source": {"kind": "upload", "id": "0123456789ab"}})
        import_dataset(spec, "job-back", self.storage, self.settings, Progress(lambda _: None))
        return datasets.info(self.storage, name)

    def without(self, form: str, *names: str) -> bytes:
        """An export from which somebody has taken some files."""
        out = io.BytesIO()
        with self.opened(form) as old, zipfile.ZipFile(out, "w") as new:
            for member in old.infolist():
                if member.filename not in names:
                    new.writestr(member, old.read(member))
        return out.getvalue()

    def changed(self, form: str, name: str, data: bytes) -> bytes:
        """An export in which somebody has changed a file."""
        out = io.BytesIO(self.without(form, name))
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(name, data)
        return out.getvalue()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# -- there and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [("",), SIDES, ("", "valid")], ids=["no sides", "sides", "some sides"])
@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_is_imported_is_the_same_dataset_hash_for_hash(room, form, sides):
    made = room.make(HOSTILE, sides)
    back = room.take_in(room.storage.read(room.pack(form)["file"]))
    for key in ("hash", "classes", "licences", "bytes", "images"):
        assert back[key] == made[key]
    assert back["dropped"] == {}
    before, after = (datasets.rows(room.storage, name, 1) for name in ("wild", "back"))
    told = ("sha256", "ext", "label", "split", *ORIGIN)
    cleaned = [{**row, "attribution": row["attribution"].replace("\u2028", " ")} for row in before]
    assert [{key: row[key] for key in told} for row in after] == [{key: row[key] for key in told} for row in cleaned]


@pytest.mark.parametrize("form", ["folder", "csv", "huggingface"])
def test_what_other_programs_read_says_the_same_classes_and_sides_without_our_own_file(room, form):
    made = room.make(HOSTILE, SIDES)
    back = room.take_in(room.without(form, "darkroom.jsonl"))
    assert (back["hash"], back["dropped"]) == (made["hash"], {})
    assert [row["split"] for row in datasets.rows(room.storage, "back", 1)].count("valid") == made["images"] // 3


def test_an_unpacked_export_is_imported_as_its_zip_is(room, tmp_path):
    made = room.make(HOSTILE, SIDES)
    for form in FORMATS:
        with room.opened(form) as archive:
            archive.extractall(tmp_path / form)  # noqa: S202 - our own
        spec = ImportSpec.model_validate({"dataset": f"from-{form}", "source": {"kind": "folder", "path": str(tmp_path / form)}})
        import_dataset(spec, f"job-{form}", room.storage, room.settings, Progress(lambda _: None))
        assert datasets.info(room.storage, f"from-{form}")["hash"] == made["hash"]


def test_two_exports_side_by_side_are_one_import(room):
    room.make(["cat", "dog"])
    room.make(["bird", "fish"], SIDES, "more")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as both:
        for folder, name in (("one", "wild"), ("two", "more")):
            with zipfile.ZipFile(io.BytesIO(room.storage.read(room.pack("csv", name)["file"]))) as archive:
                for member in archive.namelist():
                    both.writestr(f"{folder}/{member}", archive.read(member))
    assert room.take_in(out.getvalue())["classes"] == {"bird": 3, "cat": 3, "dog": 3, "fish": 3}


# -- our own file is a stranger's, too -----------------------------------------------------------------------------------


def lines_of(room: Room, form: str = "csv") -> list[dict[str, Any]]:
    with room.opened(form) as archive:
        return [json.loads(line) for line in archive.read("darkroom.jsonl").splitlines()]


def test_an_image_that_was_changed_since_the_export_is_dropped_and_said_so(room):
    room.make(["cat", "dog"])
    name = lines_of(room)[0]["file"]
    back = room.take_in(room.changed("csv", name, picture("another")))
    assert (back["images"], back["dropped"]) == (5, {"changed": 1})


def test_lines_that_lie_are_rows_with_a_reason_and_the_others_stay(room):
    room.make(["cat", "dog", "bird"])
    lines = lines_of(room)
    lies = [
        {"file": "../../../etc/passwd", "label": "cat"},
        {"file": "/etc/passwd", "label": "cat"},
        {"file": "C:\\Windows\\x.jpg", "label": "cat"},
        {"file": "images/none.jpg", "label": "cat"},
        {"file": "http://127.0.0.1:1/x.jpg", "label": "cat"},
        {"url": "http://127.0.0.1:1/x.jpg", "label": "cat"},
        {**lines[0], "label": "cat\u202e"},
        {**lines[0], "split": "../x"},
        {**lines[0], "label": {"a": 1}},
        {**lines[1], "page_url": "javascript:alert(1)", "licence_url": "http://x y", "creator": "A\u202eB\x00C\ud800"},
    ]
    text = "\n".join(json.dumps(line) for line in [*lies, *lines[2:]])
    back = room.take_in(room.changed("csv", "darkroom.jsonl", text.encode()))
    assert (back["images"], back["dropped"]) == (8, {"forbidden": 3, "bad_line": 3, "not_found": 2, "bad_label": 1})
    row = datasets.rows(room.storage, "back", 1)[0]
    assert (row["page_url"], row["licence_url"], row["creator"]) == ("", "", "AB C")


def test_a_table_that_is_not_ours_at_all_is_refused_with_a_sentence(room):
    room.make(["cat", "dog"])
    with pytest.raises(Invalid, match="no UTF-8 text"):
        room.take_in(room.changed("csv", "darkroom.jsonl", b"\xff\xfe\x00"))
    with pytest.raises(DarkroomError, match=r"No usable images were found\..*bad_line"):
        room.take_in(room.changed("csv", "darkroom.jsonl", b"hello\n" * 5))
    assert datasets.names(room.storage) == ["wild"]


def test_classes_json_of_another_program_says_nothing(room):
    room.make(["cat", "dog"])
    data = room.without("folder", "darkroom.jsonl", "classes.json")
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("classes.json", '["cat", "dog"]')
    assert room.take_in(out.getvalue())["classes"] == {"cat": 3, "dog": 3}
    with zipfile.ZipFile(out := io.BytesIO(data), "a") as archive:
        archive.writestr("classes.json", "{")
    with pytest.raises(Invalid, match="is not JSON"):
        room.take_in(out.getvalue(), "other")


# -- what is in a zip ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_images_keep_their_bytes_and_are_not_packed_again(room, form):
    room.make(HOSTILE, SIDES)
    with room.opened(form) as archive:
        assert archive.testzip() is None
        for line in lines_of(room, form):
            assert archive.getinfo(line["file"]).compress_type == zipfile.ZIP_STORED
            ext = line["file"].rpartition(".")[2]
            assert archive.read(line["file"]) == room.storage.read(image_key(line["sha256"], ext))


@pytest.mark.parametrize("form", FORMATS)
def test_whose_each_image_is_can_be_opened_in_a_spreadsheet(room, form):
    made = room.make(HOSTILE)
    with room.opened(form) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("ATTRIBUTION.csv").decode(), newline="")))
        summary = archive.read("LICENCES.txt").decode()
    assert list(rows[0]) == [
        "file",
        "label",
        "title",
        "creator",
        "creator_url",
        "licence",
        "licence_url",
        "source",
        "page_url",
        "attribution",
    ]
    assert len(rows) == made["images"]
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    assert {undefused(row["label"]) for row in rows} == set(HOSTILE)
    assert (rows[1]["title"], rows[1]["creator"]) == ("'" + ORIGIN["name"], ORIGIN["creator"])
    assert "CC BY 4.0  https://creativecommons.org/licenses/by/4.0/" in summary
    assert "unknown" in summary


def test_class_folders_are_names_that_every_system_takes_and_no_two_are_one():
    sly = folder_names(["../x"])["../x"].upper()  # a class that is called as the folder of another
    names = folder_names([*HOSTILE, sly, "हिन्दी", "A_b", "x.", "LPT1.x", ".hidden", " ", "é" * 100, "plain name (1)"])
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        assert len(name.encode()) <= 80
        assert not set(name) & set('/\\<>:"|?*')
        assert name == name.strip(" .")
        assert name.upper() not in {"", "CON", "LPT1.X"}
    assert [names[plain] for plain in ("犬", "हिन्दी", "plain name (1)")] == ["犬", "हिन्दी", "plain name (1)"]


def test_a_folder_per_class_lies_below_its_side_where_each_image_has_one(room):
    room.make(["cat", "a/b"], SIDES)
    with room.opened("folder") as archive:
        classes = json.loads(archive.read("classes.json"))
        folders = {tuple(name.split("/")[:2]) for name in archive.namelist() if name.count("/") == 2}
    assert sorted(classes.values()) == ["a/b", "cat"]
    assert folders == {(side, folder) for side in SIDES for folder in classes}


def test_coco_has_images_categories_and_an_annotation_an_image(room):
    made = room.make(HOSTILE, SIDES)
    with room.opened("coco") as archive:
        coco = json.loads(archive.read("annotations.json"))
        names = set(archive.namelist())
    category = {each["id"]: each["name"] for each in coco["categories"]}
    image = {each["id"]: each for each in coco["images"]}
    assert set(category.values()) == set(HOSTILE)
    assert len(coco["annotations"]) == len(image) == made["images"]
    label_of = {row["sha256"]: row["label"] for row in datasets.rows(room.storage, "wild", 1)}
    for each in coco["annotations"]:
        found = image[each["image_id"]]
        assert found["file_name"] in names
        assert (found["width"], found["height"]) == (96, 80)
        assert category[each["category_id"]] == label_of[Path(found["file_name"]).stem]
    assert {each["name"] for each in coco["licenses"]} == {"unknown", "CC BY 4.0"}


def test_an_image_folder_of_hugging_face_has_its_metadata_in_each_split(room):
    room.make(["cat", "=1"], SIDES)
    with room.opened("huggingface") as archive:
        for split in ("train", "validation", "test"):
            lines = [json.loads(line) for line in archive.read(f"{split}/metadata.jsonl").splitlines()]
            assert [list(line) for line in lines] == [["file_name", "label"]] * 2
            assert {f"{split}/{line['file_name']}" for line in lines} <= set(archive.namelist())


def test_label_studio_gets_tasks_and_the_choices_of_its_form(room):
    room.make(HOSTILE)
    with room.opened("labelstudio") as archive:
        tasks = json.loads(archive.read("tasks.json"))
        config = ET.fromstring(archive.read("label_config.xml").decode())  # noqa: S314 - our own
        names = archive.namelist()
    assert {choice.get("value") for choice in config.iter("Choice")} == set(HOSTILE)
    for task in tasks:
        assert task["data"]["image"].removeprefix("/data/local-files/?d=wild-v1/") in names
        assert task["annotations"][0]["result"][0]["value"]["choices"][0] in HOSTILE


def test_text_that_is_defused_for_a_spreadsheet_comes_back_as_it_was():
    for text in ["=1", "'=1", "''-x", "plain", "it's", "'quoted'", "@", ""]:
        assert undefused(defused(text)) == text
        assert not defused(text).startswith(("=", "+", "-", "@"))


# -- the job -------------------------------------------------------------------------------------------------------------


def test_a_version_that_was_exported_already_is_not_written_again_and_the_same_zip_comes_of_it(room):
    room.make(["cat", "dog"])
    first = room.pack("coco")
    assert first == {
        "dataset": "wild",
        "version": 1,
        "format": "coco",
        "images": 6,
        "file": "exports/wild/v0001/coco.zip",
        "bytes": first["bytes"],
    }
    before, data = room.storage.local(first["file"]).stat().st_mtime_ns, room.storage.read(first["file"])
    assert room.pack("coco") == first
    assert room.storage.local(first["file"]).stat().st_mtime_ns == before
    room.storage.delete(first["file"])
    room.pack("coco")
    assert room.storage.read(first["file"]) == data


def test_an_export_that_is_cancelled_or_lacks_an_image_leaves_no_file(room):
    room.make(["cat", "dog"])
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        room.pack("folder", stop=stop)
    row = datasets.rows(room.storage, "wild", 1)[-1]
    room.storage.delete(image_key(row["sha256"], row["ext"]))
    with pytest.raises(DarkroomError, match=f"{row['sha256']} of wild v1 is not on the storage"):
        room.pack("folder")
    assert not [path for path in Path(room.storage.url, "exports").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_tar_goes_in_and_a_zip_comes_out_and_goes_in_again_as_a_user_would(settings):
    store = JobStore(connect(settings.redis_url), settings.lease_seconds)
    worker = Worker(settings, "w1", ["scrape"], store, Storage(settings.storage, settings.cache), lambda *unit: None)
    client = create_app(settings).test_client()
    api = "/api/v1"

    def ordered(answer: Any) -> dict[str, Any]:
        assert answer.status_code == 202, answer.text
        run_unit(worker, answer.json["id"], "main")
        job = client.get(f"{api}/jobs/{answer.json['id']}").json
        assert (job["state"], job["error"]) == ("done", None)
        return job["result"]

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        for name in ("train/kitty/1.jpg", "train/=dog/1.jpg", "valid/kitty/2.jpg", "valid/=dog/2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(name))
            archive.addfile(info, io.BytesIO(picture(name)))
    sent = client.post(f"{api}/uploads", data=out.getvalue(), content_type="application/x-xz").json["source"]
    ordered(client.post(f"{api}/datasets/pets/import", json={"source": sent, "classes": {"kitty": "../cat"}, "note": "From a tar."}))
    made = client.get(f"{api}/datasets/pets/versions/1").json
    assert (made["classes"], made["note"]) == ({"../cat": 2, "=dog": 2}, "From a tar.")
    for form in FORMATS:
        result = ordered(client.post(f"{api}/datasets/pets/versions/1/exports/{form}"))
        data = client.get(f"{api}/datasets/pets/versions/1/exports/{form}").data
        assert len(data) == result["bytes"]
        sent = client.post(f"{api}/uploads", data=data, content_type="application/zip").json["source"]
        ordered(client.post(f"{api}/datasets/{form}/import", json={"source": sent}))
        assert client.get(f"{api}/datasets/{form}/versions/1").json["hash"] == made["hash"]
        assert sorted(row["split"] for row in datasets.rows(worker.storage, form, 1)) == ["train", "train", "valid", "valid"]


def test_a_version_of_an_earlier_darkroom_is_exported(room):
    room.make(["cat", "dog"])
    path = room.storage.local("datasets/wild/v0001/manifest.parquet")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["split", "group", "query", "creator_url", "attribution"]), path)
    with room.opened("csv") as archive:
        assert archive.read("labels.csv").decode().splitlines()[1].endswith(",cat,")
