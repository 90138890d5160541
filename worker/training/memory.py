"""The memory of one batch is kept for the next; the C library would give it back to the kernel, and ask for it again.

The activations of a batch are hundreds of megabytes, in pieces so large that glibc maps each of them anew. Every page of it is zeroed by the
kernel when it is first touched, at every layer of every batch: a third of the processor's time. Kept, squeezenet1_0 learns from 1.5
times as many images a second (docs/architecture.md).
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from fastai.callback.core import Callback

LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None  # None: another library, with other habits
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # mallopt(3)
NEVER = -1
# what glibc comes to by itself when large pieces are freed: bytes that it keeps, bytes from which it maps, and how many mappings
USUAL = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20, M_MMAP_MAX: 65536}


@contextmanager
def kept() -> Iterator[None]:
    """Within it, what the main thread frees stays with the process."""
    if LIBC is None:
        yield
        return
    LIBC.mallopt(M_MMAP_MAX, 0)
    LIBC.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        for what, value in USUAL.items():
            LIBC.mallopt(what, value)
        LIBC.malloc_trim(0)


class BeforeLoaders(Callback):
    """Gives back what is kept before a loader forks its processes: they would hold it, and a page that two processes hold is copied when one writes."""

    def before_train(self) -> None:
        """Between two batches nothing of it is in use."""
        if LIBC is not None:
            LIBC.malloc_trim(0)

    before_validate = before_train
