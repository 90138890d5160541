"""A model of another installation: it labels as it did there, whatever lies in the two files, and a pickle is never opened."""

import ast
import io
import json
import pickle
import struct
import threading
from pathlib import Path

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save
from werkzeug.serving import make_server

from cli.main import cli
from shared import models, weights
from shared.errors import DarkroomError, Invalid
from shared.settings import Settings
from shared.specs import AdoptSpec
from shared.storage import Storage
from web import create_app
from worker.adopting import adopt, check_layers
from worker.classifying import engines
from worker.classifying.decoding import look
from worker.classifying.network import build
from worker.progress import Progress

ROOT = Path(__file__).parents[1]
UPLOAD = "0" * 20
GOOD = {"arch": "squeezenet1_1", "classes": ["a", "b"], "image_size": 32, "mean": None, "std": None}


@pytest.fixture(scope="module")
def network():
    """The weights of a small network of two classes, as safetensors has them."""
    torch.manual_seed(0)
    return {name: value.contiguous() for name, value in build("squeezenet1_1", 2, 32).state_dict().items()}


@pytest.fixture
def place(tmp_path):
    settings = Settings(storage=str(tmp_path / "store"), cache=tmp_path / "cache")
    return settings, Storage(settings.storage, settings.cache)


def given(place, state, info):
    """Adopt what was uploaded as the model `other`; its info.json."""
    settings, storage = place
    storage.write(weights.key(UPLOAD, "model.safetensors"), state if isinstance(state, bytes) else save(state))
    storage.write(weights.key(UPLOAD, "info.json"), info if isinstance(info, bytes) else json.dumps(info).encode())
    made = adopt(AdoptSpec(model="other", upload=UPLOAD), "job", storage, settings, Progress(lambda _: None))
    return models.info(storage, made["model"], made["version"])


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_a_model_that_was_carried_over_labels_images_identically(trained, digits, place):
    # Given a model that was trained in another installation
    settings, storage = place
    there = Storage(str(trained), trained.parent / "cache").local("models/digits/v0001/info.json").parent
    # When its two files are imported here
    info = given(place, (there / "model.safetensors").read_bytes(), (there / "info.json").read_bytes())
    here = storage.local(models.key("other", 1, "info.json")).parent
    # Then both engines answer to the last digit as there, each converted on its own
    pixels = np.stack([look(path.read_bytes(), 32, True, 10**6)[0] for path in sorted(digits.rglob("*.png"))[::2]])
    for precision in ("exact", "fast"):
        wanted = engines.load(there, precision, settings.cache / "there")(pixels)
        assert np.array_equal(engines.load(here, precision, settings.cache / "here")(pixels), wanted)
    assert len(set(wanted.argmax(axis=1))) == 4
    before = json.loads((there / "info.json").read_text())
    assert [info[key] for key in ("arch", "classes", "image_size", "mean")] == [
        before[key] for key in ("arch", "classes", "image_size", "mean")
    ]
    assert info["imported"]["from"] == {key: before[key] for key in ("model", "version", "error_rate", "created")}
    assert info.get("fast", {}).get("close") == before.get("fast", {}).get("close")
    with pytest.raises(DarkroomError, match="has no int8 form"):
        engines.load(here, "int8", settings.cache)


def test_nothing_is_taken_over_but_what_is_known_and_checked(place, network):
    hostile = {"job": "../../x", "spec": {"notes": "<script>"}, "remarks": ["<b>"], "dataset": {"name": "../.."}, "evil": [1] * 1000}
    unsound = {"model": "<b>", "version": -3, "error_rate": 7, "fast": {"close": 1e9, "offered": True}, "created": "now", "temperature": -1}
    info = given(place, network, {**GOOD, **hostile, **unsound})
    assert info.keys() == {
        "model",
        "version",
        "created",
        "job",
        "arch",
        "classes",
        "image_size",
        "resize",
        "mean",
        "std",
        "int8",
        "imported",
    }
    assert info["imported"]["from"] == {}
    assert (info["job"], info["model"], info["version"]) == ("job", "other", 1)


def test_what_was_uploaded_is_deleted_once_it_is_a_model_and_a_second_attempt_finds_it(place, network):
    settings, storage = place
    given(place, network, {**GOOD, "temperature": 1.5, "fast": {"close": 0.02}})
    assert storage.list("uploads") == []
    assert storage.list("models/other/v0001") == ["info.json", "model.safetensors"]
    again = adopt(AdoptSpec(model="other", upload=UPLOAD), "job", storage, settings, Progress(lambda _: None))
    assert again == {"model": "other", "version": 1}
    info = models.info(storage, "other", 1)
    assert (info["temperature"], info["fast"]) == (1.5, {"close": 0.02})


# -- files that do not fit each other ---------------------------------------------------------------------------------


def changed(state, name, value):
    return {**state, name: value}


LAST = "1.8.weight"  # of fastai's head: (classes, 512)
REFUSED = {
    "another network": (lambda s: s, {"arch": "resnet18"}, "do not fit a resnet18 with 2 classes"),
    "other classes": (lambda s: s, {"classes": ["a", "b", "c"]}, f'"{LAST}" has another shape'),
    "a layer too few": (lambda s: {k: v for k, v in s.items() if k != LAST}, {}, f'the file lacks "{LAST}"'),
    "a layer too many": (lambda s: changed(s, "<b>" * 99, torch.zeros(1)), {}, "holds what is not of it"),
    "16 bits": (lambda s: changed(s, LAST, s[LAST].half()), {}, "numbers of another type"),
    "no number": (lambda s: changed(s, LAST, s[LAST] * float("nan")), {}, "no finite numbers"),
    "an explosion": (lambda s: changed(s, LAST, s[LAST] * 0 + 3e38), {"mean": [0] * 3, "std": [0.001] * 3}, "values that are no numbers"),
    "too small images": (lambda s: s, {"image_size": 16}, "16 pixels are too small for squeezenet1_1"),
    "a size that its weights were not made for": (lambda s: s, {"arch": "test_vit", "image_size": 33}, "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_do_not_fit_each_other_are_refused_and_leave_nothing(place, network, what):
    change, info, words = REFUSED[what]
    with pytest.raises(DarkroomError, match=words) as refused:
        given(place, change(network), {**GOOD, **info})
    assert len(str(refused.value)) < 500
    assert (models.names(place[1]), place[1].list("uploads")) == ([], [])
    assert not list(place[0].cache.glob("adopting-*"))


def test_a_network_of_gigabytes_is_refused_before_it_is_built(network):
    told = weights.read_info(json.dumps({**GOOD, "arch": "vit_giant_patch14_224", "image_size": 224}).encode())
    tensors = {name: ("F32", tuple(value.shape)) for name, value in network.items()}
    with pytest.raises(DarkroomError, match="do not fit a vit_giant_patch14_224"):
        check_layers(told, tensors)


# -- hostile files ----------------------------------------------------------------------------------------------------


def safetensors(header, size=0):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + bytes(size)


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def torch_file():
    out = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, out)
    return out.getvalue()


@pytest.mark.parametrize(
    "data", [pickle.dumps({"a": 1}), pickle.dumps([1], protocol=2), torch_file()], ids=["pickle", "protocol 2", "torch"]
)
def test_a_pickle_is_refused_with_why_and_what_to_do(data):
    with pytest.raises(Invalid, match=r"is a pickle\b.* runs whatever code is in it.*safetensors\.torch\.save_file"):
        weights.check_safetensors(io.BytesIO(data), len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not a model</html>",
        b"\xff" * 8 + b"{}",
        safetensors(b"{" + b'"a":[' * 100_000),
        safetensors({"a": entry([2], 4, 12)}, 12),
        safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
        safetensors({"a": entry([2], 0, 8)}, 9),
        safetensors({"a": entry([2], 0, 8)}, 4),
        safetensors({"a": entry([-2], 0, 8)}, 8),
        safetensors({"a": entry([10**9, 10**9], 0, 8)}, 8),
        safetensors({"a": entry([2.0], 0, 8)}, 8),
        safetensors({"a": entry([1] * 99, 0, 4)}, 4),
        safetensors({"a": entry([2], 0, 8, "OBJECT")}, 8),
        safetensors({"a": 1}),
        safetensors(b"[1]"),
    ],
)
def test_a_damaged_or_forged_file_of_weights_is_refused(data):
    with pytest.raises(Invalid) as refused:
        weights.check_safetensors(io.BytesIO(data), len(data))
    assert refused.value.field == "weights"


def test_the_header_of_a_real_file_is_read_whole(network):
    data = save(network)
    assert weights.check_safetensors(io.BytesIO(data), len(data)) == {
        name: ({torch.float32: "F32", torch.int64: "I64"}[value.dtype], tuple(value.shape)) for name, value in network.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "../../etc"},
        {"arch": 5},
        {"classes": ["a", "a"]},
        {"classes": ["a"]},
        {"classes": ["a", "x\u202ey"]},
        {"classes": ["a", "b\x00c"]},
        {"classes": ["a", "b" * 101]},
        {"classes": [["a"], "b"]},
        {"image_size": 15},
        {"image_size": 1025},
        {"image_size": "32"},
        {"mean": [0, 0], "std": [1, 1]},
        {"mean": [0, 0, 0], "std": None},
        {"mean": [0, 0, 0], "std": [1, 1, 0]},
        {"mean": [0, 0, 1e999], "std": [1, 1, 1]},
    ],
)  # fmt: skip
def test_an_info_json_that_is_not_sound_is_refused(change):
    with pytest.raises(Invalid, match=r"The info\.json does not fit: ") as refused:
        weights.read_info(json.dumps({**GOOD, **change}).encode())
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{" * 100_000, b"\xff\xfe", b'{"arch":"' + b"x" * weights.MAX_INFO + b'"}'])
def test_what_is_no_info_json_is_refused(data):
    with pytest.raises(Invalid, match=r"info\.json"):
        weights.read_info(data)


def test_no_process_of_ours_opens_a_pickle():
    opening = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "load_learner", "learner.load_learner"}
    found = []
    for path in (file for package in ("shared", "web", "worker", "cli") for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            taken = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            allows = isinstance(node, ast.Call) and any(k.arg == "allow_pickle" for k in node.keywords)
            if name in opening or {"load_learner", "Unpickler"} & set(taken) or allows:
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert found == []


# -- the way of a user ------------------------------------------------------------------------------------------------


@pytest.fixture
def served(with_model):
    server = make_server("127.0.0.1", 0, create_app(with_model), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_imported_shown_and_exported_by_command_line_and_page(served, start_worker, with_model, digits, tmp_path):
    def darkroom(*args):
        return CliRunner().invoke(cli, ["--url", served, *map(str, args)])

    start_worker("train")
    storage = Storage(with_model.storage, with_model.cache)
    there = storage.local("models/digits/v0001/info.json").parent
    files = (there / "model.safetensors", there / "info.json")
    # a file of another kind is refused before anything is ordered
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({}))
    refused = darkroom("model", "import", "theirs", tmp_path / "model.pkl", files[1])
    assert (refused.exit_code, "is a pickle" in refused.stderr) == (1, True)
    # two that fit become a version, which the command line tells for what it is
    done = darkroom("model", "import", "theirs", *files, "--wait")
    assert done.exit_code == 0, done.stderr
    assert "Import the model theirs" in done.stdout
    shown = darkroom("model", "show", "theirs").stdout
    assert "digits v1 where it was trained" in shown
    assert "by its own account" in shown
    assert "\timported\t" in next(line for line in darkroom("model", "list").stdout.splitlines() if line.startswith("theirs"))
    assert "cannot be compared" in darkroom("model", "compare", "theirs", "digits").stderr
    # so do the pages
    with httpx.Client(base_url=served, follow_redirects=True) as page:
        assert "imported" in page.get("/models/theirs").text
        for address in ("/", "/models", "/models/digits/v/1", "/models/digits/v/1/compare?with=digits", "/trainings/new?retrain=theirs"):
            assert page.get(address).status_code == 200, address
        form = page.get("/trainings/new?retrain=theirs").text
        assert "of whose own recipe nothing is known" in form
        assert "<option selected>theirs/v1</option>" in form
        assert 'value="resnet18"' in form
        assert page.get("/models/theirs/v/1/compare").status_code == 404
        assert page.get(f"/models/theirs/v/1/images/{'0' * 64}").status_code == 404
        assert page.get("/api/v1/models/theirs/versions/1/report").json()["detail"].startswith("theirs/v1 was imported")
        # and its ONNX answers as the model does
        assert "Make ONNX" in page.get("/models/theirs").text
        out = tmp_path / "theirs.onnx"
        assert darkroom("model", "export", "theirs", "--out", out, "--wait").exit_code == 0
        assert "Make ONNX" not in page.get("/models/theirs").text
    pixels = np.stack([look(path.read_bytes(), 32, True, 10**6)[0] for path in sorted(digits.rglob("*.png"))[::9]])
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    assert found == pytest.approx(engines.load(there, "exact", with_model.cache)(pixels), abs=1e-4)


def test_the_form_says_at_each_file_what_is_wrong_with_it(with_model, tmp_path):
    app = create_app(with_model)
    app.config["WTF_CSRF_ENABLED"] = False
    client = app.test_client()
    info = json.dumps(GOOD).encode()
    good = safetensors({"a": entry([2], 0, 8)}, 8)

    def sent(name, model, told):
        form = {"model": name, "weights": (io.BytesIO(model), "x.safetensors"), "info": (io.BytesIO(told), "info.json")}
        return client.post("/imports/new", data=form, content_type="multipart/form-data")

    assert client.get("/imports/new").status_code == 200
    for name, model, told, words in [
        ("x", pickle.dumps(1), info, 'id="wrong-weights">The file is a pickle'),
        ("x", good, b"{}", 'id="wrong-info">The info.json does not fit'),
        ("X Y", good, info, 'id="wrong-model">A name is lower-case letters'),
    ]:
        answer = sent(name, model, told)
        assert (answer.status_code, words in answer.text) == (422, True), answer.text
    assert "Choose the model.safetensors" in client.post("/imports/new", data={"model": "x"}).text
    assert Storage(with_model.storage, with_model.cache).list("uploads") == []
    answer = sent("x", good, info)
    assert (answer.status_code, "/jobs/" in answer.location) == (303, True)


def test_weights_that_are_too_large_are_not_kept(with_model):
    client = create_app(with_model.model_copy(update={"max_model_bytes": 100})).test_client()
    good = safetensors({"a": entry([20], 0, 80)}, 80)
    form = {"weights": (io.BytesIO(good), "model.safetensors"), "info": (io.BytesIO(json.dumps(GOOD).encode()), "info.json")}
    answer = client.post("/api/v1/models/x/import", data=form, content_type="multipart/form-data")
    assert (answer.status_code, "DARKROOM_MAX_MODEL_BYTES" in answer.json["detail"]) == (422, True)
    assert client.post("/api/v1/models/x/import", json={}).status_code == 415
