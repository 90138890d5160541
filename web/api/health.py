"""Whether the system is well, for probes and people."""

from collections.abc import Callable

from flask import Blueprint, Response, jsonify

from shared.errors import DarkroomError
from shared.jobs import reachable
from web.api import blueprint
from web.backend import Backend, backend

probes = Blueprint("probes", __name__)  # outside `/api/v1`


@probes.get("/healthz")
def alive() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "ok"}


@probes.get("/readyz")
@blueprint.get("/health")
def health() -> tuple[Response, int]:
    """Whether Redis answers and the storage can be written."""
    b = backend()
    checks = {"redis": _trouble(lambda: _ping(b)), "storage": _trouble(b.storage.check)}
    well = not any(checks.values())
    return jsonify(
        status="ok" if well else "unavailable", checks={name: text or "ok" for name, text in checks.items()}
    ), 200 if well else 503


def _ping(b: Backend) -> None:
    store = b.store
    with reachable():
        store.redis.ping()


def _trouble(check: Callable[[], None]) -> str:
    try:
        check()
    except DarkroomError as error:
        return str(error)
    return ""
