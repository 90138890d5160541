"""Near duplicates: pictures that are the same one resized, saved again, trimmed or retouched a little. Who they are, and which group each is in.

Two pictures are near duplicates when two looks agree. The first compares perceptual hashes of 64 bits, all with all: exact, and without a worst case. Alone it
would take every shirt on the same cloth for one: of 5.8 million pairs of clothing photographs 665 are within the radius. So the second compares thumbnails
(`worker/measuring.py`): the pattern of light, whatever its brightness, contrast and small moves, and the colours. It leaves 3 of the 665, one of which is the same picture in two
classes. Of 300 of these photographs it finds all that were made half as large and saved at quality 40, 98 % made brighter by a fifth, 97 % with a line of text put in, 85 % trimmed by
2 % a side, 85 % turned by 1.5 degrees. Mirrored pictures, and crops that leave out a tenth, are other pictures.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

RADIUS = 10  # bits in which hashes may differ: 99 % of photographs trimmed by 2 % a side, 98 % of those with a line of text put in
ALONE = 2  # the same for pictures of an earlier Darkroom, which have no thumbnail to look at
DEGENERATE = 8  # a hash with fewer bits is of a picture of one colour; half of the 64 are set where there is something to see
PATTERN = 0.95  # correlation of the gradients of two thumbnails, from which they show the same
SMALL, SMALL_PATTERN = (
    96,
    0.99,
)  # two pictures of fewer pixels hold little more than their thumbnails, as scans of digits do, and have to agree as wholly
COLOUR = 12  # of 255: how far the chroma of any sixteenth of the picture may differ, once the stronger is made as pale as the other
FADED = 0.5  # a paler copy has at least this share of the other's chroma, unless it has none at all
COLOURLESS = 4  # of 255: chroma of a picture that has no colour
SIDE = 12
PIXELS, CHROMA = SIDE * SIDE, 4 * 4 * 2  # bytes of a thumbnail
CHUNK = 2048  # pairs that are looked at together

Uints = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def nothing() -> None:
    """What is called now and then where nobody waits."""


def near_pairs(rows: list[dict[str, Any]], check: Callable[[], None] = nothing) -> Pairs:
    """(m, 2) positions in `rows` of near duplicates, the earlier first. `check` is called now and then, and may raise.

    A row without a perceptual hash, or whose picture is of one colour, is like no other.
    """
    hashes = np.array([int(row["phash"] or "0", 16) for row in rows], np.uint64)
    at = np.flatnonzero(np.bitwise_count(hashes) >= DEGENERATE)
    found = [pairs[_same([rows[i] for i in pairs.ravel()], hashes[pairs])] for pairs in _chunks(hashes[at], at, check)]
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _chunks(hashes: Uints, at: Pairs, check: Callable[[], None]) -> Iterator[Pairs]:
    """Pairs of hashes within `RADIUS`, some thousands at a time; `at`: their positions, (n,)."""
    waiting: list[Pairs] = []
    count = 0
    for i, near in _within(hashes):
        if i % 1024 == 0:
            check()
        waiting.append(np.stack([np.full(len(near), at[i]), at[near]], axis=1))
        count += len(near)
        if count >= CHUNK:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if count:
        yield np.concatenate(waiting)


def _within(hashes: Uints) -> Iterator[tuple[int, Pairs]]:
    """Of each hash the positions of those after it that are within `RADIUS`."""
    differing = np.empty(len(hashes), np.uint64)
    bits = np.empty(len(hashes), np.uint8)
    for i in range(len(hashes) - 1):
        n = len(hashes) - i - 1
        np.bitwise_xor(hashes[i + 1 :], hashes[i], out=differing[:n])
        np.bitwise_count(differing[:n], out=bits[:n])
        yield i, i + 1 + np.flatnonzero(bits[:n] <= RADIUS)


def _same(rows: list[dict[str, Any]], hashes: Uints) -> npt.NDArray[np.bool_]:
    """Whether m pairs whose hashes are near show the same. `rows`: 2 m of them, pair by pair; `hashes`: (m, 2)."""
    luma, colour, known = _thumbs(rows)
    small = np.array([0 < max(row["width"], row["height"]) < SMALL for row in rows], np.bool_)
    least = np.where(small[::2] & small[1::2], SMALL_PATTERN, PATTERN)
    alike = np.minimum(_alike(luma[::2], luma[1::2]), _alike(luma[1::2], luma[::2])) >= least
    alike &= _same_colours(colour[::2], colour[1::2])
    nearly = np.bitwise_count(hashes[:, 0] ^ hashes[:, 1]) <= ALONE
    return np.asarray(np.where(known[::2] & known[1::2], alike, nearly), np.bool_)


def _thumbs(rows: list[dict[str, Any]]) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Of n thumbnails the luma, (n, 12, 12); the chroma around 0, (n, 32); and which rows have a thumbnail, (n,)."""
    data = b"".join(base64.b64decode(row["thumb"]) or bytes(PIXELS + CHROMA) for row in rows)
    flat = np.frombuffer(data, np.uint8).reshape(-1, PIXELS + CHROMA).astype(np.float32)
    return flat[:, :PIXELS].reshape(-1, SIDE, SIDE), flat[:, PIXELS:] - 128, np.array([bool(row["thumb"]) for row in rows], np.bool_)


def _alike(a: Floats, b: Floats) -> Floats:
    """How much of the pattern of `b` is that of `a`, each (m, 12, 12), once `a` is shifted, scaled, turned and sheared a little as fits best: (m,), up to 1.

    A small move changes a picture by its derivatives (Lucas and Kanade 1981), so that the best one is a regression of gradients on gradients.
    """
    down, right = np.gradient(a, axis=(1, 2))
    at = np.linspace(-1, 1, SIDE, dtype=np.float32)
    y, x = at[:, None], at[None, :]
    moves = _slopes(np.stack([a, right, down, x * right, y * down, y * right, x * down], axis=1))
    wanted = _slopes(b)
    squares = moves @ moves.transpose(0, 2, 1)
    squares += np.eye(len(squares[0]), dtype=np.float32) * (
        np.trace(squares, axis1=1, axis2=2)[:, None, None] * 1e-4 + 1e-3
    )  # a flat picture has none
    best = np.linalg.solve(squares, moves @ wanted[:, :, None])
    moved = (best.transpose(0, 2, 1) @ moves)[:, 0]
    return np.asarray((moved * wanted).sum(1) / (np.linalg.norm(moved, axis=1) * np.linalg.norm(wanted, axis=1) + 1e-6), np.float32)


def _slopes(luma: Floats) -> Floats:
    """The gradients of pictures (..., 12, 12), around their mean: (..., 264)."""
    parts = [np.diff(luma, axis=axis).reshape(*luma.shape[:-2], -1) for axis in (-2, -1)]
    slopes = np.concatenate(parts, axis=-1)
    return np.asarray(slopes - slopes.mean(-1, keepdims=True))


def _same_colours(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    """Whether pictures have the same colours, however strong; one without any is a copy of whatever it shows. Each (m, 32) -> (m,)."""
    swap = (np.abs(a).sum(1) > np.abs(b).sum(1))[:, None]
    pale, strong = np.where(swap, b, a), np.where(swap, a, b)
    gain = (pale * strong).sum(1) / ((strong * strong).sum(1) + 1e-6)
    apart = np.abs(pale - np.clip(gain, FADED, 1)[:, None] * strong).max(1)
    return np.asarray((apart <= COLOUR) | (np.abs(pale).max(1) <= COLOURLESS))


def assign(rows: list[dict[str, Any]], check: Callable[[], None] = nothing) -> None:
    """Write into the kept `rows` the `group` that each is in: the sha256 of its first picture, or "" for a picture that is like no other.

    Groups are for ever: a row keeps the one it has, a new picture joins the group of what it is like, and groups that it brings together get the name of the
    one that comes first in `rows`, which is the oldest. So what was on one side of the split stays there, but where two groups turn out to be one.
    """
    kept = [row for row in rows if row["status"] == "kept"]
    parent = list(range(len(kept)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    def join(a: int, b: int) -> None:
        a, b = sorted((root(a), root(b)))
        parent[b] = a

    first: dict[str, int] = {}
    for i, row in enumerate(kept):
        if row["group"]:
            join(first.setdefault(row["group"], i), i)
    for a, b in near_pairs(kept, check).tolist():
        join(a, b)
    names = [row["group"] or row["sha256"] for row in kept]
    sizes = Counter(root(i) for i in range(len(kept)))
    for i, row in enumerate(kept):
        if sizes[root(i)] > 1:
            row["group"] = names[root(i)]


def groups(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The kept rows that share a group, two or more each, in the order of `rows`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == "kept" and row["group"]:
            found.setdefault(row["group"], []).append(row)
    return [members for members in found.values() if len(members) > 1]
