"""Networks by name: torchvision's that are offered and any of timm's, refused at once when there is none, built as they will be rebuilt."""

import json
import pickle
from pathlib import Path

import huggingface_hub.constants as hub
import numpy as np
import pytest
import timm
import torch
from fastai.data.transforms import Normalize
from handwriting import SPEC, digits, place, publish, random_weights
from safetensors.torch import save_file

from shared.errors import DarkroomError, Invalid
from shared.specs import ARCHITECTURES, TrainSpec, parse, pretrained, timm_names
from worker.classifying import engines
from worker.classifying.network import build, check_image_size
from worker.progress import Progress
from worker.training.pictures import samples_of
from worker.training.recipe import build_learner, normalisation
from worker.training.weights import fetch_weights, weights_name

TAG = "test_vit.r160_in1k"


def test_the_list_of_names_is_that_of_the_installed_timm():
    assert timm_names() == {*timm.list_models(), *timm.list_pretrained()}


@pytest.mark.parametrize(
    ("arch", "close"),
    [("resnet19", "did you mean resnet18 or"), ("vit_tiny_patch16", "vit_tiny_patch16_224"), ("test_vit.r160", "test_vit.r160_in1k"), ("<b>", "choose one of resnet18")],
)  # fmt: skip
def test_an_unknown_architecture_is_refused_with_the_closest_names(arch, close):
    with pytest.raises(Invalid, match=close) as refused:
        parse("train", {"dataset": "d", "arch": arch})
    assert refused.value.field == "arch"


def test_a_network_without_published_weights_is_trained_from_scratch_alone():
    bare = next(name for name in sorted(timm_names()) if not pretrained(name))
    with pytest.raises(Invalid, match="no pretrained weights") as refused:
        parse("train", {"dataset": "d", "arch": bare})
    assert refused.value.field == "start"
    assert parse("train", {"dataset": "d", "arch": bare, "start": "scratch"}).arch == bare
    assert all(pretrained(name) for name in (*ARCHITECTURES, "vit_tiny_patch16_224", TAG))


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet", "mambaout_femto"])
def test_a_timm_network_is_rebuilt_and_answers_as_in_training(tmp_path, arch):
    # Given a network as training builds it: one that pools itself, one that fastai pools, one whose features come channels last
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits(per_class=10))
    spec = TrainSpec(**SPEC | {"arch": arch, "version": 1})
    learner = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None)))
    # When it is written, and loaded by the engine that classifies
    learner.model.eval()
    save_file({k: v.detach().cpu().contiguous() for k, v in learner.model.state_dict().items()}, tmp_path / "model.safetensors")
    info = {"arch": arch, "classes": list(learner.dls.vocab), "image_size": 32, "mean": None, "std": None}
    (tmp_path / "info.json").write_text(json.dumps(info))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    found = engines.load(tmp_path, "exact", tmp_path / "cache")(pixels)
    # Then the probabilities are those of the learner, and the learner can be exported
    with torch.inference_mode():
        wanted = learner.model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).softmax(dim=1)
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)
    assert pickle.dumps(learner.model)


def test_images_that_do_not_fit_are_told_with_the_size_that_does():
    with pytest.raises(DarkroomError, match=r"33 pixels do not fit test_vit\. Choose 160 pixels"):
        check_image_size(build("test_vit", 2, 33), "test_vit", 33)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of the hub without internet, and where it keeps the weights of `TAG`."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / f"models--timm--{TAG}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot / "model.safetensors"


def test_timm_weights_come_from_safetensors_with_the_normalisation_they_were_trained_with(tmp_path, hub_cache):
    torch.manual_seed(1)
    source = timm.create_model(TAG)
    save_file(source.state_dict(), hub_cache)
    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits(per_class=10))
    spec = TrainSpec(**SPEC | {"arch": TAG, "version": 1, "start": "imagenet", "image_size": 160})
    learner = build_learner(spec, samples_of(spec, 1, storage, settings, Progress(lambda _: None)))
    body = learner.model[0].model.state_dict()
    assert {name for name, value in body.items() if not torch.equal(value, source.state_dict()[name].to(value.device))} == set()
    known = timm.get_pretrained_cfg(TAG)
    assert normalisation(spec, None) == (list(known.mean), list(known.std))
    assert [t.mean.flatten().tolist() for t in learner.dls.after_batch.fs if isinstance(t, Normalize)] == [pytest.approx(known.mean)]
    assert not any(p.requires_grad for p in learner.model[0].parameters() if p.ndim > 1)  # the head is trained first
    assert str(tmp_path) not in repr(vars(learner.model[0].model)["pretrained_cfg"])
    assert weights_name(TAG) == f"timm/{TAG}"


def test_timm_weights_that_cannot_be_had_are_told_with_what_to_do(hub_cache):
    with pytest.raises(DarkroomError, match=rf"hf download timm/{TAG} model.safetensors"):
        fetch_weights(TAG)
    hub_cache.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DarkroomError, match="cannot be read as safetensors"):
        fetch_weights(TAG)
    with pytest.raises(DarkroomError, match="published as a pickle alone"):
        fetch_weights("gcvit_tiny.in1k")


def test_of_torchvisions_weights_no_more_is_opened_than_tensors(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    random_weights("squeezenet1_1", tmp_path)
    path = fetch_weights("squeezenet1_1")
    torch.save({"a": Path}, path)
    with pytest.raises(DarkroomError, match="does not hold the ImageNet weights"):
        fetch_weights("squeezenet1_1")
