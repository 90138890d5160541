"""The engine of a CUDA GPU: torch in channels_last, for `fast` in 16 bits and captured as a graph, with the GPU's own JPEG decoder.

A graph is the whole network as one launch: the GPU does not wait for Python between two layers. It has a fixed number of
images; the last mini-batch of a shard leaves some of its places empty. Nothing here is imported on a machine without a GPU.
"""

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from torchvision.io import ImageReadMode, decode_jpeg

from worker.classifying.decoding import resized_to, square_of
from worker.classifying.engines import Engine, OutOfMemory
from worker.classifying.network import load_network

BATCH = 128
WARM_UP = 3  # passes before a capture, in which libraries choose their kernels and take their memory


def engine(folder: Path, info: dict[str, Any], precision: str, device: str = "cuda") -> Engine:
    """The engine of a model version's local folder; `precision`: exact (fp32) or fast (fp16). Raises DarkroomError."""
    size, resize, exact = info["image_size"], info.get("resize", "squish"), precision == "exact"
    dtype = torch.float32 if exact else torch.float16
    network = load_network(folder, info).to(device, dtype=dtype, memory_format=torch.channels_last)
    forward = partial(_probabilities, network, dtype)
    batch, run = (BATCH, partial(_run, forward)) if exact else _largest_graph(forward, size, device)
    return Engine(
        name=f"torch {'fp32' if exact else 'fp16, graph,'} on {device}",
        classes=info["classes"],
        image_size=size,
        resize=resize,
        batch=batch,
        run=run,
        # on a stream of its own, so that it goes on beside the network
        unpack=None if exact else partial(unpack, size=size, device=device, aside=torch.cuda.Stream(device), resize=resize),
        stack=partial(_stacked, device=device),
    )


def _probabilities(network: torch.nn.Module, dtype: torch.dtype, pixels: torch.Tensor) -> torch.Tensor:
    """(N, S, S, 3) uint8 -> (N, C) float32; seen as (N, 3, S, S) these pixels are channels_last already."""
    return network(pixels.permute(0, 3, 1, 2).to(dtype)).float().softmax(dim=1)  # type: ignore[no-any-return]


@torch.inference_mode()
def _run(forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> np.ndarray:
    """Probabilities on the processor. Raises OutOfMemory."""
    try:
        return forward(pixels).cpu().numpy()  # type: ignore[no-any-return]
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise OutOfMemory from None


def _largest_graph(forward: Callable[[torch.Tensor], torch.Tensor], size: int, device: str) -> tuple[int, Callable[[Any], np.ndarray]]:
    """The graph of as many images as fit into the memory, BATCH at most: (how many, what runs it). Raises OutOfMemory."""
    batch = BATCH
    while True:
        try:
            return batch, _captured(forward, batch, size, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if batch == 1:
                raise OutOfMemory from None
            batch //= 2


@torch.inference_mode()
def _captured(forward: Callable[[torch.Tensor], torch.Tensor], batch: int, size: int, device: str) -> Callable[[Any], np.ndarray]:
    """The network as a CUDA graph of `batch` images (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)."""
    places = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device=device)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            forward(places)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = forward(places)

    @torch.inference_mode()
    def run(pixels: torch.Tensor) -> np.ndarray:
        places[: len(pixels)].copy_(pixels, non_blocking=True)
        graph.replay()
        return answers[: len(pixels)].cpu().numpy()  # type: ignore[no-any-return] # waits until the graph is through

    return run


def _stacked(images: list[Any], device: str) -> torch.Tensor:
    """Images, (S, S, 3) uint8 each, arrays or tensors of the device, as one batch on the device, in their order."""
    elsewhere = [i for i, image in enumerate(images) if isinstance(image, np.ndarray)]
    if elsewhere:  # one transfer for all of them
        moved = torch.from_numpy(np.stack([images[i] for i in elsewhere]))
        moved = (moved.pin_memory() if device != "cpu" else moved).to(device, non_blocking=True)
        images = list(images)
        for i, image in zip(elsewhere, moved, strict=True):
            images[i] = image
    return torch.stack(images)


def unpack(
    jpegs: list[bytes], size: int, device: str, aside: "torch.cuda.Stream | None" = None, resize: str = "squish"
) -> list[torch.Tensor | None]:
    """JPEGs -> (S, S, 3) uint8 each, in the device's memory, as training validated on them; None: the processor should decode it.

    For JPEGs that `decoding.plain_jpeg` lets through. torchvision decodes on the GPU with nvJPEG, all of them at once, on the
    stream `aside`; they are ready when this returns.
    """
    with torch.inference_mode(), torch.cuda.stream(aside):
        pictures = _decoded([torch.frombuffer(io.BytesIO(jpeg).getbuffer(), dtype=torch.uint8) for jpeg in jpegs], device)
        squares = [None if picture is None else _squeezed(picture, size, resize) for picture in pictures]
    if aside is not None:
        aside.synchronize()
    return squares


def _decoded(jpegs: list[torch.Tensor], device: str) -> list[torch.Tensor | None]:
    """(3, H, W) uint8 each, or None for one that cannot be decoded there: halves of the list are tried until it is alone."""
    if not jpegs:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # since 0.29 it names a successor that needs a newer torch than Darkroom does
            return list(decode_jpeg(jpegs, ImageReadMode.RGB, device=device))
    except RuntimeError:  # one of them is damaged, or the memory does not hold so many at once
        if len(jpegs) == 1:
            return [None]
    half = len(jpegs) // 2
    return [*_decoded(jpegs[:half], device), *_decoded(jpegs[half:], device)]


def _squeezed(picture: torch.Tensor, size: int, resize: str) -> torch.Tensor:
    """(3, H, W) uint8 -> (S, S, 3) uint8: what `decoding.prepare` does, with values that differ by one of 255 at most."""
    whole, margin = (resized_to(size), (resized_to(size) - size) // 2) if resize == "squish" else (size, 0)
    if resize != "squish":
        height, width = picture.shape[-2:]
        left, top, side = square_of(width, height, size, resize)
        picture = pad(picture, (-left, left + side - width, -top, top + side - height))  # what is negative is cut off
    squeezed = interpolate(picture[None].float(), (whole, whole), mode="bilinear", antialias=True)[0]
    kept = squeezed[:, margin : margin + size, margin : margin + size]
    return kept.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
