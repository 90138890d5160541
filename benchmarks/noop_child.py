"""The child of `noop_worker.py`: each item reads as the same picture, and gets probabilities from a table.

This is the one place of the benchmarks that knows how `worker/classifying/shards.py` comes by a picture and by its label.
"""

import itertools
from typing import Any

import numpy as np

from worker import child
from worker.classifying import engines, shards

CLASSES = [str(digit) for digit in range(10)]
PICTURE = np.zeros((1, 1, 3), np.uint8)
LOGITS = 3 * np.random.default_rng(0).standard_normal((4096, len(CLASSES)))
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)).astype(np.float32)  # used again and again, in turn


def _read(_: shards.Reading, item: dict[str, Any], __: Any) -> shards.Read:
    return shards.Read(item, PICTURE, sha256="0" * 64, width=1, height=1)


def _load(*_: Any) -> engines.Engine:
    turn = itertools.count()

    def run(pixels: np.ndarray) -> np.ndarray:
        at = next(turn) * engines.CPU_BATCH % len(PROBABILITIES)
        return PROBABILITIES[at : at + len(pixels)]

    return engines.Engine("none", CLASSES, 1, engines.CPU_BATCH, run)


if __name__ == "__main__":
    shards.Reading._read = _read  # type: ignore[method-assign]
    engines.load = _load
    child.main()
