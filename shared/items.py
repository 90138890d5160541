"""The items of a batch: how they are listed, how each is named, and how its bytes are read.

`walk` lists the items of any source as a stream, in an order that does not change, and goes on behind any item of it. An
item's locator says where its bytes are, and is text that any file or database can keep:

    file:<absolute path>     a file below a server folder that was walked
    bucket:<address>         a file of an object store, below an address that was walked: s3://bucket/prefix/cat.jpg
    path:<absolute path>     a file that a list names: whether it may be read is decided when it is read
    zip:<upload id>!<index>  a member of an uploaded zip, read where it is: no name in a zip is ever a path on this machine
    blob:<sha256>            a file that was uploaded by its content
    image:<sha256>.<ext>     a picture in the storage
    http:, https:            an address, fetched by worker/scraping/fetch.py and not here
    error:<code>:<sentence>  an item that is known to be no picture, such as a line of a list that names nothing

In paths `%` and bytes that are no UTF-8 are percent-encoded, so that a name in a broken encoding still opens.
"""

import lzma
import os
import re
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared import buckets, datasets, results
from shared.errors import DarkroomError, Invalid, NotFound
from shared.images import IMAGE_SUFFIXES, BadImage, read_bounded
from shared.settings import Settings
from shared.specs import (
    DatasetSource,
    EditsSource,
    FailedSource,
    FolderSource,
    ListSource,
    RestoreSource,
    ReviewSource,
    UploadSource,
    UrlsSource,
)
from shared.storage import Storage, image_key
from shared.tables import table_name
from shared.tars import HARMLESS, RATIO

ITEMS = pa.schema([("item_id", pa.int64()), ("uri", pa.string()), ("locator", pa.string())])
FILES = pa.schema([("uri", pa.string()), ("locator", pa.string())])  # an upload of single files, or a list
MAX_LOCATOR = 4096  # characters of an address or path in a list
# what zipfile and its decompressors raise for an entry that is damaged or of a kind they do not know
DAMAGED = (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
_JUNK = {"__macosx", ".ds_store", "thumbs.db", "desktop.ini"}

Item = tuple[str, str, str]  # uri, locator, cursor
Wanted = Callable[[str], bool]  # whether a file is an item, by its name
Source = FolderSource | UploadSource | UrlsSource | ListSource | DatasetSource | FailedSource | ReviewSource | EditsSource | RestoreSource


def upload_key(upload_id: str) -> str:
    """Where an uploaded zip lies on storage."""
    return f"uploads/{upload_id}.zip"


def files_key(upload_id: str) -> str:
    """Where the names of files that were uploaded one by one lie on storage."""
    return f"uploads/{upload_id}.files.parquet"


def list_key(upload_id: str) -> str:
    """Where an uploaded list lies on storage."""
    return f"uploads/{upload_id}.list.parquet"


def blob_key(sha256: str) -> str:
    """Where a file that was uploaded by its content lies on storage."""
    return f"uploads/blobs/{sha256[:2]}/{sha256}"


# -- listing ----------------------------------------------------------------------------------------------------------


def check(source: Source, storage: Storage, settings: Settings) -> None:
    """What can be said of a source without reading it. Raises Invalid or NotFound with a sentence."""
    match source:
        case FolderSource():
            check_place(source.path, settings)
        case UploadSource() | ListSource():
            keys = [list_key(source.id)] if isinstance(source, ListSource) else [files_key(source.id), upload_key(source.id)]
            if not any(storage.touch(key) for key in keys):  # it counts as new: `darkroom gc` leaves it for the job
                what = "list" if isinstance(source, ListSource) else "upload"
                raise NotFound(f"There is no {what} {source.id!r}; it may have been cleared. Upload it again.")
        case DatasetSource():
            datasets.info(storage, source.dataset, source.version)
        case FailedSource() | ReviewSource():
            if not results.shards(storage, source.batch):
                raise NotFound(f"The batch {source.batch} has no rows on the storage.")


def picture_name(name: str) -> bool:
    """Whether a file looks like a picture by its suffix; whether it is one is seen when it is decoded."""
    _, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in IMAGE_SUFFIXES


def offered_name(name: str) -> bool:
    """Whether a dataset may be made of a file of this name: it looks like a picture, or like a table that tells of pictures."""
    return picture_name(name) or table_name(name)


def walk(source: Source, storage: Storage, settings: Settings, after: str = "", wanted: Wanted = picture_name) -> Iterator[Item]:
    """(uri, locator, cursor) of each item of a source, as a stream in an order that does not change.

    `after`: the cursor of the last item that was taken; the walk goes on behind it. `wanted` chooses the files of a folder or zip by their
    names. No more is in memory than the names of one folder, or the directory of one zip. Raises Invalid or NotFound with a sentence, at the
    first item.
    """
    check(source, storage, settings)
    match source:
        case FolderSource():
            yield from _walk_place(check_place(source.path, settings), after, wanted)
        case UploadSource() if storage.exists(files_key(source.id)):
            yield from _walk_rows(storage, files_key(source.id), after)
        case UploadSource():
            yield from _walk_checked_zip(source.id, storage, settings, after, wanted)
        case ListSource():
            yield from _walk_rows(storage, list_key(source.id), after)
        case UrlsSource():
            for index in range(_behind(after), len(source.urls)):
                yield source.urls[index], locator_of(source.urls[index]), str(index)
        case DatasetSource():
            yield from _walk_dataset(source, storage, after)
        case FailedSource():
            yield from _walk_failed(source, storage, after)
        case ReviewSource() | EditsSource() | RestoreSource():
            raise Invalid("What a person decided is imported as a dataset; it is no source of a batch.", field="source")


def check_place(path: str, settings: Settings) -> str:
    """A server folder or an address of a bucket that may be read, in one way of writing it. Raises Invalid with a sentence."""
    return buckets.check(path, settings) if buckets.is_address(path) else str(check_folder(path, settings))


def check_folder(path: str, settings: Settings) -> Path:
    """A server folder that may be read. Raises Invalid with a sentence: not absolute, not there, not a folder, not allowed."""
    if "\0" in path or not Path(path).expanduser().is_absolute():
        raise Invalid(f"{path!r} is not an absolute path on the server.", field="source")
    folder = Path(path).expanduser().resolve()
    if settings.import_roots is None and not settings.loopback:
        raise Invalid("Server folders may not be named on this installation. Upload a zip, or set DARKROOM_IMPORT_ROOTS.", field="source")
    if not _allowed(folder, settings):
        raise Invalid(f"{folder} is not below a folder that may be imported ({settings.roots}); see DARKROOM_IMPORT_ROOTS.", field="source")
    if not folder.exists():
        raise Invalid(f"There is no folder {folder} on the server.", field="source")
    if not folder.is_dir():
        raise Invalid(f"{folder} is not a folder.", field="source")
    return folder


def _allowed(path: Path, settings: Settings) -> bool:
    """Whether a path of the server, all its symbolic links resolved, may be read."""
    if settings.import_roots is None:
        return settings.loopback
    return any(path.is_relative_to(Path(root).expanduser().resolve()) for root in settings.import_roots if not buckets.is_address(root))


def _walk_place(place: str, after: str, wanted: Wanted) -> Iterator[Item]:
    if buckets.is_address(place):
        return _walk_tree(place, f"bucket:{_escape(place)}/", buckets.lister(place), after, wanted)
    return walk_folder(Path(place), after, wanted)


def walk_folder(folder: Path, after: str = "", wanted: Wanted = picture_name) -> Iterator[Item]:
    """(uri, locator, cursor) of each picture file below a folder, in order of name; the cursor is the path below the folder.

    Symbolic links are not followed; files with other suffixes are passed over, hidden files and folders too. A folder that
    cannot be read is an item of its own, whose row says so. Raises Invalid when `folder` itself cannot be read.
    """
    root = str(folder).rstrip("/")
    return _walk_tree(root, f"file:{_escape(root)}/", _local_entries, after, wanted)


def _walk_tree(root: str, before: str, entries: Callable[[str], Iterable[tuple[str, bool]]], after: str, wanted: Wanted) -> Iterator[Item]:
    """The pictures below `root`; `entries` lists a folder: (name, whether it is a folder) each. `before` begins every locator."""
    try:
        levels = [("", *_chosen(entries(root or "/"), wanted), _unescape(after).split("/") if after else [])]
    except OSError as error:
        raise Invalid(f"The folder {root or '/'} cannot be read ({error.strerror or error}).", field="source") from None
    while levels:
        above, names, folders, done = levels[-1]  # done: the path of the last item taken, as far as it lies below this folder
        if not names:
            levels.pop()
            continue
        name = names.pop()
        if done and name < done[0]:
            continue
        rest = done[1:] if done and name == done[0] else None
        if rest == []:
            continue
        path = above + name
        if name in folders:
            try:
                levels.append((f"{path}/", *_chosen(entries(f"{root}/{path}"), wanted), rest or []))
                continue
            except OSError:
                path += "/"
        escaped = _escape(path)
        yield path if path.isascii() else path.encode("utf-8", "replace").decode(), before + escaped, escaped.rstrip("/")


def _chosen(entries: Iterable[tuple[str, bool]], wanted: Wanted) -> tuple[list[str], set[str]]:
    """Of the entries of a folder the names of wanted files and folders, the first last, and which are folders. Raises OSError."""
    found: dict[str, bool] = {}
    for name, is_folder in entries:
        if not name.startswith(".") and name.lower() not in _JUNK:
            found[name] = is_folder or found.get(name, False)  # an object may have the name of a folder
    names = sorted((name for name, is_folder in found.items() if is_folder or wanted(name)), reverse=True)
    return names, {name for name in names if found[name]}


def _local_entries(folder: str) -> Iterator[tuple[str, bool]]:
    """The folders and ordinary files directly in a folder; no symbolic link, no pipe. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or entry.is_file(follow_symlinks=False):
                yield entry.name, is_folder


def _escape(path: str) -> str:
    """A path as text that is valid UTF-8: `%` and the bytes that are none are percent-encoded."""
    if "%" in path:
        path = path.replace("%", "%25")
    return path if path.isascii() else re.sub("[\udc80-\udcff]", lambda m: f"%{ord(m[0]) - 0xDC00:02X}", path)


def _unescape(path: str) -> str:
    return os.fsdecode(unquote_to_bytes(path)) if "%" in path else path


def path_of(locator: str) -> Path:
    """The path in a `file:` or `path:` locator."""
    return Path(_unescape(locator.partition(":")[2]))


def locator_of(line: str) -> str:
    """The locator of what a line of a list names: an http(s) address, an absolute path of the server, or an error."""
    text = line.strip()
    if len(text) <= MAX_LOCATOR and "\0" not in text:
        if found := re.match(r"(https?)(://[^/\s]+.*)", text, re.IGNORECASE):
            return found[1].lower() + found[2]
        if text.startswith("/"):
            return f"path:{_escape(text)}"
    return f"error:unsupported:{text[:200]!r} is neither an http or https address nor an absolute path on the server."


def _behind(after: str) -> int:
    return int(after) + 1 if after else 0


def _walk_rows(storage: Storage, key: str, after: str) -> Iterator[Item]:
    """The items of a Parquet file of the schema FILES; the cursor is the row."""
    start, first = _behind(after), 0
    with storage.open(key) as f:
        file = pq.ParquetFile(f)
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if last > start:
                rows = file.read_row_group(group).slice(max(0, start - first))
                for row, uri, locator in zip(range(max(first, start), last), *(c.to_pylist() for c in rows.columns), strict=True):
                    yield uri, locator, str(row)
            first = last


def _walk_dataset(source: DatasetSource, storage: Storage, after: str) -> Iterator[Item]:
    """The kept pictures of a dataset version; the cursor is the row of its manifest, the uri begins with the class."""
    start, first = _behind(after), 0
    for batch in datasets.row_batches(storage, source.dataset, source.version, ["status", "sha256", "ext", "label", "name"]):
        for row, values in enumerate(batch.to_pylist() if first + batch.num_rows > start else (), first):
            if row >= start and values["status"] == "kept":
                label, name = values["label"], values["name"] or f"{values['sha256']}.{values['ext']}"
                uri = name if f"/{label}/" in f"/{name}" else f"{label}/{name}"
                yield uri, f"image:{values['sha256']}.{values['ext']}", str(row)
        first += batch.num_rows


def _walk_failed(source: FailedSource, storage: Storage, after: str) -> Iterator[Item]:
    """The items of an earlier batch whose row holds an error; the cursor is their number in that batch."""
    start = _behind(after)
    for table in results.tables(storage, source.batch):
        wanted = pc.and_(pc.not_equal(table["error_code"], ""), pc.greater_equal(table["item_id"], start))
        for row in table.select(["item_id", "uri", "locator"]).filter(wanted).to_pylist():
            yield row["uri"], row["locator"], str(row["item_id"])


# -- zips -------------------------------------------------------------------------------------------------------------


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
    _check_unpacked(sum(m.file_size for m in members), archive.start_dir, settings)
    if not any(member_wanted(m, offered_name) for m in members):
        raise Invalid("The zip holds no pictures." if members else "The zip is empty.", field="source")


def _check_unpacked(size: int, packed: int, settings: Settings) -> None:
    """Refuse what unpacks to far more than it is. Of no entry is more read than its header promises, so that it can be said before. Raises Invalid."""
    if size > settings.max_unpacked_bytes:
        most = f"{settings.max_unpacked_bytes:,} are allowed; see DARKROOM_MAX_UNPACKED_BYTES"
        raise Invalid(f"The zip unpacks to {size:,} bytes; at most {most}.", field="source")
    if size > max(HARMLESS, RATIO * packed):
        raise Invalid(f"The zip unpacks to {size:,} bytes, more than {RATIO} times its size; that is no zip of images.", field="source")


def member_wanted(member: zipfile.ZipInfo, wanted: Wanted = picture_name) -> bool:
    """Whether an entry is an ordinary file that is wanted by its name, and neither hidden nor what a system has left there."""
    parts = member.filename.lower().replace("\\", "/").split("/")
    return not member.is_dir() and wanted(parts[-1]) and not any(p in _JUNK or p.startswith(".") for p in parts)


def walk_zip(archive: zipfile.ZipFile, upload_id: str, after: str = "", wanted: Wanted = picture_name) -> Iterator[Item]:
    """(uri, locator, cursor) of each picture in a zip, in its order; the cursor is the member's index."""
    members = archive.infolist()
    for index in range(_behind(after), len(members)):
        if member_wanted(members[index], wanted):
            # a name in another encoding than its flag says may hold what is no valid text
            yield members[index].filename.encode("utf-8", "replace").decode(), f"zip:{upload_id}!{index}", str(index)


def _walk_checked_zip(upload_id: str, storage: Storage, settings: Settings, after: str, wanted: Wanted) -> Iterator[Item]:
    with open_zip(storage, upload_id) as archive:
        if not after:  # an upload never changes: one that was walked in part was checked
            check_zip(archive, settings)
        yield from walk_zip(archive, upload_id, after, wanted)


# -- reading ----------------------------------------------------------------------------------------------------------


class ItemReader:
    """Reads items by locator; keeps each zip open. Safe to use from several threads."""

    def __init__(self, storage: Storage, max_bytes: int, settings: Settings | None = None) -> None:
        """`settings` say which paths of the server a list may name; without them it may name none."""
        self.storage = storage
        self.max_bytes = max_bytes
        self.settings = settings
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._lock = threading.Lock()

    def read(self, locator: str) -> bytes:
        """The bytes of an item, unless it is an address. Raises BadImage with code not_found, forbidden, unreadable, ..."""
        try:
            return self._read(locator)
        except BadImage:
            raise
        except PermissionError:
            raise BadImage("forbidden", "The file or its folder may not be read.") from None
        except FileNotFoundError:
            raise BadImage("not_found", "There is no such file, or no longer.") from None
        except OSError as error:
            raise BadImage("unreadable", f"The file cannot be read: {error.strerror or error}.") from None
        except DarkroomError as error:
            raise BadImage("not_found", str(error)) from None

    def _read(self, locator: str) -> bytes:
        scheme, _, rest = locator.partition(":")
        match scheme:
            case "file":
                return self._file(path_of(locator))
            case "path":
                return self._file(self._checked(path_of(locator)))
            case "bucket":
                return buckets.read(_unescape(rest), self.max_bytes)
            case "zip":
                upload_id, _, index = rest.partition("!")
                return self._member(upload_id, int(index))
            case "blob":
                with self.storage.open(blob_key(rest)) as f:
                    return read_bounded(f, self.max_bytes)
            case "image":
                sha256, _, ext = rest.partition(".")
                return self.storage.read(image_key(sha256, ext))
            case "error":
                code, _, sentence = rest.partition(":")
                raise BadImage(code, sentence)
        raise BadImage("unsupported", f"Nothing reads items of the kind {scheme[:20]!r}.")

    def _file(self, path: Path) -> bytes:
        if path.is_dir():
            os.scandir(path).close()  # a folder is an item only when it could not be read: this says why
            raise BadImage("unsupported", "This is a folder and not a file.")
        if not path.is_file():  # a FIFO or a device would hang
            raise BadImage("not_found", "There is no such file, or no longer.")
        with path.open("rb") as f:
            return read_bounded(f, self.max_bytes)

    def _checked(self, path: Path) -> Path:
        """A path that a list names, with its symbolic links resolved. Raises BadImage unless it may be read."""
        try:
            path = path.resolve()
        except (ValueError, RuntimeError):  # a null character; a loop of links
            raise BadImage("not_found", "There is no such file.") from None
        if self.settings is None or not _allowed(path, self.settings):
            raise BadImage("forbidden", "The path is not below a folder that may be read; see DARKROOM_IMPORT_ROOTS.")
        return path

    def _member(self, upload_id: str, index: int) -> bytes:
        """The bytes of a zip entry, counted as they are unpacked, whatever its header promises. Raises BadImage."""
        try:
            with self._lock:  # one ZipFile for all threads: the directory of a million members is a gigabyte
                if upload_id not in self._archives:
                    self._archives[upload_id] = open_zip(self.storage, upload_id)
                archive = self._archives[upload_id]
                entry = archive.open(archive.infolist()[index])
            try:
                return read_bounded(entry, self.max_bytes)
            finally:
                with self._lock:
                    entry.close()
        except (*DAMAGED, OSError, RuntimeError, ValueError) as error:
            raise BadImage("unreadable", f"The zip entry cannot be unpacked: {error}.") from None
