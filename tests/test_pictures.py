"""What a training reads: pictures of every format as fastai opens them, and the side of the split that each is on."""

import numpy as np
import pytest
from fastai.vision.core import PILImage
from handwriting import SPEC, encoded, place, publish
from PIL import Image

from shared import datasets
from shared.errors import DarkroomError
from shared.images import decode
from shared.specs import TrainSpec
from shared.storage import image_key
from worker.progress import Progress
from worker.training import train
from worker.training.pictures import alike_remarks, is_plain, prepare, sample_of, samples_of
from worker.training.recipe import squares


def scene(mode="RGB"):
    """A picture that shows which way is up: 60 x 40, red above, blue below."""
    image = Image.new("RGB", (60, 40), "red")
    image.paste("blue", (0, 20, 60, 40))
    return image.convert(mode)


def turned():
    """The bytes of a JPEG that a camera held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(scene(), "JPEG", exif=exif, quality=95)


def see_through():
    """The bytes of a PNG whose left half is transparent."""
    image = scene("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 30, 40))
    return encoded(image)


ODD = {
    "exif": turned,
    "cmyk": lambda: encoded(scene("CMYK"), "JPEG"),
    "palette": lambda: encoded(scene("P")),
    "transparent": see_through,
    "16-bit": lambda: encoded(Image.fromarray(np.linspace(0, 65535, 2400).astype(np.uint16).reshape(40, 60))),
    "gif": lambda: encoded(scene(), "GIF"),
    "webp": lambda: encoded(scene(), "WEBP", lossless=True),
}

PLAIN = {
    "jpeg": lambda: encoded(scene(), "JPEG"),
    "png": lambda: encoded(scene()),
    "grey jpeg": lambda: encoded(scene("L"), "JPEG"),
    "grey png": lambda: encoded(scene("L")),
}


@pytest.mark.parametrize("kind", [*ODD, *PLAIN])
def test_fastai_sees_every_picture_upright_and_in_colour(tmp_path, kind):
    _, storage = place(tmp_path)
    data = {**ODD, **PLAIN}[kind]()
    (row,) = publish(storage, tmp_path / "files", [("x", data)])
    path = prepare(row, storage, tmp_path / "prepared")
    assert np.array_equal(np.asarray(PILImage.create(path)), np.asarray(decode(data).image))
    assert is_plain(path)
    assert (path.parent == tmp_path / "prepared") == (kind in ODD)


def test_a_picture_is_prepared_once(tmp_path):
    _, storage = place(tmp_path)
    (row,) = publish(storage, tmp_path / "files", [("x", turned())])
    first = prepare(row, storage, tmp_path / "prepared").stat().st_mtime_ns
    assert prepare(row, storage, tmp_path / "prepared").stat().st_mtime_ns == first
    assert len(list((tmp_path / "prepared").iterdir())) == 1


@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_a_large_image_is_kept_smaller_for_training_and_as_the_very_square_for_validation(tmp_path, resize):
    _, storage = place(tmp_path)
    large = Image.effect_noise((60, 40), 90).resize((600, 400), Image.Resampling.BICUBIC).convert("RGB")
    row, small = publish(storage, tmp_path / "files", [("x", encoded(large, "JPEG")), ("x", encoded(scene()))])
    spec = TrainSpec(**SPEC | {"image_size": 64, "resize": resize, "min_scale": 0.5})
    seen = sample_of(spec, row, False, storage, tmp_path / "prepared")
    with Image.open(seen.path) as image:
        width, height = image.size
    assert seen.pixels == width * height < 600 * 400 / 10
    assert (abs(width / height - 1.5) < 0.05, width * height * spec.min_scale >= 64**2) == (True, True)
    kept = sample_of(spec, row, True, storage, tmp_path / "prepared")
    of_original, of_kept = PILImage.create(kept.original), PILImage.create(kept.path)
    for transform in squares(spec):
        of_original, of_kept = transform(of_original, split_idx=1), transform(of_kept, split_idx=1)
    assert np.array_equal(np.asarray(of_original), np.asarray(of_kept))
    assert sample_of(spec, row, True, storage, tmp_path / "prepared") == kept
    assert sample_of(spec, small, False, storage, tmp_path / "prepared").path == storage.local(image_key(small["sha256"], "png"))


def test_a_mixed_bag_of_formats_is_trained_on(tmp_path):
    settings, storage = place(tmp_path)
    files = [("odd", make()) for make in ODD.values()] + [("plain", make()) for make in PLAIN.values()]
    publish(storage, tmp_path / "files", files)
    result = train(TrainSpec(**SPEC | {"batch_size": 2}), "job1", storage, settings, Progress(lambda _: None))
    assert result["version"] == 1


def test_a_kept_image_that_cannot_be_opened_is_a_sentence_that_names_it(ready):
    settings, storage = ready
    row = datasets.rows(storage, "digits", 1)[5]
    storage.write(image_key(row["sha256"], row["ext"]), b"not a picture")
    with pytest.raises(DarkroomError, match=f"{row['sha256']}.png of the class 'digit 0'"):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(lambda _: None))


def said(ready, *splits):
    """Samples of the digits whose rows, one after the other, have these values of the column `split`, again and again."""
    settings, storage = ready
    rows = [{**row, "split": splits[n % len(splits)]} for n, row in enumerate(datasets.rows(storage, "digits", 1))]
    with storage.writing("datasets/digits/v0001/manifest.parquet") as f:
        f.write(datasets.manifest_bytes(rows))
    return rows, samples_of(TrainSpec(**SPEC), 1, storage, settings, Progress(lambda _: None))


def test_validation_images_of_an_import_are_validated_on_and_test_images_are_left_out(ready):
    rows, samples = said(ready, "train", "valid", "test", "")
    sides = {row["sha256"]: row["split"] for row in rows}
    assert {sides[sample.sha256] for sample in samples if sample.valid} == {"valid"}
    assert {sides[sample.sha256] for sample in samples if not sample.valid} == {"train", ""}
    assert len(samples) == sum(row["split"] != "test" for row in rows)


def test_a_class_that_an_import_left_nothing_to_validate_on_is_a_sentence(ready):
    settings, storage = ready
    rows = [{**row, "split": "valid" if row["label"] == "digit 0" else "train"} for row in datasets.rows(storage, "digits", 1)]
    rows[0]["split"] = "train"
    with storage.writing("datasets/digits/v0001/manifest.parquet") as f:
        f.write(datasets.manifest_bytes(rows))
    with pytest.raises(DarkroomError, match=r"no image to validate on of 'digit 1', 'digit 2'\. Its import said"):
        samples_of(TrainSpec(**SPEC), 1, storage, settings, Progress(lambda _: None))


def test_a_class_of_nothing_but_near_duplicates_is_on_both_sides_and_the_model_will_say_so(ready):
    settings, storage = ready
    rows = [{**row, "group": "same" if row["label"] == "digit 0" else ""} for row in datasets.rows(storage, "digits", 1)]
    assert alike_remarks(datasets.rows(storage, "digits", 1)) == []
    assert "'digit 0': the error rate flatters" in alike_remarks(rows)[0]
    with storage.writing("datasets/digits/v0001/manifest.parquet") as f:
        f.write(datasets.manifest_bytes(rows))
    samples = samples_of(TrainSpec(**SPEC), 1, storage, settings, Progress(lambda _: None))
    assert {sample.valid for sample in samples if sample.label == "digit 0"} == {True, False}
