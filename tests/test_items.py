"""Items of a batch: folders and zips that want to do harm."""

import io
import os
import stat
import subprocess
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shared import datasets, results
from shared.errors import Invalid, NotFound
from shared.images import BadImage
from shared.items import (
    FILES,
    Item,
    ItemReader,
    blob_key,
    check,
    check_folder,
    check_zip,
    files_key,
    list_key,
    locator_of,
    open_zip,
    upload_key,
    walk,
    walk_folder,
    walk_zip,
)
from shared.settings import Settings
from shared.specs import DatasetSource, FailedSource, FolderSource, ListSource, UploadSource, UrlsSource
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
        assert list(walk_zip(archive, upload_id)) == [("cats/a.png", f"zip:{upload_id}!2", "2")]


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
    assert [uri for uri, _, _ in walk_folder(tmp_path)] == ["a.png", "b/2.jpg", "b/=cmd.png", "b/🙂\n.png"]


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
    allowed = Settings(import_roots=[str(inside)])
    assert check_folder(str(inside), allowed) == inside
    for path in (outside, inside / "link", inside / ".." / "out"):
        with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
            check_folder(str(path), allowed)


def test_no_folder_may_be_named_when_others_can_reach_the_web(tmp_path):
    with pytest.raises(Invalid, match="DARKROOM_IMPORT_ROOTS"):
        check_folder(str(tmp_path), Settings(host="0.0.0.0"))


# -- walking any source, and going on behind any item ------------------------------------------------------------------

UPLOAD = "0123456789"
BATCH = "0" * 20


def resumed_everywhere(source: Any, storage: Storage, limits: Settings) -> list[Item]:
    """The items of a source, after going on behind each of them gave exactly the rest."""
    items = list(walk(source, storage, limits))
    for n, (_, _, cursor) in enumerate(items, 1):
        assert list(walk(source, storage, limits, after=cursor)) == items[n:]
    return items


def keep(storage: Storage, key: str, rows: list[tuple[str, str]], group: int = 2) -> None:
    with storage.writing(key) as f:
        pq.write_table(pa.table([list(c) for c in zip(*rows, strict=True)], schema=FILES), f, row_group_size=group)


def test_a_folder_is_walked_on_behind_any_file(storage, limits, tmp_path):
    names = ["a.png", "a/1.png", "a/b/2.png", "a/b.png", "a b.png", "ab/3.png", "z.png", "é/ü.png", "a%2f.png"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    items = resumed_everywhere(FolderSource(path=str(tmp_path / "photos")), storage, limits)
    assert [uri for uri, _, _ in items] == sorted(names, key=lambda name: name.split("/"))
    reader = ItemReader(storage, 10**6)
    assert all(reader.read(locator) == png() for _, locator, _ in items)


def test_a_walk_goes_on_where_the_last_file_was_though_it_is_gone(storage, limits, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png())
    source = FolderSource(path=str(tmp_path))
    cursor = list(walk(source, storage, limits))[1][2]
    (tmp_path / "b.png").unlink()
    assert [uri for uri, _, _ in walk(source, storage, limits, cursor)] == ["c.png"]


def test_a_name_in_a_broken_encoding_is_valid_text_and_still_opens(storage, limits, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    for name in (b"\xff\xfe.png", b"ok.png"):
        (folder / os.fsdecode(name)).write_bytes(png())
    items = resumed_everywhere(FolderSource(path=str(tmp_path)), storage, limits)
    assert sorted(uri for uri, _, _ in items) == ["caf?/??.png", "caf?/ok.png"]
    for uri, locator, cursor in items:
        assert (uri + locator + cursor).encode()
        assert ItemReader(storage, 10**6).read(locator) == png()


def test_a_folder_deeper_than_any_stack_is_walked(storage, limits, tmp_path):
    home = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1100):
            Path("d").mkdir()
            os.chdir("d")
        Path("1.png").write_bytes(png())
        os.chdir(home)
        (item,) = walk(FolderSource(path=str(tmp_path)), storage, limits)
        assert ItemReader(storage, 10**6).read(item[1]) == png()
    finally:
        os.chdir(home)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # it is too deep for pytest to remove


def test_a_folder_that_went_away_or_is_closed_is_an_item_that_says_so(storage, limits, tmp_path):
    for name in ("a/1.png", "b/1.png", "c/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png())
    found = walk(FolderSource(path=str(tmp_path)), storage, limits)
    first = next(found)
    (tmp_path / "b" / "1.png").unlink()
    (tmp_path / "b").rmdir()
    (_, locator, cursor), last = found
    assert (first[0], locator, cursor, last[0]) == ("a/1.png", f"file:{tmp_path}/b/", "b", "c/1.png")
    with pytest.raises(BadImage, match="no such file"):
        ItemReader(storage, 100).read(locator)


def test_a_zip_is_walked_on_behind_any_member(storage, limits):
    upload(storage, [("x/", b""), ("b.png", png()), ("notes.txt", b""), ("a.png", png()), ("c/d.png", png())])
    items = resumed_everywhere(UploadSource(id=UPLOAD), storage, limits)
    assert [(uri, cursor) for uri, _, cursor in items] == [("b.png", "1"), ("a.png", "3"), ("c/d.png", "4")]


def test_files_sent_one_by_one_and_lists_are_walked_across_row_groups(storage, limits):
    rows = [(f"{n}.png", f"blob:{n:064x}") for n in range(7)]
    keep(storage, files_key(UPLOAD), rows)
    keep(storage, list_key(UPLOAD), rows)
    for source in (UploadSource(id=UPLOAD), ListSource(id=UPLOAD)):
        items = resumed_everywhere(source, storage, limits)
        assert [(uri, locator) for uri, locator, _ in items] == rows


def test_addresses_are_walked_by_their_position(storage, limits):
    items = resumed_everywhere(UrlsSource(urls=["HTTP://a.example/1", "https://a.example/2?x=1,2"]), storage, limits)
    assert [locator for _, locator, _ in items] == ["http://a.example/1", "https://a.example/2?x=1,2"]


def test_the_kept_pictures_of_a_dataset_are_walked(storage, limits, tmp_path):
    rows = [
        datasets.blank_row(sha256=f"{n:064x}", ext="png", label=label, status=status, name=name)
        for n, (label, status, name) in enumerate(
            [("cat", "kept", "cat/1.png"), ("cat", "dropped", "cat/2.png"), ("dog", "kept", "Rex: a dog"), ("dog", "kept", "")]
        )
    ]
    (tmp_path / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
    storage.write("datasets/pets/v0001/manifest.parquet", datasets.manifest_bytes(rows))
    storage.write_json("datasets/pets/v0001/info.json", {"dataset": "pets", "version": 1})
    items = resumed_everywhere(DatasetSource(dataset="pets"), storage, limits)
    assert [uri for uri, _, _ in items] == ["cat/1.png", "dog/Rex: a dog", f"dog/{3:064x}.png"]
    assert items[0][1] == f"image:{0:064x}.png"


def test_the_failed_items_of_a_batch_are_walked_shard_by_shard(storage, limits):
    for first in (0, 3):
        rows = [
            {"item_id": n, "uri": f"{n}.png", "locator": f"file:/x/{n}.png", "label": "a", "probability": 0.5, "decision": "accept"}
            | {"error_code": "" if n % 2 else "truncated"}
            for n in range(first, first + 3)
        ]
        shard = results.shard_bytes(pa.Table.from_pylist(rows, schema=results.ROWS))
        storage.write(results.shard_key(BATCH, results.shard_name(first, first + 3)), shard)
    items = resumed_everywhere(FailedSource(batch=BATCH), storage, limits)
    assert items == [(f"{n}.png", f"file:/x/{n}.png", str(n)) for n in (0, 2, 4)]


def test_a_walk_is_lazy(storage, limits):
    source = UrlsSource(urls=[f"http://a.example/{n}" for n in range(1000)])
    assert len(list(islice(walk(source, storage, limits), 3))) == 3


@pytest.mark.parametrize(
    "source",
    [UploadSource(id=UPLOAD), ListSource(id=UPLOAD), DatasetSource(dataset="none"), FailedSource(batch=BATCH)],
    ids=lambda source: source.kind,
)
def test_what_is_not_there_is_told_at_once(storage, limits, source):
    with pytest.raises(NotFound):
        check(source, storage, limits)


# -- what a list names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["cats/1.png", "C:\\cats\\1.png", "file:///etc/passwd", "ftp://a.example/1", "", "/x" * 3000, "/a\0b"])
def test_a_line_that_names_nothing_is_an_item_that_says_so(storage, line):
    with pytest.raises(BadImage, match="neither an http or https address nor an absolute path") as error:
        ItemReader(storage, 100).read(locator_of(line))
    assert error.value.code == "unsupported"


def test_a_path_in_a_list_is_read_only_below_the_allowed_folders_with_links_resolved(storage, tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "100%25 1.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "100%25 1.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")
    reader = ItemReader(storage, 10**6, Settings(import_roots=[str(inside)]))
    assert reader.read(locator_of(f"{inside}/100%25 1.png")) == png()
    for name, code in [
        (outside / "100%25 1.png", "forbidden"),
        (inside / "link.png", "forbidden"),
        (f"{inside}/../out/100%25 1.png", "forbidden"),
        (inside / "loop.png", "not_found"),
        (inside / "gone.png", "not_found"),
        (inside, "unsupported"),
        (inside / ("x" * 300), "unreadable"),
    ]:
        with pytest.raises(BadImage) as error:
            reader.read(locator_of(str(name)))
        assert error.value.code == code, name


def test_a_path_in_a_list_is_not_read_when_others_can_reach_the_web(storage, tmp_path):
    (tmp_path / "1.png").write_bytes(png())
    for reader in (ItemReader(storage, 10**6), ItemReader(storage, 10**6, Settings(host="0.0.0.0"))):
        with pytest.raises(BadImage, match="DARKROOM_IMPORT_ROOTS"):
            reader.read(f"path:{tmp_path}/1.png")


def test_a_file_sent_by_its_content_is_read_and_one_that_was_cleared_is_an_error(storage):
    storage.write(blob_key("ab" * 32), png())
    reader = ItemReader(storage, 10**6)
    assert reader.read(f"blob:{'ab' * 32}") == png()
    with pytest.raises(BadImage) as error:
        reader.read(f"blob:{'cd' * 32}")
    assert error.value.code == "not_found"
