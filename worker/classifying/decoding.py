"""From a picture to the square of pixels that a network sees: fastai's validation-time resize, in the way the model was trained for.

    squish   the whole picture is squeezed into a square that is larger by `MARGIN`, and the middle is cut out (RandomResizedCrop)
    crop     the middle square of the picture (Resize)
    pad      the whole picture, with black beside or above it (Resize)

`exact` does just that, with Pillow, as fastai does. Otherwise only the part that will be kept is resized, in one step and by fast_image_resize, which
works as Pillow does but eight pixels at once: a value seldom differs, and then by one of 255. A JPEG that is much larger than
that square is decoded at a reduced scale then. A GPU has a decoder of its own for JPEGs: worker/classifying/gpu.py.
"""

import io
import math
import threading

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from shared.images import Picture, decode

MARGIN = 0.14  # RandomResizedCrop's `val_xtra`
UPRIGHT = 1  # of the EXIF tag ORIENTATION
ORIENTATION = 0x0112
PLAIN_PIXELS = 16_000_000  # of a JPEG that a GPU decodes whole; the processor decodes larger ones at a reduced scale
BILINEAR = ResizeAlg.convolution(FilterType.bilinear)
_of_thread = threading.local()  # a Resizer keeps its buffers, and is one thread's


def resized_to(size: int) -> int:
    """Side of the square that fastai squeezes a picture into before it cuts out `size` pixels: 224 -> 256."""
    return size + math.ceil(size * MARGIN / 8) * 8


def square_of(width: int, height: int, size: int, resize: str) -> tuple[int, int, int]:
    """Left, top and side of the square that `crop` and `pad` make of a picture, rounded as fastai does; `pad`'s is partly outside of it."""
    side = max(1, int((max if resize == "pad" else min)(width / size, height / size) * size))
    return int((width - side) / 2), int((height - side) / 2), side


def squeezed(image: Image.Image, size: int, resize: str) -> Image.Image:
    """The square that fastai makes of an upright RGB picture, before it cuts out the middle of a squished one: doing so again changes nothing."""
    if resize == "squish":
        whole = resized_to(size)
        return image.resize((whole, whole), Image.Resampling.BILINEAR)
    left, top, side = square_of(image.width, image.height, size, resize)
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)


def prepare(image: Image.Image, size: int, exact: bool, resize: str = "squish") -> np.ndarray:
    """An upright RGB picture -> (size, size, 3) uint8, as training validated on it. Any thread may call it."""
    margin = (resized_to(size) - size) // 2
    if exact:
        whole = squeezed(image, size, resize)
        return np.asarray(whole.crop((margin, margin, margin + size, margin + size)) if resize == "squish" else whole)
    if resize == "squish":
        x, y = image.width / resized_to(size), image.height / resized_to(size)
        kept = CropBox(margin * x, margin * y, size * x, size * y)
    else:
        left, top, side = square_of(image.width, image.height, size, resize)
        image = image.crop((left, top, left + side, top + side))
        kept = CropBox(0, 0, side, side)
    if not hasattr(_of_thread, "resizer"):
        _of_thread.resizer = Resizer()
    square = Image.new("RGB", (size, size))
    _of_thread.resizer.resize_pil(image, square, ResizeOptions(BILINEAR, crop_box=kept))
    return np.asarray(square)


def look(data: bytes, size: int, exact: bool, max_bytes: int, resize: str = "squish") -> tuple[np.ndarray, Picture]:
    """The bytes of a picture -> what the network sees, (size, size, 3) uint8, and the picture. Raises BadImage."""
    picture = decode(data, max_bytes, reduce_to=None if exact else resized_to(size))
    return prepare(picture.image, size, exact, resize), picture


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that needs nothing but decoding: whole, upright, RGB or grey, not huge; None for anything else."""
    if not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # torn: what is missing would be grey, and nobody would know
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            plain = image.format == "JPEG" and image.mode in {"RGB", "L"} and image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT
            return image.size if plain and image.width * image.height <= PLAIN_PIXELS else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # the processor's decoder tells what is wrong
