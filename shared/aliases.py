"""Names that point to a version of a model, such as `production`; `clothing@production` is that version wherever a model is named.

Each move is a file of its own, `models/<name>/aliases/<alias>/000001.json`, which never changes; the last one counts. So a move
is atomic, the log cannot disagree with it, and going back is one more move.
"""

import json
import secrets
import time
from typing import Any

from shared.errors import Conflict, NotFound
from shared.specs import Name, check
from shared.storage import Storage


def pointed(storage: Storage, name: str) -> dict[str, int]:
    """The aliases of a model and the version each points to."""
    found = {}
    for alias in storage.list(f"models/{name}/aliases"):
        version = log(storage, name, alias)[0]["version"]
        if version is not None:
            found[alias] = version
    return found


def log(storage: Storage, name: str, alias: str) -> list[dict[str, Any]]:
    """The moves of an alias, the last first: {version (None: taken away), before, at (seconds since 1970)}. Empty if there never was one."""
    check(Name, name)
    check(Name, alias)
    folder = f"models/{name}/aliases/{alias}"
    return [storage.read_json(f"{folder}/{file}") for file in reversed(storage.list(folder))]


def move(storage: Storage, name: str, alias: str, version: int | None) -> dict[str, Any]:
    """Let an alias point to a version, which the caller has checked, or to none; the move as it is logged. Raises Invalid."""
    while True:
        moves = log(storage, name, alias)
        before = moves[0]["version"] if moves else None
        made = {"version": version, "before": before, "at": time.time(), "id": secrets.token_hex(8)}
        key = f"models/{name}/aliases/{alias}/{len(moves) + 1:06d}.json"
        storage.write(key, json.dumps(made).encode(), replace=False)
        if storage.read_json(key)["id"] == made["id"]:  # otherwise somebody else has moved it meanwhile
            return made


def back(storage: Storage, name: str, alias: str) -> dict[str, Any]:
    """Let an alias point to what it pointed to before its last move. Raises NotFound, or Conflict when that was nothing."""
    moves = log(storage, name, alias)
    if not moves:
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    if moves[0]["before"] is None:
        raise Conflict(f"{name}@{alias} pointed to no version before, so there is nothing to go back to.")
    return move(storage, name, alias, moves[0]["before"])
