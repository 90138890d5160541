"""Processes that open pictures nobody vouches for (worker/examiner.py), seen from whoever asks them.

A picture can be made to crash a decoder, to keep it busy for ever, or to fill the memory. So none is decoded where a job is at work: each of
these processes is limited in memory, and in time for one picture. One that dies is replaced, and a picture on which two have died is a row
with a reason, as any other bad picture.
"""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.images import BadImage
from shared.settings import Settings
from worker.device import ChildDied
from worker.examiner import SECONDS, dropped, fingerprint

TRIES = 2  # the first death may be the machine's own trouble
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}  # one picture at a time, one core


class Examiners:
    """As many examining processes as the machine has cores; `with` ends them. Their methods may be called from as many threads."""

    def __init__(self, settings: Settings, width: int | None = None, seconds: float = SECONDS) -> None:
        self.width = width or len(os.sched_getaffinity(0))
        self._settings = settings
        self._seconds = seconds
        self._all: list[_Process] = []
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(self.width):
            self._idle.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._all:
            process.end()  # also those that are dead: their pipes

    def examine(self, picture: bytes | Path, min_side: int = 1) -> dict[str, Any]:
        """What `worker.examiner.examine` finds of these bytes, or of those of a local file; waits for a process that is free.

        Raises OSError when the storage or the file cannot be used.
        """
        process = self._idle.get()
        try:
            for _ in range(TRIES):
                process = process or self._started()
                try:
                    return process.ask(picture, min_side)
                except (ChildDied, TimeoutError) as death:
                    process.end()
                    process, why = None, str(death)
            return _given_up(picture, why)
        finally:
            self._idle.put(process)

    def _started(self) -> "_Process":
        process = _Process(self._settings, self._seconds)
        self._all.append(process)
        return process


class _Process:
    """One examining process."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.examiner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT},
        )
        known = settings.model_dump(mode="json", include={"storage", "cache", "max_image_bytes", "child_memory_bytes"})
        self._say(json.dumps(known).encode())

    def ask(self, picture: bytes | Path, min_side: int) -> dict[str, Any]:
        """What it finds. Raises ChildDied, TimeoutError, and OSError as `examine` does."""
        if isinstance(picture, Path):
            self._say(json.dumps({"min_side": min_side, "path": str(picture)}).encode())
        else:
            self._say(json.dumps({"min_side": min_side, "bytes": len(picture)}).encode(), picture)
        answer: dict[str, Any] = json.loads(self._line())
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "bug" in answer:
            raise RuntimeError(answer["bug"])
        return answer

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _say(self, line: bytes, body: bytes = b"") -> None:
        try:
            self._process.stdin.write(line + b"\n" + body)  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            raise ChildDied(self._how()) from None

    def _line(self) -> bytes:
        """The next line it says."""
        pipe = self._process.stdout.fileno()  # type: ignore[union-attr]
        until = time.monotonic() + self._seconds
        said = b""
        while not said.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"took more than {self._seconds:g} seconds")
            piece = os.read(pipe, 1 << 16)
            if not piece:
                raise ChildDied(self._how())
            said += piece
        return said

    def _how(self) -> str:
        code = self._process.wait()
        return f"ended the process that tried (signal {-code})" if code < 0 else f"ended the process that tried (exit code {code})"


def _given_up(picture: bytes | Path, why: str) -> dict[str, Any]:
    """The columns of a picture that no process survives."""
    data = picture.read_bytes() if isinstance(picture, Path) else picture
    return {**fingerprint(data), **dropped(BadImage("unreadable", f"The picture cannot be decoded: it {why}, {TRIES} times."))}
