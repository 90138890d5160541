"""How a pipeline function says how far it is, and learns that it should stop. Knows neither Celery nor Redis."""

import threading
from collections.abc import Callable
from typing import Any

from shared.errors import Cancelled


class Progress:
    """Collects the state of a unit of work and hands each change to `emit` as a JSON-able dict.

    `{"progress": {...}}` for the whole state so far, `{"row": [list name, value]}` for one row of a list, `{"anew": list name}`
    when it begins again, `{"read": True}` when a shard needs no more reading, `{"kept": True}` when what was done so far outlives
    this process.
    """

    def __init__(
        self, emit: Callable[[dict[str, Any]], None], stop: threading.Event | None = None, between: Callable[[], None] | None = None
    ) -> None:
        """`between` is called at each check: what else may be done between two mini-batches."""
        self._emit = emit
        self._stop = stop or threading.Event()
        self._between = between
        self._fields: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        """Change some fields of the state and publish it. Raises Cancelled when the unit should stop."""
        self.check()
        self._fields.update(fields)
        self._emit({"progress": dict(self._fields)})

    def row(self, name: str, value: Any) -> None:
        """Append one row to a list of the job (`epochs`, `loss`). Raises Cancelled when the unit should stop."""
        self.check()
        self._emit({"row": [name, value]})

    def hand_on(self, message: dict[str, Any]) -> None:
        """Publish what the Progress of another process has emitted."""
        self._fields.update(message.get("progress", {}))
        self._emit({"progress": dict(self._fields)} if "progress" in message else message)

    def anew(self, name: str) -> None:
        """Begin a list of the job again: the next row is its first."""
        self._emit({"anew": name})

    def check(self) -> None:
        """Raises Cancelled when the unit should stop; call it between two mini-batches."""
        if self._stop.is_set():
            raise Cancelled("The job was cancelled.")  # fastai reads the first argument of what passes through its callbacks
        if self._between:
            self._between()

    def have_read(self) -> None:
        """All items of the unit are read and decoded; the next unit may be read already."""
        self._emit({"read": True})

    def kept(self) -> None:
        """What was done so far is on storage: whoever tries the unit again goes on from here."""
        self._emit({"kept": True})
