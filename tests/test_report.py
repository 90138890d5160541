"""How far a model can be trusted: its temperature, and what it said of each validation image."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from fastai.learner import load_learner
from fastai.vision.learner import create_vision_model
from handwriting import SPEC, a_few, digits, place, publish
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from shared import models, validation
from shared.errors import NotFound
from shared.specs import TrainSpec
from shared.storage import Storage, image_key
from worker.classifying.decoding import look
from worker.classifying.engines import load
from worker.progress import Progress
from worker.training import checkpoints, train
from worker.training.recipe import build_learner
from worker.training.temperature import FEWEST_IMAGES, FEWEST_MISTAKES, fitted, fold
from worker.training.weights import origin_of


def said(probabilities, right):
    """Rows of images that a model is so sure of, and is right about or not."""
    return pa.Table.from_pylist(
        [{"probability": p, "actual": "a", "predicted": "a" if r else "b"} for p, r in zip(probabilities, right, strict=True)]
    )


def table(*rows):
    """Rows of (sha256, actual, predicted, probability, loss)."""
    return pa.Table.from_pylist([dict(zip(("sha256", "actual", "predicted", "probability", "loss"), row, strict=True)) for row in rows])


def drawn(temperature, images=5000, classes=4, seed=0):
    """Logits, and targets that are drawn from what they say at another temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, classes, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]


# -- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    found, why = fitted(*drawn(temperature))
    assert (found, why) == (pytest.approx(temperature, rel=0.05), "")


def test_the_temperature_is_the_one_with_the_smallest_loss():
    logits, targets = drawn(1.7, images=300)
    found, _ = fitted(logits, targets)
    loss = [float(torch.nn.functional.cross_entropy(logits / t, targets)) for t in (found * 0.98, found, found * 1.02)]
    assert loss[1] < min(loss[0], loss[2])


def test_a_temperature_stays_within_its_bounds_and_says_so():
    logits, targets = drawn(30.0)
    assert fitted(logits, targets)[0] == 10
    assert "far surer than it is right" in fitted(logits, targets)[1]
    assert fitted(logits / 30, logits.argmax(1))[0] == 1  # no mistake
    logits, targets = drawn(0.2)
    assert fitted(logits, targets)[0] == 0.25
    assert "far less sure than it is right" in fitted(logits, targets)[1]


def test_few_images_and_few_mistakes_correct_nothing():
    logits, targets = drawn(2.0, images=FEWEST_IMAGES - 1)
    assert fitted(logits, targets) == (
        1.0,
        "The probabilities are as training left them: 50 validation images are needed to correct how sure it is, and there are 49.",
    )
    logits, _ = drawn(2.0, images=100)
    targets = logits.argmax(1)
    assert "5 mistakes on the validation images are needed to correct how sure it is, and there are 0." in fitted(logits, targets)[1]
    wrong = (targets + 1) % 4
    targets[: FEWEST_MISTAKES - 1] = wrong[: FEWEST_MISTAKES - 1]
    assert fitted(logits, targets)[0] == 1
    targets[:FEWEST_MISTAKES] = wrong[:FEWEST_MISTAKES]
    assert fitted(logits, targets)[0] != 1


def test_a_folded_network_divides_its_logits():
    network = create_vision_model(squeezenet1_1, 3, pretrained=False).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        before = network(pixels)
        fold(network, 2.5)
        torch.testing.assert_close(network(pixels), before / 2.5)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A model whose validation images are enough to correct it, its settings, storage and rows of the manifest."""
    folder = tmp_path_factory.mktemp("calibrated")
    settings, storage = place(folder)
    rows = publish(storage, folder / "files", digits(per_class=50))
    spec = SPEC | {"arch": "resnet18", "epochs": 4, "base_lr": 2e-3, "valid_pct": 0.5, "augment": "none"}
    train(TrainSpec(**spec), "job1", storage, settings, Progress(lambda _: None))
    return settings, storage, {row["sha256"]: row for row in rows}


def test_every_form_of_a_model_says_the_same_corrected_probabilities(calibrated):
    settings, storage, rows = calibrated
    info, report = models.info(storage, "digits", 1), models.report(storage, "digits", 1)
    assert info["temperature"] == report["calibration"]["temperature"] != 1
    table = validation.read(storage, "digits", 1).to_pylist()
    keys = [image_key(row["sha256"], row["ext"]) for row in table]
    # the report, the engines, and the export in fastai
    folder = storage.local(models.key("digits", 1, "info.json")).parent
    pixels = np.stack([look(storage.read(key), 32, True, 10**8)[0] for key in keys])
    exact, fast = (load(folder, precision, settings.cache)(pixels) for precision in ("exact", "fast"))
    learner = load_learner(folder / "export.pkl")
    with learner.no_bar():
        exported = np.stack([learner.predict(storage.local(key))[2].numpy() for key in keys[:5]])
    np.testing.assert_allclose(exact.max(axis=1), [row["probability"] for row in table], atol=1e-4)
    assert [info["classes"][best] for best in exact.argmax(axis=1)] == [row["predicted"] for row in table]
    np.testing.assert_allclose(exact[:5], exported, atol=1e-4)
    np.testing.assert_allclose(fast, exact, atol=0.05)
    losses = [-np.log(p[info["classes"].index(row["actual"])]) for p, row in zip(exact, table, strict=True)]
    np.testing.assert_allclose([row["loss"] for row in table], losses, atol=1e-3)
    assert {row["actual"] for row in table} == {rows[row["sha256"]]["label"] for row in table}


def test_a_report_tells_the_error_of_calibration_before_and_after(calibrated):
    _, storage, _ = calibrated
    found = models.report(storage, "digits", 1)["calibration"]
    rows = validation.read(storage, "digits", 1)
    assert found["error"] == validation.calibration(rows)["error"]
    assert sum(b["images"] for b in found["before"]["bins"]) == sum(b["images"] for b in found["bins"]) == len(rows)
    assert found["before"]["error"] != found["error"]
    assert found["why"] == ""


def test_the_checkpoint_and_a_training_that_starts_from_the_model_know_no_temperature(calibrated, tmp_path):
    _, storage, _ = calibrated
    kept = checkpoints.read(storage, "job1")
    unscaled = kept.best or kept.weights
    last = "1.8.weight"
    published = load_file(storage.local(models.key("digits", 1, "model.safetensors")))
    temperature = models.info(storage, "digits", 1)["temperature"]
    torch.testing.assert_close(published[last] * temperature, unscaled[last])
    assert not torch.allclose(published[last], unscaled[last])
    spec = TrainSpec(**SPEC | {"arch": "resnet18", "start": "digits/v1"})
    learner = build_learner(spec, a_few(tmp_path, ["digit 2", "digit 0"]), origin_of(spec, storage))
    torch.testing.assert_close(learner.model.state_dict()[last].cpu(), unscaled[last][[0, 2]])


# -- what was said of each image --------------------------------------------------------------------------------------


def test_calibration_is_the_distance_of_what_was_said_from_what_is_right():
    found = validation.calibration(said([0.95, 0.95, 0.95, 0.95, 0.55, 1.0], [1, 1, 1, 0, 0, 1]))
    assert [(b["low"], b["images"]) for b in found["bins"]] == [(0.5, 1), (0.9, 5)]
    assert found["bins"][1]["right"] == 4 / 5
    assert found["error"] == pytest.approx((5 * abs(0.96 - 0.8) + 0.55) / 6)


def test_the_threshold_is_the_lowest_from_which_enough_labels_are_right():
    threshold = validation.threshold
    assert threshold(said([0.9, 0.8, 0.7], [1, 1, 0])) == {"probability": 0.8, "precision": 1.0, "review": pytest.approx(1 / 3)}
    assert threshold(said([0.9, 0.8], [0, 0])) is None
    assert threshold(said([0.9, 0.9], [1, 0])) is None  # what is said of both is the same
    twenty = said([1 - i / 100 for i in range(20)], [i != 3 for i in range(20)])
    assert threshold(twenty) == {"probability": 0.81, "precision": 0.95, "review": 0}
    assert threshold(twenty, 0.99) == {"probability": 0.98, "precision": 1.0, "review": 0.85}


def test_a_cell_holds_its_mistakes_the_surest_first_and_its_right_ones_the_least_sure_first():
    rows = table(
        ("1", "cat", "dog", 0.6, 1.0), ("2", "cat", "dog", 0.9, 3.0), ("3", "cat", "cat", 0.9, 0.1), ("4", "cat", "cat", 0.5, 0.7), ("5", "dog", "cat", 0.7, 1.2)
    )  # fmt: skip

    def cell(**which):
        return validation.cell(rows, **which)["sha256"].to_pylist()

    assert cell(actual="cat", predicted="dog") == ["2", "1"]
    assert cell(actual="cat", predicted="cat") == ["4", "3"]
    assert cell(actual="cat") == ["2", "1"]
    assert cell(predicted="cat") == ["5"]
    assert cell() == ["2", "5", "1"]
    assert cell(actual="dog", predicted="dog") == cell(actual="bird", predicted="dog") == []


def test_the_best_of_a_class_are_right_and_sure_and_the_worst_have_the_highest_loss():
    rows = table(
        *((str(i), "cat", "cat", 0.99 - i / 100, 0.01 + i / 100) for i in range(5)),
        ("x", "cat", "dog", 0.9, 3.0), ("y", "cat", "dog", 0.5, 1.0), ("z", "dog", "cat", 1.0, 9.0)
    )  # fmt: skip
    best, worst = validation.extremes(rows, "cat", 3)
    assert [row["sha256"] for row in best] == ["0", "1", "2"]
    assert [row["sha256"] for row in worst] == ["x", "y", "4"]
    assert [len(part) for part in validation.extremes(rows, "cat", 6)] == [4, 4]  # seven images: half each
    assert [len(part) for part in validation.extremes(rows, "dog", 6)] == [0, 1]


def test_a_model_that_kept_no_predictions_says_so(tmp_path):
    storage = Storage(str(tmp_path / "store"), tmp_path / "cache")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text(json.dumps({}))
    storage.publish_version("models/m", tmp_path / "old", {"model": "m", "job": "", "created": 0})
    with pytest.raises(NotFound, match="m/v1 was trained before predictions were kept"):
        validation.read(storage, "m", 1)
