"""The process that does the work: started by worker/device.py, it owns the device, and it may be killed at any moment.

It reads calls as JSON lines on standard input and answers with JSON lines on a pipe of its own; whatever a library prints
goes to standard error. It dies with its parent.

    in:   {"call": "shard", "args": {...}}        {"stop": true}
    out:  {"progress": {...}}  {"row": [list, value]}  and last one of
          {"result": {...}}  {"failed": "a sentence"}  {"cancelled": true}  {"bug": "traceback"}
"""

import ctypes
import errno
import faulthandler
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import IO, Any

from shared.errors import Cancelled, DarkroomError
from shared.log import configure
from shared.settings import Settings
from shared.specs import parse
from shared.storage import Storage
from worker.progress import Progress

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve calls until standard input ends."""
    out_fd, parent, memory_bytes = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    die_with(parent)
    faulthandler.enable()  # a crash in native code leaves a trace in the log
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    commands = _take_stdin()
    settings = Settings.model_validate_json(commands.readline())
    configure(settings.log_level)
    room = Room(settings, os.fdopen(out_fd, "w", buffering=1))
    calls: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, calls, room.stop), daemon=True).start()
    while (message := calls.get()) is not None:
        room.serve(message["call"], message["args"])


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _take_stdin() -> IO[str]:
    """Standard input as a file of our own, and nothing in its place.

    A thread will wait on it, and holds its lock meanwhile: a loader process forked from this one closes sys.stdin first
    thing, and would wait for that lock for ever.
    """
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = os.fdopen(0, closefd=False)
    return commands


def _listen(commands: IO[str], calls: "queue.SimpleQueue[dict[str, Any] | None]", stop: threading.Event) -> None:
    for line in commands:
        message = json.loads(line)
        if "stop" in message:
            stop.set()
        else:
            stop.clear()
            calls.put(message)
    calls.put(None)
    stop.set()


class Room:
    """What stays between two calls: settings, storage, and the network that was used last."""

    def __init__(self, settings: Settings, out: Any) -> None:
        self.settings = settings
        self.storage = Storage(settings.storage, settings.cache)
        self.stop = threading.Event()
        self.warm: dict[str, Any] = {}  # worker/classifying keeps its network here
        self._out = out
        self._lock = threading.Lock()

    def emit(self, message: dict[str, Any]) -> None:
        """Send one line to the parent."""
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def serve(self, call: str, args: dict[str, Any]) -> None:
        """Run one call and send its outcome: the one broad except of the program, beside the one where a job ends."""
        try:
            outcome = {"result": CALLS[call](self, Progress(self.emit, self.stop), **args)}
        except Cancelled:
            outcome = {"cancelled": True}
        except DarkroomError as error:
            outcome = {"failed": str(error)}
        except OSError as error:
            # the operator's to heal, and told as such; any other is a bug
            known = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO}
            where = f": {error.filename}" if error.filename else ""
            outcome = {"failed": f"{error.strerror}{where}."} if known else {"bug": traceback.format_exc()}
        except Exception:  # noqa: BLE001 - whatever it is, the parent must hear of it
            outcome = {"bug": traceback.format_exc()}
        self.emit(outcome)


def _dataset(room: Room, progress: Progress, kind: str, spec: dict[str, Any], job: str) -> dict[str, Any]:
    if kind == "import":
        from worker.importing import import_dataset as make
    else:
        from worker.scraping import scrape as make
    return make(parse(kind, spec), job, room.storage, room.settings, progress)


def _train(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.training import train

    return train(parse("train", spec), job, room.storage, room.settings, progress)


def _plan(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.classifying.batches import plan

    return plan(parse("classify", spec), job, room.storage, room.settings, progress)


def _shard(room: Room, progress: Progress, spec: dict[str, Any], job: str, shard: str) -> dict[str, Any]:
    from worker.classifying.shards import classify_shard

    return classify_shard(parse("classify", spec), job, shard, room.storage, room.settings, progress, room.warm)


def _write_off(room: Room, progress: Progress, spec: dict[str, Any], job: str, shard: str) -> dict[str, Any]:
    from worker.classifying.shards import write_off

    return write_off(parse("classify", spec), job, shard, room.storage)


def _finish(room: Room, progress: Progress, spec: dict[str, Any], job: str, started: float) -> dict[str, Any]:
    from worker.classifying.batches import finish

    return finish(parse("classify", spec), job, started, room.storage, progress)


def _predict(room: Room, progress: Progress, model: str, image: str) -> dict[str, Any]:
    from worker.classifying.shards import predict

    return predict(model, image, room.storage, room.settings, room.warm)


CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "dataset": _dataset,
    "train": _train,
    "plan": _plan,
    "shard": _shard,
    "write_off": _write_off,
    "finish": _finish,
    "predict": _predict,
}

if __name__ == "__main__":
    main()
