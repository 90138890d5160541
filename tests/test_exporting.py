"""A model as ONNX: one file that stands alone and answers as the model does, or no file."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from shared import models
from shared.errors import Conflict, DarkroomError
from shared.settings import Settings
from shared.specs import ExportSpec
from shared.storage import Storage
from web import orders
from web.backend import Backend
from worker.classifying import engines
from worker.classifying.decoding import look
from worker.classifying.network import build, load_network
from worker.exporting import COMPARED, WITHIN, compare, export, pictures
from worker.progress import Progress

SPEC = ExportSpec(model="digits/v1")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Settings and storage with the model `digits`, exported, and the job's result."""
    home = tmp_path_factory.mktemp("exported")
    shutil.copytree(trained, home / "store")
    shutil.copytree(trained.parent / "cache" / "engines", home / "cache" / "engines")
    settings = Settings(storage=str(home / "store"), cache=home / "cache")
    storage = Storage(settings.storage, settings.cache)
    phases = []
    result = export(SPEC, "job", storage, settings, Progress(lambda said: phases.append(said["progress"]["phase"])))
    assert phases == ["loading", "converting", "comparing"]
    return settings, storage, result


def test_an_exported_model_answers_as_the_model_does_for_any_number_of_images(exported, digits):
    settings, storage, result = exported
    assert result["difference"] <= WITHIN
    folder = storage.local("models/digits/v0001/model.onnx").parent
    pixels = np.stack([look(path.read_bytes(), 32, True, 10**6)[0] for path in sorted(digits.rglob("*.png"))[::3]])
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = engines.load(folder, "exact", settings.cache)(pixels)
    for n in (1, 7, len(pixels)):
        (found,) = session.run(["probabilities"], {"pixels": pixels[:n].transpose(0, 3, 1, 2).astype(np.float32)})
        assert found == pytest.approx(wanted[:n], abs=1e-4)


def test_an_exported_model_says_what_it_needs_to_be_used_and_lies_in_one_file(exported):
    _, storage, result = exported
    model = onnx.load(storage.local("models/digits/v0001/model.onnx"), load_external_data=False)
    onnx.checker.check_model(model)
    said = {each.key: each.value for each in model.metadata_props}
    assert json.loads(said["classes"]) == models.info(storage, "digits", 1)["classes"]
    assert (said["image_size"], said["model"]) == ("32", "digits/v1")
    assert "resize to 40 x 40" in said["preparation"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert result["bytes"] == storage.size("models/digits/v0001/model.onnx")
    assert str(storage.root).encode() not in storage.read("models/digits/v0001/model.onnx")


def test_a_model_that_is_exported_already_is_not_exported_again(exported):
    settings, storage, result = exported
    before = storage.local("models/digits/v0001/model.onnx").stat().st_mtime_ns
    again = export(SPEC, "job2", storage, settings, Progress(lambda _: None))
    assert again == {name: value for name, value in result.items() if name != "difference"}
    assert storage.local("models/digits/v0001/model.onnx").stat().st_mtime_ns == before


def test_it_is_compared_on_the_validation_images_and_noise_for_those_that_are_gone(exported):
    _, storage, _ = exported
    info = models.info(storage, "digits", 1)
    found = pictures(info, storage)
    assert found.shape == (COMPARED, 32, 32, 3)
    validated = info["valid_images"]
    assert validated < COMPARED
    assert all(np.ptp(each, axis=2).max() == 0 for each in found[:validated])  # scans are grey
    assert all(np.ptp(each, axis=2).max() > 0 for each in found[validated:])


def test_a_file_that_answers_otherwise_than_the_model_is_refused(exported):
    _, storage, _ = exported
    info = models.info(storage, "digits", 1)
    path = storage.local("models/digits/v0001/model.onnx")
    network = load_network(path.parent, info)
    pixels = pictures(info, storage)
    assert compare(network, path, pixels) <= WITHIN
    with torch.no_grad():
        list(network.parameters())[-1][0] += 0.01
    with pytest.raises(DarkroomError, match="answers otherwise than the model: a probability differs by"):
        compare(network, path, pixels)
    with pytest.raises(DarkroomError, match="onnxruntime does not take"):
        compare(network, storage.local("models/digits/v0001/model.safetensors"), pixels)


def test_an_export_that_fails_leaves_no_file(tmp_path):
    # Given a network of timm's that answers with values that are no numbers
    settings = Settings(storage=str(tmp_path / "store"), cache=tmp_path / "cache")
    storage = Storage(settings.storage, settings.cache)
    network = build("test_efficientnet", 2, 32)
    state = network.state_dict()
    state["1.8.weight"][:] = float("nan")
    (tmp_path / "made").mkdir()
    save_file(state, tmp_path / "made" / "model.safetensors")
    info = {"model": "bad", "job": "j", "arch": "test_efficientnet", "classes": ["a", "b"], "image_size": 32, "mean": None, "std": None}
    storage.publish_version("models/bad", tmp_path / "made", info)
    # When it is exported
    with pytest.raises(DarkroomError, match="differs by nan"):
        export(ExportSpec(model="bad"), "job", storage, settings, Progress(lambda _: None))
    # Then nothing is kept
    assert storage.list("models/bad/v0001") == ["info.json", "model.safetensors"]
    assert not list(settings.cache.glob("exporting-*"))


def test_a_version_that_is_being_exported_is_not_deleted_and_its_export_goes_with_it(with_model):
    backend = Backend(with_model)
    job = orders.submit(backend, "export", {"model": "digits"})
    assert (job.spec, orders.describe(job)) == ({"model": "digits/v1"}, "Export digits/v1 as ONNX")
    with pytest.raises(Conflict, match="in use by the job"):
        orders.delete_model(backend, "digits", 1)
    orders.cancel(backend, job.id)
    backend.storage.write("models/digits/v0001/model.onnx", b"onnx")
    orders.delete_model(backend, "digits", 1)
    assert backend.storage.list("models/digits/v0001") == ["deleted.json"]
