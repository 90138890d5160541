"""What computes the probabilities: one interface, `load(model's folder, precision) -> engine`, `engine(pixels) -> probabilities`.

    GPU        torch, channels_last; fp16 for `fast`, captured as a CUDA graph (worker/classifying/gpu.py)
    processor  OpenVINO, which is two to three times as fast as torch there and starts without it; torch where it is missing

A network is rebuilt from info.json and safetensors; no pickle is ever opened. For OpenVINO it is converted once a machine
and kept in the local cache. `int8` was quantised when the model was trained (worker/training/quantising.py).

Less than 32 bits change a label where two classes are nearly as probable. Such **close calls** are looked at once more, in 32
bits, so that the labels stay those of `exact` at the price of looking twice at one image in a hundred or so.
"""

import hashlib
import json
import multiprocessing
import secrets
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DarkroomError
from shared.specs import known_arch

CPU_BATCH = 32  # as fast as any larger one, and a question about a single image waits for no more than this
CLOSE = 0.05  # nats before the temperature: what a close call is with 16 bits where it was not measured when the model was trained


class OutOfMemory(Exception):
    """The device has not enough memory for this many images at once."""


@dataclass(frozen=True)
class Engine:
    """A network ready to classify. `batch`: how many images it likes at once."""

    name: str
    classes: list[str]
    image_size: int
    batch: int
    run: Callable[[Any], np.ndarray]
    resize: str = "squish"  # how a picture becomes a square: see worker/classifying/decoding.py
    close: float = 0.0  # a lead of the best class over the second below this is a close call, nats
    judge: Callable[[Any], np.ndarray] | None = None  # who looks at close calls: (N, S, S, 3) -> (N, C), in 32 bits
    # on a GPU, what its own decoder makes of JPEGs: (S, S, 3) uint8 in the GPU's memory each, or None for one that it does not take
    unpack: Callable[[list[bytes]], list[Any]] | None = None
    stack: Callable[[list[Any]], Any] = np.stack  # images, each as an array or from `unpack` -> the batch that `run` takes

    def __call__(self, pixels: Any) -> np.ndarray:
        """(N, S, S, 3) uint8 -> (N, C) float32, each row summing to 1; in halves when memory runs out.

        Raises DarkroomError when a single image is too much.
        """
        try:
            probabilities = self.run(pixels)
        except OutOfMemory:
            if len(pixels) == 1:
                raise DarkroomError("The device has not enough memory for a single image of this model.") from None
            half = len(pixels) // 2
            return np.concatenate([self(pixels[:half]), self(pixels[half:])])
        if self.judge is not None:
            for at in np.flatnonzero(leads(probabilities) < self.close):
                probabilities[at] = self.judge(pixels[at : at + 1])[0]
        return probabilities


def leads(probabilities: np.ndarray) -> np.ndarray:
    """(N, C) probabilities -> (N,) how far the best class is ahead of the second: the difference of their logits, nats."""
    if probabilities.shape[1] == 1:
        return np.full(len(probabilities), np.inf)
    second, best = np.partition(probabilities, -2, axis=1)[:, -2:].T
    return np.log(best / np.maximum(second, 1e-12))  # type: ignore[no-any-return]


def load(folder: Path, precision: str, cache: Path) -> Engine:
    """The engine of a model version's local folder. `precision`: exact, fast or int8; `cache`: a local folder for what is converted.

    Raises DarkroomError when files are missing or damaged, do not fit each other, or the model was not quantised.
    """
    info = read_info(folder)
    if precision == "int8":
        int8 = info.get("int8", {})
        if not int8.get("offered"):
            raise DarkroomError("This model has no int8 form. Choose the precision fast, or train the model again.")
        engine, close = quantised(folder, info), int8.get("close", 0.0)
        return replace(engine, close=close, judge=_processor(converted(folder, info, cache), info, "exact")) if close else engine
    if cuda():
        from worker.classifying import gpu

        return gpu.engine(folder, info, precision)
    if _openvino() is None:
        return _torch(folder, info)
    return _processor(converted(folder, info, cache), info, precision)


def files(precision: str) -> tuple[str, ...]:
    """The files of a model version that `load` needs."""
    return ("info.json", "model.safetensors", *(("int8.xml", "int8.bin") if precision == "int8" else ()))


def unpacks(precision: str) -> bool:
    """Whether the engines of a precision decode JPEGs themselves."""
    return precision == "fast" and cuda()


def read_info(folder: Path) -> dict[str, Any]:
    """A model's info.json, with only what may be built from it. Raises DarkroomError."""
    path = folder / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DarkroomError(f"The model's {path} cannot be read: {error}.") from None
    try:
        known_arch(str(info.get("arch")))
    except ValueError as error:
        raise DarkroomError(f"The model in {folder} cannot be built: {error}.") from None
    missing = [key for key in ("classes", "image_size", "mean", "std") if key not in info]
    if missing:
        raise DarkroomError(f"The model's {path} does not say {', '.join(missing)}. Train the model again.")
    return info  # type: ignore[no-any-return]


# -- torch ------------------------------------------------------------------------------------------------------------


@cache
def cuda() -> bool:
    """Whether there is a GPU that torch can use; torch takes seconds to import, so it is only asked where there is a card."""
    if not any(Path("/proc/driver/nvidia/gpus").glob("*")) and not Path("/dev/nvidia0").exists():
        return False
    import torch

    return torch.cuda.is_available()


def _torch(folder: Path, info: dict[str, Any]) -> Engine:
    """Torch on the processor, for machines that OpenVINO does not know; always in 32 bits."""
    import torch

    from worker.classifying.network import load_network

    network = load_network(folder, info).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        return network(batch.permute(0, 3, 1, 2).float()).softmax(dim=1).numpy()  # type: ignore[no-any-return]

    return Engine("torch fp32 on cpu", info["classes"], info["image_size"], CPU_BATCH, run, info.get("resize", "squish"))


# -- OpenVINO ---------------------------------------------------------------------------------------------------------


def _openvino() -> Any:
    """The module, or None where there is none for this machine."""
    # it reports each import to its makers over the network if it finds this package; Darkroom tells nobody anything
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        return None
    return openvino


def converted(folder: Path, info: dict[str, Any], cache: Path) -> Path:
    """The network as OpenVINO reads it, `(N, S, S, 3) uint8 -> probabilities`: made once a machine. Raises DarkroomError."""
    openvino = _openvino()
    try:
        weights = hashlib.sha256((folder / "model.safetensors").read_bytes())
    except OSError as error:
        raise DarkroomError(f"The weights {folder / 'model.safetensors'} cannot be read: {error}. Train the model again.") from None
    weights.update(json.dumps([info["arch"], info["classes"], info["image_size"], info["mean"], info["std"]]).encode())
    target = cache.expanduser() / "engines" / f"{weights.hexdigest()[:32]}-{openvino.__version__.split('-')[0]}" / "network.xml"
    if not target.exists():
        part = target.parent.with_name(f".{target.parent.name}.{secrets.token_hex(4)}.tmp")
        part.mkdir(parents=True)
        try:
            _save_converted(folder, info, part / target.name)
            if not target.exists():  # another worker may have been as quick
                part.rename(target.parent)
        except FileExistsError:
            pass
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _save_converted(folder: Path, info: dict[str, Any], path: Path) -> None:
    """Conversion needs torch, whose memory would stay: a process that has none leaves it to one that ends."""
    if "torch" in sys.modules:
        _openvino().save_model(convert(folder, info), path, compress_to_fp16=False)
        return
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_import_and_save, folder, info, path).result()


def _import_and_save(folder: Path, info: dict[str, Any], path: Path) -> None:
    import torch  # noqa: F401 - now this process has it

    _save_converted(folder, info, path)


def convert(folder: Path, info: dict[str, Any]) -> Any:
    """The network of a model's folder as an OpenVINO model, (N, S, S, 3) uint8 -> (N, C) float32. Raises DarkroomError."""
    import torch

    from worker.classifying.network import load_network

    class Whole(torch.nn.Module):
        """From pixels to probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.network = load_network(folder, info)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network(pixels.permute(0, 3, 1, 2).float()).softmax(dim=1)  # type: ignore[no-any-return]

    size = info["image_size"]
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    return _openvino().convert_model(Whole().eval(), example_input=example, input=[-1, size, size, 3])


def _processor(path: Path, info: dict[str, Any], precision: str) -> Engine:
    core = _openvino().Core()
    exact = _compiled(core, path, info, "openvino f32", {"INFERENCE_PRECISION_HINT": "f32"})
    # a processor without bf16 would imitate it, slowly; the name of the engine says which it is
    if precision == "exact" or "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return exact
    fast = _compiled(core, path, info, "openvino bf16", {"INFERENCE_PRECISION_HINT": "bf16"})
    return replace(fast, close=info.get("fast", {}).get("close", CLOSE / info.get("temperature", 1.0)), judge=exact)


def _compiled(core: Any, path: Path, info: dict[str, Any], name: str, config: dict[str, str]) -> Engine:
    try:
        request = core.compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY", **config}).create_infer_request()
    except RuntimeError as error:
        raise DarkroomError(f"The network {path} cannot be loaded: {str(error).strip().splitlines()[-1]}") from None

    def run(pixels: np.ndarray) -> np.ndarray:
        # the answer lies in memory that the next call overwrites
        return np.array(request.infer({0: np.ascontiguousarray(pixels)}, share_inputs=True)[0], dtype=np.float32)

    return Engine(name, info["classes"], info["image_size"], CPU_BATCH, run, info.get("resize", "squish"))


def quantised(folder: Path, info: dict[str, Any]) -> Engine:
    """The engine of a model's int8 form, without a second look. Raises DarkroomError."""
    openvino = _openvino()
    if openvino is None:
        raise DarkroomError("The precision int8 needs OpenVINO, which is not installed on this worker.")
    return _compiled(openvino.Core(), folder / "int8.xml", info, "openvino int8", {})
