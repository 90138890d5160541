"""The recipe of the fastai course: random crops, augmentation, a body with a new head, fine_tune.

Everything in the learner is fastai's own, so that its export loads where only fastai is installed.
"""

import math
import os
import random
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from fastai.callback import progress, schedule  # noqa: F401 - importing them gives a Learner no_bar and fine_tune
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import LRFinder, ParamScheduler, valley
from fastai.data.core import DataLoaders, Datasets, TfmdLists
from fastai.data.transforms import Categorize, IntToFloatTensor, Normalize, ToTensor
from fastai.learner import Learner
from fastai.losses import BaseLoss, CrossEntropyLossFlat
from fastai.metrics import error_rate
from fastai.torch_core import set_seed, to_float
from fastai.vision.augment import PadMode, RandomResizedCrop, Resize, ResizeMethod, aug_transforms
from fastai.vision.core import PILImage, imagenet_stats
from fastai.vision.learner import default_split, vision_learner
from fasttransform import Transform
from torch.nn import Parameter

from shared.errors import DarkroomError
from shared.specs import ARCHITECTURES, TrainSpec, ViewSpec
from worker.classifying.network import build_timm, check_image_size
from worker.training.augmenting import Quick
from worker.training.live import Live
from worker.training.memory import BeforeLoaders
from worker.training.pictures import Sample
from worker.training.weights import Origin, fetch_weights, take_over, timm_stats

FEW_PIXELS = 50_000_000  # decoded by one core in about as long as loader processes take to start
MOST_WORKERS = 8
ALL, BODY, HEAD = 0, 1, -1  # the first of fastai's three groups of layers that is trained: the stem, the rest of the body, the head
# squeezenet1_0 pools a second time a layer later than squeezenet1_1, and fastai divides both as the latter: that layer is a fifth of its work
STEM_LAYERS = {"squeezenet1_0": 6}
TRAINING, VALIDATION = 0, 1  # what fastai calls the two sides of a split
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # what processors call it that multiply such numbers themselves


def build_learner(spec: TrainSpec, samples: list[Sample], origin: Origin | None = None) -> Learner:
    """A learner that has seen nothing of these samples yet; the same arguments give the same one. Raises DarkroomError.

    `origin`: the model that it starts from, if the spec names one.
    """
    weights = fetch_weights(spec.arch) if spec.start == "imagenet" else None
    set_seed(spec.seed, reproducible=True)
    dls = build_dataloaders(spec, samples, origin)
    more = {"metrics": error_rate, "loss_func": loss_function(spec, [s for s in samples if not s.valid])}
    if spec.arch in ARCHITECTURES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # fastai builds some networks in a way that torchvision has deprecated
            learner = vision_learner(dls, getattr(torchvision.models, spec.arch), pretrained=weights is not None, **more)
    else:  # what `vision_learner` makes of a name, but for where the weights come from
        learner = Learner(dls, build_timm(spec.arch, len(dls.vocab), spec.image_size, weights), splitter=default_split, **more)
        if weights:
            learner.freeze()
    if origin:
        take_over(learner.model, list(dls.vocab), origin)
    check_image_size(learner.model, spec.arch, spec.image_size)
    return learner


def build_dataloaders(spec: TrainSpec, samples: list[Sample], origin: Origin | None = None) -> DataLoaders:
    """Training and validation batches, as `DataBlock(blocks=(ImageBlock, CategoryBlock))` makes them.

    The two columns are lists of their own and no `get_y`: a function that knows the labels would go into the export with
    every path of this machine.
    """
    splits = [[i for i, s in enumerate(samples) if s.valid == side] for side in (False, True)]
    images = TfmdLists([s.path for s in samples], PILImage.create, splits=splits)
    labels = TfmdLists([s.label for s in samples], Categorize(sorted({s.label for s in samples})), splits=splits)
    training = [s for s in samples if not s.valid]
    return Datasets(tls=[images, labels]).dataloaders(
        bs=effective_batch_size(spec, training),
        num_workers=loader_workers(training),
        after_item=[*squares(spec), ToTensor],
        after_batch=[IntToFloatTensor(), *augmentation(spec), *_normalise(spec, origin)],
    )


def squares(spec: TrainSpec) -> list[Transform]:
    """How an image becomes a square: a random crop for training, and all of it, in the spec's way, for validation."""
    crop = RandomResizedCrop(spec.image_size, min_scale=spec.min_scale)
    if spec.resize == "squish":
        return [crop]  # fastai's own way with validation images
    whole = Resize(spec.image_size, ResizeMethod.Crop if spec.resize == "crop" else ResizeMethod.Pad, PadMode.Zeros)
    crop.split_idx, whole.split_idx = TRAINING, VALIDATION
    if spec.resize == "crop":
        return [crop, whole]
    padded = Resize(math.ceil(spec.image_size / math.sqrt(spec.min_scale)), ResizeMethod.Pad, PadMode.Zeros)
    padded.split_idx = TRAINING
    return [padded, crop, whole]


def augmentation(spec: ViewSpec) -> list[Transform]:
    """What is done to batches of training images after the random crop."""
    match spec.augment:
        case "none":
            return []
        case "light":
            return list(aug_transforms(do_flip=False, max_warp=0))
        case _:
            return list(aug_transforms(mult=2.0 if spec.augment == "strong" else 1.0))


def loss_function(spec: TrainSpec, training: list[Sample]) -> BaseLoss:
    """Cross entropy, with smoothed labels and weighted classes if the spec says so; the weights are 1 on average over the images."""
    weight = None
    if spec.class_weights:
        images = Counter(s.label for s in training)
        weight = torch.tensor([len(training) / len(images) / images[label] for label in sorted(images)])
    return CrossEntropyLossFlat(weight=weight, label_smoothing=spec.label_smoothing)


def normalisation(spec: TrainSpec, origin: Origin | None) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of each channel, in [0, 1], that the network's input is normalised with; None: not at all.

    ImageNet's with torchvision's weights, for every network: `vision_learner` would leave it out for those that it has no entry for. timm
    says of each of its weights what they were trained with.
    """
    if origin:
        return (origin.info["mean"], origin.info["std"]) if origin.info["mean"] else None
    if spec.start != "imagenet":
        return None
    return imagenet_stats if spec.arch in ARCHITECTURES else timm_stats(spec.arch)


def _normalise(spec: TrainSpec, origin: Origin | None) -> list[Normalize]:
    stats = normalisation(spec, origin)
    return [Normalize.from_stats(*stats)] if stats else []


def effective_batch_size(spec: TrainSpec, training: list[Sample]) -> int:
    """The batch size, or all training images if there are fewer: fastai drops an incomplete batch, so there would be none.

    It is two at least, as batch normalisation needs: each of two classes or more has an image to train on.
    """
    return min(spec.batch_size, len(training))


def loader_workers(training: list[Sample]) -> int:
    """How many processes decode images; none where it takes longer to start them than to decode."""
    if sum(s.pixels for s in training) < FEW_PIXELS:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Cycle:
    """One run of `fit_one_cycle`: epochs, the first group of layers that is trained, learning rates, and the shape of the schedule."""

    epochs: int
    first: int  # as `freeze_to` counts: ALL, BODY or HEAD
    rate: float | slice
    pct_start: float
    div: float


def cycles(spec: TrainSpec) -> list[Cycle]:
    """What `fine_tune` does, as data, but for the stem; one cycle over the whole network from scratch."""
    if spec.start == "scratch":
        return [Cycle(spec.epochs, ALL, spec.base_lr, 0.25, 25)]
    rate = spec.base_lr
    first = BODY if spec.keeps_stem else ALL
    return [Cycle(spec.frozen_epochs, HEAD, slice(rate), 0.99, 25), Cycle(spec.epochs, first, slice(rate / 2 / 100, rate / 2), 0.3, 5)]


def fit(learner: Learner, spec: TrainSpec, live: Live, *more: Callback) -> None:
    """Train to the end of the spec's epochs, from where `live.standing` is. `more`: what else looks on."""
    callbacks = [live, *more, *regular(spec, learner), Seeds(spec, live), Grow(spec, live), *([MixUp(spec.mixup)] if spec.mixup else [])]
    ended = live.standing.epochs
    live.begin()
    with learner.no_bar(), learner.no_logging():
        for cycle in cycles(spec):
            passed = min(ended, cycle.epochs)
            ended -= passed
            if passed == cycle.epochs or live.standing.over:
                continue
            freeze(learner, cycle.first, spec.arch)
            learner.fit_one_cycle(
                cycle.epochs, cycle.rate, div=cycle.div, pct_start=cycle.pct_start, wd=spec.weight_decay, cbs=callbacks, start_epoch=passed
            )


def freeze(learner: Learner, first: int, arch: str) -> None:
    """Train the groups of layers from `first` on.

    The batch normalisation of a stem, which fastai trains although it is frozen, is left alone as well: for it the whole way back through the stem would have to be computed.
    """
    learner.freeze_to(first)
    if first == BODY:
        for parameter in stem(learner, arch):
            parameter.requires_grad_(False).grad = None


def stem(learner: Learner, arch: str) -> list[Parameter]:
    """What is never trained if a network keeps its stem: fastai's first group, and what else comes before the second pooling (`STEM_LAYERS`)."""
    more = learner.model[0][0][: STEM_LAYERS[arch]].parameters() if arch in STEM_LAYERS else []
    return list(dict.fromkeys([*learner.splitter(learner.model)[0], *more]))


def regular(spec: TrainSpec, learner: Learner) -> list[Callback]:
    """What makes training quick. channels_last: the same numbers in another order, 1.5 times as many images a second on a processor."""
    return [ChannelsLast(), Quick(), BeforeLoaders(), *([Bf16()] if mixes(spec, learner.dls.device) else [])]


def find_rate(learner: Learner, spec: TrainSpec, watch: Callback) -> tuple[float, list[list[float]]]:
    """Try learning rates from 1e-7 up until the loss explodes: the rate that fastai's `valley` suggests, and the curve, [rate, loss].

    The learner is afterwards as it was before. Raises DarkroomError when the loss never fell.
    """
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    finder = Finder()
    with learner.no_bar(), learner.no_logging():
        learner.fit(finder.num_it // len(learner.dls.train) + 1, cbs=[finder, watch, *regular(spec, learner)])
    learner.model.load_state_dict(before)
    learner.opt = None
    skip = finder.num_it // 10
    curve = [[rate, float(loss)] for rate, loss in zip(learner.recorder.lrs, learner.recorder.losses, strict=True)][skip:-5]
    curve = [point for point in curve if math.isfinite(point[1])]
    if len(curve) < 10:
        raise DarkroomError("No learning rate could be found: the loss exploded at once. Name one yourself.")
    rate, _ = valley([point[0] for point in curve], [point[1] for point in curve], finder.num_it)
    return float(rate), curve


class Finder(LRFinder):
    """fastai's, but for the pickle that it writes and reads to get the weights back."""

    def before_fit(self) -> None:
        """Begin."""
        ParamScheduler.before_fit(self)
        self.best_loss = float("inf")

    def after_fit(self) -> None:
        """Whoever has called puts the weights back."""


class Seeds(Callback):
    """Lets every epoch draw from a seed of its own, so that one after a crash draws what it would have drawn without.

    What a training starts from is part of it: with the very crops and dropout that its origin was trained with, it would learn those by heart.
    """

    def __init__(self, spec: TrainSpec, live: Live) -> None:
        self.spec, self.live = spec, live

    def before_train(self) -> None:
        """Order of images, crops, augmentation, dropout."""
        seed = random.Random(f"{self.spec.seed} {self.spec.start} {self.live.number}").getrandbits(32)
        set_seed(seed)
        self.dls.train.rng = random.Random(seed)


class Grow(Callback):
    """Progressive resizing (Howard, DAWNBench 2018): the crops of early epochs are smaller. Only training's: validation sees the full size."""

    def __init__(self, spec: TrainSpec, live: Live) -> None:
        self.full, self.live = spec.image_size, live

    def before_train(self) -> None:
        """The size of this epoch, before loader processes take the transform with them."""
        self._crop_to(self.live.sides[self.live.standing.epochs])

    def after_train(self) -> None:
        """The full size: the transform is also that of validation."""
        self._crop_to(self.full)

    def _crop_to(self, side: int) -> None:
        for transform in self.dls.train.after_item.fs:
            if isinstance(transform, RandomResizedCrop):
                transform.size = (side, side)


def mixes(spec: TrainSpec, device: torch.device) -> bool:
    """Whether a training multiplies with 16 bits: `auto` does where the device has them, for one that imitates them is slower."""
    if spec.mixed_precision != "auto":
        return spec.mixed_precision == "on"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cores = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return device.type == "cpu" and cores is not None and not BF16.isdisjoint(cores[1].split())


class Bf16(Callback):
    """Multiplies with 16 bits and adds up with 32: bf16 has the range of fp32, so that no loss needs to be scaled.

    fastai's own MixedPrecision is for GPUs alone.
    """

    order = 10  # as fastai's

    def before_fit(self) -> None:
        """From here on the network's forward pass; it is left also when that fails."""
        autocast = torch.autocast(self.dls.device.type, torch.bfloat16)

        def enter(*_: object) -> None:
            autocast.__enter__()

        def leave(*_: object) -> None:
            autocast.__exit__(None, None, None)

        self.hooks = [self.model.register_forward_pre_hook(enter), self.model.register_forward_hook(leave, always_call=True)]

    def after_pred(self) -> None:
        """The loss is computed with 32."""
        self.learn.pred = to_float(self.pred)

    def after_fit(self) -> None:
        """Until here."""
        for hook in self.hooks:
            hook.remove()
