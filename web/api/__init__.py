"""The JSON API, `/api/v1`: what programs and the command line speak. A module a noun, with its routes; here is what they share.

A submission answers 202 with the job and its Location; an error is `application/problem+json` with a sentence in `detail`;
lists page by a cursor (`next` is the value for the next request, null at the end); what is polled carries an ETag.
"""

from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, url_for
from werkzeug.exceptions import MethodNotAllowed

from shared.errors import NotFound
from shared.jobs import Job, State
from shared.queue import QUEUE_OF
from web import orders, parameters, problems
from web.backend import backend

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
problems.register(blueprint)


def submitted(kind: str, spec: dict[str, Any]) -> Response:
    """Order a job, once for each Idempotency-Key. Raises Invalid, and what `orders.submit` does."""
    return accepted(orders.submit(backend(), kind, spec, request.headers.get("Idempotency-Key", "")))


def accepted(job: Job) -> Response:
    """A job that was ordered: 202 with the job and its Location."""
    response = jsonify(job_json(job))
    response.status_code = 202
    response.location = url_for("api.show_job", job_id=job.id)
    return response


def job_json(job: Job) -> dict[str, Any]:
    """The job with a title and its queue."""
    return {**job.as_json(), "title": orders.describe(job), "queue": QUEUE_OF[job.kind]}


def page_of_jobs(key: str, kind: str | None) -> Response:
    """The newest jobs under `key`, of one kind or all, from `?before=` on and of `?state=`."""
    limit, before = parameters.number("limit", 50, 1, 500), request.args.get("before")
    state = parameters.one_of("state", tuple(State))
    found = backend().store.page(limit + 1, before or None, kind, (State(state),) if state else ())
    shown = found[:limit]
    return jsonify({key: [job_json(job) for job in shown], "next": shown[-1].id if len(found) > limit else None})


@blueprint.after_request
def _revalidate(response: Response) -> Response:
    """Give what is polled an ETag, and answer 304 to who has it already."""
    if request.method in {"GET", "HEAD"} and response.status_code == 200 and response.is_json and not response.is_streamed:
        response.headers.setdefault("Cache-Control", "private, no-cache")
        response.add_etag()
        response.make_conditional(request)
    return response


@blueprint.route("/", defaults={"rest": ""}, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
@blueprint.route("/<path:rest>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(rest: str) -> Response:
    """Whatever else is asked below the API: told in the API's own way, not as a page."""
    adapter = current_app.create_url_adapter(request)
    allowed = [method for method in ("GET", "POST", "PUT", "DELETE") if adapter and adapter.match(method=method)[0] != request.endpoint]
    if allowed:
        raise MethodNotAllowed(allowed, f"{request.path} takes {' and '.join(allowed)}, not {request.method}.")
    raise NotFound(f"The API has nothing at {request.path}.")
