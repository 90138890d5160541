"""The child process that owns a device, seen from its parent: start, speak, stop, kill.

Celery's process never imports torch and never waits on native code: whatever the child does, the parent can renew the
lease, and end it. CUDA never meets a fork, loaders may have processes of their own, and memory comes back with the child.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from shared.settings import Settings

# OpenMP's threads wait for each other by spinning, and a machine with more children than processors then spins instead of
# working: a step of resnet18 took 47 ms alone, 607 ms beside two others, and 206 ms with this limit, which costs nothing alone
SPINS = "10000"


class ChildDied(Exception):
    """The child process ended in the middle of a call; its message says how."""


class Child:
    """One child process. `memory_bytes` limits its address space; 0 leaves it free (CUDA maps far more than it uses)."""

    def __init__(self, settings: Settings, memory_bytes: int = 0) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.child", str(writing), str(os.getpid()), str(memory_bytes)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={"GOMP_SPINCOUNT": SPINS, **os.environ},
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent to handle
        )
        os.close(writing)
        self._reading = reading
        self._unread = b""
        self.pid = self._process.pid
        self._write(settings.model_dump_json())

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def call(self, name: str, args: dict[str, Any], every: float) -> Iterator[dict[str, Any] | None]:
        """Start a call and yield its messages, and None whenever `every` seconds have passed without one.

        The last message is the outcome: `result`, `failed`, `cancelled` or `bug`. Raises ChildDied.
        """
        self._write(json.dumps({"call": name, "args": args}))
        while True:
            line = self._read_line(every)
            message = json.loads(line) if line is not None else None
            yield message
            if message is not None and not message.keys() & {"progress", "row"}:
                return

    def stop(self) -> None:
        """Ask the call to end between two mini-batches."""
        if self.alive:
            self._write(json.dumps({"stop": True}))

    def kill(self) -> None:
        """End the process and all it started, at once, and wait until it is gone."""
        # its group outlives it when it left loader processes behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def _write(self, line: str) -> None:
        try:
            self._process.stdin.write(line.encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise ChildDied(self._how()) from None

    def _read_line(self, timeout: float) -> bytes | None:
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._reading], [], [], timeout)
            if not ready and not self.alive:  # processes of its own may hold the pipe open
                raise ChildDied(self._how())
            if not ready:
                return None
            data = os.read(self._reading, 1 << 16)
            if not data:
                raise ChildDied(self._how())
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _how(self) -> str:
        """How the process ended, in words."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "was killed (signal 9); usually the machine ran out of memory"
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return f"ended unexpectedly (exit code {code})"
