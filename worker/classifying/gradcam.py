"""Where a network looks: Grad-CAM (Selvaraju et al. 2017), for one picture and one class.

It needs gradients, and so torch. It runs on the processor in a process of its own, which ends when nobody asks for a while
(worker/run.py): the child that classifies does without torch.
"""

import base64
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from shared import models
from shared.errors import DarkroomError, Invalid
from shared.settings import Settings
from shared.storage import Storage
from worker.classifying import engines
from worker.classifying.decoding import look, resized_to, square_of
from worker.classifying.network import Normalised, load_network


def explain(ref: str, image: str, label: str, storage: Storage, settings: Settings) -> dict[str, Any]:
    """What a model's answer for one image, base64, rests on, or with a `label` what speaks for that class.

    `{label, probability, probabilities: {class: p}, class, heat: rows of 0 to 1, seen, model, version, ms}`: `heat` has the resolution of
    the network's last feature map, `seen` is the part of the picture that it covers.
    Raises BadImage, NotFound, and Invalid for a class that the model does not know.
    """
    started = time.perf_counter()
    name, version = models.resolve(storage, ref)
    folders = [storage.local(models.key(name, version, file)).parent for file in engines.files("exact")]
    info, network = _loaded(folders[0])
    classes, size = info["classes"], info["image_size"]
    if label and label not in classes:
        raise Invalid(f"The model {name}/v{version} has no class {label!r}.", field="class")
    resize = info.get("resize", "squish")
    pixels, picture = look(base64.b64decode(image), size, True, settings.max_image_bytes, resize)
    probabilities, heat = grad_cam(network, torch.tensor(pixels).permute(2, 0, 1), classes.index(label) if label else None)
    best = int(probabilities.argmax())
    return {
        "label": classes[best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(classes, probabilities.tolist(), strict=True)),
        "class": label or classes[best],
        "heat": [[round(value, 4) for value in row] for row in heat.tolist()],
        "seen": seen(picture.width, picture.height, size, resize),
        "model": name,
        "version": version,
        "ms": round((time.perf_counter() - started) * 1000, 1),
    }


def seen(width: int, height: int, size: int, resize: str) -> list[float]:
    """Left, top, right and bottom of the part of a picture that a network sees, as shares of it; beyond 0 and 1 where it sees black bars."""
    if resize == "squish":
        margin = (1 - size / resized_to(size)) / 2
        return [margin, margin, 1 - margin, 1 - margin]
    left, top, side = square_of(width, height, size, resize)
    return [left / width, top / height, (left + side) / width, (top + side) / height]


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple[dict[str, Any], Normalised]:
    """The network of a model version, which never changes."""
    info = engines.read_info(folder)
    return info, load_network(folder, info)


def grad_cam(network: Normalised, pixels: torch.Tensor, target: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, S, S) uint8 -> (C,) probabilities, and the (h, w) heat of a class, 0 to 1; None: of the most probable one.

    The last feature maps are added up, each with the weight that the class's logit has of it on average over the picture; what is
    left above zero speaks for the class. All zero: nothing does. Raises DarkroomError for a network without feature maps.
    """
    body, head = network.network[0], network.network[1]  # type: ignore[index] # as fastai builds every network
    with torch.no_grad():
        features = body((pixels[None].float() / 255 - network.mean) / network.std)
    if features.ndim != 4:
        raise DarkroomError("This architecture has no maps of features over the picture, so it cannot be shown where it looks.")
    features.requires_grad_()
    logits = head(features)[0]
    target = int(logits.argmax()) if target is None else target
    (gradient,) = torch.autograd.grad(logits[target], features)
    with torch.no_grad():
        heat = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1)[0].relu()
        return logits.softmax(dim=0), heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
