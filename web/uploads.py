"""Keeping what was uploaded: always one zip on storage, whole or not at all.

A zip is kept as it came. The single files of a form are written into a zip as they are read; their names are data in it
and never paths on this machine. Nothing half-made stays.
"""

import io
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any

from flask import Request
from werkzeug.datastructures import FileStorage

from shared.errors import Invalid
from shared.items import check_zip, open_zip, picture_member, upload_key
from shared.jobs import new_id
from web.backend import Backend

CHUNK = 1 << 20
MAX_PART = 200  # characters of a file or folder name that are kept
MAX_DEPTH = 16  # folders of a relative path that are kept


def keep_zip(backend: Backend, stream: IO[bytes]) -> str:
    """Keep a zip as an upload; returns its id. Raises Invalid: nothing sent, too large, no zip, or a hostile one."""
    upload_id = new_id()
    most = backend.settings.max_upload_bytes
    with backend.storage.writing(upload_key(upload_id)) as out:
        size = 0
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > most:
                raise Invalid(
                    f"The upload is larger than the {most:,} bytes that are allowed; see DARKROOM_MAX_UPLOAD_BYTES.", field="source"
                )
            out.write(chunk)
        if not size:
            raise Invalid("Nothing was uploaded: the file is empty.", field="source")
    _check(backend, upload_id)
    return upload_id


def keep_files(backend: Backend, files: Iterable[FileStorage]) -> str:
    """Keep the files of a form as one upload; returns its id. A zip that comes alone is kept as it is.

    Names are kept relative: the base name, or the path within a folder that was chosen as a whole. Files that are no
    pictures by their name are passed over. Raises Invalid: no file, no picture, a zip among others, or a bad zip.
    """
    chosen = [f for f in files if f.filename]  # a browser sends a file field that was left empty as a file without a name
    if not chosen:
        raise Invalid("No file was uploaded. Choose a zip, or one or more pictures.", field="source")
    zips = [f for f in chosen if (f.filename or "").lower().endswith(".zip")]
    if zips and len(chosen) > 1:
        raise Invalid("Upload either one zip or single pictures, not both at once.", field="source")
    if zips:
        return keep_zip(backend, zips[0].stream)
    return _zip_files(backend, chosen)


def _zip_files(backend: Backend, files: list[FileStorage]) -> str:
    upload_id = new_id()
    names: set[str] = set()
    with backend.storage.writing(upload_key(upload_id)) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            member = zipfile.ZipInfo(_unused(member_name(file.filename or ""), names))
            if not picture_member(member):
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
