"""Rules: a retraining ordered whenever a dataset has gained images."""

from typing import Any

from flask import Response, jsonify, request, url_for

from shared import rules
from shared.specs import Name, check
from web import parameters
from web.api import blueprint
from web.backend import backend


@blueprint.get("/rules")
def list_rules() -> Response:
    """The rules, of one dataset if asked for, each with what came of it last."""
    name = request.args.get("dataset")
    found = rules.found(backend().storage, check(Name, name) if name else None)
    return jsonify(rules=[_told(rule) for rule in found])


@blueprint.post("/rules")
def make_rule() -> tuple[Response, int]:
    """Keep a rule."""
    rule = rules.make(backend().storage, parameters.body())
    response = jsonify(_told(rule))
    response.location = url_for("api.show_rule", rule_id=rule.id)
    return response, 201


@blueprint.get("/rules/<rule_id>")
def show_rule(rule_id: str) -> Response:
    """A rule and what came of it last."""
    return jsonify(_told(rules.get(backend().storage, rule_id)))


@blueprint.delete("/rules/<rule_id>")
def delete_rule(rule_id: str) -> tuple[str, int]:
    """Delete a rule; what it has ordered goes on."""
    rules.delete(backend().storage, rule_id)
    return "", 204


def _told(rule: rules.Rule) -> dict[str, Any]:
    return {**rule.model_dump(), "last": rules.last(backend().storage, rule.id) or None}
