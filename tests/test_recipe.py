"""The recipe is the course's: its learner, its cycles, its augmentation, and what each field of a spec changes in them."""

import platform
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import parent_label
from fastai.torch_core import set_seed
from fastai.vision.augment import RandomResizedCrop, aug_transforms
from fastai.vision.data import ImageBlock
from fastai.vision.learner import create_vision_model, default_split, model_meta, vision_learner
from handwriting import SPEC, WHOLE, digits, digits_of, nothing_stays, random_weights
from torchvision.models import squeezenet1_1

from shared import models
from shared.errors import DarkroomError
from shared.specs import ARCHITECTURES, TrainSpec
from worker.progress import Progress
from worker.training import train
from worker.training.checkpoints import Standing
from worker.training.live import Live, Watch
from worker.training.pictures import Sample, samples_of
from worker.training.recipe import Seeds, build_learner, find_rate, fit, loader_workers, loss_function, regular, stem
from worker.training.weights import fetch_weights, weights_file


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


def test_the_cycles_are_those_of_fine_tune(ready, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights("squeezenet1_1", tmp_path / "torch")
    samples = digits_of(ready[1])
    spec = TrainSpec(**WHOLE | {"keep_best": False, "frozen_stem": False})
    found = []
    for way in (fit, fine_tuned):
        learner = build_learner(spec, samples)
        way(learner, spec, Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
        found.append(learner.model.state_dict())
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def fine_tuned(learner, spec, live):
    """fastai's own words for it, with the callbacks of the recipe."""
    callbacks = [live, Seeds(spec, live), *regular(spec, learner)]
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(spec.epochs, spec.base_lr, freeze_epochs=spec.frozen_epochs, cbs=callbacks)


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_0", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_stem_stays_as_it_came_and_the_rest_of_the_network_learns(ready, tmp_path, monkeypatch, arch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    random_weights(arch, tmp_path / "torch")
    spec = TrainSpec(**WHOLE | {"arch": arch, "epochs": 1})
    learner = build_learner(spec, digits_of(ready[1]))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    fit(learner, spec, Live(Progress(lambda _: None), spec, learner.dls, Standing(16)))
    moved = [not torch.equal(old, new) for old, new in zip(before, learner.model.parameters(), strict=True)]
    of = {id(p) for p in stem(learner, arch)} if spec.keeps_stem else set()
    kept = [id(parameter) in of for parameter in learner.model.parameters()]
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


@pytest.mark.parametrize("arch", ["squeezenet1_0", "squeezenet1_1"])
def test_the_stem_of_a_squeezenet_ends_with_its_second_pooling(arch):
    body = getattr(torchvision.models, arch)(weights=None).features
    second = [i for i, layer in enumerate(body) if isinstance(layer, torch.nn.MaxPool2d)][1]
    learner = SimpleNamespace(
        model=create_vision_model(getattr(torchvision.models, arch), 2, pretrained=False),
        splitter=model_meta[getattr(torchvision.models, arch)]["split"],
    )
    assert [id(p) for p in stem(learner, arch)] == [id(p) for p in learner.model[0][0][:second].parameters()]


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
