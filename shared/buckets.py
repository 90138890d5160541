"""Pictures in an object store: which addresses may be read, what lies below one, and the bytes of one.

An address is fsspec's, `s3://bucket/prefix`; the package of its kind (s3fs for s3) and its credentials are the operator's:
AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and the others that the package itself reads. No address may be read unless
`DARKROOM_IMPORT_ROOTS` names it or one above it.
"""

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import fsspec

from shared.errors import Invalid
from shared.images import read_bounded
from shared.settings import Settings
from shared.storage import store_errors

T = TypeVar("T")
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://[^/]+(/.*)?")


def is_address(path: str) -> bool:
    """Whether this is an address and not a path."""
    return bool(ADDRESS.fullmatch(path))


def check(address: str, settings: Settings) -> str:
    """An address that may be read, without a slash at its end. Raises Invalid with a sentence: not allowed, not there, not reachable."""
    address = address.rstrip("/")
    # `::` would name a second file system within the first, and `..` is a folder above for some kinds
    if "::" in address or ".." in address.split("/") or not _below_a_root(address, settings):
        raise Invalid(f"{address} is not below an address that may be read ({settings.roots}); see DARKROOM_IMPORT_ROOTS.", field="source")
    try:
        fs, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
        there = fs.isdir(path)
    except (ImportError, ValueError) as error:
        raise Invalid(f"Nothing here can read {address}: {error}", field="source") from None
    except store_errors() as error:
        raise Invalid(f"{address} cannot be read ({error}).", field="source") from None
    if not there:
        raise Invalid(f"There is nothing below {address}.", field="source")
    return address


def _below_a_root(address: str, settings: Settings) -> bool:
    roots = [root.rstrip("/") for root in settings.import_roots or () if is_address(root)]
    return any(address == root or address.startswith(f"{root}/") for root in roots)


def lister(address: str) -> Callable[[str], Iterator[tuple[str, bool]]]:
    """What lists a folder at or below an address: (name, whether it is a folder) each. It raises OSError."""
    fs, _ = fsspec.core.url_to_fs(address, use_listings_cache=False)

    def entries(folder: str) -> Iterator[tuple[str, bool]]:
        path = str(fsspec.core.strip_protocol(folder)).rstrip("/")
        for entry in _asked(lambda: fs.ls(path, detail=True)):
            above, _, name = entry["name"].rstrip("/").rpartition("/")
            if above == path and name:  # some stores list the folder itself, too
                yield name, entry["type"] == "directory"

    return entries


def read(address: str, max_bytes: int) -> bytes:
    """The bytes of a file. Raises OSError, and BadImage when it has more than `max_bytes`."""
    fs, path = fsspec.core.url_to_fs(address, use_listings_cache=False)

    def whole() -> bytes:
        with fs.open(path, "rb", cache_type="none") as f:  # one request for all of it, nothing ahead
            return read_bounded(f, max_bytes)

    return _asked(whole)


def _asked(ask: Callable[[], T]) -> T:
    """What an object store answers; its own kinds of errors become OSError."""
    try:
        return ask()
    except OSError:
        raise
    except store_errors() as error:
        raise OSError(str(error)) from error
