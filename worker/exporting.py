"""A model as ONNX, for phones, browsers and programs that have no torch: `models/<name>/v0001/model.onnx`, one file that stands alone.

    input   pixels         (N, 3, S, S) float32, red, green, blue from 0 to 255; any N. S is fixed, and in the metadata as `image_size`
    output  probabilities  (N, C) float32, each row summing to 1, in the order of the metadata's `classes` (JSON)

Normalisation and softmax are inside. What is left to do outside is what the metadata's `preparation` says. A file whose answers are not
torch's is never kept.
"""

import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as refusals

from shared import models, validation
from shared.errors import DarkroomError, NotFound
from shared.settings import Settings
from shared.specs import ExportSpec
from shared.storage import Storage, image_key
from worker.classifying.decoding import look, resized_to
from worker.classifying.engines import read_info
from worker.classifying.network import Normalised, load_network
from worker.progress import Progress

FILE = "model.onnx"
OPSET = 18  # ONNX 1.13, which every runtime in use reads
COMPARED = 32  # images
WITHIN = 1e-4  # that a probability may differ
# onnxruntime has no class above all that it raises
REFUSALS = tuple(
    getattr(refusals, name)
    for name in ("Fail", "EPFail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
)
MOST = 1_900_000_000  # bytes of weights: protobuf ends at 2 GB, and a second file beside it would get lost


def export(spec: ExportSpec, job: str, storage: Storage, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Write a version's model.onnx, unless it is there; returns {model, version, file, bytes}, and `difference`, the largest from torch.

    Raises Cancelled, and DarkroomError when the network cannot be written as ONNX or answers otherwise; then there is no file.
    """
    name, version = models.resolve(storage, spec.model)
    key = models.key(name, version, FILE)
    result = {"model": name, "version": version, "file": FILE}
    if storage.exists(key):
        return {**result, "bytes": storage.size(key)}
    progress.update(phase="loading")
    weights, folder = (
        storage.local(models.key(name, version, "model.safetensors")),
        storage.local(models.key(name, version, "info.json")).parent,
    )
    if weights.stat().st_size > MOST:
        raise DarkroomError("The model has more than 1.9 GB of weights, and one ONNX file holds 2 GB at most.")
    info = read_info(folder)
    network = load_network(folder, info)
    cache = settings.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="exporting-", dir=cache) as temporary:
        path = Path(temporary) / FILE
        progress.update(phase="converting")
        write_onnx(network, info, path)
        progress.update(phase="comparing")
        difference = compare(network, path, pictures(info, storage))
        progress.check()
        with path.open("rb") as source, storage.writing(key) as out:
            while chunk := source.read(1 << 20):
                out.write(chunk)
        return {**result, "bytes": path.stat().st_size, "difference": difference}


class Whole(torch.nn.Module):
    """From pixels to probabilities."""

    def __init__(self, network: Normalised) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) of 0 to 255 -> (N, C)."""
        return self.network(pixels).softmax(dim=1)


def write_onnx(network: Normalised, info: dict[str, Any], path: Path) -> None:
    """Write a network as one ONNX file that says what it needs to be used. Raises DarkroomError when it has parts that ONNX has not."""
    size = info["image_size"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            program = torch.onnx.export(
                Whole(network).eval(),
                (torch.zeros(2, 3, size, size),),
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("N", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise DarkroomError(f"{info['arch']} cannot be written as ONNX: {str(error).strip().splitlines()[0][:300]}") from error
    model = program.model_proto
    whole = resized_to(size)
    ways = {
        "squish": f"resize to {whole} x {whole} (bilinear, whatever the shape), cut {size} x {size} out of the middle",
        "crop": f"cut the largest square out of the middle, resize to {size} x {size} (bilinear)",
        "pad": f"make it a square with black on both sides, resize to {size} x {size} (bilinear)",
    }
    said = {
        "classes": json.dumps(info["classes"], ensure_ascii=False),
        "image_size": str(size),
        "preparation": f"RGB, upright; {ways[info.get('resize', 'squish')]}, values from 0 to 255",
        "model": f"{info['model']}/v{info['version']}",
        "arch": info["arch"],
    }
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, said)
    model.producer_name, model.doc_string = "darkroom", ""
    onnx.save_model(model, path)


def compare(network: Normalised, path: Path, pixels: np.ndarray) -> float:
    """The largest difference of a probability between torch and onnxruntime, for (N, S, S, 3) uint8, all at once and the first alone.

    Raises DarkroomError when it is too large, or onnxruntime does not take the file.
    """
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(batch)).softmax(dim=1).numpy()
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = np.concatenate([session.run(None, {"pixels": some})[0] for some in (batch, batch[:1])])
    except REFUSALS as error:
        raise DarkroomError(f"onnxruntime does not take what was written: {str(error).strip().splitlines()[0][:300]}") from error
    difference = float(np.abs(found - np.concatenate([wanted, wanted[:1]])).max())
    if not difference <= WITHIN:  # also when it is no number
        raise DarkroomError(
            f"The ONNX file answers otherwise than the model: a probability differs by {difference:.2g}, and {WITHIN:g} is allowed. It was not kept."
        )
    return difference


def pictures(info: dict[str, Any], storage: Storage) -> np.ndarray:
    """Images as the network sees them, (N, S, S, 3) uint8: of the model's validation as far as they are still there, and noise for the rest."""
    size = info["image_size"]
    seen = []
    for row in _validated(info, storage):
        key = image_key(row["sha256"], row["ext"])
        if len(seen) < COMPARED and storage.exists(key):
            seen.append(look(storage.read(key), size, True, 2**31, info.get("resize", "squish"))[0])
    noise = np.random.default_rng(0).integers(0, 256, (COMPARED - len(seen), size, size, 3), np.uint8)
    return np.concatenate([np.stack(seen), noise]) if seen else noise


def _validated(info: dict[str, Any], storage: Storage) -> list[dict[str, Any]]:
    try:
        return validation.read(storage, info["model"], info["version"]).to_pylist()  # type: ignore[no-any-return]
    except NotFound:  # an imported model, or one from before there was such a file
        return []
