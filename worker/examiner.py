"""The process that opens pictures nobody vouches for, one after the other; worker/examiners.py starts several, and replaces those that die.

It imports little: each import and each scrape waits for it.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from shared.errors import NotFound
from shared.images import BadImage, decode, read_bounded
from shared.storage import Storage, image_key
from worker import measuring

SECONDS = 60  # for one picture, from asking to the answer; the largest allowed takes three on a quiet core


def examine(data: bytes, storage: Storage, max_bytes: int, min_side: int = 1) -> dict[str, Any]:
    """Decode `data` whole; if it is a picture, store the original bytes under their hash. Safe to call from several threads.

    Returns columns of a manifest row: sha256, bytes, and either ext, width, height, format and what `measuring.measure` tells, or reason and detail.
    `min_side`: a picture whose shorter side has fewer pixels is dropped.
    """
    facts = fingerprint(data)
    try:
        picture = decode(data, max_bytes)
        if min(picture.width, picture.height) < min_side:
            raise too_small(picture.width, picture.height, min_side)
    except BadImage as error:
        return {**facts, **dropped(error)}
    key = image_key(facts["sha256"], picture.extension)
    if not _is_whole(storage, key, len(data)):
        storage.write(key, data, durable=False)  # publishing the version waits for the disk, once for all
    size = {"width": picture.width, "height": picture.height, "format": picture.format}
    return {**facts, "ext": picture.extension, **size, **measuring.measure(picture.image)}


def _is_whole(storage: Storage, key: str, size: int) -> bool:
    """Whether the file is there in full; a power cut leaves files without their end.

    Touched, it counts as new, or `darkroom gc` might free it before the version that refers to it is there.
    """
    try:
        return storage.touch(key) and storage.size(key) == size
    except NotFound:  # gc looks at it, aside, in this very moment
        return False


def fingerprint(data: bytes) -> dict[str, Any]:
    """The columns of a manifest row that any bytes have."""
    return {"sha256": hashlib.sha256(data).hexdigest() if data else "", "bytes": len(data)}


def dropped(error: BadImage) -> dict[str, Any]:
    """The columns of a manifest row that say why there is no picture."""
    return {"reason": error.code, "detail": str(error)}


def too_small(width: int, height: int, min_side: int) -> BadImage:
    """The error of a picture with a side under `min_side` pixels."""
    return BadImage("too_small", f"The picture has {width} x {height} pixels; the shorter side needs at least {min_side}.")


def main() -> None:
    """Examine what standard input names, a line and perhaps bytes each, until it ends; a line of JSON on standard output for each."""
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    known = json.loads(questions.readline())
    resource.setrlimit(resource.RLIMIT_AS, (known["child_memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    storage = Storage(known["storage"], Path(known["cache"]))
    while line := questions.readline():
        question = json.loads(line)
        signal.alarm(2 * SECONDS)  # should nobody be left to end us
        answer = _answer(question, questions, storage, known["max_image_bytes"])
        signal.alarm(0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(question: dict[str, Any], questions: IO[bytes], storage: Storage, max_bytes: int) -> dict[str, Any]:
    try:
        if "path" in question:
            with Path(question["path"]).open("rb") as file:
                data = read_bounded(file, max_bytes)
        else:
            data = questions.read(question["bytes"])
        return examine(data, storage, max_bytes, question["min_side"])
    except BadImage as error:
        return dropped(error)
    except OSError as error:
        return {"os_error": [error.errno, error.strerror, error.filename and str(error.filename)]}
    except Exception:  # noqa: BLE001 - whatever it is, whoever asked must hear of it
        return {"bug": traceback.format_exc()}


if __name__ == "__main__":
    main()
