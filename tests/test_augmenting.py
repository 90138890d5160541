"""Augmentation is fastai's: the same draws, the same pixels."""

import random

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage, set_seed
from fastai.vision.augment import RandomErasing
from fastai.vision.core import imagenet_stats
from fasttransform import Pipeline
from handwriting import SPEC

from shared.specs import LookSpec, TrainSpec
from worker.progress import Progress
from worker.training.augmenting import Augmentation, Quick
from worker.training.pictures import samples_of
from worker.training.recipe import augmentation, build_learner


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("preset", ["none", "light", "course", "strong"])
def test_the_pixels_are_those_of_fastai(preset, normalise):
    torch.manual_seed(1)
    images = TensorImage(torch.randint(0, 256, (6, 3, 40, 56), dtype=torch.uint8))
    normal = [Normalize.from_stats(*imagenet_stats, cuda=False)] if normalise else []
    transforms = [IntToFloatTensor(), *augmentation(LookSpec(dataset="any", augment=preset)), *normal]
    seen = []
    for each in (Pipeline(transforms, split_idx=0), Pipeline([Augmentation(transforms)], split_idx=0)):
        torch.manual_seed(2)
        random.seed(2)
        seen.append(each((images,))[0].as_subclass(torch.Tensor))
    assert torch.allclose(*seen, atol=1e-3)
    assert seen[1].is_contiguous(memory_format=torch.channels_last)
    if preset != "none":
        assert (seen[1] - Pipeline(transforms, split_idx=1)((images,))[0]).abs().max() > 0.1  # something was done


class Batches(Callback):
    """The first batch of each side of a fit, as the network gets it."""

    def before_fit(self):
        self.first = {}

    def before_batch(self):
        self.first.setdefault(self.training, self.x.as_subclass(torch.Tensor).clone())


def test_a_learner_sees_what_it_would_see_without(ready):
    settings, storage = ready
    spec = TrainSpec(**SPEC | {"augment": "course"})
    learner = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None)))
    learner.dls.add_tfms([Normalize.from_stats(*imagenet_stats, cuda=False)], "after_batch")
    transforms = [[str(each) for each in loader.after_batch.fs] for loader in learner.dls.loaders]
    seen = []
    for more in ([], [Quick()]):
        batches = Batches()
        with learner.no_bar(), learner.no_logging():
            set_seed(1)
            learner.dls.train.rng = random.Random(1)
            learner.fit(1, cbs=[batches, *more])
        seen.append(batches.first)
    assert torch.allclose(seen[0][False], seen[1][False], rtol=0, atol=1e-5)  # fastai's goes to logits and back
    assert torch.allclose(seen[0][True], seen[1][True], atol=1e-2)
    assert [[str(each) for each in loader.after_batch.fs] for loader in learner.dls.loaders] == transforms


def test_a_transform_that_is_not_known_is_not_left_out():
    with pytest.raises(ValueError, match="RandomErasing"):
        Augmentation([IntToFloatTensor(), RandomErasing()])
