"""Where images are searched."""

from flask import Response, jsonify

from shared import sources
from web.api import blueprint
from web.backend import backend


@blueprint.get("/sources")
def list_sources() -> Response:
    """The image sources: what each needs, and how it did when it was last asked."""
    return jsonify(sources=sources.standings(backend().settings, backend().storage))
