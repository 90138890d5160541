"""The network that classifies is the network that was trained, and sees what training validated on."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision
from fastai.learner import load_learner
from fastai.vision.learner import create_vision_model
from PIL import Image
from safetensors.torch import save_file
from test_training import SPEC, encoded, place, publish, random_weights

from shared import datasets, models
from shared.errors import DarkroomError
from shared.images import decode
from shared.specs import ARCHITECTURES, TrainSpec
from worker.classifying.network import load_network
from worker.progress import Progress
from worker.training import train


def stripes(count=12):
    """(label, bytes) of noisy pictures of all shapes, brighter in one class."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(20, 140, (2 * count, 2))
    pictures = [(rng.random((h, w, 3)) * (120 if i % 2 else 255)).astype(np.uint8) for i, (h, w) in enumerate(shapes)]
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
def test_probabilities_are_those_of_the_exported_learner(tmp_path, monkeypatch, arch, pretrained):
    # Given a model trained on pictures of all shapes, from scratch or from weights that want ImageNet's normalisation
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights(arch, tmp_path / "torch")
    settings, storage = place(tmp_path)
    rows = publish(storage, tmp_path / "files", stripes())
    spec = TrainSpec(**SPEC | {"arch": arch, "pretrained": pretrained, "batch_size": 4, "image_size": 48, "valid_pct": 0.4})
    train(spec, "job1", storage, settings, Progress(lambda _: None))
    # When its validation pictures are classified here, and predicted by the export in fastai
    network = load_network(storage.local(models.key("digits", 1, "info.json")).parent)
    learner = load_learner(storage.local(models.key("digits", 1, "export.pkl")))
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], spec.valid_pct, spec.seed)
    keys = [datasets.image_key(row["sha256"], row["ext"]) for row, side in zip(rows, valid, strict=True) if side]
    ours = network.probabilities(torch.stack([network.prepare(decode(storage.read(key)).image) for key in keys]))
    with learner.no_bar():
        theirs = [learner.predict(storage.local(key))[2].numpy() for key in keys]
    # Then they are equal
    assert len(keys) >= 4
    assert (network.mean is not None) == pretrained
    np.testing.assert_allclose(ours, np.stack(theirs), atol=1e-4)
    # And the report's probabilities are the same ones
    report = models.report(storage, "digits", 1)
    highest = dict(zip([key.split("/")[-1] for key in keys], ours.max(axis=1).tolist(), strict=True))
    for finding in report["top_losses"]:
        assert finding["probability"] == pytest.approx(highest[f"{finding['sha256']}.{finding['ext']}"], abs=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_is_rebuilt_from_its_files(tmp_path, arch):
    network = load_network(saved(tmp_path, arch, classes=("a", "b", "c")))
    probabilities = network.probabilities(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert probabilities.shape == (2, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert network.classes == ["a", "b", "c"]


def test_pictures_are_prepared_as_small_squares_of_bytes(tmp_path):
    network = load_network(saved(tmp_path))
    prepared = network.prepare(Image.new("RGB", (300, 200), (255, 128, 0)))
    assert (tuple(prepared.shape), prepared.dtype, type(prepared)) == ((3, 64, 64), torch.uint8, torch.Tensor)
    assert prepared[:, 32, 32].tolist() == [255, 128, 0]


def test_threads_prepare_what_one_thread_would(tmp_path):
    network = load_network(saved(tmp_path))
    pictures = [decode(data).image for _, data in stripes(100)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(network.prepare, pictures))
    assert all(torch.equal(a, network.prepare(picture)) for a, picture in zip(together, pictures, strict=True))


def test_weights_of_another_number_of_classes_are_a_sentence(tmp_path):
    saved(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps(json.loads((tmp_path / "info.json").read_text()) | {"classes": ["a", "b", "c"]}))
    with pytest.raises(DarkroomError, match="do not fit squeezenet1_1 with 3 classes"):
        load_network(tmp_path)


def test_an_architecture_that_is_not_on_the_list_is_never_built(tmp_path):
    (saved(tmp_path) / "info.json").write_text('{"arch": "get_model"}')
    with pytest.raises(DarkroomError, match="'get_model', which is none of"):
        load_network(tmp_path)


def test_an_info_that_does_not_say_the_normalisation_is_a_sentence(tmp_path):
    saved(tmp_path)
    (tmp_path / "info.json").write_text(json.dumps({"arch": "resnet18", "classes": ["a", "b"], "image_size": 64}))
    with pytest.raises(DarkroomError, match="does not say mean, std"):
        load_network(tmp_path)


@pytest.mark.parametrize("file", ["info.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_missing_or_damaged_file_is_a_sentence_that_names_it(tmp_path, file, damage):
    path = saved(tmp_path) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DarkroomError, match=file):
        load_network(tmp_path)
