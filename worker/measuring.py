"""What a dataset keeps of how a picture looks: a few numbers and two small signatures, from which shared/findings.py tells what is odd.

All are taken from one copy of at most 256 pixels, about a millisecond together; the picture is decoded once, by whoever examines it.
The measures are those of cleanvision 0.3.7 (Apache 2.0; image_property.py) with two exceptions. Its blurriness, edges of a copy of 64 pixels,
hardly changes when a photograph is blurred by 2 pixels of 256 (medians 0.48 and 0.42 over clothing, whose own spread is 0.3 to 0.77); the
steepest edges against the range of brightness do (0.75 and 0.05), and a sharp thing before a soft background stays sharp. And it calls a picture
grey by its file's mode, which a grey picture saved in colour has not.
"""

import base64
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import imagehash
import numpy as np
from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from shared.errors import NotFound
from shared.images import BadImage, decode
from shared.storage import Storage, image_key

SIDE = 256  # of the copy, pixels: about what a network sees
AHEAD = 4  # pictures in hand a thread
NOISE = 8  # of 255: what a picture of one colour differs within itself, and no edge
_BOX = ResizeOptions(ResizeAlg.convolution(FilterType.box))
_of_thread = threading.local()  # a Resizer keeps its buffers, and is one thread's


def measure(image: Image.Image) -> dict[str, Any]:
    """The columns of a manifest row that say how a decoded RGB picture looks.

    brightness_p5, brightness_p99: of luma, 0 black to 1 white; sharpness: the steepest edges (99.5th percentile of the Laplacian) against the range of
    brightness, about 1 for a photograph, 0.05 for one blurred by two pixels of 256; entropy: of luma, bits; chroma: distance from grey of all but the most
    colourful hundredth, 0 to 1; phash: perceptual hash, 64 bits as hex; thumb: 12 x 12 luma and 4 x 4 x 2 chroma, uint8, as base64.
    """
    small = reduced(image)
    grey = small.convert("L")
    levels = np.cumsum(grey.histogram())
    p1, p5, p99 = (_percentile(levels, share) for share in (0.01, 0.05, 0.99))
    colours = small.reduce(2).convert("YCbCr") if min(small.size) > 1 else small.convert("YCbCr")
    return {
        "brightness_p5": p5 / 255,
        "brightness_p99": p99 / 255,
        "sharpness": _steepest(grey) / (p99 - p1 + NOISE),
        "entropy": grey.entropy(),
        "chroma": _chroma(colours),
        "phash": str(imagehash.phash(grey)),
        "thumb": _thumb(grey, colours),
    }


def reduced(image: Image.Image) -> Image.Image:
    """The picture at no more than `SIDE` pixels a side."""
    longest = max(image.size)
    if longest <= SIDE:
        return image
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = Resizer()
    small = Image.new("RGB", (max(1, round(image.width * SIDE / longest)), max(1, round(image.height * SIDE / longest))))
    _of_thread.resizer.resize_pil(image, small, _BOX)
    return small


def _percentile(cumulated: np.ndarray, share: float) -> int:
    return int(np.searchsorted(cumulated, share * cumulated[-1]))


def _steepest(grey: Image.Image) -> float:
    """The 99.5th percentile of the absolute Laplacian, 0 to 1020; 0 for a picture that has no inside."""
    a = np.asarray(grey).astype(np.int16)
    if min(a.shape) < 3:
        return 0.0
    edges = np.abs(4 * a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:]).ravel()
    at = int((edges.size - 1) * 0.995)
    return float(np.partition(edges, at)[at])


def _chroma(colours: Image.Image) -> float:
    """`colours`: YCbCr, in which grey is 128 and 128."""
    histogram = np.array(colours.histogram()).reshape(3, 256)[1:].cumsum(axis=1)
    ends = [_percentile(levels, share) for levels in histogram for share in (0.01, 0.99)]
    return max(abs(end - 128) for end in ends) / 128


def _thumb(grey: Image.Image, colours: Image.Image) -> str:
    luma = np.asarray(grey.resize((12, 12), Image.Resampling.BOX))
    chroma = np.asarray(colours.resize((4, 4), Image.Resampling.BOX))[..., 1:]
    return base64.b64encode(luma.tobytes() + chroma.tobytes()).decode()


def complete(
    rows: list[dict[str, Any]],
    storage: Storage,
    known: dict[str, dict[str, Any]],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Measure the kept pictures that an earlier Darkroom has not measured; how many were not in `known` (by sha256) yet, which takes them in.

    A picture whose bytes are gone or cannot be opened any more stays as it is, which is a finding. `tell(done, total)` is called after each, and may raise.
    """
    lacking = [row for row in rows if row["status"] == "kept" and row["sharpness"] is None]
    new = [row for row in lacking if row["sha256"] not in known]
    for done, (row, found) in enumerate(_measured(new, storage), 1):
        known[row["sha256"]] = found
        tell(done, len(new))
    for row in lacking:
        row |= {key: value for key, value in known[row["sha256"]].items() if not row[key]}
    return len(new)


def _measured(rows: list[dict[str, Any]], storage: Storage) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row with what was measured, in order; only a few files a thread are in memory."""
    width = os.cpu_count() or 1
    ahead: deque[tuple[dict[str, Any], Future[dict[str, Any]]]] = deque()
    with ThreadPoolExecutor(width) as threads:
        try:
            for row in rows:
                ahead.append((row, threads.submit(_looked_at, row, storage)))
                if len(ahead) >= AHEAD * width:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for row, future in ahead:
                yield row, future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _looked_at(row: dict[str, Any], storage: Storage) -> dict[str, Any]:
    try:
        data = storage.read(image_key(row["sha256"], row["ext"]))
        return measure(decode(data, len(data), reduce_to=SIDE).image)
    except (BadImage, NotFound):
        return {}
