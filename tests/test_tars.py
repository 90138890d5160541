"""A tar is read as it comes, in order, and whoever made it harms nobody."""

import bz2
import gzip
import io
import lzma
import tarfile
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import Invalid
from shared.settings import Settings
from shared.tars import is_tar, members

LIMITS = Settings(max_zip_members=50)
PACKED: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
FILES = {"cat/1.jpg": b"one" * 1000, "cat/empty.jpg": b"", "dog/2.jpg": bytes(range(256)) * 700}


def tar(files: dict[str, bytes] | None = None, form: int = tarfile.PAX_FORMAT, **more: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in (FILES if files is None else files).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, kind in more.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return out.getvalue()


def read(data: bytes, limits: Settings = LIMITS) -> dict[str, bytes]:
    return {name: file.read() for name, _, file in members(io.BytesIO(data), limits)}


def refused(data: bytes, words: str, limits: Settings = LIMITS) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        read(data, limits)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_ordinary_files_come_in_order_however_they_are_packed(pack):
    assert is_tar(pack(tar())[:512])
    assert list(read(pack(tar())).items()) == list(FILES.items())


def test_what_is_not_read_is_passed_over():
    seen = [(name, file.read(10)) for name, _, file in members(io.BytesIO(gzip.compress(tar())), LIMITS)]
    assert seen == [(name, data[:10]) for name, data in FILES.items()]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"])
def test_long_names_and_names_of_any_script_are_read_in_each_form_of_tar(form):
    files = {"a" * 60 + "/" + "b" * 80 + ".jpg": b"1", "./dot/x.jpg": b"2", "Füße/犬.jpg": b"3"}
    assert list(read(tar(files, form)).values()) == [b"1", b"2", b"3"]
    assert list(read(tar(files, form))) == ["a" * 60 + "/" + "b" * 80 + ".jpg", "dot/x.jpg", "Füße/犬.jpg"]


def test_a_name_in_a_broken_encoding_is_text_all_the_same():
    (name,) = read(tar({"cat/\udcff.jpg": b"1"}, tarfile.GNU_FORMAT))
    assert name.encode() == b"cat/\xef\xbf\xbd.jpg"


def test_a_file_packed_in_several_pieces_is_one_tar():
    data = tar()
    assert read(gzip.compress(data[:700]) + gzip.compress(data[700:]) + bytes(100)) == FILES


@pytest.mark.parametrize("pack", PACKED.values(), ids=PACKED)
def test_a_tar_that_was_cut_off_is_told_wherever_it_was(pack):
    data = pack(tar())
    over = sum(512 + len(each) + -len(each) % 512 for each in FILES.values()) if pack is bytes else len(data) - 5
    for end in [*range(1, over, over // 40), over]:
        refused(data[:end], "cut off|not a tar|cannot be unpacked")


def test_a_checksum_that_does_not_fit_is_told():
    data = bytearray(gzip.compress(tar()))
    data[-6] ^= 1
    refused(bytes(data), "cannot be unpacked.*incorrect data check")


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:/x.jpg", "..\\x.jpg", "\\x.jpg"])
def test_a_path_outside_is_refused_whole(name):
    refused(tar({**FILES, name: b"x"}), "a path outside itself.*nothing of it was used")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
    ids=["symbolic", "hard", "character", "block", "pipe"],
)
def test_links_and_devices_are_refused(kind, words):
    refused(tar(thing=kind), f"holds {words}.*'thing'")


def test_too_many_entries_are_refused():
    refused(tar({f"{n}.jpg": b"" for n in range(51)}), "more than 50 entries")


def test_a_tar_without_files_has_none():
    assert read(tar({})) == {}
    assert read(tar({}, folder=tarfile.DIRTYPE)) == {}


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"hello" * 1000, gzip.compress(b"hello" * 1000, mtime=0), b"\x1f\x8bnot", b"BZhnot", b"\xfd7zXZ\x00not"]
)
def test_what_is_no_tar_is_told(data):
    refused(data, "cut off|not a tar|cannot be unpacked")


class Zeros:
    """The tar of a file of 10 GB of zeros, packed; some megabytes that are made as they are read."""

    def __init__(self, pack: Callable[[bytes], bytes]) -> None:
        info = tarfile.TarInfo("zeros.jpg")
        info.size = 10 * 10**9
        self._pieces: Iterator[bytes] = iter([pack(info.tobuf(tarfile.GNU_FORMAT)), *[pack(bytes(2**24))] * 600])
        self._rest = b""

    def read(self, size: int) -> bytes:
        while not self._rest:
            self._rest = next(self._pieces)
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_ten_gigabytes_of_zeros_are_refused_long_before_they_are_unpacked_and_take_no_memory(pack):
    zeros = Zeros(pack)
    tracemalloc.start()
    ((_, size, file),) = islice(members(zeros, LIMITS), 1)  # type: ignore[arg-type]
    assert size == 10 * 10**9
    with pytest.raises(Invalid, match="more than 100 times its size"):
        deque(iter(partial(file.read, 1 << 20), b""), maxlen=0)
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**24
    tracemalloc.stop()


def test_more_than_may_be_unpacked_is_refused_however_well_it_is_packed():
    refused(
        tar({"a.jpg": bytes(200_000)}), "more than 100,000 bytes; see DARKROOM_MAX_UNPACKED_BYTES", Settings(max_unpacked_bytes=100_000)
    )


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_is_not_gathered(kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 8 * 2**30
    refused(info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240), "a header of 8,589,934,592 bytes")


def test_a_window_of_gigabytes_in_an_xz_file_is_not_made():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**27 + 2**26}]
    refused(lzma.compress(tar(), filters=filters), "cannot be unpacked: Memory usage limit")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_tar_that_was_tampered_with_is_read_or_refused_and_nothing_else(data):
    form = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    whole = bytearray(tar({"n" * 130 + ".jpg": b"x" * 700, "é.jpg": b"y"}, form))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
        block = at // 512 * 512  # its checksum made right again, or little else would ever be looked at
        whole[block + 148 : block + 156] = b"%06o\0 " % (sum(whole[block : block + 512]) - sum(whole[block + 148 : block + 156]) + 256)
    with suppress(Invalid):
        assert isinstance(read(bytes(whole)), dict)
