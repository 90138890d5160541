"""The items of a batch: how each is named, and how its bytes are read.

An item's locator says where its bytes are: `file:<absolute path>`, `zip:<upload id>!<index of the member>`, an http(s)
address, or `image:<sha256>.<ext>` for a picture in the storage. Members of a zip are read where they are: nothing is
unpacked, so no name in a zip is ever a path on this machine.
"""

import lzma
import stat
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from shared.datasets import image_key
from shared.errors import DarkroomError, Invalid, NotFound
from shared.images import IMAGE_SUFFIXES, BadImage, read_bounded
from shared.settings import Settings
from shared.storage import Storage

ITEMS = pa.schema([("item_id", pa.int64()), ("uri", pa.string()), ("locator", pa.string())])
# what zipfile and its decompressors raise for an entry that is damaged or of a kind they do not know
DAMAGED = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
_JUNK = {"__macosx", ".ds_store", "thumbs.db", "desktop.ini"}


def upload_key(upload_id: str) -> str:
    """Where an uploaded zip lies on storage."""
    return f"uploads/{upload_id}.zip"


def check_folder(path: str, settings: Settings) -> Path:
    """A server folder that may be read. Raises Invalid with a sentence: not absolute, not there, not a folder, not allowed."""
    folder = Path(path).expanduser()
    if not folder.is_absolute() or "\0" in path:
        raise Invalid(f"{path!r} is not an absolute path on the server.", field="source")
    folder = folder.resolve()
    roots = settings.import_roots
    if roots is None and not settings.loopback:
        raise Invalid("Server folders may not be named on this installation. Upload a zip, or set DARKROOM_IMPORT_ROOTS.", field="source")
    if roots is not None and not any(folder.is_relative_to(root.expanduser().resolve()) for root in roots):
        raise Invalid(
            f"{folder} is not below a folder that may be imported ({', '.join(map(str, roots)) or 'none is'}); see DARKROOM_IMPORT_ROOTS.",
            field="source",
        )
    if not folder.exists():
        raise Invalid(f"There is no folder {folder} on the server.", field="source")
    if not folder.is_dir():
        raise Invalid(f"{folder} is not a folder.", field="source")
    return folder


def walk_folder(folder: Path) -> Iterator[tuple[str, str]]:
    """(uri, locator) of each picture file below a folder, in order of name. Symbolic links are not followed.

    Files with other suffixes are passed over; hidden files and folders too.
    """
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if path.name.startswith(".") or path.name.lower() in _JUNK:
            continue
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from ((f"{path.name}/{uri}", locator) for uri, locator in walk_folder(path))
        elif path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.name, f"file:{path}"


def open_zip(storage: Storage, upload_id: str) -> zipfile.ZipFile:
    """An uploaded zip. Raises Invalid with a sentence when it is none, NotFound when there is no such upload."""
    try:
        return zipfile.ZipFile(storage.open(upload_key(upload_id)))
    except NotFound:
        raise NotFound(f"There is no upload {upload_id!r}; it may have been cleared. Upload the file again.") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Invalid(f"The uploaded file is not a zip that can be read ({error}).", field="source") from None


def check_zip(archive: zipfile.ZipFile, settings: Settings) -> None:
    """Refuse a hostile zip before anything is read of it. Raises Invalid with a sentence."""
    members = archive.infolist()
    if len(members) > settings.max_zip_members:
        raise Invalid(f"The zip has {len(members):,} entries; at most {settings.max_zip_members:,} are allowed.", field="source")
    for m in members:
        parts = m.filename.replace("\\", "/").split("/")
        if ".." in parts or m.filename.startswith(("/", "\\")) or (len(m.filename) > 1 and m.filename[1] == ":"):
            raise Invalid(f"The zip holds a path outside itself ({m.filename[:100]!r}); nothing of it was used.", field="source")
        if stat.S_ISLNK(m.external_attr >> 16):
            raise Invalid(f"The zip holds a symbolic link ({m.filename[:100]!r}); nothing of it was used.", field="source")
        if m.flag_bits & 1:
            raise Invalid("The zip is protected by a password; upload one without.", field="source")
    if not any(picture_member(m) for m in members):
        raise Invalid("The zip holds no pictures." if members else "The zip is empty.", field="source")


def picture_member(member: zipfile.ZipInfo) -> bool:
    """Whether an entry looks like a picture by its name; whether it is one is seen when it is decoded."""
    parts = member.filename.lower().replace("\\", "/").split("/")
    return not member.is_dir() and Path(parts[-1]).suffix in IMAGE_SUFFIXES and not any(p in _JUNK or p.startswith(".") for p in parts)


def walk_zip(archive: zipfile.ZipFile, upload_id: str) -> Iterator[tuple[str, str]]:
    """(uri, locator) of each picture in a zip, in its order."""
    for index, member in enumerate(archive.infolist()):
        if picture_member(member):
            yield member.filename, f"zip:{upload_id}!{index}"


def read_member(archive: zipfile.ZipFile, index: int, max_bytes: int) -> bytes:
    """The bytes of one entry, counted as they are unpacked, whatever its header promises. Raises BadImage."""
    member = archive.infolist()[index]
    try:
        with archive.open(member) as f:
            return read_bounded(f, max_bytes)
    except (*DAMAGED, OSError, RuntimeError, ValueError) as error:
        raise BadImage("unreadable", f"The zip entry cannot be unpacked: {error}.") from None


class ItemReader:
    """Reads items by locator; keeps each zip open. Safe to use from several threads."""

    def __init__(self, storage: Storage, max_bytes: int) -> None:
        self.storage = storage
        self.max_bytes = max_bytes
        self._local = threading.local()  # a ZipFile's reads share one position in the file: one a thread

    def read(self, locator: str) -> bytes:
        """The bytes of an item that is a file, a zip entry or a stored picture. Raises BadImage with code not_found, ..."""
        scheme, _, rest = locator.partition(":")
        try:
            if scheme == "file":
                path = Path(rest)
                if not path.is_file():  # a FIFO or a device would hang
                    raise BadImage("not_found", "The file is no longer there.")
                with path.open("rb") as f:
                    return read_bounded(f, self.max_bytes)
            if scheme == "zip":
                upload_id, _, index = rest.partition("!")
                return read_member(self._zip(upload_id), int(index), self.max_bytes)
            if scheme == "image":
                sha256, _, ext = rest.partition(".")
                return self.storage.read(image_key(sha256, ext))
        except BadImage:
            raise
        except PermissionError:
            raise BadImage("forbidden", "The file may not be read.") from None
        except OSError as error:
            raise BadImage("unreadable", f"The file cannot be read: {error.strerror or error}.") from None
        except DarkroomError as error:
            raise BadImage("not_found", str(error)) from None
        raise BadImage("unsupported", f"Nothing reads items of the kind {scheme[:20]!r}.")

    def _zip(self, upload_id: str) -> zipfile.ZipFile:
        archives: dict[str, Any] = self._local.__dict__.setdefault("archives", {})
        if upload_id not in archives:
            archives[upload_id] = open_zip(self.storage, upload_id)
        return archives[upload_id]  # type: ignore[no-any-return]
