"""Labels that may be wrong: found among the validation images, whatever the model says, and found where they were planted."""

import numpy as np
import pytest
import torch
from handwriting import digits, place, publish
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import datasets
from shared.specs import TrainSpec
from worker.progress import Progress
from worker.training.pictures import samples_of
from worker.training.recipe import build_learner
from worker.training.report import evaluate
from worker.training.suspects import MOST, suspects_of

CLASSES = ["cat", "dog", "hen"]


def rows(*actual):
    """Images as `evaluate` tells them."""
    return [{"sha256": f"{n:064x}", "ext": "png", "actual": label, "loss": 1.0} for n, label in enumerate(actual)]


def test_a_suspect_is_told_with_both_labels_and_their_probabilities():
    told = torch.tensor([[0.9, 0.1, 0], [0.1, 0.9, 0], [0.05, 0.95, 0], [0.2, 0.2, 0.6]])
    (suspect,) = suspects_of(CLASSES, rows("cat", "dog", "cat", "hen"), told)
    assert (suspect["sha256"], suspect["ext"], suspect["actual"], suspect["suggested"]) == (f"{2:064x}", "png", "cat", "dog")
    assert (suspect["probability"], suspect["given"]) == (pytest.approx(0.95), pytest.approx(0.05))


def test_the_worst_come_first():
    told = torch.tensor([[0.8, 0.2, 0]] * 6 + [[0.2, 0.8, 0]] * 6 + [[0.14, 0.86, 0], [0.01, 0.99, 0], [0.1, 0.9, 0]])
    found = suspects_of(CLASSES, rows(*["cat"] * 6, *["dog"] * 6, *["cat"] * 3), told)
    assert [suspect["probability"] for suspect in found] == pytest.approx([0.99, 0.9, 0.86])


def test_images_of_one_class_alone_raise_no_suspicion():
    told = torch.tensor([[0.0, 1.0, 0]] * 4)
    assert suspects_of(CLASSES, rows(*["cat"] * 4), told) == suspects_of(CLASSES, rows(*["dog"] * 4), told) == []


def test_of_very_many_the_worst_are_told():
    told = torch.eye(2).repeat(1000, 1)
    assert len(suspects_of(["a", "b"], rows(*["a", "a", "b", "b"] * 500), told)) == MOST


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0, 30.0]), st.booleans())
@pytest.mark.filterwarnings("error")
def test_whatever_a_model_says_no_training_ends_here(classes, images, seed, sharpness, rounded):
    chance = np.random.default_rng(seed)
    told = torch.softmax(torch.tensor(chance.normal(0, sharpness, (images, classes)), dtype=torch.float32), dim=1)
    told = told.round() if rounded else told  # all zeros, where nothing is half sure
    names = [f"class {n}" for n in range(classes)]
    actual = [names[n] for n in chance.integers(0, chance.integers(1, classes + 1), images)]  # often some classes are absent
    for suspect in suspects_of(names, rows(*actual), told):
        assert suspect["suggested"] != suspect["actual"]
        assert suspect["probability"] >= suspect["given"]


def test_planted_wrong_labels_are_among_the_suspects_of_a_training(tmp_path):
    setting, storage = place(tmp_path)
    files = digits(per_class=80, classes=2)
    publish(storage, tmp_path / "right", files, name="right")
    offered = [(row["sha256"], row["label"]) for row in datasets.rows(storage, "right", 1)]
    held_back = [n for n, valid in enumerate(datasets.split(offered, 0.2, 42)) if valid]
    planted = held_back[::8]
    for n in planted:
        label, data = files[n]
        files[n] = (f"digit {1 - int(label[-1])}", data)
    publish(storage, tmp_path / "wrong", files)
    spec = {"dataset": "digits", "arch": "squeezenet1_1", "start": "scratch", "image_size": 32, "augment": "none", "batch_size": 16}
    learned = TrainSpec.model_validate({**spec, "epochs": 4})
    samples = samples_of(learned, 1, storage, setting, Progress(lambda _: None))
    learner = build_learner(learned, samples, None)
    with learner.no_bar():
        learner.fit_one_cycle(learned.epochs, learned.base_lr)
    *told, _ = evaluate(learner, [s for s in samples if s.valid], Progress(lambda _: None))
    suspects = {s["sha256"]: s["suggested"] for s in suspects_of(list(learner.dls.vocab), *told)}
    right = dict(offered)
    found = [n for n in planted if suspects.get(offered[n][0]) == right[offered[n][0]]]
    assert len(planted) >= 4
    assert len(found) >= 0.75 * len(planted)
    assert len(suspects) < len(held_back) / 2  # not by suspecting everything
