"""What all pages share: the overview, error pages, filters for numbers and times, and the pulse of the queue beside every page."""

import hashlib
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, g, make_response, render_template, request, url_for
from flask_wtf.csrf import CSRFError
from markupsafe import Markup, escape
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from shared import datasets, models
from shared.errors import DarkroomError, Unavailable
from shared.jobs import Job, State
from shared.specs import parse_model_ref
from web.backend import backend
from web.charts import bar
from web.covers import cover
from web.orders import describe
from web.problems import problem

blueprint = Blueprint("pages", __name__)
ACTIVE = (State.RUNNING, State.QUEUED, State.PAUSED)
NEWEST = 3  # datasets, models and batches on the overview


@dataclass(frozen=True)
class Pulse:
    """How busy the queue is; `error` is the sentence when Redis cannot be asked."""

    running: int = 0
    waiting: int = 0
    failed: int = 0
    error: str = ""


@blueprint.get("/")
def home() -> str:
    """The overview: what runs, what waits, and what is newest."""
    storage = backend().storage
    found = [datasets.info(storage, name) for name in datasets.names(storage)]
    newest = sorted(found, key=lambda info: -info["created"])[:NEWEST]
    cards = [{"info": info, "cover": cover(storage, info["dataset"], info["version"])} for info in newest]
    return render_template("pages/home.html", **_now(), cards=cards, models=_newest_models(storage))


@blueprint.get("/now")
def now() -> Response:
    """The live part of the overview."""
    return fragment("pages/_now.html", **_now())


@blueprint.get("/pulse")
def show_pulse() -> Response:
    """The queue's pulse of the rail."""
    return fragment("pages/_pulse.html")


def _now() -> dict[str, Any]:
    """Jobs under way, and the newest of those that ended; `None` stands for a ledger that cannot be read."""
    try:
        active = backend().store.page(limit=20, states=ACTIVE)
        batches = backend().store.page(limit=NEWEST, kind="classify")
        idle = bool(active) and not backend().store.workers()
    except DarkroomError as error:
        g.redis_error = str(error)
        return {"active": None, "batches": [], "idle": False, "every": 10}
    active.sort(key=lambda job: (job.state != State.RUNNING, job.created))
    return {"active": active, "batches": batches, "idle": idle, "every": 1 if active else 10}


def _newest_models(storage: Any) -> list[dict[str, Any]]:
    found = [models.info(storage, *models.resolve(storage, name)) for name in models.names(storage)]
    return sorted(found, key=lambda info: -info["created"])[:NEWEST]


def fragment(template: str, **context: Any) -> Response:
    """A part of a page that is polled: with an ETag, so that nothing travels while nothing changes."""
    response = make_response(render_template(template, **context))
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    response.make_conditional(request)
    return response


# -- errors -----------------------------------------------------------------------------------------------------------


def error_page(status: int, title: str, sentence: str) -> Response:
    """An error as a page; below /api as the API tells it."""
    if request.path.startswith("/api/"):
        return problem(status, sentence)
    response = make_response(render_template("pages/error.html", status=status, title=title, sentence=sentence))
    response.status_code = status
    return response


@blueprint.app_errorhandler(DarkroomError)
def tell(error: DarkroomError) -> Response:
    """A sentence for the user."""
    if isinstance(error, Unavailable):
        g.redis_error = str(error)  # the layout need not knock again
    titles = {404: "Not found", 409: "Not possible now", 422: "Not acceptable", 503: "Not reachable"}
    return error_page(error.status, titles.get(error.status, "Not possible"), str(error))


@blueprint.app_errorhandler(CSRFError)
def tell_stale_form(_: CSRFError) -> Response:
    """A form without its token: an old page, or cookies that are refused."""
    return error_page(
        400, "Form out of date", "This form has no valid token. Allow cookies for this site, load the page again, and send it again."
    )


@blueprint.app_errorhandler(HTTPException)
def tell_http(error: HTTPException) -> Response | HTTPException:
    """What Flask itself refuses: unknown addresses, methods, uploads that are too large, and bugs (500)."""
    if isinstance(error, RequestRedirect):
        return error
    sentences = {
        404: "There is no page at this address.",
        413: f"The upload is larger than this installation takes ({bytes_text(current_app.config['MAX_CONTENT_LENGTH'])}).",
        500: "This is a bug in Darkroom; the log of the web has its traceback.",
    }
    status = error.code or 500
    return error_page(status, error.name, sentences.get(status, error.description or error.name))


# -- filters and what every template may use --------------------------------------------------------------------------


@blueprint.app_template_filter("ago")
def ago(then: float | None) -> Markup:
    """`3 min ago`, with the exact time on hover."""
    if then is None:
        return Markup("&ndash;")
    moment = datetime.fromtimestamp(then, UTC)
    exact = moment.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(timespec="seconds"), exact, _since(then, moment))


def _since(then: float, moment: datetime) -> str:
    seconds = time.time() - then
    if seconds < 10:
        return "just now"
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 86400:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:.0f} d ago" if seconds < 30 * 86400 else moment.strftime("%-d %b %Y")


@blueprint.app_template_filter("duration")
def duration(seconds: float | None) -> str:
    """`42 s`, `6 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


@blueprint.app_template_filter("number")
def number(value: float | None, digits: int = 0) -> str:
    """`1,797`; `digits` after the point."""
    return "–" if value is None else f"{value:,.{digits}f}"


@blueprint.app_template_filter("bytes")
def bytes_text(value: float) -> str:
    """`3.4 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


@blueprint.app_template_filter("percent")
def percent(share: float | None, digits: int = 1) -> str:
    """0.0625 -> `6.3 %`."""
    return "–" if share is None else f"{share * 100:.{digits}f}\N{NO-BREAK SPACE}%"


@blueprint.app_template_filter("ref")
def ref(value: str) -> tuple[str, int | str | None]:
    """`clothing/v3` -> ("clothing", 3)."""
    return parse_model_ref(value)


@blueprint.app_template_filter("told")
def told(sentence: str) -> Markup:
    """A sentence for the user, with what stands between backquotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))  # noqa: S704 - escaped just before


@blueprint.app_template_filter("plural")
def plural(count: int, one: str, many: str = "") -> str:
    """`1 image`, `1,797 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


@blueprint.app_context_processor
def common() -> dict[str, Any]:
    """Functions that every template may call; nothing is asked of Redis before one does."""
    return {"pulse": pulse, "describe": describe, "asset": asset, "share_done": share_done, "page_of": page_of, "bar": bar}


def pulse() -> Pulse:
    """How busy the queue is, asked once a page."""
    if "redis_error" in g:
        return Pulse(error=g.redis_error)
    try:
        counts = backend().store.counts()
    except DarkroomError as error:
        return Pulse(error=str(error))
    return Pulse(counts[State.RUNNING], counts[State.QUEUED], counts[State.FAILED])


def asset(name: str) -> str:
    """The address of a static file; it changes with the file's content."""
    return url_for("static", filename=name, v=_digest(f"{current_app.static_folder}/{name}"))


@lru_cache
def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:10]


def share_done(job: Job) -> tuple[int, int]:
    """(done, total) of a job, in whatever it counts; total is 0 while that is unknown."""
    if job.kind == "classify":
        return job.counts.get("done", 0), job.counts.get("items", 0)
    return int(job.progress.get("done") or 0), int(job.progress.get("total") or 0)


def page_of(job: Job) -> str:
    """Where a job is watched: a batch has a page of its own."""
    return url_for("batches.show", batch=job.id) if job.kind == "classify" else url_for("jobs.show", job_id=job.id)
