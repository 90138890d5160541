"""Where a model looks: Grad-CAM, the picture it is laid over, and the child that makes it."""

import base64
import io
import os

import pytest
import torch
from conftest import until
from fastai.vision.learner import create_vision_model
from PIL import Image
from torchvision.models import resnet18

from shared import heat
from shared.errors import DarkroomError
from shared.jobs import EXPLAIN, JobStore, connect
from shared.storage import Storage
from web import create_app
from web.backend import Backend
from worker.classifying.gradcam import explain, grad_cam, seen
from worker.classifying.network import Normalised
from worker.run import Explainer, Worker


def picture(size=(64, 64), **corners):
    """A black picture with a coloured square in some of its corners."""
    image = Image.new("RGB", size)
    w, h = size[0] // 4, size[1] // 4
    for name, colour in corners.items():
        x, y = ("right" in name) * (size[0] - w), ("bottom" in name) * (size[1] - h)
        image.paste(colour, (x, y, x + w, y + h))
    return image


def encoded(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pixels(image):
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(*image.size[::-1], 3).permute(2, 0, 1)


class Colours(torch.nn.Module):
    """A head of two classes: red, and green."""

    def forward(self, features):
        return features.mean(dim=(2, 3))[:, :2] * 10


def test_the_heat_is_where_what_speaks_for_the_class_is():
    network = Normalised(torch.nn.Sequential(torch.nn.AvgPool2d(8), Colours()), None, None)
    image = pixels(picture(top_left="red", bottom_right=(0, 128, 0)))
    probabilities, red = grad_cam(network, image)  # red is brighter, and so the more probable class
    assert probabilities.argmax() == 0
    assert (red.shape, red[:2, :2].min(), red[2:].max(), red.max()) == ((8, 8), 1, 0, 1)
    _, green = grad_cam(network, image, 1)
    assert (green[6:, 6:].min(), green[:6].max()) == (1, 0)
    _, nothing = grad_cam(network, pixels(picture()), 0)
    assert nothing.max() == 0


def test_the_heat_is_that_of_the_paper_through_a_whole_network():
    torch.manual_seed(0)
    network = Normalised(create_vision_model(resnet18, 5, pretrained=False), [0.5] * 3, [0.25] * 3).eval()
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    kept = []

    def keep(_, __, out):
        out.retain_grad()
        kept.append(out)

    hook = network.network[0].register_forward_hook(keep)
    logits = network(image[None].float())[0]
    logits[3].backward()
    hook.remove()
    weights = kept[0].grad.mean(dim=(2, 3))[0]
    expected = torch.relu(torch.einsum("k,khw->hw", weights, kept[0][0])).detach()
    probabilities, found = grad_cam(network, image, 3)
    torch.testing.assert_close(found, expected / expected.max())
    torch.testing.assert_close(probabilities, logits.softmax(0).detach())


def test_a_network_without_feature_maps_is_a_sentence():
    network = Normalised(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2)), None, None)
    with pytest.raises(DarkroomError, match="no maps of features"):
        grad_cam(network, torch.zeros(3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("resize", "shares"), [("squish", [1 / 16, 1 / 16, 15 / 16, 15 / 16]), ("crop", [1 / 4, 0, 3 / 4, 1]), ("pad", [0, -1 / 2, 1, 3 / 2])]
)
def test_the_part_that_is_seen_is_that_of_the_way_a_picture_becomes_a_square(resize, shares):
    assert seen(400, 200, 224, resize) == pytest.approx(shares)


@pytest.mark.parametrize("shares", [[0.25, 0, 0.75, 1], [0, -0.5, 1, 1.5]])
def test_heat_is_laid_on_whatever_part_was_seen(shares):
    data = encoded(Image.new("RGB", (400, 200), (128, 128, 128)))
    with Image.open(io.BytesIO(heat.overlay(data, [[0, 1], [0, 1]], shares, 400, "PNG"))) as shown:
        left, right = shown.getpixel((105, 100)), shown.getpixel((295, 100))
    assert (shown.size, max(left) - min(left) <= 1, max(right) - min(right) > 20) == ((400, 200), True, True)


def test_the_heat_lies_on_the_part_of_the_picture_that_the_network_sees():
    grid = [[0.0] * 4 for _ in range(4)]
    grid[0][3] = 1.0
    shown = Image.open(
        io.BytesIO(heat.overlay(encoded(Image.new("RGB", (400, 200), "#808080")), grid, [0.25, 0.25, 0.75, 0.75], 400, "PNG"))
    )
    assert shown.size == (400, 200)
    red, green, blue = shown.getpixel((290, 58))  # top right of what is seen: hot
    assert min(red, green) > blue + 40
    assert shown.getpixel((110, 140)) == (128, 128, 128)  # seen, and cold
    assert max(shown.getpixel((20, 20))) < 100  # not seen
    small = heat.overlay(encoded(Image.new("RGB", (4000, 3))), [[1.0]], [0.1, 0.1, 0.9, 0.9], 448, "WEBP")
    assert Image.open(io.BytesIO(small)).size == (448, 1)


@pytest.fixture
def asked(with_model, digits):
    """The ledger, the storage, and a picture."""
    image = next((digits / "digit 0").glob("*.png")).read_bytes()
    return JobStore(connect(with_model.redis_url), 3), Storage(with_model.storage, with_model.cache), image


def test_the_child_that_shows_it_begins_when_somebody_asks_and_ends_when_nobody_does(with_model, asked):
    store, storage, image = asked
    worker = Worker(with_model, "w1", ["predict"], store, storage, lambda *_: None)
    explainer = Explainer(worker, idle=0.5)
    try:
        explainer.turn(0.1)
        assert explainer.child is None
        # a question about a class, one about nothing that is known, one about no picture
        questions = [("digits/v1", "digit 3", image), ("digits/v1", "hat", image), ("digits/v1", "", b"text"), ("none/v1", "", image)]
        ids = [store.ask({"model": model, "label": label}, data, EXPLAIN) for model, label, data in questions]
        for _ in ids:
            explainer.turn(1)
        found, no_class, no_picture, no_model = (store.await_answer(each, 1) for each in ids)
        child = explainer.child.pid
        expected = explain("digits/v1", base64.b64encode(image).decode(), "digit 3", storage, with_model)
        assert (found["label"], found["class"], found["seen"]) == (expected["label"], "digit 3", expected["seen"])
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        torch.testing.assert_close(torch.tensor(found["heat"]), torch.tensor(expected["heat"]), atol=1e-3, rtol=0)
        assert sum(found["probabilities"].values()) == pytest.approx(1)
        assert "no class 'hat'" in no_class["error"]
        assert "not a picture" in no_picture["error"]
        assert "no model 'none'" in no_model["error"]
        # a child that was killed is replaced
        os.kill(child, 9)
        until(lambda: not explainer.child.alive)
        again = store.ask({"model": "digits/v1", "label": ""}, image, EXPLAIN)
        explainer.turn(1)
        assert store.await_answer(again, 1)["class"] == found["label"]
        assert explainer.child.pid != child
        until(lambda: explainer.turn(0.1) or explainer.child is None, 10)
    finally:
        explainer.end()


def test_a_worker_says_where_a_model_looks_and_labels_meanwhile(with_model, asked, start_worker):
    store, _, image = asked
    start_worker("predict")
    until(store.workers)
    client = create_app(with_model).test_client()
    plain = client.post("/api/v1/predict?model=digits", data=image, content_type="image/png").json
    address = "/api/v1/models/digits/versions/1/look"
    found = client.post(address, data=image, content_type="image/png")
    assert found.status_code == 200, found.text
    assert (found.json["label"], found.json["class"]) == (plain["label"], plain["label"])
    assert found.json["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-4)
    other = client.post(f"{address}?class=digit 3", data=image, content_type="image/png").json
    assert other["class"] == "digit 3"
    unknown = client.post(f"{address}?class=hat", data=image, content_type="image/png")
    assert (unknown.status_code, unknown.json["field"]) == (422, "class")
    assert Backend(with_model).store.redis.llen(EXPLAIN) == 0
