"""The web: pages for people, a JSON API for programs. It takes orders and shows results; it never imports torch."""

import secrets
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from flask import Flask, Response, abort, request
from flask_wtf import CSRFProtect

from shared.settings import Settings
from web.api import blueprint as api
from web.api.health import probes
from web.backend import Backend
from web.uploads import FormRequest

# a module a noun, each with its `blueprint`
PAGES = (
    "pages", "datasets", "versions", "edits", "sheet", "findings", "models", "reports", "batches", "review", "rules", "jobs", "workers", "images",
)  # fmt: skip
API = (
    "datasets",
    "sheet",
    "edits",
    "models",
    "rules",
    "batches",
    "jobs",
    "uploads",
    "sources",
    "health",
)  # each with routes of one blueprint


def create_app(settings: Settings) -> Flask:
    """The WSGI application. Connects to nothing."""
    app = Flask(__name__)
    app.request_class = FormRequest
    backend = Backend(settings)
    app.extensions["darkroom"] = backend
    app.config.update(
        SECRET_KEY=settings.secret_key or _kept_secret(backend),
        MAX_CONTENT_LENGTH=settings.max_upload_bytes,
        MAX_FORM_MEMORY_SIZE=8 * 2**20,  # a pasted list of addresses; files of a form go to disk
        MAX_FORM_PARTS=20_000,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        # a page of another site cannot reach this one under a name of its own (DNS rebinding)
        TRUSTED_HOSTS=["localhost", "127.0.0.1", "[::1]", *([settings.host] if not settings.loopback else []), *settings.allowed_hosts],
        WTF_CSRF_TIME_LIMIT=None,
    )
    csrf = CSRFProtect(app)
    app.before_request(_refuse_other_sites)
    app.after_request(_harden)
    for name in PAGES:
        app.register_blueprint(import_module(f"web.{name}").blueprint)
    csrf.exempt(api)  # no cookie means anything to the API, and `_refuse_other_sites` guards it
    for name in API:
        import_module(f"web.api.{name}")
    app.register_blueprint(api)
    app.register_blueprint(probes)
    return app


def _kept_secret(backend: Backend) -> str:
    """A key made once and kept beside the data, so that forms outlive a restart."""
    key = "web/secret-key"
    if not backend.storage.exists(key):
        backend.storage.write(key, secrets.token_hex(32).encode(), replace=False)
        if backend.storage.is_local:
            Path(backend.storage.local(key)).chmod(0o600)
    return backend.storage.read(key).decode()


def _refuse_other_sites() -> None:
    """Requests that change something come from our own pages or from programs, never from another site's page."""
    origin = request.headers.get("Origin")
    if request.method not in {"GET", "HEAD", "OPTIONS"} and origin and urlsplit(origin).netloc != request.host:
        abort(403, "This request came from a page of another site.")


def _harden(response: Response) -> Response:
    headers = response.headers
    headers.setdefault(
        "Content-Security-Policy", "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "same-origin")
    return response
