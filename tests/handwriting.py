"""Something small to train on: handwritten digits, a spec that takes seconds, weights that nobody has to download."""

import hashlib
import io

import numpy as np
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from shared import datasets, models
from shared.images import decode
from shared.settings import Settings
from shared.storage import Storage, image_key
from worker.training.pictures import Sample
from worker.training.weights import weights_file

SPEC = {
    "dataset": "digits",
    "arch": "squeezenet1_1",
    "start": "scratch",
    "epochs": 1,
    "image_size": 32,
    "augment": "light",
    "batch_size": 16,
}
WHOLE = SPEC | {"start": "imagenet", "frozen_epochs": 1, "epochs": 2, "base_lr": 5e-3}


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


def a_few(folder, labels):
    """Samples, two a label."""
    (folder / "x.png").write_bytes(digits(per_class=1)[0][1])
    return [Sample("", "png", label, bool(i), folder / "x.png", 32 * 32) for label in labels for i in range(2)]


def digits_of(storage):
    """The dataset's images as samples."""
    rows = datasets.rows(storage, "digits", 1)
    valid = datasets.split([(row["sha256"], row["label"]) for row in rows], 0.2, 42)
    paths = [storage.local(image_key(row["sha256"], row["ext"])) for row in rows]
    return [Sample(row["sha256"], "png", row["label"], v, path, 32 * 32) for row, v, path in zip(rows, valid, paths, strict=True)]
