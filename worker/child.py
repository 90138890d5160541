"""The process that does the work: started by worker/device.py, it owns the device, and it may be killed at any moment.

It reads calls as JSON lines on standard input and answers with JSON lines on a pipe of its own; whatever a library prints
goes to standard error. It dies with its parent.

    in:   {"id": 1, "call": "shard", "args": {...}}        {"stop": 1}
    out:  {"id": 1, "progress": {...}}  {"id": 1, "row": [list, value]}  {"id": 1, "read": true}  and last one of
          {"id": 1, "result": {...}}  {"failed": "a sentence"}  {"stuck": "No space left ..."}  {"died": "was killed ..."}  {"cancelled": true}  {"bug": "traceback"}

Calls are done one after the other, but a single image (`predict`) is looked at between two mini-batches of what is under
way, and a shard that waits is read and decoded while the one before it is still in the network.
"""

import ctypes
import errno
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import IO, Any

from shared.errors import Cancelled, DarkroomError
from shared.log import configure
from shared.settings import Settings
from shared.specs import parse
from shared.storage import Storage
from worker.device import ChildDied
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
    threading.Thread(target=_listen, args=(commands, room), daemon=True).start()
    while (message := room.next_call()) is not None:
        room.serve(message)


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


def _listen(commands: IO[str], room: "Room") -> None:
    for line in commands:
        message = json.loads(line)
        if "stop" in message:
            room.stop(message["stop"])
        else:
            room.take(message)
    room.take(None)


class Room:
    """What stays between two calls: settings, storage, the loaded engines, and the calls that wait."""

    def __init__(self, settings: Settings, out: Any) -> None:
        self.settings = settings
        self.storage = Storage(settings.storage, settings.cache)
        self._out = out
        self._writing = threading.Lock()
        self._arrived = threading.Condition()
        self._calls: deque[dict[str, Any] | None] = deque()
        self._questions: deque[dict[str, Any]] = deque()
        self._stops: dict[int, threading.Event] = {}

    @cached_property
    def warm(self) -> Any:
        """What classifying keeps between two calls; made by the first that needs it."""
        from worker.classifying.shards import Warm

        return Warm(self.storage, self.settings)

    def take(self, message: dict[str, Any] | None) -> None:
        """A call has arrived; None: there will be no more, and what is under way should end."""
        with self._arrived:
            if message is None:
                for stop in self._stops.values():
                    stop.set()
                self._calls.append(None)
            else:
                self._stops[message["id"]] = threading.Event()
                (self._questions if message["call"] == "predict" else self._calls).append(message)
            self._arrived.notify()
        if message is not None and message["call"] == "shard" and "warm" in self.__dict__:
            from worker.classifying.shards import read_ahead

            args = message["args"]
            with suppress(DarkroomError):  # the call itself will tell
                read_ahead(parse("classify", args["spec"]), args["job"], args["shard"], self.warm)

    def stop(self, number: int) -> None:
        """Ask a call to end."""
        with self._arrived:
            if number in self._stops:
                self._stops[number].set()

    def next_call(self) -> dict[str, Any] | None:
        """The next call; a question before anything else."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._questions or self._calls)
            return self._questions.popleft() if self._questions else self._calls.popleft()

    def answer_questions(self) -> None:
        """Look at the single images that somebody waits for, in the middle of a longer call."""
        while self._questions:
            self.serve(self._questions.popleft())

    def emit(self, message: dict[str, Any]) -> None:
        """Send one line to the parent."""
        with self._writing:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def serve(self, message: dict[str, Any]) -> None:
        """Run one call and send its outcome: the one broad except of the program, beside the one where a job ends."""
        number, call = message["id"], message["call"]
        between = None if call == "predict" else self.answer_questions
        progress = Progress(lambda said: self.emit({"id": number, **said}), self._stops[number], between)
        try:
            outcome = {"result": CALLS[call](self, progress, **message["args"])}
        except Cancelled:
            outcome = {"cancelled": True}
        except DarkroomError as error:
            outcome = {"failed": str(error)}
        except ChildDied as death:  # one of the processes that share the work
            outcome = {"died": str(death)}
        except OSError as error:
            # the operator's to heal, and told as such; any other is a bug
            known = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO}
            where = f": {error.filename}" if error.filename else ""
            outcome = {"stuck": f"{error.strerror}{where}."} if known else {"bug": traceback.format_exc()}
        except Exception:  # noqa: BLE001 - whatever it is, the parent must hear of it
            outcome = {"bug": traceback.format_exc()}
        with self._arrived:
            del self._stops[number]
        self.emit({"id": number, **outcome})


def _dataset(room: Room, progress: Progress, kind: str, spec: dict[str, Any], job: str) -> dict[str, Any]:
    if kind == "import":
        from worker.importing import import_dataset as make
    else:
        from worker.scraping import scrape as make
    return make(parse(kind, spec), job, room.storage, room.settings, progress)


def _train(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.training import train

    return train(parse("train", spec), job, room.storage, room.settings, progress)


def _look(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.training.looks import look

    return look(parse("look", spec), job, room.storage, room.settings, progress)


def _pack(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.packing import pack

    return pack(parse("pack", spec), job, room.storage, room.settings, progress)


def _export(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.exporting import export

    return export(parse("export", spec), job, room.storage, room.settings, progress)


def _adopt(room: Room, progress: Progress, spec: dict[str, Any], job: str) -> dict[str, Any]:
    from worker.adopting import adopt

    return adopt(parse("adopt", spec), job, room.storage, room.settings, progress)


def _plan(room: Room, progress: Progress, spec: dict[str, Any], job: str, first: int) -> dict[str, Any]:
    from worker.classifying.batches import plan

    return plan(parse("classify", spec), job, first, room.storage, room.settings, progress)


def _shard(room: Room, progress: Progress, spec: dict[str, Any], job: str, shard: str) -> dict[str, Any]:
    from worker.classifying.shards import classify_shard

    return classify_shard(parse("classify", spec), job, shard, room.warm, progress)


def _write_off(room: Room, progress: Progress, spec: dict[str, Any], job: str, shard: str) -> dict[str, Any]:
    from worker.classifying.shards import write_off

    return write_off(parse("classify", spec), job, shard, room.storage)


def _finish(room: Room, progress: Progress, spec: dict[str, Any], job: str, started: float) -> dict[str, Any]:
    from worker.classifying.batches import finish

    return finish(parse("classify", spec), job, started, room.storage, progress)


def _predict(room: Room, progress: Progress, model: str, image: str) -> dict[str, Any]:
    from worker.classifying.shards import predict

    return predict(model, image, room.warm)


def _explain(room: Room, progress: Progress, model: str, image: str, label: str) -> dict[str, Any]:
    from worker.classifying.gradcam import explain

    return explain(model, image, label, room.storage, room.settings)


CALLS: dict[str, Callable[..., dict[str, Any]]] = {
    "dataset": _dataset,
    "train": _train,
    "look": _look,
    "pack": _pack,
    "export": _export,
    "adopt": _adopt,
    "plan": _plan,
    "shard": _shard,
    "write_off": _write_off,
    "finish": _finish,
    "predict": _predict,
    "explain": _explain,
}

if __name__ == "__main__":
    main()
