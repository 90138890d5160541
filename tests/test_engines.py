"""The network that classifies is the network that was trained, sees what training validated on, and answers the same in every engine."""

import hashlib
import io
import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from fastai.learner import load_learner
from fastai.vision.core import PILImage
from fastai.vision.learner import create_vision_model
from handwriting import SPEC, encoded, place, publish, random_weights
from PIL import Image
from safetensors.torch import save_file

from shared import datasets, models, results
from shared.errors import DarkroomError
from shared.images import decode
from shared.specs import ARCHITECTURES, ClassifySpec, TrainSpec
from shared.storage import Storage, image_key
from worker.classifying import engines, gpu
from worker.classifying.batches import plan
from worker.classifying.decoding import look, plain_jpeg, prepare, resized_to, squeezed
from worker.classifying.engines import Engine, OutOfMemory, load
from worker.classifying.shards import Warm, classify_shard
from worker.progress import Progress
from worker.training import train
from worker.training.recipe import squares

RNG = np.random.default_rng(0)


def stripes(count=12):
    """(label, bytes) of noisy pictures of all shapes, brighter in one class."""
    shapes = RNG.integers(20, 140, (2 * count, 2))
    pictures = [(RNG.random((h, w, 3)) * (120 if i % 2 else 255)).astype(np.uint8) for i, (h, w) in enumerate(shapes)]
    return [("dark" if i % 2 else "bright", encoded(Image.fromarray(p), "JPEG" if i % 3 else "PNG")) for i, p in enumerate(pictures)]


def saved(folder, arch="squeezenet1_1", classes=("a", "b"), **changes):
    """A model version's folder with random weights."""
    torch.manual_seed(0)
    model = create_vision_model(getattr(torchvision.models, arch), len(classes), pretrained=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    info = {"arch": arch, "classes": list(classes), "image_size": 64, "mean": None, "std": None} | changes
    (folder / "info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(("arch", "start"), [("resnet18", "scratch"), ("squeezenet1_1", "scratch"), ("squeezenet1_1", "imagenet")])
def test_exact_probabilities_are_those_of_the_exported_learner(tmp_path, monkeypatch, arch, start):
    # Given a model trained on pictures of all shapes, from scratch or from weights that want ImageNet's normalisation
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights(arch, tmp_path / "torch")
    settings, storage = place(tmp_path)
    rows = publish(storage, tmp_path / "files", stripes())
    spec = TrainSpec(**SPEC | {"arch": arch, "start": start, "batch_size": 4, "image_size": 48, "valid_pct": 0.4})
    train(spec, "job1", storage, settings, Progress(lambda _: None))
    # When its validation pictures are classified here, and predicted by the export in fastai
    folder = storage.local(models.key("digits", 1, "info.json")).parent
    learner = load_learner(storage.local(models.key("digits", 1, "export.pkl")))
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], spec.valid_pct, spec.seed)
    keys = [image_key(row["sha256"], row["ext"]) for row, side in zip(rows, valid, strict=True) if side]
    pixels = {exact: np.stack([look(storage.read(key), 48, exact, 10**8)[0] for key in keys]) for exact in (True, False)}
    with learner.no_bar():
        theirs = np.stack([learner.predict(storage.local(key))[2].numpy() for key in keys])
    ours = load(folder, "exact", settings.cache)(pixels[True])
    # Then they are equal
    assert len(keys) >= 4
    assert (models.info(storage, "digits", 1)["mean"] is not None) == (start == "imagenet")
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # And torch's engine, for machines with a GPU or without OpenVINO, answers the same
    plain = engines._torch(folder, engines.read_info(folder))
    np.testing.assert_allclose(plain(pixels[True]), theirs, atol=1e-4)
    # And those of 16-bit arithmetic are near
    np.testing.assert_allclose(load(folder, "fast", settings.cache)(pixels[False]), theirs, atol=0.05)
    # And the report's probabilities are the same ones
    report = models.report(storage, "digits", 1)
    highest = dict(zip([key.split("/")[-1] for key in keys], ours.max(axis=1).tolist(), strict=True))
    for finding in report["top_losses"]:
        assert finding["probability"] == pytest.approx(highest[f"{finding['sha256']}.{finding['ext']}"], abs=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_rebuilt_from_its_files(tmp_path, arch):
    folder = saved(tmp_path, arch, classes=("a", "b", "c"))
    engine = load(folder, "exact", tmp_path / "cache")
    pixels = RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    probabilities = engine(pixels)
    assert (probabilities.shape, probabilities.dtype, engine.classes) == ((2, 3), np.float32, ["a", "b", "c"])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(probabilities, engines._torch(folder, engines.read_info(folder))(pixels), atol=1e-4)


def test_a_network_is_converted_once_a_machine_and_again_for_other_weights(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for _ in range(2):
        load(saved(tmp_path / "one"), "fast", tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "engines").iterdir())) == 1
    load(saved(tmp_path / "two", "resnet18"), "fast", tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "engines").glob("*/network.bin"))) == 2


def test_openvino_tells_nobody_that_it_is_used(tmp_path):
    load(saved(tmp_path), "exact", tmp_path / "cache")
    assert sys.modules["openvino_telemetry"] is None


def test_a_model_without_an_int8_form_says_so(tmp_path):
    with pytest.raises(DarkroomError, match="has no int8 form"):
        load(saved(tmp_path), "int8", tmp_path / "cache")


def test_a_batch_that_does_not_fit_into_memory_is_halved():
    asked = []

    def small_device(pixels):
        asked.append(len(pixels))
        if len(pixels) > 3:
            raise OutOfMemory
        return pixels.reshape(len(pixels), -1)[:, :2].astype(np.float32)

    pixels = RNG.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    engine = Engine("small", ["a", "b"], 4, 10, small_device)
    np.testing.assert_array_equal(engine(pixels), pixels.reshape(10, -1)[:, :2])
    assert asked == [10, 5, 2, 3, 5, 2, 3]


def test_a_device_too_small_for_one_image_is_a_sentence():
    def no_device(pixels):
        raise OutOfMemory

    with pytest.raises(DarkroomError, match="not enough memory for a single image"):
        Engine("none", ["a"], 4, 10, no_device)(np.zeros((3, 4, 4, 3), np.uint8))


def test_close_calls_are_looked_at_again_and_nothing_else_is():
    quick = np.array([[0.9, 0.1], [0.505, 0.495], [0.2, 0.8], [0.498, 0.502]], np.float32)
    asked = []

    def judge(pixels):
        asked.extend(pixels[:, 0, 0, 0].tolist())
        return np.tile(np.array([[0.4, 0.6]], np.float32), (len(pixels), 1))

    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((4, 2, 2, 3), np.uint8)
    engine = Engine("two", ["a", "b"], 2, 4, lambda _: quick.copy(), close=0.03, judge=judge)
    np.testing.assert_array_equal(engine(pixels), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.4, 0.6]], np.float32))
    assert asked == [1, 3]


def test_a_lead_is_the_difference_of_the_two_best_logits():
    found = engines.leads(np.array([[0.1, 0.6, 0.3], [0.5, 0.0, 0.5]]))
    np.testing.assert_allclose(found, [np.log(2), 0])
    assert engines.leads(np.array([[1.0, 0.0], [0.0, 1.0]])).min() > 20
    assert np.isinf(engines.leads(np.ones((2, 1)))).all()


def test_what_16_bits_are_unsure_of_has_the_probabilities_of_32(tmp_path):
    folder = saved(tmp_path, "resnet18", classes="abcdefgh", fast={"offered": True, "close": 0.2})
    pixels = RNG.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    exact, fast = load(folder, "exact", tmp_path / "cache"), load(folder, "fast", tmp_path / "cache")
    assert (fast.close, fast.judge is not None) == ((0.2, True) if "bf16" in fast.name else (0, False))
    quick = replace(fast, judge=None)(pixels)
    close = float(np.median(engines.leads(quick)))  # half of them are close calls
    np.testing.assert_allclose(
        replace(fast, close=close)(pixels), np.where((engines.leads(quick) < close)[:, None], exact(pixels), quick), atol=1e-5
    )


# -- a GPU's way, on the processor --------------------------------------------------------------------------------------


def turned(image, tag=6):
    exif = Image.Exif()
    exif[0x0112] = tag
    out = io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    return out.getvalue()


def test_only_jpegs_that_need_nothing_but_decoding_go_to_the_gpu():
    image = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    plain = encoded(image, "JPEG")
    assert plain_jpeg(plain) == plain_jpeg(plain + b"\0\0") == plain_jpeg(turned(image, 1)) == (60, 40)
    assert plain_jpeg(encoded(image.convert("L"), "JPEG")) == (60, 40)
    for other in (
        turned(image), plain[:-200], plain[:-2], plain[:40] + b"\xff\xd9", b"", b"\xff\xd9", encoded(image, "PNG"),
        encoded(image.convert("CMYK"), "JPEG"), encoded(Image.new("RGB", (5000, 5000)), "JPEG"),
    ):  # fmt: skip
        assert plain_jpeg(other) is None


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_what_the_device_decodes_is_what_the_processor_sees(device, resize):
    smooth = [Image.effect_noise((30, 40), 90).resize(size, Image.Resampling.BICUBIC) for size in ((400, 533), (90, 64), (301, 300))]
    jpegs = [encoded(image.convert(mode), "JPEG") for image, mode in zip(smooth, ("RGB", "L", "RGB"), strict=True)]
    torn = jpegs[0][:400] + jpegs[0][-2:]
    found = gpu.unpack([jpegs[0], torn, *jpegs[1:]], 64, device, resize=resize)
    assert found.pop(1) is None
    for square, jpeg in zip(found, jpegs, strict=True):
        assert (square.shape, square.dtype, square.device.type) == ((64, 64, 3), torch.uint8, device)
        difference = np.abs(square.cpu().numpy().astype(int) - look(jpeg, 64, True, 10**8, resize)[0])
        assert (difference.max(), difference.mean() < 0.5) <= (1 if device == "cpu" else 4, True)
    assert gpu.unpack([], 64, device) == []


def test_a_batch_of_the_gpu_may_come_from_both_decoders(tmp_path):
    engine = gpu.engine(saved(tmp_path), engines.read_info(tmp_path), "exact", "cpu")
    pixels = RNG.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    mixed = [torch.from_numpy(p) if n % 2 else p for n, p in enumerate(pixels)]
    np.testing.assert_array_equal(engine.stack(mixed).numpy(), pixels)
    np.testing.assert_allclose(engine(engine.stack(mixed)), load(tmp_path, "exact", tmp_path / "cache")(pixels), atol=1e-4)


@pytest.mark.parametrize("size", [32, 57, 64, 224])
@pytest.mark.parametrize("shape", [(400, 533), (32, 32), (1, 1), (1000, 37), (7, 9)])
@pytest.mark.parametrize("resize", ["squish", "crop", "pad"])
def test_exact_preparation_is_fastai_s_own_and_the_quick_one_is_next_to_it(size, shape, resize):
    image = PILImage.create(RNG.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    theirs = image
    for transform in squares(TrainSpec(dataset="any", image_size=size, resize=resize)):
        theirs = transform(theirs, split_idx=1)
    theirs = np.asarray(theirs)
    np.testing.assert_array_equal(prepare(image, size, True, resize), theirs)
    np.testing.assert_allclose(prepare(image, size, False, resize).astype(int), theirs.astype(int), atol=2)
    # what training keeps in its cache comes out as the same square
    again = squeezed(squeezed(image, size, resize), size, resize)
    np.testing.assert_array_equal(np.asarray(squeezed(image, size, resize)), np.asarray(again))


def test_a_large_jpeg_is_decoded_at_a_reduced_scale_unless_it_must_be_exact():
    smooth = Image.effect_noise((40, 30), 90).resize((2000, 1500), Image.Resampling.BICUBIC).convert("RGB")
    data = encoded(smooth, "JPEG")
    pixels, picture = look(data, 224, False, 10**8)
    assert picture.image.size == (500, 375)  # the smallest scale at which both sides are still 256 or more
    assert (picture.width, picture.height, resized_to(224)) == (2000, 1500, 256)
    exact, picture = look(data, 224, True, 10**8)
    assert picture.image.size == (2000, 1500)
    assert abs(pixels.astype(int) - exact).mean() < 2


def test_pictures_are_prepared_as_small_squares_of_bytes():
    prepared = prepare(decode(encoded(Image.new("RGB", (300, 200), (255, 128, 0)), "PNG")).image, 64, exact=True)
    assert (prepared.shape, prepared.dtype) == ((64, 64, 3), np.uint8)
    assert prepared[32, 32].tolist() == [255, 128, 0]


def test_weights_of_another_number_of_classes_are_a_sentence(tmp_path):
    saved(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps(json.loads((tmp_path / "info.json").read_text()) | {"classes": ["a", "b", "c"]}))
    with pytest.raises(DarkroomError, match="do not fit squeezenet1_1 with 3 classes"):
        load(tmp_path, "exact", tmp_path / "cache")


def test_an_architecture_that_is_not_on_the_list_is_never_built(tmp_path):
    (saved(tmp_path) / "info.json").write_text('{"arch": "get_model"}')
    with pytest.raises(DarkroomError, match="unknown architecture 'get_model'"):
        load(tmp_path, "exact", tmp_path / "cache")


def test_an_info_that_does_not_say_the_normalisation_is_a_sentence(tmp_path):
    saved(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps({"arch": "resnet18", "classes": ["a", "b"], "image_size": 64}))
    with pytest.raises(DarkroomError, match="does not say mean, std"):
        load(tmp_path, "exact", tmp_path / "cache")


@pytest.mark.parametrize("file", ["info.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_file_is_a_sentence_that_names_it(tmp_path, file, damage):
    path = saved(tmp_path) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DarkroomError, match=file):
        load(tmp_path, "exact", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tmp"))


# -- a shard ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["processor", "gpu"])
def test_a_shard_has_the_same_rows_whichever_device_decodes(with_model, digits, tmp_path, monkeypatch, way):
    storage = Storage(with_model.storage, with_model.cache)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n, path in enumerate(sorted(digits.rglob("*.png"))[::10]):
        image = Image.open(path).convert("RGB").resize((300, 300), Image.Resampling.BICUBIC)
        image.save(folder / f"{n:02}.jpg", quality=95) if n % 3 else image.save(folder / f"{n:02}.png")
    whole = (folder / "01.jpg").read_bytes()
    (folder / "20.jpg").write_bytes(whole[:500])
    (folder / "21.jpg").write_bytes(whole[:500] + whole[-2:])
    spec = ClassifySpec(model="digits/v1", source={"kind": "folder", "path": str(folder)})
    plan(spec, "job", 0, storage, with_model, Progress(lambda _: None))
    warm = Warm(storage, with_model)
    if way == "gpu":
        monkeypatch.setattr(engines, "unpacks", lambda precision: precision == "fast")
        device = gpu.engine(storage.local("models/digits/v0001/info.json").parent, {**models.info(storage, "digits", 1)}, "exact", "cpu")
        warm.engines["digits", 1, "fast"] = replace(device, batch=4, unpack=partial(gpu.unpack, size=32, device="cpu"))
    tally = classify_shard(spec, "job", "00000000-00000014", warm, Progress(lambda _: None))
    rows = results.shard(storage, "job", "00000000-00000014")[0].to_pylist()
    assert [row["error_code"] for row in rows] == [""] * 12 + ["truncated"] * 2
    assert tally["counts"]["errors"] == 2
    assert [row["uri"] for row in rows] == [f"{n:02}.{'jpg' if n % 3 else 'png'}" for n in range(12)] + ["20.jpg", "21.jpg"]
    assert {(row["width"], row["height"]) for row in rows[:12]} == {(300, 300)}
    assert all(row["sha256"] == hashlib.sha256((folder / row["uri"]).read_bytes()).hexdigest() and row["ms"] > 0 for row in rows[:12])
    exact = load(storage.local("models/digits/v0001/info.json").parent, "exact", with_model.cache)
    pixels = np.stack([look((folder / row["uri"]).read_bytes(), 32, True, 10**8)[0] for row in rows[:12]])
    np.testing.assert_allclose([row["probability"] for row in rows[:12]], exact(pixels).max(axis=1), atol=0.05)
    assert [row["label"] for row in rows[:12]] == [exact.classes[n] for n in exact(pixels).argmax(axis=1)]
