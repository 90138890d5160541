"""Rules on a dataset's page: made and deleted there; what came of each stands beside it."""

from typing import Any

from flask import Blueprint, redirect, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, rules
from shared.errors import DarkroomError
from web import datasets as pages
from web.backend import backend

blueprint = Blueprint("rules", __name__)
FIELDS = ("gained", "model", "start")


@blueprint.post("/datasets/<name>/rules")
def make(name: str) -> Redirect | tuple[str, int]:
    """Keep a rule for a dataset."""
    version = datasets.latest(backend().storage, name)
    typed = {field: request.form.get(field, "").strip() for field in FIELDS}
    data: dict[str, Any] = {**typed, "dataset": name}
    try:
        rules.make(backend().storage, data)
    except DarkroomError as error:
        return pages.version_page(name, version, typed=typed, rule_wrong=str(error)), error.status
    return redirect(url_for("datasets.show", name=name, version=version, _anchor="rules"), 303)


@blueprint.post("/rules/<rule_id>/delete")
def delete(rule_id: str) -> Redirect:
    """Delete a rule; what it has ordered goes on."""
    rule = rules.get(backend().storage, rule_id)
    rules.delete(backend().storage, rule_id)
    return redirect(url_for("datasets.newest", name=rule.dataset, _anchor="rules"), 303)
