"""A dataset version as a zip, for other programs and other installations: `exports/<dataset>/v0001/<format>.zip`.

A version never changes, so a file that is there is the answer to whoever asks again; it is made anew when it was freed. Images keep their original
bytes and are called by their SHA-256. Whatever the format, the zip holds

    darkroom.jsonl    a line an image: file, sha256, label, split and where it is from; importing the zip makes the same dataset of it
    ATTRIBUTION.csv   whose each image is, for people: safe to open in a spreadsheet
    LICENCES.txt      how many images are under which licence

and what other programs read:

    folder        <class>/<image>, below train, valid and test where each image has its side; classes.json says which class a folder is
    csv           images/<image>, labels.csv with path, label and split
    coco          images/<image>, annotations.json with images, categories and, for each image, an annotation of its category
    huggingface   <split>/<image> with metadata.jsonl in each, or images/ and metadata.jsonl where no image has a side
    labelstudio   images/<image>, tasks.json, label_config.xml
"""

import csv
import hashlib
import io
import json
import re
import shutil
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any
from xml.sax.saxutils import quoteattr

from shared import datasets
from shared.errors import DarkroomError, NotFound
from shared.settings import Settings
from shared.specs import PackSpec
from shared.storage import Storage, image_key
from shared.tables import ATTRIBUTION, CLASSES, EXPORTED, LABELS, defused
from worker.progress import Progress

Row = dict[str, Any]
KEPT = ("split", "name", "source", "url", "page_url", "licence", "licence_url", "creator", "creator_url", "attribution", "query")
TOLD = ("file", "label", "title", "creator", "creator_url", "licence", "licence_url", "source", "page_url", "attribution")
HUGGING_FACE = {"train": "train", "valid": "validation", "test": "test", "": "train"}
SAFE = 60  # bytes of the name of a folder; together with a hash every system takes that
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows has taken
EVERY = 50  # images between two reports
COPY = 1 << 20


def pack(spec: PackSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Write a version as a zip, unless it is there; returns {dataset, version, format, images, file (its key), bytes}.

    The zip is written as a stream: in memory are its directory and one piece of one file. Raises Cancelled, NotFound, and DarkroomError when an image is
    not on the storage any more; then there is no file.
    """
    info = datasets.info(storage, spec.dataset, spec.version)
    name, version = info["dataset"], info["version"]
    key = datasets.export_key(name, version, spec.format)
    if not storage.exists(key):
        progress.update(phase="writing", done=0, total=info["images"])
        with storage.writing(key) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            _Pack(archive, storage, info, spec.format, progress).write()
    return {
        "dataset": name,
        "version": version,
        "format": spec.format,
        "images": info["images"],
        "file": key,
        "bytes": storage.size(key),
    }


class _Pack:
    """One zip in the making. Every file but the images is written by going through the rows once more, so that no list of them is needed."""

    def __init__(self, archive: zipfile.ZipFile, storage: Storage, info: dict[str, Any], form: str, progress: Progress) -> None:
        self.archive = archive
        self.storage = storage
        self.info = info
        self.form = form
        self.progress = progress
        self.folders = folder_names(info["classes"])
        self.sides = {row["split"] for row in self.rows()}

    def rows(self) -> Iterator[Row]:
        """The kept rows, in the order of the manifest."""
        for batch in datasets.row_batches(self.storage, self.info["dataset"], self.info["version"], datasets.MANIFEST.names):
            self.progress.check()
            yield from (datasets.blank_row(**row) for row in batch.to_pylist() if row["status"] == "kept")

    def file_of(self, row: Row) -> str:
        """Where an image lies in the zip."""
        image = f"{row['sha256']}.{row['ext']}"
        if self.form == "folder":
            side = f"{row['split']}/" if "" not in self.sides else ""
            return f"{side}{self.folders[row['label']]}/{image}"
        if self.form == "huggingface" and self.sides != {""}:
            return f"{HUGGING_FACE[row['split']]}/{image}"
        return f"images/{image}"

    def write(self) -> None:
        """Everything, the tables first: they say what the images are."""
        self._lines(EXPORTED, (self._exported(row) for row in self.rows()))
        self._csv(ATTRIBUTION, TOLD, (self._attribution(row) for row in self.rows()))
        self._text("LICENCES.txt", licences(self.info, self.rows()))
        match self.form:
            case "folder":
                self._text(CLASSES, json.dumps({folder: label for label, folder in self.folders.items()}, indent=2, ensure_ascii=False))
            case "csv":
                self._csv(LABELS, ("path", "label", "split"), ([self.file_of(row), row["label"], row["split"]] for row in self.rows()))
            case "coco":
                self._coco()
            case "huggingface":
                self._hugging_face()
            case "labelstudio":
                self._label_studio()
        for done, row in enumerate(self.rows(), 1):
            self.progress.check()
            self._image(row)
            if not done % EVERY or done == self.info["images"]:
                self.progress.update(done=done)

    def _exported(self, row: Row) -> str:
        told = {"file": self.file_of(row), "sha256": row["sha256"], "label": row["label"]}
        return json.dumps(told | {key: row[key] for key in KEPT if row[key]}, ensure_ascii=False)

    def _attribution(self, row: Row) -> list[str]:
        return [self.file_of(row), row["label"], row["name"], *(row[key] for key in TOLD[3:])]

    # -- what other programs read -------------------------------------------------------------------------------------

    def _hugging_face(self) -> None:
        if self.sides == {""}:
            self._lines("metadata.jsonl", (_described(row, self.file_of(row)) for row in self.rows()))
            return
        for folder in sorted({HUGGING_FACE[side] for side in self.sides}):
            here = (row for row in self.rows() if HUGGING_FACE[row["split"]] == folder)
            self._lines(f"{folder}/metadata.jsonl", (_described(row, self.file_of(row).rpartition("/")[2]) for row in here))

    def _coco(self) -> None:
        categories = {label: n for n, label in enumerate(self.info["classes"], 1)}
        terms = {terms: n for n, terms in enumerate(sorted({(row["licence"], row["licence_url"]) for row in self.rows()}), 1)}
        with self._member("annotations.json") as out:
            out.write(b'{"info": ' + _json({"description": f"{self.info['dataset']} v{self.info['version']}", "hash": self.info["hash"]}))
            _array(out, "licenses", ({"id": n, "name": name or "unknown", "url": url} for (name, url), n in terms.items()))
            _array(out, "categories", ({"id": n, "name": label, "supercategory": ""} for label, n in categories.items()))
            _array(out, "images", (self._coco_image(n, row, terms) for n, row in enumerate(self.rows(), 1)))
            _array(
                out,
                "annotations",
                ({"id": n, "image_id": n, "category_id": categories[row["label"]]} for n, row in enumerate(self.rows(), 1)),
            )
            out.write(b"}\n")

    def _coco_image(self, number: int, row: Row, terms: dict[tuple[str, str], int]) -> dict[str, Any]:
        said = {"id": number, "file_name": self.file_of(row), "width": row["width"], "height": row["height"]}
        return said | {"license": terms[row["licence"], row["licence_url"]], "coco_url": row["url"], "split": row["split"]}

    def _label_studio(self) -> None:
        choices = "".join(f"\n    <Choice value={quoteattr(label)}/>" for label in self.info["classes"])
        choices = f'  <Choices name="label" toName="image" choice="single">{choices}\n  </Choices>'
        self._text("label_config.xml", f'<View>\n  <Image name="image" value="$image"/>\n{choices}\n</View>\n')
        with self._member("tasks.json") as out:
            out.write(b"[")
            _items(out, (self._task(n, row) for n, row in enumerate(self.rows(), 1)))
            out.write(b"\n]\n")

    def _task(self, number: int, row: Row) -> dict[str, Any]:
        chosen = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [row["label"]]}}
        # served from a local storage of Label Studio whose folder is the one that holds what was unpacked
        folder = f"{self.info['dataset']}-v{self.info['version']}"
        data = {
            "image": f"/data/local-files/?d={folder}/{self.file_of(row)}",
            **{key: row[key] for key in ("name", "split", "licence", "creator")},
        }
        return {"id": number, "data": data, "annotations": [{"result": [chosen]}]}

    # -- writing ------------------------------------------------------------------------------------------------------

    def _image(self, row: Row) -> None:
        member = _named(self.file_of(row), zipfile.ZIP_STORED)
        member.file_size = row["bytes"]
        try:
            with self.storage.open(image_key(row["sha256"], row["ext"])) as file, self.archive.open(member, "w") as out:
                shutil.copyfileobj(file, out, COPY)
        except NotFound:
            where = f"{self.info['dataset']} v{self.info['version']}"
            raise DarkroomError(f"The image {row['sha256']} of {where} is not on the storage any more, so nothing was exported.") from None

    def _member(self, name: str) -> IO[bytes]:
        return self.archive.open(_named(name, zipfile.ZIP_DEFLATED), "w", force_zip64=True)

    def _text(self, name: str, text: str) -> None:
        with self._member(name) as out:
            out.write(text.encode())

    def _lines(self, name: str, lines: Iterable[str]) -> None:
        with self._member(name) as out:
            for line in lines:
                out.write(line.encode() + b"\n")

    def _csv(self, name: str, header: Iterable[str], rows: Iterable[list[str]]) -> None:
        with self._member(name) as out, io.TextIOWrapper(out, "utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\r\n")
            writer.writerow(header)
            writer.writerows([defused(cell) for cell in row] for row in rows)


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """A folder for each class, which every system takes: the class's own name where that is one, else what is left of it and a part of its hash.

    `../x` -> `x-3f1c9a2e`, `CON` -> `CON-…`; no two differ by case alone.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for label in labels:
        safe = "".join(c if unicodedata.category(c)[0] in "LMN" or c in " -_.,()&'+" else "_" for c in label).strip(" ._")
        safe = safe.encode()[:SAFE].decode(errors="ignore").strip(" .")
        if safe != label or RESERVED.fullmatch(safe):
            safe = f"{safe or 'class'}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        while safe.casefold() in taken:  # a class that is called as another's folder
            safe += "_"
        taken.add(safe.casefold())
        found[label] = safe
    return found


def licences(info: dict[str, Any], rows: Iterable[Row]) -> str:
    """How many images are under which licence, for people."""
    counts = Counter((row["licence"], row["licence_url"]) for row in rows)
    lines = [f"{count:>8,}  {name or 'unknown'}  {url}".rstrip() for (name, url), count in counts.most_common()]
    head = f"The {info['images']:,} images of {info['dataset']} v{info['version']} by licence. Whose each is stands in {ATTRIBUTION}.\n"
    return "\n".join([head, *lines, ""])


def _described(row: Row, file: str) -> str:
    return json.dumps({"file_name": file, "label": row["label"]}, ensure_ascii=False)


def _named(name: str, how: int) -> zipfile.ZipInfo:
    """The head of an entry; without a date, so that the same version is the same zip."""
    member = zipfile.ZipInfo(name)
    member.compress_type = how
    member.external_attr = 0o644 << 16
    return member


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _array(out: IO[bytes], name: str, values: Iterable[Any]) -> None:
    out.write(b",\n" + _json(name) + b": [")
    _items(out, values)
    out.write(b"]")


def _items(out: IO[bytes], values: Iterable[Any]) -> None:
    for n, value in enumerate(values):
        out.write((b",\n" if n else b"\n") + _json(value))
