"""Uploads: one zip on storage, whole or not at all."""

import hashlib
import io
import json
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from werkzeug.datastructures import FileStorage

from shared.errors import Invalid
from shared.images import BadImage
from shared.items import ItemReader, blob_key, open_zip, upload_key, walk
from shared.settings import Settings
from shared.specs import ListSource, UploadSource
from web.backend import Backend
from web.uploads import (
    FormRequest,
    keep_addresses,
    keep_archive,
    keep_blob,
    keep_files,
    keep_list,
    keep_manifest,
    keep_table,
    keep_zip,
    member_name,
    missing_blobs,
)


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    return Backend(Settings(storage=str(tmp_path / "store"), cache=tmp_path / "cache", max_upload_bytes=100_000, max_zip_members=20))


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(out, "PNG")
    return out.getvalue()


def zipped(**members: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    out.seek(0)
    return out


def file(name: str, data: bytes | None = None) -> FileStorage:
    return FileStorage(io.BytesIO(picture() if data is None else data), name)


def names_in(backend: Backend, upload_id: str) -> list[str]:
    with open_zip(backend.storage, upload_id) as archive:
        return archive.namelist()


def left_behind(backend: Backend) -> list[Path]:
    return [p for p in Path(backend.storage.url).rglob("*") if p.is_file()]


def test_a_zip_is_kept_byte_by_byte(backend: Backend) -> None:
    sent = zipped(**{"cat/1.png": picture()})
    upload_id = keep_zip(backend, sent)
    assert backend.storage.read(upload_key(upload_id)) == sent.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"I am no zip at all.", "not a zip"),
        (zipped(**{"../evil.png": picture()}).getvalue(), "outside itself"),
        (zipped(**{"/etc/evil.png": picture()}).getvalue(), "outside itself"),
        (zipped().getvalue(), "is empty"),
        (zipped(**{"readme.txt": b"hello"}).getvalue(), "no pictures"),
        (zipped(**{f"{i}.png": b"x" for i in range(21)}).getvalue(), "at most 20"),
        (zipped(**{"1.png": b"x" * 100_001}).getvalue(), "larger than the 100,000 bytes"),
    ],
    ids=["nothing", "text", "dot-dot", "absolute", "empty zip", "no pictures", "too many", "too large"],
)
def test_a_bad_zip_is_refused_with_a_sentence_and_leaves_nothing(backend: Backend, content: bytes, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        keep_zip(backend, io.BytesIO(content))
    assert left_behind(backend) == []


def test_an_upload_that_breaks_off_leaves_nothing(backend: Backend) -> None:
    class BreaksOff(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise ConnectionResetError
            return super().read(10)

    with pytest.raises(ConnectionResetError):
        keep_zip(backend, BreaksOff(zipped(**{"1.png": picture()}).getvalue()))
    assert left_behind(backend) == []


def tarred(pack: str = "", **members: bytes) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{pack}") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    out.seek(0)
    return out


@pytest.mark.parametrize("pack", ["", "gz", "bz2", "xz"])
def test_a_tar_is_kept_as_a_zip_of_its_pictures_and_tables(backend: Backend, pack: str) -> None:
    members = {
        "./cat/1.png": picture(),
        "cat/notes.txt": b"x",
        "labels.csv": b"path,label\n",
        "__MACOSX/._1.png": b"x",
        "cat/.hidden.png": b"x",
    }
    upload_id = keep_archive(backend, tarred(pack, **members))
    with open_zip(backend.storage, upload_id) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"cat/1.png": picture(), "labels.csv": b"path,label\n"}


def test_a_zip_is_known_by_its_bytes_and_not_by_its_name(backend: Backend) -> None:
    sent = zipped(**{"cat/1.png": picture()})
    upload_id = keep_files(backend, [FileStorage(sent, "photos.tar.gz")])
    assert backend.storage.read(upload_key(upload_id)) == sent.getvalue()
    assert names_in(backend, keep_files(backend, [FileStorage(tarred("gz", **{"cat/1.png": picture()}), "photos.zip")])) == ["cat/1.png"]


def test_of_a_picture_that_is_too_large_no_more_is_kept_than_shows_it(backend: Backend) -> None:
    small = Backend(backend.settings.model_copy(update={"max_image_bytes": 1000}))
    upload_id = keep_archive(small, tarred("gz", **{"cat/1.png": bytes(90_000), "cat/2.png": picture()}))
    assert small.storage.size(upload_key(upload_id)) < 2000
    with pytest.raises(BadImage, match="more than 1,000 bytes"):
        ItemReader(small.storage, 1000).read(f"zip:{upload_id}!0")
    assert ItemReader(small.storage, 1000).read(f"zip:{upload_id}!1") == picture()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (tarred("gz", **{"cat/1.png": picture()}).getvalue()[:-30], "cut off"),
        (tarred(**{"../evil.png": picture()}).getvalue(), "outside itself"),
        (tarred(**{"/etc/evil.png": picture()}).getvalue(), "outside itself"),
        (tarred("gz").getvalue(), "The tar holds no pictures"),
        (tarred("xz", **{"readme.txt": b"hello"}).getvalue(), "The tar holds no pictures"),
        (tarred("gz", **{f"{i}.png": b"x" for i in range(21)}).getvalue(), "more than 20 entries"),
        (tarred(**{"1.png": b"x" * 100_001}).getvalue(), "larger than the 100,000 bytes"),
        (tarred("gz", **{"1.png": bytes(2_000_001)}).getvalue(), "unpacks to more than 2,000,000 bytes"),
    ],
    ids=["cut off", "dot-dot", "absolute", "empty", "no pictures", "too many", "too large", "unpacks to too much"],
)
def test_a_bad_tar_is_refused_with_a_sentence_and_leaves_nothing(backend: Backend, content: bytes, sentence: str) -> None:
    backend = Backend(backend.settings.model_copy(update={"max_unpacked_bytes": 2_000_000}))
    with pytest.raises(Invalid, match=sentence):
        keep_archive(backend, io.BytesIO(content))
    assert left_behind(backend) == []


def test_a_tar_with_a_link_or_a_device_is_refused_and_leaves_nothing(backend: Backend) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            archive.addfile(tarfile.TarInfo("cat/1.png"), io.BytesIO())
            info = tarfile.TarInfo("cat/2.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        with pytest.raises(Invalid, match=r"holds a (link|device)"):
            keep_archive(backend, io.BytesIO(out.getvalue()))
    assert left_behind(backend) == []


def promising(size: int, **flags: int) -> bytes:
    """A zip whose pictures promise to unpack to so many bytes each, and are zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(3):
            archive.writestr(f"{n}.png", bytes(20_000))
        for member in archive.filelist:
            member.file_size = size
            member.flag_bits |= flags.get("flag_bits", 0)
            member.external_attr = flags.get("mode", 0o644) << 16
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (promising(3_500_000_000), "unpacks to 10,500,000,000 bytes, more than 100 times its size"),
        (promising(10**12), "unpacks to 3,000,000,000,000 bytes; at most"),
        (promising(20_000, flag_bits=1), "protected by a password"),
        (promising(20_000, mode=stat.S_IFLNK | 0o777), "symbolic link"),
    ],
    ids=["10 GB of zeros", "more than is allowed", "encrypted", "links"],
)
def test_a_zip_that_promises_harm_is_refused_before_anything_of_it_is_read(backend: Backend, content: bytes, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        keep_archive(backend, io.BytesIO(content))
    assert left_behind(backend) == []


def test_a_zip_with_names_that_are_no_text_is_refused_with_a_sentence(backend: Backend) -> None:
    data = zipped(**{"cat/é.png": picture()}).getvalue().replace("é".encode(), b"\xff\xfe")
    with pytest.raises(Invalid, match="not a zip that can be read"):
        keep_archive(backend, io.BytesIO(data))
    assert left_behind(backend) == []


def test_a_csv_alone_is_kept_with_its_name_said(backend: Backend) -> None:
    data = b"url,label\nhttps://example.org/1.jpg,cat\n"
    for upload_id in (keep_table(backend, io.BytesIO(data)), keep_files(backend, [file("my list.csv", data)])):
        with open_zip(backend.storage, upload_id) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {"labels.csv": data}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no column `path` or `url`"),
        (b"url\nhttps://example.org/1.jpg\n", "no column `label`"),
        (b"\xff\xfeu\0r\0l\0", "no UTF-8 text"),
    ],
    ids=["empty", "no label", "UTF-16"],
)
def test_a_csv_that_names_no_images_or_classes_is_refused_and_leaves_nothing(backend: Backend, data: bytes, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        keep_table(backend, io.BytesIO(data))
    assert left_behind(backend) == []


def test_a_csv_of_a_gigabyte_in_one_line_is_refused_and_not_gathered_in_memory(backend: Backend) -> None:
    class Endless(io.RawIOBase):
        left = 10**9

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            head = b"url,label\n" if self.left == 10**9 else b""
            self.left -= size
            return head + b"x" * (size - len(head))

    tracemalloc.start()
    with pytest.raises(Invalid, match="The CSV has more than 268,435,456 bytes"):
        keep_table(backend, Endless())  # type: ignore[arg-type]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert left_behind(backend) == []


def test_single_files_become_one_zip_that_is_not_compressed(backend: Backend) -> None:
    upload_id = keep_files(backend, [file("one.png"), file("two.JPG")])
    with open_zip(backend.storage, upload_id) as archive:
        assert archive.namelist() == ["one.png", "two.JPG"]
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("one.png") == picture()


def test_files_of_a_chosen_folder_keep_their_path_in_it(backend: Backend) -> None:
    upload_id = keep_files(backend, [file("animals/cat/1.png"), file("animals/dog/1.png")])
    assert names_in(backend, upload_id) == ["animals/cat/1.png", "animals/dog/1.png"]


def test_files_of_the_same_name_are_numbered(backend: Backend) -> None:
    upload_id = keep_files(backend, [file("a/x.png"), file("a/x.png"), file("a/x.png")])
    assert names_in(backend, upload_id) == ["a/x.png", "a/x (2).png", "a/x (3).png"]


def test_files_that_are_no_pictures_by_name_are_passed_over(backend: Backend) -> None:
    upload_id = keep_files(backend, [file("d/.DS_Store"), file("d/notes.txt"), file("d/1.png")])
    assert names_in(backend, upload_id) == ["d/1.png"]


def test_a_zip_that_comes_alone_is_kept_as_the_zip(backend: Backend) -> None:
    sent = zipped(**{"cat/1.png": picture()})
    upload_id = keep_files(backend, [file(""), FileStorage(sent, "Pictures.ZIP")])
    assert backend.storage.read(upload_key(upload_id)) == sent.getvalue()


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "No file was uploaded"),
        ([("", b"")], "No file was uploaded"),
        ([("notes.txt", b"hello")], "None of the uploaded files is a picture"),
        ([("a.zip", b"PK"), ("b.png", b"x")], "either one zip or single pictures"),
        ([("a.zip", b"just text")], "not a zip"),
        ([(f"{i}.png", b"x") for i in range(21)], "at most 20"),
    ],
    ids=["none", "field left empty", "text", "zip and picture", "false zip", "too many"],
)
def test_files_that_cannot_be_used_are_refused_with_a_sentence_and_leave_nothing(
    backend: Backend, files: list[tuple[str, bytes]], sentence: str
) -> None:
    with pytest.raises(Invalid, match=sentence):
        keep_files(backend, [file(name, data) for name, data in files])
    assert left_behind(backend) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd.png", "etc/passwd.png"),
        ("/etc/x.png", "etc/x.png"),
        ("C:\\Users\\me\\x.png", "Users/me/x.png"),
        ("a:b:c.png", "c.png"),
        ("./a//../b/x.png", "a/b/x.png"),
        ("nul\0l.png", "null.png"),
        ("<img src=x>.png", "<img src=x>.png"),
        ("Büro/日本.png", "Büro/日本.png"),
        ("x" * 500 + ".png", "x" * 196 + ".png"),
        ("../..", ""),
    ],
)
def test_a_name_is_kept_as_data_without_what_leads_outside(sent: str, kept: str) -> None:
    assert member_name(sent) == kept


def test_a_hostile_name_makes_a_zip_that_passes_the_check(backend: Backend) -> None:
    upload_id = keep_files(backend, [file("../../../../tmp/x.png"), file("C:\\x.png"), file("\\\\host\\share\\x.png"), file("..\\.png")])
    assert names_in(backend, upload_id) == ["tmp/x.png", "x.png", "host/share/x.png"]


def test_the_files_of_a_form_share_one_open_file() -> None:
    boundary = b"--b\r\n"
    parts = [
        b'Content-Disposition: form-data; name="files"; filename="%d.png"\r\n\r\n%s\r\n' % (i, bytes([65 + i]) * (300_000 * i))
        for i in range(4)
    ]
    body = boundary + boundary.join(parts) + b"--b--\r\n"
    request = FormRequest.from_values(method="POST", data=body, content_type="multipart/form-data; boundary=b")
    files = request.files.getlist("files")
    last = files[3].stream.read(10)
    assert [f.stream.read() for f in files[:3]] == [bytes([65 + i]) * (300_000 * i) for i in range(3)]
    assert last + files[3].stream.read() == b"D" * 900_000
    assert len({f.stream._spool.fileno() for f in files}) == 1  # type: ignore[attr-defined]


def test_a_file_of_a_form_can_be_read_again_from_any_place() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n0123456789\r\n--b--\r\n'
    stream = FormRequest.from_values(method="POST", data=body, content_type="multipart/form-data; boundary=b").files["f"].stream
    stream.seek(-3, io.SEEK_END)
    assert stream.read() == b"789"
    stream.seek(2)
    stream.seek(2, io.SEEK_CUR)
    assert (stream.tell(), stream.read(100)) == (4, b"456789")


# -- files by their content --------------------------------------------------------------------------------------------


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(*entries: object) -> io.BytesIO:
    return io.BytesIO("".join(json.dumps(entry) + "\n" for entry in entries).encode())


def test_files_sent_by_their_content_and_then_named_are_an_upload(backend: Backend) -> None:
    one, two = hash_of(picture()), hash_of(b"two")
    assert missing_blobs(backend, [one, two]) == [one, two]
    assert keep_blob(backend, one, io.BytesIO(picture()))
    assert missing_blobs(backend, [one, two]) == [two]
    assert keep_blob(backend, two, io.BytesIO(b"two"))
    upload_id, count = keep_manifest(backend, manifest(["cat/1.png", one], ["../../dog/1.png", two], ["cat/again.png", one]))
    items = list(walk(UploadSource(id=upload_id), backend.storage, backend.settings))
    assert (count, [uri for uri, _, _ in items]) == (3, ["cat/1.png", "dog/1.png", "cat/again.png"])
    assert [ItemReader(backend.storage, 10**6).read(locator) for _, locator, _ in items] == [picture(), b"two", picture()]


def test_a_file_that_is_there_is_not_read_again(backend: Backend) -> None:
    keep_blob(backend, hash_of(b"one"), io.BytesIO(b"one"))
    again = io.BytesIO(b"one")
    assert not keep_blob(backend, hash_of(b"one"), again)
    assert again.tell() == 0


@pytest.mark.parametrize(
    ("sha256", "data", "sentence"),
    [
        (hash_of(b"one"), b"two", "send the file again"),
        (hash_of(b"one"), b"", "send the file again"),
        (hash_of(b"x" * 2000), b"x" * 2000, "larger than the 1,000 bytes"),
        ("../../etc/passwd", b"x", "is no SHA-256"),
        (hash_of(b"one").upper(), b"one", "is no SHA-256"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_not_kept(tmp_path: Path, sha256: str, data: bytes, sentence: str) -> None:
    backend = Backend(Settings(storage=str(tmp_path / "store"), max_image_bytes=1000))
    with pytest.raises(Invalid, match=sentence):
        keep_blob(backend, sha256, io.BytesIO(data))
    assert left_behind(backend) == []


def test_names_whose_files_were_not_sent_are_refused_with_their_number(backend: Backend) -> None:
    keep_blob(backend, hash_of(b"one"), io.BytesIO(b"one"))
    with pytest.raises(Invalid, match="2 of the files were not sent yet"):
        keep_manifest(backend, manifest(["1.png", hash_of(b"one")], ["2.png", hash_of(b"two")], ["3.png", hash_of(b"three")]))
    assert left_behind(backend) == [Path(backend.storage.url) / blob_key(hash_of(b"one"))]


def test_a_file_too_large_to_be_sent_is_an_item_that_says_so(backend: Backend) -> None:
    upload_id, _ = keep_manifest(backend, manifest(["huge.png", None]))
    ((uri, locator, _),) = walk(UploadSource(id=upload_id), backend.storage, backend.settings)
    with pytest.raises(BadImage, match="larger than") as error:
        ItemReader(backend.storage, 10).read(locator)
    assert (uri, error.value.code) == ("huge.png", "too_large")


@pytest.mark.parametrize(
    "body",
    [b"", b"\n\n", b"{", b'["a.png"]\n', b'"a.png"', b"[1, null]", b'["a.png", "xyz"]', b'["a.png", 7]', b"\xff\xfe", b"[" * 100_000],
    ids=["nothing", "blank", "cut", "no hash", "text", "number", "no SHA-256", "number as hash", "no text", "deep"],
)
def test_a_list_of_names_that_cannot_be_read_is_refused_and_leaves_nothing(backend: Backend, body: bytes) -> None:
    with pytest.raises(Invalid):
        keep_manifest(backend, io.BytesIO(body))
    assert left_behind(backend) == []


@pytest.mark.parametrize("hashes", [None, "x", [1], ["x"], ["a" * 64] * 10_001])
def test_a_question_that_holds_no_hashes_is_refused(backend: Backend, hashes: object) -> None:
    with pytest.raises(Invalid):
        missing_blobs(backend, hashes)


# -- lists -------------------------------------------------------------------------------------------------------------


def listed(backend: Backend, text: str | bytes, is_csv: bool = False) -> list[str]:
    body = text if isinstance(text, bytes) else text.encode()
    upload_id, count = keep_list(backend, io.BytesIO(body), is_csv)
    uris = [uri for uri, _, _ in walk(ListSource(id=upload_id), backend.storage, backend.settings)]
    assert len(uris) == count
    return uris


@pytest.mark.parametrize(
    ("text", "uris"),
    [
        ("http://a/1\n\n# a comment\n/srv/2.png\n", ["http://a/1", "/srv/2.png"]),
        ("\ufeffhttp://a/1\r\n/srv/b c.png\rhttp://a/3", ["http://a/1", "/srv/b c.png", "http://a/3"]),
        ("http://a/1,2.png\nhttp://a/3;4.png\n", ["http://a/1,2.png", "http://a/3;4.png"]),
        ('"/srv/a ""b"".png"\n', ['/srv/a "b".png']),
        ("cats/1.png\n/srv/2.png\n", ["cats/1.png", "/srv/2.png"]),
        ('id,URL,label\n1,http://a/1,cat\n2,"http://a/2,3",dog\n3\n', ["http://a/1", "http://a/2,3", ""]),
        ("label;Path\ncat;/srv/1.png\n", ["/srv/1.png"]),
        ("label\tfilename\ncat\t/srv/1.png\n", ["/srv/1.png"]),
        ("filename,url\n1.png,http://a/1\n", ["http://a/1"]),
        ("url\nhttp://a/1,2\n\n# none\n,,\nhttp://a/3\n", ["http://a/1,2", "http://a/3"]),
        ('url,caption\nhttp://a/1,"two\nlines"\nhttp://a/2,\n,,\n', ["http://a/1", "http://a/2"]),
    ],
)
def test_lines_and_csv_are_understood(backend: Backend, text: str, uris: list[str]) -> None:
    assert listed(backend, text) == uris


def test_a_csv_without_a_known_column_is_read_by_its_first(backend: Backend) -> None:
    assert listed(backend, "http://a/1,cat\n/srv/2.png,dog\n", is_csv=True) == ["http://a/1", "/srv/2.png"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "empty"),
        (b"\n# nothing\n\n", "empty"),
        (b"url\n", "empty"),
        (b"http://a/1\ncaf\xe9\n", "no UTF-8 text near its line 1"),
        ("http://a/1\n".encode("utf-16"), "no UTF-8 text"),
        (b'url,caption\nhttp://a/1,"never closed\nhttp://a/2,x\n', "CSV cannot be read near its line"),
        (b"x" * 200_000, "larger than the 100,000 bytes"),
        (b"http://a/1\n" * 21, "more than 20 items"),
        (b"cats/1.png\ncats/2.png\n", "'cats/1.png'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_a_sentence_and_leaves_nothing(backend: Backend, text: bytes, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        keep_list(backend, io.BytesIO(text))
    assert left_behind(backend) == []


def test_a_line_without_an_end_is_not_gathered_for_ever(tmp_path: Path) -> None:
    backend = Backend(Settings(storage=str(tmp_path / "store")))
    with pytest.raises(Invalid, match="Line 2 is longer"):
        keep_list(backend, io.BytesIO(b"http://a/1\n" + b"x" * 10**6))


def test_the_same_addresses_are_kept_once(backend: Backend) -> None:
    first = keep_addresses(backend, ["http://a/1", "http://a/2"])
    assert keep_addresses(backend, ["http://a/1", "http://a/2"]) == first
    assert len(left_behind(backend)) == 1
    assert keep_addresses(backend, ["http://a/1"]) != first
