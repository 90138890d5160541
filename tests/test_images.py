"""Opening pictures that nobody vouches for."""

import io
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image

from shared.images import BadImage, Picture, decode, thumbnail

RED, BLUE = (250, 10, 10), (10, 10, 250)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def two_halves(width=40, height=20) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def close(pixel, colour, by=40) -> bool:
    return all(abs(a - b) <= by for a, b in zip(pixel, colour, strict=True))


def code_of(data: bytes, **limits) -> str:
    with pytest.raises(BadImage) as error:
        decode(data, **limits)
    assert str(error.value).endswith(".")
    return error.value.code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_each_allowed_format_decodes_to_the_same_picture(kind):
    picture = decode(encoded(two_halves(), kind))
    assert (picture.image.mode, picture.width, picture.height) == ("RGB", 40, 20)
    assert close(picture.image.getpixel((5, 10)), RED)
    assert close(picture.image.getpixel((35, 10)), BLUE)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was(orientation):
    upright = two_halves()
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(stored, "JPEG", quality=95, exif=exif))
    assert picture.image.size == (picture.width, picture.height) == (40, 20)
    assert close(picture.image.getpixel((5, 10)), RED)
    assert close(picture.image.getpixel((35, 10)), BLUE)


def test_cmyk_becomes_rgb():
    assert close(decode(encoded(two_halves().convert("CMYK"), "JPEG", quality=95)).image.getpixel((5, 10)), RED)


def test_a_palette_becomes_rgb():
    assert close(decode(encoded(two_halves().convert("P"))).image.getpixel((35, 10)), BLUE)


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = Image.new("I;16", (4, 4), 32768)
    assert close(decode(encoded(grey)).image.getpixel((0, 0)), (127, 127, 127), by=2)


def test_transparency_lies_on_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert decode(encoded(clear)).image.getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert close(decode(data).image.getpixel((0, 0)), RED)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"just some text", "unsupported"),
        (b"<!DOCTYPE html><html></html>", "unsupported"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unsupported"),
        (encoded(two_halves(400, 400), "JPEG")[:2000], "truncated"),
        (encoded(two_halves(400, 400))[:200], "truncated"),
    ],
    ids=["empty", "text", "html", "svg", "eps", "half a jpeg", "half a png"],
)
def test_what_is_no_whole_picture_is_refused_with_its_reason(data, code):
    assert code_of(data) == code


def test_an_html_page_is_called_one():
    with pytest.raises(BadImage, match="HTML page"):
        decode(b"<html><body>404</body></html>")


def bomb(width: int, height: int) -> bytes:
    """A small PNG that claims to be huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_unpacked():
    assert code_of(bomb(60_000, 60_000)) == "too_large"
    assert code_of(bomb(12_000, 12_000)) == "too_large"


def test_too_many_bytes_are_refused():
    assert code_of(encoded(two_halves()), max_bytes=10) == "too_large"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(strategies.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), strategies.data())
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(kind, data):
    whole = bytearray(encoded(two_halves(), kind))
    for _ in range(data.draw(strategies.integers(1, 8))):
        whole[data.draw(strategies.integers(0, len(whole) - 1))] = data.draw(strategies.integers(0, 255))
    try:
        assert isinstance(decode(bytes(whole)), Picture)
    except BadImage as error:
        assert error.code in {"empty", "too_large", "unsupported", "unreadable", "truncated"}  # noqa: PT017


def test_a_reduced_jpeg_still_covers_the_size_asked_for():
    picture = decode(encoded(two_halves(1600, 800), "JPEG"), reduce_to=200)
    assert (picture.width, picture.height) == (1600, 800)
    assert 200 <= min(picture.image.size) < 800


def test_a_thumbnail_is_a_small_webp_without_metadata():
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    with Image.open(io.BytesIO(thumbnail(encoded(two_halves(800, 400), "JPEG", exif=exif), 96))) as small:
        assert (small.format, small.size) == ("WEBP", (96, 48))
        assert not small.getexif()
