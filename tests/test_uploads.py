"""Uploads: one zip on storage, whole or not at all."""

import io
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from werkzeug.datastructures import FileStorage

from shared.errors import Invalid
from shared.items import open_zip, upload_key
from shared.settings import Settings
from web.backend import Backend
from web.uploads import FormRequest, keep_files, keep_zip, member_name


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
