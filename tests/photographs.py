"""Pictures as photographs are, and each fault that a photograph may have, made of the two that scikit-learn ships."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_image


@cache
def originals() -> list[Image.Image]:
    """A temple and a flower, 640 x 427 each."""
    return [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]


def piece(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Any part of one of the originals, perhaps mirrored or with other colours."""
    whole = originals()[int(rng.integers(2))]
    w = int(rng.integers(160, 400))
    h = min(w * height // width + 1, whole.height)
    left, top = int(rng.integers(whole.width - w + 1)), int(rng.integers(whole.height - h + 1))
    part = whole.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling.BICUBIC)
    channels = part.split()
    part = Image.merge("RGB", [channels[i] for i in rng.permutation(3)])
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else part


def photograph(n: int) -> Image.Image:
    """The nth of any number of pictures that have nothing in common: some things before a background."""
    rng = np.random.default_rng(n)
    width, height = int(rng.integers(360, 520)), int(rng.integers(300, 420))
    picture = piece(rng, width, height)
    for _ in range(4):
        w, h = int(rng.integers(width // 4, width // 2)), int(rng.integers(height // 4, height // 2))
        mask = Image.new("L", (w, h))
        draw = ImageDraw.Draw(mask)
        (draw.ellipse if rng.integers(2) else draw.rectangle)((4, 4, w - 5, h - 5), fill=255)
        thing = ImageEnhance.Brightness(piece(rng, w, h)).enhance(float(rng.uniform(0.6, 1.5)))
        picture.paste(thing, (int(rng.integers(width - w)), int(rng.integers(height - h))), mask)
    return picture


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def blurred(picture: Image.Image, n: int) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 256 * (2.2 + n % 5 / 2)))


def darkened(picture: Image.Image, n: int) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(0.1 + n % 5 / 40)


def lightened(picture: Image.Image, n: int) -> Image.Image:
    return picture.point(lambda level: 255 - (255 - level) * (0.09 + n % 5 / 200))


def blank(picture: Image.Image, n: int) -> Image.Image:
    """One colour; every other with the noise of a camera, every fifth with a small word in it."""
    colour = picture.resize((1, 1)).getpixel((0, 0)) if n % 3 else (255, 255, 255)
    plain = Image.new("RGB", picture.size, colour)
    if n % 5 == 0:
        ImageDraw.Draw(plain).text((20, 20), "not available", fill=(90, 90, 90), font_size=14)
    if n % 2:
        noise = np.random.default_rng(n).normal(0, 2, (picture.height, picture.width, 3))
        plain = Image.fromarray((np.asarray(plain) + noise).clip(0, 255).astype(np.uint8))
    return plain


def grey(picture: Image.Image, n: int) -> Image.Image:
    return picture.convert("L").convert("RGB" if n % 2 else "L")


def tiny(picture: Image.Image, n: int) -> Image.Image:
    side = 16 + 2 * n % 44
    return picture.resize((side + 10, side))


def huge(picture: Image.Image, n: int) -> Image.Image:
    return picture.resize((2600 + 10 * n, 1900))


def strip(picture: Image.Image, n: int) -> Image.Image:
    high = picture.height // 5 + n % 7
    return picture.crop((0, 100, picture.width, 100 + high)) if n % 2 else picture.crop((100, 0, 100 + high, picture.height))


LOOKS = {
    "blurry": blurred,
    "dark": darkened,
    "light": lightened,
    "blank": blank,
    "grayscale": grey,
    "too_small": tiny,
    "odd_size": huge,
    "odd_aspect": strip,
}


def again(picture: Image.Image, n: int) -> bytes:
    """The same picture, as it is found a second time on the web."""
    width, height = picture.size
    match n % 5:
        case 0:
            return jpeg(picture.resize((width // 2, height // 2)), 60)
        case 1:
            return jpeg(picture.crop((width // 66, height // 66, width - width // 66, height - height // 66)), 80)
        case 2:
            return jpeg(ImageEnhance.Brightness(picture).enhance(1.15), 85)
        case 3:
            marked = picture.copy()
            ImageDraw.Draw(marked).text((width * 0.6, height * 0.9), "(c) somebody", fill=(255, 255, 255), font_size=18)
            return jpeg(marked, 85)
        case _:
            return jpeg(ImageEnhance.Color(picture).enhance(0.8), 50)
