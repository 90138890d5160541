"""A training that stopped goes on as if it had not; one that is done gets more epochs; the best of them is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from handwriting import SPEC, WHOLE, digits, place, publish, random_weights

from shared import models
from shared.errors import DarkroomError
from shared.specs import TrainSpec
from worker.progress import Progress
from worker.training import checkpoints, train
from worker.training.checkpoints import Standing
from worker.training.live import Live
from worker.training.pictures import samples_of
from worker.training.recipe import Seeds, build_learner

KILLED_AFTER = """
import os, signal, sys
from handwriting import WHOLE, place
from shared.specs import TrainSpec
from worker.progress import Progress
from worker.training import train

left = int(sys.argv[2])

def emit(message):
    global left
    left -= "kept" in message
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

settings, storage = place(__import__("pathlib").Path(sys.argv[1]))
train(TrainSpec(**WHOLE), "job1", storage, settings, Progress(emit))
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A training of three epochs from (random) weights that nobody disturbs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        random_weights("squeezenet1_1", folder / "torch")
        settings, storage = place(folder)
        publish(storage, folder / "files", digits())
        train(TrainSpec(**WHOLE), "job1", storage, settings, Progress(lambda _: None))
        yield folder, storage


@pytest.mark.parametrize("after", [1, 2, 3])
def test_killed_after_an_epoch_and_resumed_equals_uninterrupted_to_the_last_digit(uninterrupted, tmp_path, after):
    # Given a training that is killed when an epoch was kept: between the two cycles, within one, and after the last
    _, expected = uninterrupted
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits())
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    command = [sys.executable, "-c", KILLED_AFTER, str(tmp_path), str(after)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert models.names(storage) == []
    # When it is begun again
    said = []
    train(TrainSpec(**WHOLE), "job1", storage, settings, Progress(said.append))
    # Then the weights, the table of epochs and the curve are those of the training nobody disturbed
    weights = models.key("digits", 1, "model.safetensors")
    assert storage.read(weights) == expected.read(weights)
    ours, theirs = (models.report(s, "digits", 1) for s in (storage, expected))
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in report["epochs"]] for report in (ours, theirs)]
    assert untimed[0] == untimed[1]
    assert ours["loss"] == theirs["loss"]
    assert [row["epoch"] for row in ours["epochs"]] == [1, 2, 3]
    assert [m["row"][1]["epoch"] for m in said if m.get("row", [""])[0] == "epochs"] == [1, 2, 3]


def test_a_training_draws_otherwise_than_what_it_starts_from_and_as_itself_after_a_crash(ready):
    settings, storage = ready
    spec = TrainSpec(**SPEC)
    learner = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None)))
    drawn = []
    for start in ("scratch", "scratch", "digits/v1"):
        seeds = Seeds(spec.model_copy(update={"start": start}), Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
        seeds.learn = learner
        seeds.before_train()
        drawn.append((learner.dls.train.rng.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_a_training_that_is_done_gets_more_epochs_and_keeps_what_it_was(ready):
    settings, storage = ready
    train(TrainSpec(**SPEC | {"epochs": 2}), "job1", storage, settings, Progress(lambda _: None))
    train(TrainSpec(**SPEC).model_copy(update={"continues": "job1"}), "job2", storage, settings, Progress(lambda _: None))
    before, after = models.report(storage, "digits", 1), models.report(storage, "digits", 2)
    assert after["epochs"][:2] == before["epochs"]
    assert [row["epoch"] for row in after["epochs"]] == [1, 2, 3]
    batches = [batch for batch, _ in after["loss"]]
    assert batches == sorted(set(batches))


def test_a_training_goes_on_only_from_one_like_it(ready):
    settings, storage = ready
    train(TrainSpec(**SPEC), "job1", storage, settings, Progress(lambda _: None))
    other = TrainSpec(**SPEC | {"arch": "resnet18"}).model_copy(update={"continues": "job1"})
    with pytest.raises(DarkroomError, match="cannot go on with another arch"):
        train(other, "job2", storage, settings, Progress(lambda _: None))
    with pytest.raises(DarkroomError, match="has left no checkpoint"):
        train(other.model_copy(update={"continues": "job9"}), "job2", storage, settings, Progress(lambda _: None))


def test_a_checkpoint_that_is_no_checkpoint_is_a_sentence(ready):
    settings, storage = ready
    storage.write(models.checkpoint_key("job1"), b"nothing of the kind")
    with pytest.raises(DarkroomError, match=r"job1/last\.safetensors cannot be read"):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(lambda _: None))


def test_the_model_is_that_of_the_best_epoch(ready):
    settings, storage = ready
    train(TrainSpec(**SPEC | {"epochs": 4, "base_lr": 0.02}), "job1", storage, settings, Progress(lambda _: None))
    info, report = models.info(storage, "digits", 1), models.report(storage, "digits", 1)
    best = checkpoints.best_epoch(info["epochs"])
    assert info["best_epoch"] == report["best_epoch"] == best
    assert report["error_rate"] == pytest.approx(min(row["error_rate"] for row in info["epochs"]), abs=1e-5)


def test_training_stops_when_patience_is_over(ready):
    settings, storage = ready
    spec = TrainSpec(**SPEC | {"epochs": 30, "patience": 2})
    train(spec, "job1", storage, settings, Progress(lambda _: None))
    rows = models.info(storage, "digits", 1)["epochs"]
    assert len(rows) == checkpoints.best_epoch(rows) + 2 < 30


def test_patience_does_not_begin_before_the_whole_network_is_trained_nor_in_an_earlier_training():
    spec = TrainSpec(**WHOLE | {"patience": 2})

    def after(epochs, **more):
        return checkpoints.stale(spec, Standing(16, rows=[{}] * epochs, best=1, **more))

    assert [after(n) for n in (1, 2, 3)] == [False, False, True]  # the first is the head's
    assert [after(n, earlier=5) for n in (6, 7, 8)] == [False, False, True]
    assert not checkpoints.stale(spec.model_copy(update={"patience": 0}), Standing(16, rows=[{}] * 9, best=1))
