"""Errors as the API tells them: `application/problem+json` with type, title, status, a sentence in `detail`, and `field`."""

import structlog
from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge, default_exceptions
from werkzeug.routing import RequestRedirect

from shared.errors import DarkroomError

log = structlog.get_logger()


def register(blueprint: Blueprint) -> None:
    """Tell every error below `blueprint` as a problem."""
    for code in default_exceptions:  # one by one: a page's handler for the same code would otherwise go before
        blueprint.register_error_handler(code, _tell_http)
    blueprint.register_error_handler(DarkroomError, _tell)
    blueprint.register_error_handler(OSError, _tell_disk)
    blueprint.register_error_handler(Exception, _tell_bug)


def problem(status: int, detail: str, **more: str) -> Response:
    """An answer of RFC 9457."""
    response = jsonify({"type": "about:blank", "title": default_exceptions[status]().name, "status": status, "detail": detail, **more})
    response.status_code = status
    response.mimetype = "application/problem+json"
    return response


def _tell(error: DarkroomError) -> Response:
    field = getattr(error, "field", None)
    return problem(error.status, str(error), **({"field": field} if field else {}))


def _tell_http(error: HTTPException) -> Response | HTTPException:
    if isinstance(error, RequestRedirect):
        return error
    detail = error.description or ""
    if isinstance(error, RequestEntityTooLarge):
        detail = f"The request is larger than the {request.max_content_length or 0:,} bytes that are allowed here, or has too many parts."
    response = problem(error.code or 500, detail)
    for name, value in error.get_headers(request.environ):
        if name == "Allow":
            response.headers[name] = value
    return response


def _tell_disk(error: OSError) -> Response:
    log.error("storage failed", path=request.path, exc_info=error)
    return problem(503, f"The storage cannot be read or written at the moment: {error.strerror or 'it does not answer'}.")


def _tell_bug(error: Exception) -> Response:
    log.error("request failed", path=request.path, method=request.method, exc_info=error)
    return problem(500, "This is a bug in Darkroom; the log of the web server says more.")
