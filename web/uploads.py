"""Keeping what was uploaded, whole or not at all: a zip, files by their content, or a list.

A zip is kept as it came, a tar as a zip of what it holds. The single files of a form are written into a zip as they are read. A program sends each file
under the SHA-256 of its bytes, only those that are not here yet, and then the list of their names: an upload that broke
off goes on where it was. Names are data and never paths on this machine. Nothing half-made stays.
"""

import codecs
import csv
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from flask import Request
from werkzeug.datastructures import FileStorage

from shared import tables, tars, weights
from shared.errors import Invalid
from shared.items import (
    FILES,
    MAX_LOCATOR,
    blob_key,
    check_zip,
    files_key,
    list_key,
    locator_of,
    member_wanted,
    offered_name,
    open_zip,
    picture_name,
    upload_key,
)
from shared.jobs import new_id
from shared.tables import MAX_TABLE
from web.backend import Backend

CHUNK = 1 << 20
HEAD = 512  # bytes by which a tar is known
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_PART = 200  # characters of a file or folder name that are kept
MAX_DEPTH = 16  # folders of a relative path that are kept
MAX_ASKED = 10_000  # hashes in one question
MAX_LINE = 1 << 17  # characters of a line of a list
ROW_GROUP = 10_000  # rows of a list that are in memory at once
COLUMNS = ("uri", "url", "path", "image", "file", "filename")  # of a CSV that lists images, the first that is there
SHA256 = re.compile(r"[0-9a-f]{64}")


def keep_archive(backend: Backend, stream: IO[bytes]) -> str:
    """Keep a zip or a tar as an upload, whichever it is by its first bytes; returns its id. Raises Invalid, as `keep_zip` does."""
    head = b""
    while len(head) < HEAD and (more := stream.read(HEAD - len(head))):
        head += more
    whole = _Rejoined(head, stream)
    return (keep_tar if tars.is_tar(head) else keep_zip)(backend, whole)  # type: ignore[arg-type]


class _Rejoined:
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        return data or self._rest.read(size)


def keep_tar(backend: Backend, stream: IO[bytes]) -> str:
    """Keep a tar, compressed or not, as an upload; returns its id. Raises Invalid: cut off, a bomb, a path outside itself, a link, a device.

    Where a file begins in a tar is known only to who has read all before it, so pictures and tables are put into a zip as they come, as they are.
    """
    upload_id, settings = new_id(), backend.settings
    with backend.storage.writing(upload_key(upload_id)) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, size, file in tars.members(_Counted(stream, settings.max_upload_bytes), settings):  # type: ignore[arg-type]
            member = zipfile.ZipInfo(name)
            if not member_wanted(member, offered_name):
                continue
            # of a file that is too large so much that it is seen to be
            member.file_size = left = min(size, (settings.max_image_bytes if picture_name(name) else MAX_TABLE) + 1)
            with archive.open(member, "w") as entry:
                while chunk := file.read(min(left, CHUNK)):
                    entry.write(chunk)
                    left -= len(chunk)
        if not archive.filelist:
            raise Invalid("The tar holds no pictures.", field="source")
    _check(backend, upload_id)
    return upload_id


class _Counted:
    """A stream of which no more is read than an upload may have."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most
        self._size = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._size += len(data)
        if self._size > self._most:
            raise _too_large(self._most)
        return data


def keep_table(backend: Backend, stream: IO[bytes]) -> str:
    """Keep a CSV that names images by their addresses, and their classes, as an upload; returns its id. Raises Invalid: too large, or it does not."""
    head = b""
    while len(head) < tables.MAX_LINE and (more := stream.read(tables.MAX_LINE - len(head))):
        head += more
    for _ in tables.lines("The CSV", head[: head.rfind(b"\n") + 1] or head):
        break  # its header is there; of broken lines the import tells
    upload_id, left = new_id(), MAX_TABLE - len(head)
    with (
        backend.storage.writing(upload_key(upload_id)) as out,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(tables.LABELS, "w") as entry,
    ):
        entry.write(head)
        while chunk := stream.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise Invalid(f"The CSV has more than {MAX_TABLE:,} bytes, the most a table may have.", field="source")
            entry.write(chunk)
    return upload_id


def _too_large(most: int) -> Invalid:
    return Invalid(f"The upload is larger than the {most:,} bytes that are allowed; see DARKROOM_MAX_UPLOAD_BYTES.", field="source")


def keep_zip(backend: Backend, stream: IO[bytes]) -> str:
    """Keep a zip as an upload; returns its id. Raises Invalid: nothing sent, too large, no zip, or a hostile one."""
    upload_id = new_id()
    most = backend.settings.max_upload_bytes
    with backend.storage.writing(upload_key(upload_id)) as out:
        size = 0
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise _too_large(most)
            out.write(chunk)
        if not size:
            raise Invalid("Nothing was uploaded: the file is empty.", field="source")
    _check(backend, upload_id)
    return upload_id


def keep_files(backend: Backend, files: Iterable[FileStorage]) -> str:
    """Keep the files of a form as one upload; returns its id. A zip, tar or CSV that comes alone is kept as it is.

    Names are kept relative: the base name, or the path within a folder that was chosen as a whole. Files that are neither pictures nor tables by
    their name are passed over. Raises Invalid: no file, no picture, a zip among others, or a bad zip.
    """
    chosen = [f for f in files if f.filename]  # a browser sends a file field that was left empty as a file without a name
    if not chosen:
        raise Invalid("No file was uploaded. Choose a zip, or one or more pictures.", field="source")
    archives = [f for f in chosen if (f.filename or "").lower().endswith(ARCHIVES)]
    if archives and len(chosen) > 1:
        raise Invalid("Upload either one zip or single pictures, not both at once.", field="source")
    if archives:
        return keep_archive(backend, archives[0].stream)
    if len(chosen) == 1 and (chosen[0].filename or "").lower().endswith(".csv"):
        return keep_table(backend, chosen[0].stream)
    return _zip_files(backend, chosen)


def _zip_files(backend: Backend, files: list[FileStorage]) -> str:
    upload_id = new_id()
    names: set[str] = set()
    with backend.storage.writing(upload_key(upload_id)) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            member = zipfile.ZipInfo(_unused(member_name(file.filename or ""), names))
            if not member_wanted(member, offered_name):
                continue
            names.add(member.filename)
            with archive.open(member, "w", force_zip64=True) as entry:
                while chunk := file.stream.read(CHUNK):
                    entry.write(chunk)
        if not names:
            raise Invalid("None of the uploaded files is a picture by its name (.jpg, .png, .webp, .gif, .bmp, .tiff).", field="source")
    _check(backend, upload_id)
    return upload_id


def member_name(filename: str) -> str:
    """The name of an uploaded file within its zip: relative, with forward slashes, without `..` or a drive.

    `C:/pictures/../cat 1.jpg` -> `pictures/cat 1.jpg`
    """
    text = filename.replace("\\", "/").replace("\0", "").encode("utf-8", "replace").decode()
    parts = [p for p in text.split("/") if p.strip() not in {"", ".", ".."}]
    return re.sub(r"^([^/]:)+/?", "", "/".join(_shortened(p) for p in parts[-MAX_DEPTH:]))


def _shortened(part: str) -> str:
    suffix = PurePosixPath(part).suffix[:10]
    return part if len(part) <= MAX_PART else part[: MAX_PART - len(suffix)] + suffix


def _unused(name: str, taken: set[str]) -> str:
    path, count, free = PurePosixPath(name or "unnamed"), 1, name or "unnamed"
    while free in taken:
        count += 1
        free = str(path.with_name(f"{path.stem} ({count}){path.suffix}"))
    return free


def _check(backend: Backend, upload_id: str) -> None:
    """Look at the zip as a stranger's; delete it when it is bad. Raises Invalid."""
    with _deleted_when_bad(backend, upload_id), open_zip(backend.storage, upload_id) as archive:
        check_zip(archive, backend.settings)


@contextmanager
def _deleted_when_bad(backend: Backend, upload_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        backend.storage.delete(upload_key(upload_id))
        raise


# -- a model of another installation ----------------------------------------------------------------------------------


def keep_model(backend: Backend, weights_file: FileStorage | None, info_file: FileStorage | None) -> str:
    """Keep the two files of a model; returns the id of the upload. Raises Invalid: one is missing, too large, or no such file.

    Nothing is loaded: info.json is read as data, and of the weights the header alone.
    """
    if weights_file is None or not weights_file.filename:
        raise Invalid("Choose the model.safetensors of a model version.", field="weights")
    if info_file is None or not info_file.filename:
        raise Invalid("Choose the info.json that lies beside the model.safetensors.", field="info")
    most = backend.settings.max_model_bytes
    size = weights_file.stream.seek(0, os.SEEK_END)
    if size > most:
        raise Invalid(f"The weights have more than the {most:,} bytes that are allowed; see DARKROOM_MAX_MODEL_BYTES.", field="weights")
    weights_file.stream.seek(0)
    weights.check_safetensors(weights_file.stream, size)
    weights_file.stream.seek(0)
    info = info_file.stream.read(weights.MAX_INFO + 1)
    weights.read_info(info)
    upload_id = new_id()
    with backend.storage.writing(weights.key(upload_id, "model.safetensors")) as out:
        while chunk := weights_file.stream.read(CHUNK):
            out.write(chunk)
    backend.storage.write(weights.key(upload_id, "info.json"), info)
    return upload_id


# -- files by their content -------------------------------------------------------------------------------------------


def missing_blobs(backend: Backend, hashes: Any) -> list[str]:
    """Which of these files, named by the SHA-256 of their bytes, still have to be sent. Raises Invalid."""
    if not isinstance(hashes, list) or len(hashes) > MAX_ASKED:
        raise Invalid(f"sha256 must be a list of at most {MAX_ASKED:,} hashes.", field="sha256")
    # one that is there counts as new, so that `darkroom gc` leaves it for the upload that will name it
    return [sha256 for sha256 in hashes if not backend.storage.touch(blob_key(_hash(sha256)))]


def keep_blob(backend: Backend, sha256: str, stream: IO[bytes]) -> bool:
    """Keep one file under the SHA-256 of its bytes; whether it is new. Raises Invalid: too large, or other bytes than named."""
    key = blob_key(_hash(sha256))
    if backend.storage.touch(key):
        return False
    most = backend.settings.max_image_bytes
    digest, size = hashlib.sha256(), 0
    with backend.storage.writing(key, durable=False, replace=False) as out:  # `keep_manifest` waits for the disk, once for all
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise Invalid(f"The file is larger than the {most:,} bytes that one image may have; see DARKROOM_MAX_IMAGE_BYTES.")
            digest.update(chunk)
            out.write(chunk)
        if digest.hexdigest() != sha256:
            raise Invalid(f"The bytes that arrived have the SHA-256 {digest.hexdigest()} and not {sha256}; send the file again.")
    return True


def keep_manifest(backend: Backend, stream: IO[bytes]) -> tuple[str, int]:
    """Make an upload of files that were sent by their content; returns its id and how many files it has.

    `stream`: JSON lines, `["cats/1.jpg", "<sha256>"]` each, or `["cats/huge.jpg", null]` for a file that was too large to be
    sent and becomes a row that says so. Raises Invalid: a line that is none of these, no line, or files that are missing.
    """
    upload_id = new_id()
    if backend.storage.is_local:
        os.sync()
    return upload_id, _keep_rows(backend, files_key(upload_id), _manifest_rows(backend, stream))


def _manifest_rows(backend: Backend, stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    too_large = f"error:too_large:The file is larger than the {backend.settings.max_image_bytes:,} bytes that one image may have."
    missing: list[str] = []
    for number, line in enumerate(_lines(backend, stream), 1):
        if not line.strip():
            continue
        try:
            name, sha256 = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            raise Invalid(f'Line {number} is not a file as ["name.jpg", "<sha256>"].', field="files") from None
        if not isinstance(name, str):
            raise Invalid(f"Line {number} names no file.", field="files")
        if sha256 is not None and not backend.storage.touch(blob_key(_hash(sha256))):
            missing.append(sha256)
        yield member_name(name) or "unnamed", too_large if sha256 is None else f"blob:{sha256}"
    if missing:
        raise Invalid(
            f"{len(missing):,} of the files were not sent yet, first {missing[0]}; send them, then this list again.", field="files"
        )


def _hash(value: Any) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise Invalid(f"{str(value)[:80]!r} is no SHA-256: 64 digits of 0-9 and a-f.", field="sha256")
    return value


def _keep_rows(backend: Backend, key: str, rows: Iterator[tuple[str, str]]) -> int:
    """Write (uri, locator) of each item as they come; returns how many there are. Raises Invalid for none, and for too many."""
    most, count = backend.settings.max_zip_members, 0
    with backend.storage.writing(key) as out, pq.ParquetWriter(out, FILES, compression="zstd") as writer:
        while chunk := list(islice(rows, ROW_GROUP)):
            count += len(chunk)
            if count > most:
                raise Invalid(f"There are more than {most:,} items; see DARKROOM_MAX_ZIP_MEMBERS.", field="source")
            writer.write_table(pa.table([list(column) for column in zip(*chunk, strict=True)], schema=FILES))
        if not count:
            raise Invalid("The list is empty.", field="source")
    return count


# -- lists ------------------------------------------------------------------------------------------------------------


def keep_list(backend: Backend, stream: IO[bytes], is_csv: bool = False) -> tuple[str, int]:
    """Keep a list of http(s) addresses and absolute paths of the server; returns its id and how many items it has.

    One a line, or a CSV: with a header that names one of COLUMNS that column, otherwise, if `is_csv`, the first. Blank lines
    and those that begin with # are passed over; every other one is an item, whose row tells when it names nothing. Raises
    Invalid: not UTF-8, broken quotes, too long, empty, or not a single line that names something.
    """
    upload_id = new_id()
    return upload_id, _keep_rows(backend, list_key(upload_id), _list_rows(backend, stream, is_csv))


def _list_rows(backend: Backend, stream: IO[bytes], is_csv: bool) -> Iterator[tuple[str, str]]:
    first, named = "", False
    for entry in _entries(_lines(backend, stream), is_csv):
        locator = locator_of(entry)
        first, named = first or entry, named or not locator.startswith("error:")
        yield entry.strip()[:MAX_LOCATOR], locator
    if first and not named:  # the wrong file, or names without their folders: better told now than in a million rows
        raise Invalid(f"Not an http or https address, nor an absolute path on the server: {first[:80]!r}. No line is.", field="source")


def keep_addresses(backend: Backend, urls: list[str]) -> str:
    """Keep addresses of an order as a list; returns its id, which is that of the same addresses given again."""
    upload_id = hashlib.sha256("\n".join(urls).encode()).hexdigest()[:40]
    if not backend.storage.exists(list_key(upload_id)):
        _keep_rows(backend, list_key(upload_id), ((url, locator_of(url)) for url in urls))
    return upload_id


def _entries(lines: Iterator[str], is_csv: bool) -> Iterator[str]:
    """What each line of a list names."""
    first = next((line for line in lines if not _skipped(line)), None)
    if first is None:
        return
    header = _header(first)
    if header is None and not is_csv:
        yield from (_unquoted(line.strip()) for line in chain([first], lines) if not _skipped(line))
        return
    delimiter, column, width = header or (",", 0, 0)
    rows = csv.reader(lines if header else chain([first], lines), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if any(cell.strip() for cell in row) and not _skipped(row[0] or "-"):
                # an address may hold commas: of a single column they belong to it
                yield delimiter.join(row) if width == 1 else row[column] if column < len(row) else ""
    except csv.Error as error:
        raise Invalid(f"The CSV cannot be read near its line {rows.line_num + 1}: {error}.", field="source") from None


def _skipped(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _unquoted(line: str) -> str:
    return line[1:-1].replace('""', '"') if len(line) > 1 and line[0] == line[-1] == '"' else line


def _header(line: str) -> tuple[str, int, int] | None:
    """(delimiter, column that names the images, number of columns) when a line is the header of a CSV."""
    for delimiter in ",;\t":
        cells = [cell.strip().casefold() for cell in next(csv.reader([line], delimiter=delimiter))]
        if named := [name for name in COLUMNS if name in cells]:
            return delimiter, cells.index(named[0]), len(cells)
    return None


def _lines(backend: Backend, stream: IO[bytes]) -> Iterator[str]:
    """The lines of a text as it arrives, with or without BOM, ended by LF, CRLF or CR. Raises Invalid: not UTF-8, too large."""
    most, size, number, rest = backend.settings.max_upload_bytes, 0, 0, ""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    over = False
    while not over:
        chunk = stream.read(1 << 16)
        over = not chunk
        size += len(chunk)
        if size > most:
            raise Invalid(f"The list is larger than the {most:,} bytes that are allowed; see DARKROOM_MAX_UPLOAD_BYTES.", field="source")
        try:
            *whole, rest = (rest + decoder.decode(chunk, final=over)).split("\n")
        except UnicodeDecodeError:
            raise Invalid(
                f"The list is no UTF-8 text near its line {number + 1}; save it as UTF-8 and send it again.", field="source"
            ) from None
        number += len(whole)
        if len(rest) > MAX_LINE:
            raise Invalid(f"Line {number + 1} is longer than {MAX_LINE:,} characters.", field="source")
        yield from whole
    if rest:
        yield rest


# -- the files of a form, while they arrive ---------------------------------------------------------------------------


class FormRequest(Request):
    """A request whose uploaded files share one temporary file.

    Werkzeug keeps a temporary file a file: a folder of ten thousand pictures would be ten thousand open files, or
    gigabytes of memory for those that it holds there.
    """

    _spool: IO[bytes] | None = None

    def _get_file_stream(
        self, total_content_length: int | None, content_type: str | None, filename: str | None = None, content_length: int | None = None
    ) -> IO[bytes]:
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the request
        return _Part(self._spool)  # type: ignore[return-value]


class _Part(io.RawIOBase):
    """One file of a form: a stretch of the spool. Parts are written one after the other, then read in any order."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self._start = spool.seek(0, os.SEEK_END)
        self._size = 0
        self._at = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            view = view[self._spool.write(view) :]
        self._size += len(data)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._spool.fileno(), min(len(buffer), self._size - self._at), self._start + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = min(max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]), self._size)
        return self._at

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
