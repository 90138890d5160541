"""Training with several processes: torchrun, real ranks on the processor, real digits."""

import json
import os
import signal
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import alive, until, working_for
from faults import ended, explain, order_training
from handwriting import SPEC, digits, nothing_stays, place, publish

from shared import models
from shared.errors import Cancelled, DarkroomError, Invalid
from shared.jobs import State
from shared.specs import TrainSpec, parse
from worker.progress import Progress
from worker.training import checkpoints, learn, train
from worker.training.checkpoints import Standing
from worker.training.pictures import samples_of
from worker.training.recipe import build_learner
from worker.training.several import check_machine, share

ROOT = Path(__file__).parent.parent
PAIR = SPEC | {
    "arch": "resnet18",
    "augment": "none",
    "epochs": 8,
    "gpus": 2,
    "batch_size": 15,
    "mixed_precision": "off",
}  # shares of 8 and of 7
NEEDS_TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2 and not torch.cuda.is_available(), reason="two processes need two cores")
pytestmark = NEEDS_TWO


def command_line(code, *args):
    """A process of its own in which `code` runs; tests' modules can be imported."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"args": [sys.executable, "-c", code, *map(str, args)], "env": {**os.environ, "PYTHONPATH": path}}


def ranks_of(folder):
    """Ids of the processes, torchrun's and its ranks', that train for the job whose temporary files are in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """Settings and storage with a dataset of digits; temporary folders are the test's own, and at the end no rank is left."""
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits())
    yield settings, storage
    until(lambda: not ranks_of(tmp_path / "t"), 15, lambda: f"left behind: {ranks_of(tmp_path / 't')}")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A training of two processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("pair")
    settings, storage = place(folder)
    publish(storage, folder / "files", digits())
    messages = []
    result = train(TrainSpec(**PAIR), "job1", storage, settings, Progress(messages.append))
    return {
        "storage": storage,
        "settings": settings,
        "messages": messages,
        "result": result,
        "info": models.info(storage, "digits", 1),
        "report": models.report(storage, "digits", 1),
    }


# -- what a rank sees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 16), (2, 15), (3, 16)])
def test_all_ranks_together_see_the_batches_of_one_process_and_validate_each_image_once(ready, ranks, batch_size):
    settings, storage = ready
    spec = TrainSpec(**SPEC | {"batch_size": batch_size})
    dls = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None))).dls
    parts = [[share(dl, rank, ranks) for dl in dls.loaders] for rank in range(ranks)]

    def batches(dl):
        dl.rng.seed(7)
        images = dl.get_idxs()
        return [images[n : n + dl.bs] for n in range(0, len(images), dl.bs)]

    for n, batch in enumerate(batches(dls.train)[: len(dls.train)]):
        seen = [batches(training)[n] for training, _ in parts]
        assert sorted(chain(*seen)) == sorted(batch)
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
    for training, _ in parts:
        assert [len(labels) for _, labels in training] == [training.bs] * len(dls.train)
    assert sorted(chain(*chain(*(batches(valid) for _, valid in parts)))) == list(range(len(dls.valid_ds)))
    assert sum(len(labels) for _, valid in parts for _, labels in valid) == len(dls.valid_ds)


RANK = """
import hashlib, json, os, sys
from pathlib import Path
import torch
from fastai.callback.core import Callback
from handwriting import place
from shared.specs import TrainSpec
from worker.progress import Progress
from worker.training import learn
from worker.training.checkpoints import Standing
from worker.training.pictures import samples_of
from worker.training.recipe import build_learner
from worker.training.several import meet, put_together

class Look(Callback):
    order = 5  # of what comes out of the loaders, before anything is mixed
    def before_batch(self):
        if self.training and self.epoch == 0 and self.iter == 0:
            seen["first"] = [round(float(value), 6) for value in self.x.float().mean(dim=(1, 2, 3))]
            seen["seed"] = torch.initial_seed()

rank, ranks = int(os.environ.pop("RANK")), int(os.environ.pop("WORLD_SIZE"))
home, out, fields = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
settings, storage = place(home)
spec = TrainSpec(**fields)
meet(out / "store", rank, ranks)
learner = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None)))
put_together(learner, rank, ranks)
seen = {}
learner.add_cb(Look())
standing = Standing(spec.batch_size)
learn(learner, spec, "job", None, standing, None, Progress(lambda _: None))
digest = hashlib.sha256()
for name, value in learner.model.state_dict().items():
    digest.update(name.encode() + value.contiguous().numpy().tobytes())
rows = [{k: v for k, v in row.items() if k != "seconds"} for row in standing.rows]
told = {**seen, "weights": digest.hexdigest(), "rows": rows, "base_lr": standing.base_lr, "points": standing.points}
(out / f"{rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def both(pair, tmp_path_factory):
    """What each of two ranks of torchrun says of a training with all that the recipe has."""
    out = tmp_path_factory.mktemp("both")
    (out / "rank.py").write_text(RANK)
    more = {
        "arch": "squeezenet1_1",
        "epochs": 2,
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "class_weights": True,
        "find_lr": True,
        "mixed_precision": "on",
    }
    home = Path(pair["settings"].storage).parent
    process = command_line("")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(out / "rank.py"), str(home), str(out), json.dumps(PAIR | more)],
        env={**process["env"], "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_ranks_end_with_the_same_weights_and_figures(both):
    first, second = both
    for what in ("weights", "rows", "points", "base_lr"):
        assert first[what] == second[what]
    assert len(first["rows"]) == 2
    assert 1e-7 < first["base_lr"] < 1


def test_each_rank_sees_images_of_its_own_and_crops_them_by_chances_of_its_own(both):
    first, second = (set(rank["first"]) for rank in both)
    assert (len(both[0]["first"]), len(both[1]["first"])) == (8, 7)
    assert not first & second
    assert both[0]["seed"] != both[1]["seed"]


# -- a training from its order to the model ----------------------------------------------------------------------------


def test_two_processes_learn_as_well_as_one(pair):
    spec = TrainSpec(**PAIR | {"gpus": 1})
    samples = samples_of(spec, 1, pair["storage"], pair["settings"], Progress(lambda _: None))
    alone = Standing(spec.batch_size)
    learn(build_learner(spec, samples), spec, "alone", None, alone, None, Progress(lambda _: None))
    assert min(row["error_rate"] for row in alone.rows) < 0.4  # by chance it is 0.67
    assert pair["info"]["error_rate"] < 0.4


def test_the_model_says_how_many_gpus_made_it(pair):
    info = pair["info"]
    assert (info["gpus"], info["spec"]["gpus"], info["batch_size"], info["remarks"]) == (2, 2, 15, [])
    assert info["device"].startswith("2 x ")
    assert pair["result"]["error_rate"] == info["error_rate"]


def test_the_figures_of_the_ranks_are_those_of_the_published_model(pair):
    best = pair["report"]["epochs"][pair["report"]["best_epoch"] - 1]
    assert best["error_rate"] == pytest.approx(pair["report"]["error_rate"], abs=1e-5)
    losses = [m["row"][1] for m in pair["messages"] if m.get("row", [""])[0] == "loss"]
    assert [n for n, _ in losses[: len(pair["report"]["loss"])]] == list(range(1, PAIR["epochs"] * 6 + 1))


def test_rank_0_alone_tells_how_far_it_is(pair):
    told = [m["progress"] for m in pair["messages"] if m.get("progress", {}).get("phase") == "training"]
    done = [state["done"] for state in told]
    assert done == sorted(done)
    assert told[-1]["done"] == told[-1]["total"] == PAIR["epochs"] * told[-1]["batches"]
    assert told[-1]["device"].startswith("2 x ")
    assert sum(bool(m.get("kept")) for m in pair["messages"]) == PAIR["epochs"]


KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from shared.specs import TrainSpec
from test_several import PAIR, place
from worker.progress import Progress
from worker.training import train

def emit(message):
    if "kept" in message:
        os.kill(os.getpid(), signal.SIGKILL)

settings, storage = place(Path(sys.argv[1]))
train(TrainSpec(**PAIR), "job1", storage, settings, Progress(emit))
"""


def test_killed_after_an_epoch_and_resumed_equals_uninterrupted_to_the_last_digit(pair, ready, tmp_path):
    # Given a training whose process is killed after the first epoch
    settings, storage = ready
    process = command_line(KILLED_AFTER, tmp_path)
    done = subprocess.run(
        process["args"], env={**process["env"], "TMPDIR": str(tmp_path / "t")}, stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Then its ranks die with it
    until(lambda: not ranks_of(tmp_path / "t"), 15)
    assert models.names(storage) == []
    # When it is begun again, then all is as if nothing had happened
    train(TrainSpec(**PAIR), "job1", storage, settings, Progress(lambda _: None))
    weights = models.key("digits", 1, "model.safetensors")
    assert storage.read(weights) == pair["storage"].read(weights)
    ours, theirs = models.report(storage, "digits", 1), pair["report"]
    untimed = [[{k: v for k, v in row.items() if k != "seconds"} for row in report["epochs"]] for report in (ours, theirs)]
    assert untimed[0] == untimed[1]
    assert ours["loss"] == theirs["loss"]


SMALL = """
import os, sys
if "LOCAL_RANK" in os.environ:
    import torch
    call = torch.nn.Sequential.__call__

    def on_a_small_device(self, x):
        if self.training and x.ndim == 4 and len(x) > 4 and os.environ["LOCAL_RANK"] == "1":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return call(self, x)

    torch.nn.Sequential.__call__ = on_a_small_device
"""


def test_a_rank_without_memory_halves_the_batch_of_all_and_a_cancel_ends_all_and_leaves_the_last_epoch(ready, tmp_path, monkeypatch):
    # Given a second rank with memory for four images
    settings, storage = ready
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(SMALL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fault"), str(ROOT)]))
    stop, said, found = threading.Event(), [], []

    def emit(message):
        said.append(message)
        if "kept" in message:
            found.extend(ranks_of(tmp_path / "t"))
            stop.set()

    # When the training is cancelled after its first epoch
    with pytest.raises(Cancelled):
        train(TrainSpec(**PAIR | {"epochs": 300, "batch_size": 16}), "job1", storage, settings, Progress(emit, stop))
    # Then it was one of shares of four images
    assert "The device ran out of memory with batches of 16 images, so the batch size was 8 instead of 16." in [
        m["progress"].get("remark") for m in said if "progress" in m
    ]
    kept = checkpoints.read(storage, "job1")
    assert (kept.standing.batch_size, len(kept.standing.rows)) == (8, 1)
    # and nothing is left but that epoch
    assert len(found) == 3  # torchrun and two
    assert ranks_of(tmp_path / "t") == []
    assert list((tmp_path / "t").iterdir()) == []
    assert storage.list("checkpoints/job1") == ["last.safetensors"]
    assert nothing_stays(settings, storage)


@pytest.mark.fault
def test_a_rank_that_is_killed_costs_an_epoch_at_most(start_worker, backend):
    # Given a training of two processes that has finished an epoch
    start_worker("train")
    job = order_training(backend, arch="squeezenet1_1", epochs=12, gpus=2)
    until(lambda: backend.store.rows(job, "epochs"), 240, explain(backend, job))
    ranks = [pid for pid in working_for(backend.settings) if b"worker.training.several" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    rank = next(pid for pid in ranks if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    # When one of them is killed
    os.kill(rank, signal.SIGKILL)
    # Then the training goes on from there, and says so
    until(lambda: ended(backend, job), 240, explain(backend, job))
    assert backend.store.get(job).state == State.DONE, explain(backend, job)()
    note = backend.store.get(job).note
    assert "the process (one of 2) was killed, crashed or stopped answering" in note
    assert "goes on from its last finished epoch" in note
    assert [row["epoch"] for row in backend.store.rows(job, "epochs")] == list(range(1, 13))


def test_more_gpus_than_there_are_is_a_sentence_and_no_training_on_the_processor(ready):
    settings, storage = ready
    with pytest.raises(DarkroomError, match=r"asks for 4 GPUs, and this machine has 2\. Ask for 2, or start a worker"):
        check_machine(4, there=2, cores=64)
    check_machine(4, there=4, cores=2)
    check_machine(4, there=0, cores=4)
    with pytest.raises(DarkroomError, match="this machine has none; its processor can stand in for 2 at most"):
        check_machine(3, there=0, cores=2)
    if len(os.sched_getaffinity(0)) < 16:
        with pytest.raises(DarkroomError, match="asks for 16 GPUs, and this machine has"):
            train(TrainSpec(**SPEC | {"gpus": 16, "batch_size": 64}), "job1", storage, settings, Progress(lambda _: None))


def test_a_batch_too_small_to_be_shared_is_a_sentence(tmp_path):
    with pytest.raises(Invalid, match="gpus: 4 GPUs cannot share a batch of 6 images; each needs two at least"):
        parse("train", SPEC | {"gpus": 4, "batch_size": 6})
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits(per_class=2, classes=2))
    with pytest.raises(DarkroomError, match="only 2 images to train on, too few for 2 GPUs"):
        train(TrainSpec(**PAIR), "job1", storage, settings, Progress(lambda _: None))
