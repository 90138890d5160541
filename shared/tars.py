"""Reading a tar as it comes, in order, however it is compressed, and never more of it than is allowed.

Nothing is unpacked here and no name becomes a path: `members` yields the ordinary files, each a stream that is read before the
next is asked for. Python's tarfile would gather a header of any size in memory and end quietly where a tar was cut off.
"""

import bz2
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from shared.errors import Invalid
from shared.settings import Settings

RATIO = 100  # times its size that an archive may unpack to; photographs hardly become smaller
HARMLESS = 2**28  # bytes that anything may unpack to
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 16
MAX_HEADER = 1 << 20  # bytes of a long name or of extended attributes
MEMORY = 2**27  # bytes that unpacking xz may take
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
MAGIC = 6  # bytes by which a compressed file is known
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with these 512 bytes is a tar, compressed or not; what is compressed is taken for one."""
    return head.startswith(COMPRESSED) or head[257:262] == b"ustar"


def members(stream: IO[bytes], settings: Settings) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, bytes, file) of each ordinary file of a tar, in order. A file is read as far as it is wanted, before the next is asked for.

    Raises Invalid with a sentence: no tar, cut off, too many or too large files, a path outside itself, a link or a device.
    """
    count = 0
    try:
        reader = _Reader(stream, settings.max_unpacked_bytes)
        for info in _headers(reader):
            count += 1
            if count > settings.max_zip_members:
                raise Invalid(f"The tar has more than {settings.max_zip_members:,} entries; see DARKROOM_MAX_ZIP_MEMBERS.", field="source")
            name = _checked_name(info)
            if info.isreg():
                file = _Member(reader, info.size)
                yield name, info.size, io.BufferedReader(file, CHUNK)
                file.close_up()
        while reader.read(CHUNK):  # what follows the end is padding; a checksum of the whole is behind it
            pass
    except (tarfile.HeaderError, ValueError) as error:
        raise Invalid(f"The file is not a tar that can be read ({error}).", field="source") from None


def _cut_off() -> Invalid:
    return Invalid("The tar ends too early; it was cut off on its way. Nothing of it was used.", field="source")


def _headers(reader: "_Reader") -> Iterator[tarfile.TarInfo]:
    """The header of each entry, with long names put in place; ends at the tar's own end."""
    known: dict[str, str] = {}
    while True:
        block = reader.exactly(BLOCK)
        if not block.strip(b"\0"):
            return
        info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            if info.size > MAX_HEADER:
                raise Invalid(f"The tar has a header of {info.size:,} bytes; at most {MAX_HEADER:,} are allowed.", field="source")
            data = reader.exactly(info.size + -info.size % BLOCK)[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                known["path"] = data.rstrip(b"\0").decode("utf-8", "replace")
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                known |= _attributes(data)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse") for name in known):
            raise Invalid(f"The tar holds a sparse file ({info.name[:100]!r}); make it anew without.", field="source")
        info.name = known.get("path", info.name)
        info.size = int(known.get("size", info.size))
        known = {}
        if info.size < 0:
            raise ValueError("negative size")
        yield info
        if not info.isreg():
            reader.skip(info.size + -info.size % BLOCK if info.type not in (*LINKS, *DEVICES, tarfile.DIRTYPE) else 0)


def _attributes(data: bytes) -> dict[str, str]:
    """The records of a pax header, each its length, a blank, `name=value` and the end of a line."""
    found = {}
    while data:
        length = int(data[: data.index(b" ")])
        if not 5 <= length <= len(data):
            raise ValueError("broken pax header")
        name, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
        found[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        data = data[length:]
    return found


def _checked_name(info: tarfile.TarInfo) -> str:
    """The name below the tar's root. Raises Invalid for what leads outside, and for links and devices."""
    parts = info.name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or (len(info.name) > 1 and info.name[1] == ":"):
        raise Invalid(f"The tar holds a path outside itself ({info.name[:100]!r}); nothing of it was used.", field="source")
    if info.type in LINKS:
        raise Invalid(f"The tar holds a link ({info.name[:100]!r}); nothing of it was used.", field="source")
    if info.type in DEVICES:
        raise Invalid(f"The tar holds a device or a pipe ({info.name[:100]!r}); nothing of it was used.", field="source")
    return "/".join(part for part in parts if part not in {"", "."})


class _Reader:
    """The unpacked bytes of a tar, counted. Never more of them are in memory than are asked for, and a chunk."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most
        self._packed = self._unpacked = 0
        self._buffer = b""  # packed bytes that are not unpacked yet, or plain ones
        self._unpack = self._begun()

    def _begun(self) -> "_Decompressor | None":
        """What unpacks the bytes that follow; None: they are not packed."""
        while len(self._buffer) < MAGIC and self._fill():
            pass
        return _decompressor(self._buffer)

    def _fill(self) -> bool:
        data = self._stream.read(CHUNK)
        self._packed += len(data)
        self._buffer += data
        return bool(data)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises Invalid for a bomb, and for a packed file that was cut off or damaged."""
        while True:
            data = self._some(size)
            self._unpacked += len(data)
            if self._unpacked > self._most:
                raise Invalid(f"The tar unpacks to more than {self._most:,} bytes; see DARKROOM_MAX_UNPACKED_BYTES.", field="source")
            if self._unpacked > max(HARMLESS, RATIO * self._packed):
                raise Invalid(f"The tar unpacks to more than {RATIO} times its size; that is no tar of images.", field="source")
            if data:
                return data
            if self._unpack and self._unpack.eof:
                self._buffer = self._unpack.unused_data + self._buffer
                self._unpack = self._begun()  # files that were packed one by one and put together
                if self._unpack is None:  # nothing, or padding
                    self._buffer, self._stream = b"", io.BytesIO()
                    return b""
            elif not self._fill():
                if self._unpack:
                    raise _cut_off()
                return b""

    def _some(self, size: int) -> bytes:
        data, self._buffer = self._buffer, b""
        if self._unpack is None:
            self._buffer = data[size:]
            return data[:size]
        if self._unpack.eof:
            self._buffer = data
            return b""
        try:
            return self._unpack.decompress(data, size)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
            raise Invalid(f"The tar cannot be unpacked: {error}.", field="source") from None

    def exactly(self, size: int) -> bytes:
        """`size` bytes, which are few. Raises Invalid when the tar ends before."""
        data = b""
        while len(data) < size:
            more = self.read(size - len(data))
            if not more:
                raise _cut_off()
            data += more
        return data

    def skip(self, size: int) -> None:
        """Pass over bytes. Raises Invalid when the tar ends before."""
        while size:
            data = self.read(min(size, CHUNK))
            if not data:
                raise _cut_off()
            size -= len(data)


class _Gzip:
    """zlib's object of a gzip file, with the interface of bz2's and lzma's, which keep what they have not unpacked yet."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = 0) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


_Decompressor = _Gzip | bz2.BZ2Decompressor | lzma.LZMADecompressor


def _decompressor(head: bytes) -> _Decompressor | None:
    if head.startswith(COMPRESSED[0]):
        return _Gzip()
    if head.startswith(COMPRESSED[1]):
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY) if head.startswith(COMPRESSED[2]) else None


class _Member(io.RawIOBase):
    """One file within a tar."""

    def __init__(self, reader: _Reader, size: int) -> None:
        self._reader = reader
        self._left = size
        self._padding = -size % BLOCK

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            return 0
        data = self._reader.read(min(len(buffer), self._left))
        if not data:
            raise _cut_off()
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def readable(self) -> bool:
        return True

    def close_up(self) -> None:
        """Pass over what was not read."""
        self._reader.skip(self._left + self._padding)
        self._left = 0
