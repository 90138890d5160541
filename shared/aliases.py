"""Names that point to a version of a model, such as `production`; `clothing@production` is that version wherever a model is named.

Each move is a file of its own, `models/<name>/aliases/<alias>/<id>.json`, which never changes; ids sort by time, and the last one
counts. So a move is atomic on any storage, the log is the state, and going back is one more move.
"""

import time
from itertools import pairwise
from typing import Any

from shared.errors import Conflict, NotFound
from shared.jobs import new_id
from shared.specs import Name, check
from shared.storage import Storage, versions


def pointed(storage: Storage, name: str) -> dict[str, int]:
    """The aliases of a model and the version each points to."""
    last = {alias: moves[0]["version"] for alias in storage.list(f"models/{name}/aliases") if (moves := log(storage, name, alias))}
    return {alias: version for alias, version in last.items() if version is not None}


def log(storage: Storage, name: str, alias: str) -> list[dict[str, Any]]:
    """The moves of an alias, the last first: {version (None: taken away), before, at (seconds since 1970)}. Empty if there never was one."""
    check(Name, name)
    check(Name, alias)
    folder = f"models/{name}/aliases/{alias}"
    moves = [storage.read_json(f"{folder}/{file}") for file in reversed(storage.list(folder))]
    return [{**move, "before": earlier["version"]} for move, earlier in pairwise([*moves, {"version": None}])]


def move(storage: Storage, name: str, alias: str, version: int | None) -> dict[str, Any]:
    """Let an alias point to a version, or to none; the move as it is logged. Raises Invalid for a name, and NotFound for a version that is not there."""
    before = log(storage, name, alias)
    if version is not None and version not in versions(storage, f"models/{name}"):
        raise NotFound(f"There is no version {version} of the model {name!r}.")
    made = {"version": version, "at": time.time()}
    storage.write_json(f"models/{name}/aliases/{alias}/{new_id()}.json", made)
    return {**made, "before": before[0]["version"] if before else None}


def back(storage: Storage, name: str, alias: str) -> dict[str, Any]:
    """Let an alias point to what it pointed to before its last move. Raises NotFound, or Conflict when that was nothing."""
    moves = log(storage, name, alias)
    if not moves:
        raise NotFound(f"The model {name!r} has no alias {alias!r}.")
    if moves[0]["before"] is None:
        raise Conflict(f"{name}@{alias} pointed to no version before, so there is nothing to go back to.")
    return move(storage, name, alias, moves[0]["before"])
