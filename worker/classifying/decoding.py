"""From a picture to the square of pixels that a network sees: fastai's validation-time resize and centre crop.

fastai squeezes the whole picture into a square that is larger by `MARGIN` and cuts the middle out. `exact` does just that.
Otherwise Pillow resizes only the part that will be kept, in one step: a quarter less work, and seldom a value that differs,
by one of 255. A JPEG that is much larger than that square is decoded at a reduced scale then.
"""

import math

import numpy as np
from PIL import Image

from shared.images import Picture, decode

MARGIN = 0.14  # RandomResizedCrop's `val_xtra`


def resized_to(size: int) -> int:
    """Side of the square that fastai squeezes a picture into before it cuts out `size` pixels: 224 -> 256."""
    return size + math.ceil(size * MARGIN / 8) * 8


def prepare(image: Image.Image, size: int, exact: bool) -> np.ndarray:
    """An upright RGB picture -> (size, size, 3) uint8, as training validated on it. Any thread may call it."""
    whole = resized_to(size)
    margin = (whole - size) // 2
    if exact:
        squeezed = image.resize((whole, whole), Image.Resampling.BILINEAR)
        return np.asarray(squeezed.crop((margin, margin, margin + size, margin + size)))
    x, y = image.width / whole, image.height / whole
    box = (margin * x, margin * y, (margin + size) * x, (margin + size) * y)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def look(data: bytes, size: int, exact: bool, max_bytes: int) -> tuple[np.ndarray, Picture]:
    """The bytes of a picture -> what the network sees, (size, size, 3) uint8, and the picture. Raises BadImage."""
    picture = decode(data, max_bytes, reduce_to=None if exact else resized_to(size))
    return prepare(picture.image, size, exact), picture
