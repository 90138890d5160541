"""Items of a batch: folders and zips that want to do harm."""

import io
import os
import stat
import zipfile

import pytest
from PIL import Image

from shared.errors import Invalid
from shared.images import BadImage
from shared.items import ItemReader, check_folder, check_zip, open_zip, upload_key, walk_folder, walk_zip
from shared.settings import Settings
from shared.storage import Storage


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def limits(tmp_path):
    return Settings(storage=str(tmp_path / "store"), max_zip_members=50)


def upload(storage, members, **how) -> str:
    """A zip with these (name or ZipInfo, bytes) members, as it lies on storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data, **how)
    storage.write(upload_key("0123456789"), out.getvalue())
    return "0123456789"


def refused(storage, limits, members, match):
    with open_zip(storage, upload(storage, members)) as archive, pytest.raises(Invalid, match=match):
        check_zip(archive, limits)


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_a_zip_with_a_path_outside_itself_is_refused_whole(storage, limits, name):
    refused(storage, limits, [("good.png", png()), (name, png())], "path outside itself")


def test_a_zip_with_a_symbolic_link_is_refused(storage, limits):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(storage, limits, [(link, b"/etc/passwd")], "symbolic link")


def test_an_empty_zip_is_refused(storage, limits):
    refused(storage, limits, [], "zip is empty")


def test_a_zip_without_pictures_is_refused(storage, limits):
    refused(storage, limits, [("readme.txt", b"hello")], "no pictures")


def test_a_zip_of_too_many_entries_is_refused(storage, limits):
    refused(storage, limits, [(f"{n}.png", b"") for n in range(51)], "51 entries")


def test_what_is_no_zip_is_refused(storage):
    storage.write(upload_key("0123456789"), b"PK\x03\x04 but not really")
    with pytest.raises(Invalid, match="not a zip"):
        open_zip(storage, "0123456789")


def test_system_files_in_a_zip_are_passed_over(storage):
    upload_id = upload(storage, [("__MACOSX/._a.png", b""), ("cats/.hidden.png", b""), ("cats/a.png", png()), ("cats/", b"")])
    with open_zip(storage, upload_id) as archive:
        assert list(walk_zip(archive, upload_id)) == [("cats/a.png", f"zip:{upload_id}!2")]


def test_a_zip_entry_is_read_in_place_and_never_more_than_allowed(storage):
    upload_id = upload(storage, [("a.png", png()), ("bomb.png", b"\0" * 5_000_000)])
    reader = ItemReader(storage, max_bytes=1_000_000)
    assert reader.read(f"zip:{upload_id}!0") == png()
    with pytest.raises(BadImage, match="more than 1,000,000 bytes") as error:
        reader.read(f"zip:{upload_id}!1")
    assert error.value.code == "too_large"


def test_a_damaged_entry_is_one_bad_item(storage):
    upload_id = upload(storage, [("a.png", png() * 50), ("b.png", png())])
    whole = bytearray(storage.read(upload_key(upload_id)))
    whole[60:90] = b"\xff" * 30
    storage.write(upload_key(upload_id), bytes(whole))
    reader = ItemReader(storage, 10**6)
    with pytest.raises(BadImage):
        reader.read(f"zip:{upload_id}!0")
    assert reader.read(f"zip:{upload_id}!1") == png()


def test_a_folder_is_walked_in_order_without_links_pipes_and_hidden_files(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ["b/2.jpg", "a.png", ".hidden.png", "notes.txt", "b/=cmd.png", "b/🙂\n.png"]:
        (tmp_path / name).write_bytes(png())
    (tmp_path / "link.png").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    assert [uri for uri, _ in walk_folder(tmp_path)] == ["a.png", "b/2.jpg", "b/=cmd.png", "b/🙂\n.png"]


def test_a_file_that_went_away_is_one_bad_item(storage, tmp_path):
    with pytest.raises(BadImage) as error:
        ItemReader(storage, 10).read(f"file:{tmp_path}/gone.png")
    assert error.value.code == "not_found"


def test_a_pipe_does_not_hang_the_reader(storage, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage):
        ItemReader(storage, 10).read(f"file:{tmp_path}/pipe.png")


@pytest.mark.parametrize(("path", "match"), [("photos", "absolute"), ("/no/such/folder", "no folder"), ("/etc/passwd", "not a folder")])
def test_a_folder_that_cannot_be_used_is_a_sentence(limits, path, match):
    with pytest.raises(Invalid, match=match):
        check_folder(path, limits)


def test_only_folders_below_the_allowed_roots_may_be_named(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    allowed = Settings(import_roots=[inside])
    assert check_folder(str(inside), allowed) == inside
    for path in (outside, inside / "link", inside / ".." / "out"):
        with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
            check_folder(str(path), allowed)


def test_no_folder_may_be_named_when_others_can_reach_the_web(tmp_path):
    with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
        check_folder(str(tmp_path), Settings(host="0.0.0.0"))
