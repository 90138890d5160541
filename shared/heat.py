"""A heat map laid over the picture that it belongs to: what looking into a model shows."""

import io
from collections.abc import Sequence

from PIL import Image

from shared.images import decode

COLOURS = ((30, 12, 70), (120, 28, 109), (207, 68, 70), (251, 155, 6), (252, 255, 164))  # from cold to hot: matplotlib's inferno
MOST = 190  # of 255: how much the hottest place covers the picture
UNSEEN = 110  # of 255: how much what the network does not see is dimmed


def overlay(data: bytes, heat: Sequence[Sequence[float]], seen: Sequence[float], side: int, form: str) -> bytes:
    """A picture with its heat on it, at most `side` pixels wide and high, as `form`: PNG or WEBP. Raises BadImage.

    `heat`: rows of 0 to 1. `seen`: left, top, right and bottom of what they cover, as shares of the picture; the rest is dimmed.
    """
    picture = decode(data, reduce_to=side).image
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(share * length) for share, length in zip(seen, picture.size * 2, strict=True))
    box = (left, top, max(right, left + 1), max(bottom, top + 1))  # however thin the picture
    level = Image.frombytes("L", (len(heat[0]), len(heat)), bytes(round(255 * value) for row in heat for value in row))
    level = level.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC)
    warm = Image.merge("RGB", [level.point(_curve(channel)) for channel in range(3)])
    shown = Image.blend(picture, Image.new("RGB", picture.size), UNSEEN / 255)
    shown.paste(Image.composite(warm, picture.crop(box), level.point([value * MOST // 255 for value in range(256)])), box)
    out = io.BytesIO()
    shown.save(out, form, **({"quality": 85} if form == "WEBP" else {}))
    return out.getvalue()


def _curve(channel: int) -> list[int]:
    """The colour map of one channel: 256 levels, straight between the colours."""
    steps = len(COLOURS) - 1
    curve = []
    for level in range(256):
        at = min(level * steps // 255, steps - 1)
        share = level * steps / 255 - at
        curve.append(round(COLOURS[at][channel] * (1 - share) + COLOURS[at + 1][channel] * share))
    return curve
