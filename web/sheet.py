"""The page on which a person clears a dataset: its newest version as a contact sheet, a key a picture. What moves on it is web/static/review/."""

from flask import Blueprint, render_template

from shared import datasets, sheet
from shared.errors import DarkroomError
from shared.jobs import Job, State
from web.api.sheet import is_about
from web.backend import backend

blueprint = Blueprint("sheet", __name__)
BATCHES = 200  # newest batches that are looked through for those over the dataset


@blueprint.get("/datasets/<name>/review")
def show(name: str) -> str:
    """The newest version; everything else is in the part of the address that the page reads itself."""
    storage = backend().storage
    info = datasets.info(storage, name)
    return render_template("datasets/review.html", info=info, judges=sheet.models_of(storage, name), batches=_batches(name))


def _batches(name: str) -> list[Job]:
    """The batches that have labelled images of a dataset, the newest first; none while Redis is away, which the page says by itself."""
    try:
        done = backend().store.page(BATCHES, kind="classify", states=(State.DONE,))
    except DarkroomError:
        return []
    return [job for job in done if is_about(job, name)]
