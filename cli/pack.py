"""Local pictures on their way to the server: one zip, uploaded."""

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any

import click

from cli.client import Client
from cli.follow import read_reporting, reporting
from shared.errors import DarkroomError


def upload(client: Client, paths: list[Path]) -> dict[str, Any]:
    """Upload a zip, or folders and pictures as one; returns the source for a spec. Symbolic links in folders are left out."""
    try:
        with _as_zip(paths) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            return client.upload(read_reporting(file, size, "uploading"), size)["source"]  # type: ignore[no-any-return]
    except OSError as error:
        raise DarkroomError(f"{error.filename or 'A file'} cannot be read or written: {error.strerror or error}.") from error


@contextmanager
def _as_zip(paths: list[Path]) -> Iterator[IO[bytes]]:
    if len(paths) == 1 and paths[0].suffix.lower() == ".zip":
        with paths[0].open("rb") as file:
            yield file
        return
    pictures = dict(_pictures(paths))
    if not pictures:
        raise DarkroomError(f"There are no pictures in {', '.join(map(str, paths))}.")
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive, reporting() as report:
            for done, (name, path) in enumerate(pictures.items()):
                report(done, len(pictures), "packing")
                archive.write(path, name)
        yield file


def _pictures(paths: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name in the zip, file): relative to the folder if one is given alone, otherwise as the paths were written."""
    from shared.images import IMAGE_SUFFIXES
    from shared.items import walk_folder

    for path in paths:
        if path.is_dir():
            above = [] if len(paths) == 1 else _inside(path)
            for uri, locator in walk_folder(path):
                yield "/".join([*above, uri]), Path(locator.removeprefix("file:"))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield "/".join([path.name] if len(paths) == 1 else _inside(path)), path
        else:
            raise click.UsageError(f"{path} is no picture by its name, and no folder. A zip is given alone.")


def _inside(path: Path) -> list[str]:
    return [part for part in PurePath(os.path.normpath(path)).parts if part not in {"..", path.anchor}]


def existing(paths: tuple[str, ...]) -> list[Path]:
    """The paths, if all of them are there. Raises UsageError."""
    for path in paths:
        if not Path(path).exists():
            raise click.UsageError(f"There is no file or folder {path!r} here. A folder of the server is named with --on-server.")
    return [Path(path) for path in paths]
