"""Opening pictures that nobody vouches for, and making thumbnails of them.

Decided by decoding, never by name: an allow-list of formats, limits on bytes and pixels, a full decode. What comes out is
upright 8-bit RGB, whatever went in: EXIF rotation applied, CMYK, palette and 16-bit converted, transparency on white, the
first frame of an animation. Training, classifying and the pages all open pictures here, so they all see the same one.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from shared.errors import DarkroomError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
MAX_PIXELS = 100_000_000
MAX_BYTES = 50 * 2**20


class BadImage(DarkroomError):
    """A picture that cannot be used. `code` is stable: empty, too_large, unsupported, unreadable, truncated."""

    status = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """A decoded picture: upright RGB, the size and format of the file it came from."""

    image: Image.Image
    format: str
    width: int
    height: int

    @property
    def extension(self) -> str:
        """The file extension that its bytes deserve."""
        return EXTENSIONS[self.format]


def decode(data: bytes, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, reduce_to: int | None = None) -> Picture:
    """Decode a whole picture. Raises BadImage with a stable code and a sentence, for whatever bytes.

    `reduce_to`: a JPEG may be decoded at a reduced scale at which both sides are still at least this many pixels.
    `width` and `height` are those of the upright full picture.
    """
    if not data:
        raise BadImage("empty", "The file is empty.")
    if len(data) > max_bytes:
        raise BadImage("too_large", f"The file has {len(data):,} bytes; at most {max_bytes:,} are allowed.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no reason to refuse a picture; its size is checked below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _load(image, max_pixels, reduce_to)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("unsupported", f"The file is not a picture in one of the formats {', '.join(FORMATS)}{_what_it_is(data)}.") from None
    except Image.DecompressionBombError:
        raise BadImage("too_large", f"The picture has too many pixels; at most {max_pixels:,} are allowed.") from None
    except OSError as error:
        code = "truncated" if "truncated" in str(error) or "Truncated" in str(error) else "unreadable"
        raise BadImage(code, f"The picture cannot be decoded: {error}.") from None
    except (
        ValueError,
        SyntaxError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        OverflowError,
        ZeroDivisionError,
        struct.error,
        zlib.error,
        RuntimeError,
        MemoryError,
    ) as error:
        # Pillow's decoders raise these for damaged files; a list and not `Exception`, so that our own mistakes are seen
        raise BadImage("unreadable", f"The picture cannot be decoded: {type(error).__name__} {error}.") from None


def _load(image: Image.Image, max_pixels: int, reduce_to: int | None) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage("too_large", f"The picture has {width:,} x {height:,} pixels; at most {max_pixels:,} in all are allowed.")
    kind = image.format or ""
    if reduce_to and kind in {"JPEG", "MPO"}:
        image.draft("RGB", (reduce_to, reduce_to))
    image.load()
    turned = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}
    upright = ImageOps.exif_transpose(image) if 0x0112 in image.getexif() else image
    return Picture(_rgb(upright), kind, *((height, width) if turned else (width, height)))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits of grey: scaled to 8, where convert() would clip to white
        wide = image.convert("F")
        brightest = float(wide.getextrema()[1])  # type: ignore[arg-type]
        top = max(65535.0 if image.mode.startswith("I") and brightest > 255 else 255.0, brightest)
        image = wide.point(lambda level: level * (255 / top)).convert("L")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    if image.mode != "RGB":
        return image.convert("RGB")
    return image if image.format == "JPEG" else image.copy()  # a JPEG has no further frames, and lets go of its file


def _what_it_is(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "; it is an HTML page"
    if b"<svg" in head:
        return "; it is an SVG drawing"
    if head.startswith(b"%pdf"):
        return "; it is a PDF"
    if data[4:12] in {b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"}:
        return "; it is a HEIC or AVIF picture"
    return "; it is text" if data[:512].isascii() and b"\0" not in data[:512] else ""


def thumbnail(data: bytes, side: int) -> bytes:
    """A WebP of at most `side` x `side` pixels, without metadata. Raises BadImage."""
    picture = decode(data, reduce_to=side).image
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80, method=2)
    return out.getvalue()


def read_bounded(file: IO[bytes], max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file, but never more than `max_bytes`. Raises BadImage."""
    data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BadImage("too_large", f"The file has more than {max_bytes:,} bytes.")
    return data
