"""The one door to files: a local folder by default, an object store by an fsspec address.

What is on storage is the truth. Everything that belongs together is written first and its `info.json` last: a dataset
version, a model version or a batch exists if and only if its info file does. Keys are relative, with forward slashes:

    images/<aa>/<sha256>.<ext>          each picture once, whatever uses it
    thumbs/<aa>/<sha256>-<side>.webp    made when first looked at
    uploads/<id>.zip                    what was uploaded as a zip, or by a form
    uploads/<id>.files.parquet          the names of files that were uploaded one by one, to uploads/blobs/<aa>/<sha256>
    uploads/<id>.list.parquet           an uploaded list of addresses and server paths
    uploads/<id>.model.safetensors      the weights of a model to import, with uploads/<id>.info.json, until it is
    datasets/<name>/v0001/              manifest.parquet, findings.json, edits.json (if it was made of edits), info.json; or deleted.json, when it was deleted
    datasets/<name>/edits/<id>.json     what a person decided about an image, or about many at once
    exports/<name>/v0001/<format>.zip   a dataset version as it was exported; anyone may delete it, it is made again
    models/<name>/v0001/                model.safetensors, int8.xml, int8.bin, export.pkl, model.onnx, report.json, info.json
    batches/<job id>/                   items/<first>-<last>.parquet, shards/<first>-<last>.parquet, review/<item id>.json,
                                        results.csv, results.parquet, info.json
    jobs/<job id>.json                  the order as it was given, and how it ended
    scrapes/<job id>/<number>.jsonl     what a running scrape has decided so far
    rules/<rule id>/                    rule.json, last.json
    sources/<name>.json                 how an image source did when a scrape last asked it
    .locks/                             empty files; who has one locked is alone with what its name says
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shared.errors import NotFound, Unavailable

WAIT = 0.02  # seconds between two tries to be alone
ASIDE = ".aside"  # ends the name of a file that `discard` looks at for the last time


@dataclass(frozen=True)
class File:
    """A file on storage. `at`: seconds since 1970 when it was last written or touched."""

    key: str
    size: int
    at: float

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]


class Storage:
    """Files under one root. Create it after any fork: object-store clients do not survive one."""

    def __init__(self, url: str, cache: Path) -> None:
        """`url`: a folder or an fsspec address; `cache`: a local folder for copies of remote files."""
        if "://" not in url:
            url = str(Path(url).expanduser().resolve())
        self.url = url
        self.cache = Path(cache).expanduser()
        # other processes write here: a listing is never remembered
        self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def _full(self, key: str) -> str:
        if key.startswith("/") or ".." in key.split("/") or "\0" in key:
            raise ValueError(f"not a storage key: {key!r}")
        return f"{self.root.rstrip('/')}/{key}"

    def check(self) -> None:
        """Raises Unavailable with a sentence when the storage cannot be written."""
        probe = f".probe-{secrets.token_hex(4)}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except store_errors() as error:
            why = getattr(error, "strerror", None) or error
            raise Unavailable(
                f"The storage {self.url} cannot be written ({why}). Check its permissions and free space, or set DARKROOM_STORAGE."
            ) from error

    # -- reading ------------------------------------------------------------------------------------------------------

    def exists(self, key: str) -> bool:
        """Whether the file exists."""
        return bool(self.fs.isfile(self._full(key)))

    def open(self, key: str) -> IO[bytes]:
        """A seekable binary file. Raises NotFound."""
        try:
            return self.fs.open(self._full(key), "rb")  # type: ignore[no-any-return]
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"There is no file {key} in the storage.") from None

    def read(self, key: str) -> bytes:
        """The whole file. Raises NotFound."""
        with self.open(key) as f:
            return f.read()

    def read_json(self, key: str) -> Any:
        """Raises NotFound."""
        return json.loads(self.read(key))

    def list(self, key: str) -> list[str]:
        """Names directly under a folder, sorted; empty if there is none. Unfinished things (dot names) are left out."""
        try:
            entries = self.fs.ls(self._full(key), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for e in entries if not (name := e.rstrip("/").rsplit("/", 1)[-1]).startswith("."))

    def files(self, key: str) -> Iterator[File]:
        """Every file below a folder, unfinished ones too, in no particular order; none if there is no such folder."""
        if not self.is_local:
            base = len(self.root.rstrip("/")) + 1
            for path, facts in self.fs.find(self._full(key), detail=True).items():
                told = facts.get("LastModified") or facts.get("mtime") or facts.get("created") or time.time()
                yield File(path[base:], int(facts["size"]), told.timestamp() if isinstance(told, datetime) else float(told))
            return
        try:
            entries = os.scandir(self._full(key))
        except (FileNotFoundError, NotADirectoryError):
            return
        with entries:
            for entry in entries:
                if entry.is_dir():
                    yield from self.files(f"{key}/{entry.name}")
                    continue
                with contextlib.suppress(FileNotFoundError):  # deleted or renamed since it was listed
                    facts = entry.stat()
                    yield File(f"{key}/{entry.name}", facts.st_size, facts.st_mtime)

    def size(self, key: str) -> int:
        """Bytes of a file. Raises NotFound."""
        try:
            return int(self.fs.size(self._full(key)))
        except FileNotFoundError:
            raise NotFound(f"There is no file {key} in the storage.") from None

    def local(self, key: str) -> Path:
        """A local path of the file: itself, or a copy in the cache. Only for files that never change. Raises NotFound."""
        if self.is_local:
            path = Path(self._full(key))
            if not path.is_file():
                raise NotFound(f"There is no file {key} in the storage.")
            return path
        path = self.cache / "storage" / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            with self.open(key) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            part.replace(path)
        return path

    # -- writing ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def writing(self, key: str, durable: bool = True, replace: bool = True) -> Iterator[IO[bytes]]:
        """A binary file that appears under its name when the block ends well, and not at all otherwise.

        `durable`: survives a power cut once the block has ended. `replace=False`: an existing file stays as it is.
        """
        full = self._full(key)
        if not self.is_local:  # an object appears whole when its upload ends
            with self.fs.open(full, "wb") as f:
                try:
                    yield f
                except BaseException:
                    f.discard()
                    raise
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with part.open("wb") as f:
                yield f
                f.flush()
                if durable:
                    os.fsync(f.fileno())
            if replace:
                part.replace(target)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(part, target)
            if durable:
                _sync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)

    def write(self, key: str, data: bytes, durable: bool = True, replace: bool = True) -> None:
        """Write a whole file, atomically."""
        with self.writing(key, durable, replace) as f:
            f.write(data)

    def write_json(self, key: str, value: Any) -> None:
        """Write indented JSON, atomically and durably."""
        self.write(key, json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")

    def touch(self, key: str) -> bool:
        """Whether a file is there; if it is, it counts as written just now, and `discard` leaves it. A bucket knows no touch: there it only says."""
        if not self.is_local:
            return self.exists(key)
        try:
            os.utime(self._full(key))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def discard(self, key: str, before: float) -> bool:
        """Delete a file that nobody has written or touched since `before`, seconds since 1970; whether it was deleted.

        Whoever touches it meanwhile either keeps it or finds that it is not there: it is put aside first, under a name that no touch reaches, and
        looked at there once more. In a bucket that is not so, and nobody may be about to refer to the file.
        """
        if not self.is_local:
            self.delete(key)
            return True
        path = Path(self._full(key))
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{ASIDE}")
        try:
            path.rename(aside)
            touched = aside.stat().st_mtime >= before
        except FileNotFoundError:  # somebody else was quicker to discard it, or to put it back
            return False
        if touched:
            self._put_back(aside, path)
            return False
        aside.unlink(missing_ok=True)
        return True

    def put_back(self, key: str) -> None:
        """Give a file that a killed `discard` had put aside its name again."""
        aside = Path(self._full(key))
        self._put_back(aside, aside.with_name(aside.name.removesuffix(ASIDE)[1:-9]))

    def _put_back(self, aside: Path, path: Path) -> None:
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # written anew, or put back by another
            os.link(aside, path)
        aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, key: str, check: Callable[[], None]) -> Iterator[None]:
        """Wait until nobody else, in any process on any machine, is in such a block for this key. `check` is called while waiting, and may raise.

        Whoever dies in the block leaves it. A bucket, and the rare network folder that knows no locks, lets everybody in at once.
        """
        if not self.is_local:
            yield
            return
        path = Path(self._full(f".locks/{key.replace('/', '-')}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            while not _locked(file):
                check()
                time.sleep(WAIT)
            yield

    def delete(self, key: str) -> None:
        """Delete a file or a folder with all in it; nothing happens if there is none."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._full(key), recursive=True)

    def clear_unfinished(self, key: str) -> None:
        """Delete what writers that were killed left directly under a folder. Nobody may be writing there."""
        if self.is_local:
            for part in Path(self._full(key)).glob(".*.tmp"):
                part.unlink(missing_ok=True)

    def publish_version(self, parent: str, folder: Path, info: dict[str, Any]) -> int:
        """Make the files of a local `folder` the next version under `parent`, `info.json` last; returns its number.

        A version that was published by the same job (`info["job"]`) is answered instead of published twice.
        """
        for number in reversed(versions(self, parent)):
            if self.read_json(f"{parent}/{version_name(number)}/info.json").get("job") == info["job"]:
                return number
        number = max((int(n[1:]) for n in self.list(parent) if _is_version(n)), default=0) + 1
        while not self._reserve(f"{parent}/{version_name(number)}"):
            number += 1
        target = f"{parent}/{version_name(number)}"
        try:
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                with path.open("rb") as source, self.writing(f"{target}/{path.relative_to(folder).as_posix()}") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
            if self.is_local:
                os.sync()  # the images were written without waiting for the disk
            self.write_json(f"{target}/info.json", {**info, "version": number})
        except BaseException:
            self.delete(target)
            raise
        return number

    def _reserve(self, key: str) -> bool:
        """Whether the folder is ours: nobody else publishes the same number."""
        if not self.is_local:
            return True
        target = Path(self._full(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.mkdir()
        except FileExistsError:
            return False
        return True


def image_key(sha256: str, ext: str) -> str:
    """Where the bytes of a picture lie."""
    return f"images/{sha256[:2]}/{sha256}.{ext}"


def store_errors() -> tuple[type[Exception], ...]:
    """What reading and writing may raise when a store is away or refuses; s3fs lets through some errors of the library below it."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError, *((botocore.BotoCoreError,) if botocore else ()))


def versions(storage: Storage, parent: str) -> list[int]:
    """Numbers of the versions under `parent` that exist, that is, whose info file does; ascending."""
    return [int(n[1:]) for n in storage.list(parent) if _is_version(n) and storage.exists(f"{parent}/{n}/info.json")]


def version_name(number: int) -> str:
    """3 -> `v0003`."""
    return f"v{number:04d}"


def _is_version(name: str) -> bool:
    return name[:1] == "v" and name[1:].isdigit()


def _locked(file: IO[bytes]) -> bool:
    """Whether the file is now ours until it is closed, or cannot be anybody's."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
    return True


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
