"""Training on real small images: what is published, what is told, and that nothing half-made stays."""

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import parent_label
from fastai.torch_core import set_seed
from fastai.vision.augment import RandomResizedCrop, aug_transforms
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from fastai.vision.learner import create_vision_model, default_split, model_meta, vision_learner
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.models import squeezenet1_1

from shared import datasets, models
from shared.compare import wilson
from shared.errors import Cancelled, DarkroomError
from shared.images import decode
from shared.settings import Settings
from shared.specs import ARCHITECTURES, TrainSpec
from shared.storage import Storage, image_key
from worker.progress import Progress
from worker.training import _halved, checkpoints, train
from worker.training.checkpoints import Standing
from worker.training.live import Live, Watch
from worker.training.pictures import Sample, alike_remarks, is_plain, prepare, sample_of, samples_of
from worker.training.precisions import told
from worker.training.recipe import Seeds, build_learner, find_rate, fit, loader_workers, loss_function, regular, squares
from worker.training.weights import class_remarks, fetch_weights, origin_of, weights_file

SPEC = {
    "dataset": "digits",
    "arch": "squeezenet1_1",
    "start": "scratch",
    "epochs": 1,
    "image_size": 32,
    "augment": "light",
    "batch_size": 16,
}


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def digits(per_class=40, classes=3):
    """(label, bytes) of handwritten digits, 8 x 8 pixels drawn at 32."""
    source = load_digits()
    chosen = [i for c in range(classes) for i in np.flatnonzero(source.target == c)[:per_class]]
    pixels = (source.images * (255 / 16)).astype(np.uint8)
    return [(f"digit {source.target[i]}", encoded(Image.fromarray(pixels[i]).resize((32, 32)))) for i in chosen]


def publish(storage, folder, files, name="digits"):
    """A dataset version of (label, bytes); returns its manifest rows."""
    rows = []
    for label, data in files:
        picture = decode(data)
        sha256 = hashlib.sha256(data).hexdigest()
        storage.write(image_key(sha256, picture.extension), data, durable=False)
        size = {"width": picture.width, "height": picture.height, "bytes": len(data)}
        rows.append(datasets.blank_row(sha256=sha256, ext=picture.extension, label=label, status="kept", **size))
    folder.mkdir()
    (folder / "manifest.parquet").write_bytes(datasets.manifest_bytes(rows))
    info = {"dataset": name, "job": f"import {folder.name}", "created": 0, **datasets.summary(rows)}
    storage.publish_version(f"datasets/{name}", folder, info)
    return rows


def place(folder):
    """Settings and storage in a folder."""
    settings = Settings(storage=str(folder / "store"), cache=folder / "cache")
    return settings, Storage(settings.storage, settings.cache)


def random_weights(arch, torch_home, scale=1.0):
    """Weights where torch looks for ImageNet's, so that pretraining is gone through without a download."""
    torch.manual_seed(0)
    (torch_home / "hub" / "checkpoints").mkdir(parents=True)
    state = {key: value * scale for key, value in getattr(torchvision.models, arch)(weights=None).state_dict().items()}
    torch.save(state, torch_home / "hub" / "checkpoints" / weights_file(arch).name)


def nothing_stays(settings, storage):
    """Whether there is no model and no temporary folder."""
    return models.names(storage) == [] and not list(settings.cache.glob("training-*")) and not storage.list("models/digits")


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


@pytest.fixture
def ready(tmp_path):
    """Settings and storage with a dataset of digits."""
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits())
    return settings, storage


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


@pytest.mark.parametrize("start", ["imagenet", "scratch"])
def test_the_learner_is_the_one_of_the_course(tmp_path, monkeypatch, start):
    # Given a folder per class
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights("squeezenet1_1", tmp_path / "torch")
    for i, (label, data) in enumerate(digits(per_class=10)):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{i}.png").write_bytes(data)
    files = sorted(tmp_path.glob("digit*/*.png"))
    splits = [[i for i in range(30) if i % 5], list(range(0, 30, 5))]
    # When a learner is built here, and with fastai's data block
    spec = TrainSpec(**SPEC | {"start": start, "augment": "course"})
    ours = build_learner(spec, [Sample("", "png", f.parent.name, not i % 5, f, 32 * 32) for i, f in enumerate(files)])
    set_seed(42, reproducible=True)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        splitter=lambda _: splits,
        get_y=parent_label,
        item_tfms=RandomResizedCrop(32, min_scale=0.5),
        batch_tfms=aug_transforms(),
    )
    theirs = vision_learner(block.dataloaders(files, bs=16, num_workers=0), squeezenet1_1, pretrained=start == "imagenet")
    # Then they start from the same weights and are shown the same first batch
    expected = theirs.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in ours.model.state_dict().items())
    batches = []
    for learner in (ours, theirs):
        set_seed(1)
        batches.append(learner.dls.train.one_batch())
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])
    assert str(ours.dls.valid.after_item) == str(theirs.dls.valid.after_item)


# -- checkpoints -------------------------------------------------------------------------------------------------------

WHOLE = SPEC | {"start": "imagenet", "frozen_epochs": 1, "epochs": 2, "base_lr": 5e-3}
KILLED_AFTER = """
import os, signal, sys
from shared.specs import TrainSpec
from test_training import WHOLE, place
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


class Sizes(Callback):
    """The side of each batch, by epoch: of training, and of validation."""

    def before_fit(self):
        self.seen = getattr(self, "seen", [])

    def before_epoch(self):
        self.seen.append((set(), set()))

    def before_batch(self):
        self.seen[-1][not self.training].add(self.x.shape[-1])


def test_images_grow_from_epoch_to_epoch_and_validation_sees_them_in_full(ready):
    settings, storage = ready
    spec = TrainSpec(**SPEC | {"image_size": 128, "epochs": 3, "augment": "none", "progressive": True})
    samples = samples_of(spec, 1, storage, settings, Progress(lambda _: None))[:60]
    learner = build_learner(spec, samples)
    sizes = Sizes()
    told = []
    live = Live(Progress(told.append), spec, learner.dls, Standing(spec.batch_size))
    fit(learner, spec, live, sizes)
    assert [(train, valid) for train, valid in sizes.seen] == [({side}, {128}) for side in spec.sides]
    assert (spec.sides[0], spec.sides[-1], len(set(spec.sides)) > 1) == (64, 128, True)
    assert told[-1]["progress"]["seconds_left"] == 0
    assert next(t for t in learner.dls.train.after_item.fs if isinstance(t, RandomResizedCrop)).size == (128, 128)  # for the export


def test_the_sides_of_images_are_the_spec_s():
    of = lambda **changes: TrainSpec(dataset="any", **{"progressive": True, **changes}).sides  # noqa: E731
    assert of(epochs=4) == [128, 160, 192, 224, 224]
    assert of(epochs=2, start="scratch") == [128, 224]
    assert of(epochs=1, frozen_epochs=0) == [224]
    assert of(epochs=2, image_size=96) == [96] * 3
    assert of(epochs=1, image_size=300) == [160, 300]
    assert TrainSpec(dataset="any", epochs=2).sides == [224] * 3


MEMORY = """
import resource
import torch
from worker.training import memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

def used():
    torch.ones(64 << 20)  # 256 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

used()
before, faults = held(), used()
before_faults = used() - faults
with memory.kept():
    faults = used()
    kept_faults, within = used() - faults, held()
print(before_faults, kept_faults, within - before, held() - before)
"""


def test_the_memory_of_a_batch_is_kept_for_the_next_and_given_back_after_training():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library has other habits")
    out = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, timeout=120).stdout
    before_faults, kept_faults, within, after = map(int, out.split())
    assert kept_faults < before_faults / 10  # pages that the kernel had to zero again
    assert (within > 200, after < 50) == (True, True)  # MiB


def test_the_cycles_are_those_of_fine_tune(uninterrupted):
    samples = digits_of(uninterrupted[1])
    spec = TrainSpec(**WHOLE | {"keep_best": False, "frozen_stem": False})
    found = []
    for way in (fit, fine_tuned):
        learner = build_learner(spec, samples)
        way(learner, spec, Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
        found.append(learner.model.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def digits_of(storage):
    """The dataset's images as samples."""
    rows = datasets.rows(storage, "digits", 1)
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], 0.2, 42)
    paths = [storage.local(image_key(row["sha256"], row["ext"])) for row in rows]
    return [Sample(row["sha256"], "png", row["label"], v, path, 32 * 32) for row, v, path in zip(rows, valid, paths, strict=True)]


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_stem_stays_as_it_came_and_the_rest_of_the_network_learns(uninterrupted, tmp_path, monkeypatch, arch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    random_weights(arch, tmp_path)
    spec = TrainSpec(**WHOLE | {"arch": arch, "epochs": 1})
    learner = build_learner(spec, digits_of(uninterrupted[1]))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    fit(learner, spec, Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
    moved = [not torch.equal(old, new) for old, new in zip(before, learner.model.parameters(), strict=True)]
    stem = {id(p) for p in learner.splitter(learner.model)[0]} if spec.keeps_stem else set()
    kept = [id(parameter) in stem for parameter in learner.model.parameters()]
    # in the epoch before, fastai trains the batch normalisation of a frozen body
    norms = {id(p) for m in learner.model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    of_stem = [m for m, k, p in zip(moved, kept, learner.model.parameters(), strict=True) if k and id(p) not in norms]
    assert of_stem == [False] * len(of_stem)
    assert (len(of_stem) > 0) == spec.keeps_stem == (arch != "mobilenet_v3_small")
    assert all(m for m, k in zip(moved, kept, strict=True) if not k)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_networks_with_a_stem_are_those_that_fastai_splits_in_three(arch):
    network = getattr(torchvision.models, arch)
    groups = model_meta.get(network, {"split": default_split})["split"]
    assert len(groups(create_vision_model(network, 2, pretrained=False))) == (3 if TrainSpec(dataset="any", arch=arch).keeps_stem else 2)


def fine_tuned(learner, spec, live):
    """fastai's own words for it, with the callbacks of the recipe."""
    callbacks = [live, Seeds(spec, live), *regular(spec, learner)]
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(spec.epochs, spec.base_lr, freeze_epochs=spec.frozen_epochs, cbs=callbacks)


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


def test_every_part_of_the_recipe_trains_a_model(ready):
    settings, storage = ready
    parts = {
        "augment": "strong",
        "mixup": 0.4,
        "label_smoothing": 0.1,
        "class_weights": True,
        "weight_decay": 0.1,
        "find_lr": True,
        "epochs": 2,
    }
    train(TrainSpec(**SPEC | parts), "job1", storage, settings, Progress(lambda _: None))
    info, report = models.info(storage, "digits", 1), models.report(storage, "digits", 1)
    rates = [rate for rate, _ in report["lr_curve"]]
    assert rates == sorted(rates)
    assert rates[0] < info["base_lr"] < rates[-1]
    assert info["spec"]["base_lr"] == 2e-3
    assert len(report["epochs"]) == 2


def test_trying_learning_rates_leaves_the_network_as_it_was(ready):
    settings, storage = ready
    spec = TrainSpec(**SPEC)
    samples = samples_of(spec, 1, storage, settings, Progress(lambda _: None))
    learner = build_learner(spec, samples)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    find_rate(learner, spec, Watch(Progress(lambda _: None)))
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert learner.opt is None


def test_class_weights_let_rare_classes_count_as_much_and_are_one_on_average():
    samples = [Sample("", "", "a", False, Path(), 0)] * 6 + [Sample("", "", "b", False, Path(), 0)] * 2
    weight = loss_function(TrainSpec(**SPEC | {"class_weights": True}), samples).func.weight
    assert weight.tolist() == pytest.approx([2 / 3, 2])
    assert (6 * weight[0] + 2 * weight[1]).item() == pytest.approx(8)


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


def test_loader_processes_are_used_where_there_is_much_to_decode():
    few = [Sample("", "", "", False, Path(), 32 * 32)] * 1000
    assert loader_workers(few) == 0
    assert loader_workers([*few, Sample("", "", "", False, Path(), 60_000_000)]) >= 1


@pytest.mark.parametrize("frozen_epochs", [0, 1])
def test_from_weights_the_head_is_trained_first(ready, tmp_path, monkeypatch, frozen_epochs):
    settings, storage = ready
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights("squeezenet1_1", tmp_path / "torch")
    spec = TrainSpec(**SPEC | {"start": "imagenet", "frozen_epochs": frozen_epochs})
    train(spec, "job1", storage, settings, Progress(lambda _: None))
    info = models.info(storage, "digits", 1)
    assert [row["frozen"] for row in info["epochs"]] == [True] * frozen_epochs + [False]
    assert info["weights"] == weights_file("squeezenet1_1").name
    assert info["mean"] == [0.485, 0.456, 0.406]


def a_few(folder, labels):
    """Samples, two a label."""
    (folder / "x.png").write_bytes(digits(per_class=1)[0][1])
    return [Sample("", "png", label, bool(i), folder / "x.png", 32 * 32) for label in labels for i in range(2)]


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


@pytest.mark.parametrize(("wish", "bits"), [("on", torch.bfloat16), ("off", torch.float32)])
def test_mixed_precision_multiplies_with_16_bits_and_keeps_32(tmp_path, wish, bits):
    spec = TrainSpec(**SPEC | {"mixed_precision": wish, "epochs": 1})
    samples = []
    for i, (label, data) in enumerate(digits(per_class=20)):
        (tmp_path / f"{i}.png").write_bytes(data)
        samples.append(Sample("", "png", label, not i % 5, tmp_path / f"{i}.png", 32 * 32))
    learner = build_learner(spec, samples)
    seen = set()
    learner.model[0].register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    fit(learner, spec, Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
    assert seen == {bits}
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_missing_weights_are_a_sentence_that_says_which_file_to_put_where(ready, tmp_path, monkeypatch):
    settings, storage = ready
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refused at once, with and without a network
    monkeypatch.setattr(urllib.request, "_opener", None)  # it would remember the proxies of an earlier download
    with pytest.raises(DarkroomError) as raised:
        train(TrainSpec(**SPEC | {"start": "imagenet"}), "job1", storage, settings, Progress(lambda _: None))
    path = tmp_path / "torch" / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    assert str(path) in str(raised.value)
    assert "from scratch" in str(raised.value)
    assert list(path.parent.iterdir()) == []
    assert nothing_stays(settings, storage)


def test_damaged_weights_are_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    random_weights("squeezenet1_1", tmp_path)
    path = weights_file("squeezenet1_1")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DarkroomError, match="does not hold the ImageNet weights"):
        fetch_weights("squeezenet1_1")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_file_of_the_weights_is_known_for_every_architecture(arch):
    assert weights_file(arch).name.startswith(arch)
    assert weights_file(arch).suffix == ".pth"


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


def test_the_interval_is_wilsons():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20
    assert [round(x, 4) for x in wilson(81, 263)] == [0.2553, 0.3662]
    assert [round(x, 4) for x in wilson(0, 20)] == [0.0, 0.1611]


# -- what an import says of the split ---------------------------------------------------------------------------------


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
