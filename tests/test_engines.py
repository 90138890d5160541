"""The network that classifies is the network that was trained, sees what training validated on, and answers the same in every engine."""

import json
import sys

import numpy as np
import pytest
import torch
import torchvision
from fastai.learner import load_learner
from fastai.vision.augment import RandomResizedCrop
from fastai.vision.learner import create_vision_model
from PIL import Image
from safetensors.torch import save_file
from test_training import SPEC, encoded, place, publish, random_weights

from shared import datasets, models
from shared.errors import DarkroomError
from shared.images import decode
from shared.specs import ARCHITECTURES, TrainSpec
from worker.classifying import engines
from worker.classifying.decoding import look, prepare, resized_to
from worker.classifying.engines import Engine, OutOfMemory, load
from worker.progress import Progress
from worker.training import train

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


@pytest.mark.parametrize(("arch", "pretrained"), [("resnet18", False), ("squeezenet1_1", False), ("squeezenet1_1", True)])
def test_exact_probabilities_are_those_of_the_exported_learner(tmp_path, monkeypatch, arch, pretrained):
    # Given a model trained on pictures of all shapes, from scratch or from weights that want ImageNet's normalisation
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights(arch, tmp_path / "torch")
    settings, storage = place(tmp_path)
    rows = publish(storage, tmp_path / "files", stripes())
    spec = TrainSpec(**SPEC | {"arch": arch, "pretrained": pretrained, "batch_size": 4, "image_size": 48, "valid_pct": 0.4})
    train(spec, "job1", storage, settings, Progress(lambda _: None))
    # When its validation pictures are classified here, and predicted by the export in fastai
    folder = storage.local(models.key("digits", 1, "info.json")).parent
    learner = load_learner(storage.local(models.key("digits", 1, "export.pkl")))
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], spec.valid_pct, spec.seed)
    keys = [datasets.image_key(row["sha256"], row["ext"]) for row, side in zip(rows, valid, strict=True) if side]
    pixels = {exact: np.stack([look(storage.read(key), 48, exact, 10**8)[0] for key in keys]) for exact in (True, False)}
    with learner.no_bar():
        theirs = np.stack([learner.predict(storage.local(key))[2].numpy() for key in keys])
    ours = load(folder, "exact", settings.cache)(pixels[True])
    # Then they are equal
    assert len(keys) >= 4
    assert (models.info(storage, "digits", 1)["mean"] is not None) == pretrained
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # And torch's engine, for machines with a GPU or without OpenVINO, answers the same
    plain = engines._torch(folder, engines.read_info(folder), "exact", "cpu")
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
    np.testing.assert_allclose(probabilities, engines._torch(folder, engines.read_info(folder), "exact", "cpu")(pixels), atol=1e-4)


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


@pytest.mark.parametrize("size", [32, 57, 64, 224])
@pytest.mark.parametrize("shape", [(400, 533), (32, 32), (1, 1), (1000, 37), (7, 9)])
def test_exact_preparation_is_fastai_s_own_and_the_quick_one_is_next_to_it(size, shape):
    image = Image.fromarray(RNG.integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8))
    theirs = np.asarray(RandomResizedCrop(size)(image, split_idx=1))
    np.testing.assert_array_equal(prepare(image, size, exact=True), theirs)
    np.testing.assert_allclose(prepare(image, size, exact=False).astype(int), theirs.astype(int), atol=2)


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
    with pytest.raises(DarkroomError, match="'get_model', which is none of"):
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
