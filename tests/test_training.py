"""Training on real small images: what is published, what is told, and that nothing half-made stays."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from handwriting import SPEC, a_few, digits, nothing_stays, place, publish, random_weights

from shared import datasets, models
from shared.compare import wilson
from shared.errors import Cancelled, DarkroomError
from shared.specs import TrainSpec
from shared.storage import image_key
from worker.progress import Progress
from worker.training import _halved, train
from worker.training.precisions import told
from worker.training.recipe import build_learner
from worker.training.weights import class_remarks, origin_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One training that many tests look at."""
    folder = tmp_path_factory.mktemp("trained")
    settings, storage = place(folder)
    rows = publish(storage, folder / "files", digits())
    messages = []
    result = train(TrainSpec(**SPEC | {"epochs": 2}), "job1", storage, settings, Progress(messages.append))
    info, report = models.info(storage, "digits", 1), models.report(storage, "digits", 1)
    return {"settings": settings, "storage": storage, "rows": rows, "messages": messages, "result": result, "info": info, "report": report}


def test_the_figures_of_a_report_agree(trained):
    report, info = trained["report"], trained["info"]
    confusion = np.array(report["confusion"])
    assert confusion.sum() == info["valid_images"]
    assert confusion.sum(axis=1).tolist() == [c["support"] for c in report["per_class"]]
    assert report["error_rate"] == pytest.approx(1 - np.trace(confusion) / confusion.sum())
    assert len(report["mistakes"]) == confusion.sum() - np.trace(confusion) == sum(c["count"] for c in report["most_confused"])
    assert report["interval"][0] <= report["error_rate"] <= report["interval"][1]


def test_a_report_agrees_with_the_last_epoch(trained):
    assert trained["report"]["epochs"][-1]["error_rate"] == pytest.approx(trained["report"]["error_rate"], abs=1e-5)


def test_the_top_losses_come_first_and_name_the_image(trained):
    losses = [finding["loss"] for finding in trained["report"]["top_losses"]]
    assert len(losses) == 24
    assert losses == sorted(losses, reverse=True)
    assert all(trained["storage"].exists(image_key(f["sha256"], f["ext"])) for f in trained["report"]["top_losses"])


def test_validation_is_the_split_of_the_dataset(trained):
    items = [(row["sha256"], row["label"]) for row in trained["rows"]]
    valid = {sha256 for (sha256, _), side in zip(items, datasets.split(items, 0.2, 42), strict=True) if side}
    assert {finding["sha256"] for finding in trained["report"]["top_losses"]} <= valid
    assert (trained["info"]["valid_images"], trained["info"]["train_images"]) == (len(valid), len(items) - len(valid))


def test_info_says_where_a_model_comes_from(trained):
    info = trained["info"]
    dataset = datasets.info(trained["storage"], "digits")
    assert info["dataset"] == {"name": "digits", "version": 1, "hash": dataset["hash"], "images": 120}
    assert (info["classes"], info["arch"], info["image_size"], info["job"]) == (
        ["digit 0", "digit 1", "digit 2"],
        "squeezenet1_1",
        32,
        "job1",
    )
    assert TrainSpec(**info["spec"]) == TrainSpec(**SPEC | {"epochs": 2})
    assert info["libraries"]["torch"] == torch.__version__.split("+")[0]


def test_the_result_is_what_was_published(trained):
    info = trained["info"]
    assert trained["result"] == {"model": "digits", "version": 1, "error_rate": info["error_rate"], "train_seconds": info["train_seconds"]}
    quantised = ["int8.bin", "int8.xml"] if info["int8"]["offered"] else []
    assert trained["storage"].list("models/digits/v0001") == [
        "export.pkl",
        "info.json",
        *quantised,
        "model.safetensors",
        "report.json",
        "validation.parquet",
    ]


def test_the_exact_network_looks_again_at_as_few_images_as_will_do():
    lead = np.linspace(0.001, 1, 1000)
    wrong = np.zeros(1000, bool)
    assert told(wrong, lead) == {"offered": True, "agreement": 1.0, "images": 1000, "close": 0.0, "twice": 0.0}
    wrong[:15] = True  # closer than 0.016
    assert told(wrong, lead) == {"offered": True, "agreement": 1.0, "images": 1000, "close": 0.02, "twice": 0.019}
    assert told(wrong, lead / 4, temperature=4) == told(wrong, lead) | {"close": 0.005}
    wrong[500:505] = True  # far from close: a larger lead does not help
    assert told(wrong, lead) == {"offered": True, "agreement": 0.995, "images": 1000, "close": 0.02, "twice": 0.019}
    wrong[505:520] = True
    assert told(wrong, lead) == {"offered": False, "agreement": 0.98, "images": 1000, "close": 0.02, "twice": 0.019}
    many = told(lead < 0.4, lead / 4)  # as close as 0.1: it would look at four in ten
    assert (many["offered"], many["twice"] <= 0.05) == (False, True)


def test_an_int8_form_is_judged_on_the_validation_images_and_offered_only_if_it_is_good(trained):
    int8 = trained["info"]["int8"]
    assert int8["images"] == trained["info"]["valid_images"]
    assert int8["offered"] == (int8["agreement"] >= 0.99)
    assert trained["info"]["libraries"].keys() >= {"torch", "fastai", "openvino", "nncf"}


def test_every_message_is_json_and_the_last_batch_is_told(trained):
    messages = [json.loads(json.dumps(message, allow_nan=False)) for message in trained["messages"]]
    states = [message["progress"] for message in messages if "progress" in message]
    assert list(dict.fromkeys(state["phase"] for state in states)) == ["preparing", "training", "evaluating", "saving", "quantising"]
    last = [state for state in states if state["phase"] == "training"][-1]
    assert last["done"] == last["total"] == 2 * last["batches"]
    assert {"epoch", "epochs", "batch", "loss", "lr", "seconds_left", "device"} <= last.keys()
    assert last["images_per_second"] > 0
    assert 100 < last["memory_mb"] < 100_000  # torch alone has more than that


def test_epochs_and_losses_are_published_as_they_come(trained):
    rows = [message["row"] for message in trained["messages"] if "row" in message]
    assert [value for name, value in rows if name == "epochs"] == trained["report"]["epochs"] == trained["info"]["epochs"]
    assert [value for name, value in rows if name == "loss"] == trained["report"]["loss"]
    assert [row["epoch"] for row in trained["report"]["epochs"]] == [1, 2]


def test_the_same_spec_gives_the_same_weights(trained, ready):
    settings, storage = ready
    train(TrainSpec(**SPEC | {"epochs": 2}), "again", storage, settings, Progress(lambda _: None))
    key = models.key("digits", 1, "model.safetensors")
    assert storage.read(key) == trained["storage"].read(key)


def test_the_export_loads_where_only_fastai_is(trained, tmp_path):
    export = trained["storage"].local(models.key("digits", 1, "export.pkl"))
    row = trained["rows"][0]
    image = trained["storage"].local(image_key(row["sha256"], row["ext"]))
    code = (
        "import sys; from fastai.vision.all import *\n"
        f"learner = load_learner({str(export)!r}); learner.remove_cb(ProgressCallback); label, _, probabilities = learner.predict({str(image)!r})\n"
        f"assert learner.predict(Path({str(image)!r}))[0] == learner.predict(PILImage.create({str(image)!r}))[0] == label\n"
        "assert not {name.split('.')[0] for name in sys.modules} & {'worker', 'shared'}\n"
        "print(label, round(float(probabilities.sum()), 3))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("digit ")
    assert done.stdout.strip().endswith("1.0")


def test_the_export_holds_no_path_of_this_machine(trained):
    assert str(trained["settings"].cache.parent).encode() not in trained["storage"].read(models.key("digits", 1, "export.pkl"))


def test_a_device_that_runs_out_of_memory_gets_smaller_batches_and_the_model_says_so(ready, monkeypatch):
    settings, storage = ready

    def on_a_small_device(*args):
        learner = build_learner(*args)

        def check(_, arguments):
            if len(arguments[0]) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        learner.model.register_forward_pre_hook(check)
        learner.dls.valid.bs = 8
        return learner

    monkeypatch.setattr("worker.training.build_learner", on_a_small_device)
    said = []
    train(TrainSpec(**SPEC | {"batch_size": 32}), "job1", storage, settings, Progress(said.append))
    info = models.info(storage, "digits", 1)
    assert info["batch_size"] == 8
    assert info["remarks"] == ["The device ran out of memory with batches of 16 images, so the batch size was 8 instead of 32."]
    assert info["remarks"][0] in [m["progress"].get("remark") for m in said if "progress" in m]


@pytest.mark.parametrize("when", ["preparing", "training", "evaluating", "saving"])
def test_a_cancel_leaves_nothing(ready, when):
    settings, storage = ready
    stop = threading.Event()
    seen = []

    def emit(message):
        seen.append(message)
        if message.get("progress", {}).get("phase") == when and (when != "training" or message["progress"]["done"] >= 2):
            stop.set()

    with pytest.raises(Cancelled):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(emit, stop))
    assert nothing_stays(settings, storage)
    assert seen[-1]["progress"]["phase"] == when if "progress" in seen[-1] else when == "training"


def test_a_cancel_is_seen_before_the_next_batch(ready):
    settings, storage = ready
    stop = threading.Event()
    batches = []

    def emit(message):
        if message.get("row", [""])[0] == "loss":
            batches.append(message["row"][1][0])
            stop.set()

    with pytest.raises(Cancelled):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(emit, stop))
    assert batches == [1]


def test_a_loss_that_is_no_number_is_a_sentence_and_no_model(ready, tmp_path, monkeypatch):
    settings, storage = ready
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights("squeezenet1_1", tmp_path / "torch", scale=1e20)
    with pytest.raises(DarkroomError, match="smaller learning rate"):
        train(TrainSpec(**SPEC | {"start": "imagenet"}), "job1", storage, settings, Progress(lambda _: None))
    assert nothing_stays(settings, storage)


def test_a_batch_larger_than_the_training_set_is_made_smaller_and_remarked(tmp_path):
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits(per_class=2, classes=2))
    train(TrainSpec(**SPEC | {"batch_size": 64}), "job1", storage, settings, Progress(lambda _: None))
    info = models.info(storage, "digits", 1)
    assert (info["train_images"], info["batch_size"], info["valid_images"]) == (2, 2, 2)
    assert "instead of 64" in info["remarks"][0]


def test_a_dataset_of_one_class_is_a_sentence(tmp_path):
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits(classes=1))
    with pytest.raises(DarkroomError, match="'digit 0'; a classifier needs at least two classes"):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(lambda _: None))


def test_a_class_of_one_image_is_a_sentence(tmp_path):
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits()[:-39])
    with pytest.raises(DarkroomError, match="a single image of 'digit 2'"):
        train(TrainSpec(**SPEC), "job1", storage, settings, Progress(lambda _: None))


def test_images_too_small_for_the_network_are_a_sentence(ready):
    settings, storage = ready
    with pytest.raises(DarkroomError, match="16 pixels are too small for squeezenet1_1"):
        train(TrainSpec(**SPEC | {"image_size": 16}), "job1", storage, settings, Progress(lambda _: None))


def test_too_little_memory_for_the_smallest_batch_is_a_sentence():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert _halved(raised.value, TrainSpec(**SPEC), 16) == 8
    with pytest.raises(DarkroomError, match="even for batches of 3 images of 32 pixels"):
        _halved(raised.value, TrainSpec(**SPEC), 3)


def test_a_loader_process_that_was_killed_is_a_sentence():
    with pytest.raises(DarkroomError, match="shared memory"):
        _halved(RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), TrainSpec(**SPEC), 16)


def test_any_other_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        _halved(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), TrainSpec(**SPEC), 16)


def test_a_training_from_a_model_starts_with_what_it_knows_of_each_class(trained, tmp_path):
    storage = trained["storage"]
    spec = TrainSpec(**SPEC | {"start": "digits/v1"})
    origin = origin_of(spec, storage)
    learner = build_learner(spec, a_few(tmp_path, ["digit 0", "digit 2", "hat"]), origin)
    untouched = build_learner(TrainSpec(**SPEC), a_few(tmp_path, ["digit 0", "digit 2", "hat"])).model.state_dict()
    last = list(untouched)[-1]
    for key, value in learner.model.state_dict().items():
        if key != last:
            assert torch.equal(value, origin.weights[key])
    now, before = learner.model.state_dict()[last], origin.weights[last]
    assert torch.equal(now[0], before[0])
    assert torch.equal(now[1], before[2])
    assert torch.equal(now[2], untouched[last][2])
    assert class_remarks(["digit 0", "digit 2", "hat"], origin) == [
        "New since digits/v1, and so learned from nothing: 'hat'.",
        "In digits/v1 but not in this dataset, and so forgotten: 'digit 1'.",
    ]


def test_a_model_made_from_another_says_so(trained):
    storage, settings = trained["storage"], trained["settings"]
    made = train(
        TrainSpec(**SPEC | {"start": "digits", "model": "again", "frozen_epochs": 0}), "job2", storage, settings, Progress(lambda _: None)
    )
    info = models.info(storage, "again", made["version"])
    assert (info["parent"], info["weights"], info["remarks"]) == ("digits/v1", None, [])
    assert [row["frozen"] for row in info["epochs"]] == [False]


def test_a_model_of_another_architecture_is_nothing_to_start_from(trained):
    with pytest.raises(DarkroomError, match="digits/v1 is a squeezenet1_1, and its weights do not fit a resnet18"):
        origin_of(TrainSpec(**SPEC | {"start": "digits", "arch": "resnet18"}), trained["storage"])


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert [round(x, 4) for x in wilson(81, 263)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in wilson(0, 20)] == [0.0, 0.1611]
