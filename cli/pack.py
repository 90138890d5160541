"""Local pictures on their way to the server: a zip as it is, anything else file by file, and only what is not there yet."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path, PurePath
from typing import IO, Any

import click

from cli.client import CHUNK, Client
from cli.follow import Report, read_reporting, reporting
from shared.errors import DarkroomError, Invalid, Unavailable
from shared.tables import LABELS, MAX_TABLE, lines

AT_ONCE = 6  # connections, and threads that hash
PORTION = 2000  # files that are hashed, asked for and sent together
# what is uploaded as it is, by the end of its name
KINDS = {
    ".zip": "application/zip",
    ".tar": "application/x-tar",
    **dict.fromkeys((".tar.gz", ".tgz"), "application/gzip"),
    **dict.fromkeys((".tar.bz2", ".tbz2"), "application/x-bzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "application/x-xz"),
}
RETRY_SECONDS = (0.5, 1, 2, 4)  # before each further try when the web is away for a moment


def upload(client: Client, paths: list[Path], tables: bool = False) -> dict[str, Any]:
    """Upload a zip or tar, or folders and pictures; returns the source for a spec. Symbolic links in folders are left out.

    `tables`: a folder's tables that tell of its pictures go with them, and a CSV may be given alone, with the pictures below its folder that it names.

    Files are named by the SHA-256 of their bytes and sent only if the server has not got them: after a connection that
    broke off, the same command sends the rest.
    """
    try:
        if len(paths) == 1 and paths[0].is_file() and paths[0].name.lower().endswith((*KINDS, *((".csv",) if tables else ()))):
            if pictures := _named_in(paths[0]) if paths[0].suffix.lower() == ".csv" else []:
                return _upload_files(client, [*pictures, (LABELS, paths[0])])
            kind = next(kind for end, kind in {**KINDS, ".csv": "text/csv"}.items() if paths[0].name.lower().endswith(end))
            with paths[0].open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return client.upload(read_reporting(file, size, "uploading"), size, kind=kind)["source"]  # type: ignore[no-any-return]
        pictures = list(_pictures(paths, tables))
        if not pictures:
            raise DarkroomError(f"There are no pictures in {', '.join(map(str, paths))}.")
        return _upload_files(client, pictures)
    except OSError as error:
        raise DarkroomError(f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}.") from error


def upload_list(client: Client, file: IO[bytes]) -> dict[str, Any]:
    """Upload a list of addresses or server paths, CSV if its name ends so; returns the source for a spec."""
    kind = "text/csv" if str(getattr(file, "name", "")).lower().endswith(".csv") else "text/plain"
    return client.upload(iter(partial(file.read, CHUNK), b""), None, "list", kind=kind)["source"]  # type: ignore[no-any-return]


def _named_in(table: Path) -> list[tuple[str, Path]]:
    """(name, file) of the pictures that a CSV names, those that lie in its folder or below; of the others its rows will tell. Raises Invalid."""
    from shared.items import picture_name

    if table.stat().st_size > MAX_TABLE:
        raise Invalid(f"{table} has more than {MAX_TABLE:,} bytes, the most a table may have.")
    found: dict[str, Path] = {}
    for line in lines(str(table), table.read_bytes()):
        name = line.said.get("file", "").replace("\\", "/")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        outside = name.startswith("/") or ".." in parts or "\0" in name
        if parts and not outside and picture_name(parts[-1]) and (path := _ordinary(table.parent, parts)):
            found["/".join(parts)] = path
    return list(found.items())


def _ordinary(folder: Path, parts: list[str]) -> Path | None:
    """A file below a folder, if it is there and no link leads to it."""
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            return None
    return path if path.is_file() else None


def _upload_files(client: Client, pictures: list[tuple[str, Path]]) -> dict[str, Any]:
    threads = ThreadPoolExecutor(AT_ONCE)
    try:
        with tempfile.TemporaryFile() as manifest, reporting() as report:
            for start in range(0, len(pictures), PORTION):
                portion = pictures[start : start + PORTION]
                report(start, len(pictures), "hashing")
                entries = _portion(client, threads, portion, partial(_tell, report, start + len(portion), len(pictures)))
                manifest.writelines(json.dumps(entry).encode() + b"\n" for entry in entries)
            return _persistently(_send_names, client, manifest)["source"]  # type: ignore[no-any-return]
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C: what is on its way may arrive, nothing more is begun


def _tell(report: Report, end: int, total: int, left: int) -> None:
    report(end - left, total, "uploading")


def _portion(
    client: Client, threads: ThreadPoolExecutor, pictures: list[tuple[str, Path]], left: Callable[[int], None]
) -> list[tuple[str, str | None]]:
    """See to it that the server has these files: (name, SHA-256), without the latter for a file that is too large to send."""
    found = list(threads.map(_hashed, (path for _, path in pictures)))
    answer = _persistently(client.post, "uploads", "missing", sha256=list({sha256 for sha256, _ in found}))
    too_large = {sha256 for sha256, size in found if size > answer["max_bytes"]}
    path_of = {sha256: path for (sha256, _), (_, path) in zip(found, pictures, strict=True)}
    sending = [
        threads.submit(_persistently, _send_file, client, sha256, path_of[sha256])
        for sha256 in answer["missing"]
        if sha256 not in too_large
    ]
    left(len(sending))
    for sent, future in enumerate(as_completed(sending), 1):
        future.result()
        left(len(sending) - sent)
    return [(name, None if sha256 in too_large else sha256) for (name, _), (sha256, _) in zip(pictures, found, strict=True)]


def _hashed(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and its bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def _send_file(client: Client, sha256: str, path: Path) -> None:
    with path.open("rb") as file:
        try:
            client.upload(file, os.fstat(file.fileno()).st_size, "blobs", sha256, kind="application/octet-stream", method="PUT")
        except Invalid as error:  # it was changed since it was hashed
            raise DarkroomError(f"{path} was not taken: {error}") from error


def _send_names(client: Client, manifest: IO[bytes]) -> Any:
    size = manifest.seek(0, os.SEEK_END)
    manifest.seek(0)
    return client.upload(iter(partial(manifest.read, CHUNK), b""), size, "manifest", kind="application/jsonl")


def _persistently(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What a call returns, tried again for some seconds when the web does not answer: one that restarts is soon back."""
    for seconds in RETRY_SECONDS:
        try:
            return call(*args, **more)
        except Unavailable:
            time.sleep(seconds)
    return call(*args, **more)


def _pictures(paths: list[Path], tables: bool) -> Iterator[tuple[str, Path]]:
    """(name, file): the name is relative to the folder if one is given alone, otherwise as the paths were written."""
    from shared.items import offered_name, path_of, picture_name, walk_folder

    for path in paths:
        if path.is_dir():
            above = [] if len(paths) == 1 else _inside(path)
            for uri, locator, _ in walk_folder(path, wanted=offered_name if tables else picture_name):
                yield "/".join([*above, uri]), path_of(locator)
        elif picture_name(path.name):
            yield "/".join([path.name] if len(paths) == 1 else _inside(path)), path
        else:
            raise click.UsageError(f"{path} is no picture by its name, and no folder. A zip or tar is given alone.")


def _inside(path: Path) -> list[str]:
    return [part for part in PurePath(os.path.normpath(path)).parts if part not in {"..", path.anchor}]


def existing(paths: tuple[str, ...]) -> list[Path]:
    """The paths, if all of them are there. Raises UsageError."""
    for path in paths:
        if not Path(path).exists():
            raise click.UsageError(f"There is no file or folder {path!r} here. A folder of the server is named with --on-server.")
    return [Path(path) for path in paths]
