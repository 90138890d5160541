"""Augmentation is fastai's: the same draws, the same pixels."""

import random

import pytest
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.augment import RandomErasing
from fastai.vision.core import imagenet_stats
from fasttransform import Pipeline

from shared.specs import LookSpec
from worker.training.augmenting import Augmentation
from worker.training.recipe import augmentation


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


def test_a_transform_that_is_not_known_is_not_left_out():
    with pytest.raises(ValueError, match="RandomErasing"):
        Augmentation([IntToFloatTensor(), RandomErasing()])
