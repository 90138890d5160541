"""The child process that owns a device, seen from its parent: start, speak, stop, kill.

Celery's process never imports torch and never waits on native code: whatever the child does, the parent can renew the
lease, and end it. CUDA never meets a fork, loaders may have processes of their own, and memory comes back with the child.
"""

import contextlib
import itertools
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from shared.settings import Settings

# OpenMP's threads wait for each other by spinning, and a machine with more children than processors then spins instead of
# working: a step of resnet18 took 47 ms alone, 607 ms beside two others, and 206 ms with this limit, which costs nothing alone
SPINS = "10000"
# the hub's client tells its makers what it runs on, and draws progress bars; it reads these when it is imported
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
COMMAND = (sys.executable, "-m", "worker.child")
OUTCOMES = {"result", "failed", "stuck", "died", "cancelled", "bug"}


class ChildDied(Exception):
    """The child process ended in the middle of a call; its message says how."""


class Child:
    """One child process. `memory_bytes` limits its address space; 0 leaves it free (CUDA maps far more than it uses).

    Several calls may be under way at once, from several threads: the child answers a single image between two mini-batches
    of a shard, and reads the next shard while it works on one.
    """

    def __init__(self, settings: Settings, memory_bytes: int = 0) -> None:
        reading, writing = os.pipe()
        self._process = subprocess.Popen(
            [*COMMAND, str(writing), str(os.getpid()), str(memory_bytes)],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={"GOMP_SPINCOUNT": SPINS, **QUIET, **os.environ},
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent to handle
        )
        os.close(writing)
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._ended = False
        threading.Thread(target=self._listen, args=(reading,), daemon=True).start()
        self._write(settings.model_dump_json())

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def start(self, name: str, args: dict[str, Any]) -> int:
        """Start a call; returns its number, for `messages` and `stop`. Raises ChildDied."""
        number = next(self._ids)
        with self._lock:
            if self._ended:
                raise ChildDied(self._how())
            self._answers[number] = queue.SimpleQueue()
        self._write(json.dumps({"id": number, "call": name, "args": args}))
        return number

    def messages(self, number: int, every: float) -> Iterator[dict[str, Any] | None]:
        """The messages of a call, and None whenever `every` seconds have passed without one.

        The last message is the outcome: `result`, `failed`, `stuck`, `died`, `cancelled` or `bug`. Raises ChildDied.
        """
        answers = self._answers[number]
        try:
            while True:
                try:
                    message = answers.get(timeout=every)
                except queue.Empty:
                    yield None
                    continue
                if message is None:
                    raise ChildDied(self._how())
                yield message
                if message.keys() & OUTCOMES:
                    return
        finally:
            self._answers.pop(number, None)

    def call(self, name: str, args: dict[str, Any], every: float) -> Iterator[dict[str, Any] | None]:
        """Start a call and yield its messages, as `messages` does."""
        return self.messages(self.start(name, args), every)

    def stop(self, number: int) -> None:
        """Ask a call to end between two mini-batches."""
        if self.alive:
            self._write(json.dumps({"stop": number}))

    def kill(self) -> None:
        """End the process and all it started, at once, and wait until it is gone."""
        # its group outlives it when it left loader processes behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]

    def _write(self, line: str) -> None:
        try:
            with self._lock:
                self._process.stdin.write(line.encode() + b"\n")  # type: ignore[union-attr]
                self._process.stdin.flush()  # type: ignore[union-attr]
        except (BrokenPipeError, ValueError):  # ValueError: `kill` has closed it
            raise ChildDied(self._how()) from None

    def _listen(self, reading: int) -> None:
        """Hand each message to the call it belongs to, until the child has ended; processes of its own may hold the pipe open."""
        unread = b""
        while True:
            ready, _, _ = select.select([reading], [], [], 1)
            if not ready and self.alive:
                continue
            data = os.read(reading, 1 << 16) if ready else b""
            if not data:
                break
            *lines, unread = (unread + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if answers := self._answers.get(message.pop("id")):
                    answers.put(message)
        os.close(reading)
        with self._lock:
            self._ended = True
            for answers in self._answers.values():
                answers.put(None)

    def _how(self) -> str:
        """How the process ended, in words."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "was killed (signal 9); usually the machine ran out of memory"
        if code < 0:
            return f"crashed ({signal.Signals(-code).name})"
        return f"ended unexpectedly (exit code {code})"
