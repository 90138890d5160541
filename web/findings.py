"""Findings of a dataset version, each with its images and what to do about it: remove, let stand, or of near duplicates keep the largest; and undo."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Redirect

from shared import datasets, edits, findings
from shared.edits import Edit
from shared.errors import DarkroomError, Invalid
from shared.findings import KINDS
from web import parameters
from web.backend import backend
from web.edits import NOTHING

blueprint = Blueprint("findings", __name__)
FIRST = 12  # images of each kind on the page of all
PAGE = 96  # images a page of one kind
GROUPS = 3  # groups on the page of all

# what each kind is called, and what it means
TITLES = {
    "near_duplicate": ("Near duplicates", "The same picture again, resized, saved again, trimmed or retouched. A group stays on one side of the split."),
    "duplicate": ("Exact duplicates", "The same bytes were offered more than once. They are kept once; the copies were dropped."),
    "unreadable": ("Unreadable", "Files that are torn, empty or no picture. They were dropped."),
    "placeholder": ("Placeholders", "The same bytes came from several addresses, as when a server sends one picture in place of those it does not have."),
    "blank": ("Blank", "One colour, or hardly anything."),
    "blurry": ("Blurry", "Not one sharp edge."),
    "dark": ("Dark", "Even the brightest parts are dark."),
    "light": ("Light", "Even the darkest parts are light."),
    "too_small": ("Too small", f"The shorter side has fewer than {findings.SMALL} pixels, or than was asked for; the latter were dropped."),
    "odd_size": ("Odd size", "Much larger or smaller than the others."),
    "odd_aspect": ("Odd aspect ratio", "Long and narrow; a network sees it squeezed, cut or with much black around."),
    "grayscale": ("Grayscale", "Without colour, among pictures that have some."),
}  # fmt: skip


@blueprint.get("/datasets/<name>/v/<int(max=999999):version>/findings")
def index(name: str, version: int) -> str:
    """Every kind of finding with its first images, or with `?kind=` one kind, page by page."""
    kind = parameters.one_of("kind", KINDS)
    page = parameters.page()
    report = Report(name, version)
    sections = [report.section(each, page if kind else None) for each in ([kind] if kind else report.kinds())]
    return render_template("findings/index.html", info=report.info, report=report, kind=kind, sections=sections, page=page)


@blueprint.post("/datasets/<name>/findings")
def decide(name: str) -> Redirect | str:
    """Remove, let stand (`keep`) or undo: one image of a kind of finding, one group, or all that are left; then the page, or with htmx its part."""
    storage = backend().storage
    kind, action = request.form.get("kind", ""), request.form.get("action", "")
    sha256, group = request.form.get("sha256", ""), request.form.get("group", "")
    report = Report(name, datasets.latest(storage, name))
    wrong = ""
    try:
        if kind not in KINDS:
            raise Invalid(f"There is no finding {kind!r}.", field="kind")
        _act(report, kind, action, sha256, group)
    except DarkroomError as error:
        if not request.headers.get("HX-Request"):
            raise
        wrong = str(error)
    report = Report(name, report.version)
    if not request.headers.get("HX-Request"):
        shown = request.form.get("page", type=int)
        return redirect(
            url_for("findings.index", name=name, version=report.version, kind=kind if shown else None, page=shown, _anchor=kind), 303
        )
    if group:
        return _part(report, "findings/_group.html", kind, wrong, group=report.group(group))
    if sha256:
        return _part(report, "findings/_cell.html", kind, wrong, cell=report.cells(kind, [sha256])[0])
    return _part(report, "findings/_section.html", kind, wrong, section=report.section(kind, request.form.get("page", type=int)))


def _part(report: "Report", part: str, kind: str, wrong: str, **more: Any) -> str:
    """What changes of the page, and the line that counts what waits; 200 whatever it says, for htmx swaps nothing else in."""
    return render_template(
        "edits/_decided.html", part=part, name=report.name, info=report.info, report=report, kind=kind, wrong=wrong, **more
    )


def _act(report: "Report", kind: str, action: str, sha256: str, group: str) -> None:
    one = request.form.get("one", "")  # of a group
    if sha256:
        images, surplus = [sha256], [sha256]
    elif group:
        images = report.members(group)
        surplus = [one] if one else report.surplus([images])
        action = "remove" if one else action
    elif kind == "near_duplicate":
        left = report.groups_left()
        images, surplus = [sha for members in left for sha in members], report.surplus(left)
    else:
        images = surplus = report.left(kind)
    why = NOTHING if request.form.get("nothing") else reason(kind)
    if action == "remove":
        _remove(report, surplus, why)
    elif action == "keep":
        findings.accept(backend().storage, report.name, kind, images)
    elif action == "undo":
        _undo(report, kind, images if sha256 or group else report.removed_for(kind))
    else:
        raise Invalid("The action is one of remove, keep and undo.", field="action")


def reason(kind: str) -> str:
    """What an edit that a finding led to is logged with."""
    return f"finding: {kind}"


def _remove(report: "Report", images: Iterable[str], why: str) -> None:
    said = [edits.parse_edit({"sha256": sha256, "action": "remove", "why": why}) for sha256 in images]
    if said:
        edits.decide_all(backend().storage, report.name, said)


def _undo(report: "Report", kind: str, images: list[str]) -> None:
    """Take back that images are removed, for whatever reason, and that their finding stands."""
    for sha256 in images:
        if (edit := report.waiting.get(sha256)) and edit.action == "remove":
            edits.undo(backend().storage, report.name, sha256)
    if standing := report.stands[kind].intersection(images):
        findings.accept(backend().storage, report.name, kind, standing, accepted=False)


class Report:
    """The findings of a version with what was decided about them, as one request sees them."""

    def __init__(self, name: str, version: int) -> None:
        storage = backend().storage
        self.name, self.version = name, version
        self.info = datasets.info(storage, name, version)
        self.newest = datasets.latest(storage, name)
        self.found = findings.read(storage, name, version)
        self.stands = findings.accepted(storage, name)
        self.waiting: dict[str, Edit] = {edit.sha256: edit for edit in edits.pending(storage, name)}
        self.titles = TITLES

    @property
    def open(self) -> bool:
        """Whether something can be decided: about the newest version."""
        return self.version == self.newest

    def kinds(self) -> list[str]:
        """The kinds that have images or files."""
        return [kind for kind in KINDS if self.all_of(kind) or self.found["dropped"].get(kind)]

    def all_of(self, kind: str) -> list[str]:
        """The images of a kind, decided or not."""
        found: list[str] = self.found["images"].get(kind, [])
        return found

    def shown(self, kind: str) -> list[str]:
        """Those whose finding does not stand."""
        return [sha256 for sha256 in self.all_of(kind) if sha256 not in self.stands[kind]]

    def left(self, kind: str) -> list[str]:
        """Those about which nothing is decided."""
        return [sha256 for sha256 in self.shown(kind) if sha256 not in self.waiting]

    def removed_for(self, kind: str) -> list[str]:
        """Those that are to be removed because of this finding."""
        return [sha256 for sha256 in self.all_of(kind) if sha256 in self.waiting and self.waiting[sha256].why == reason(kind)]

    def standing(self, kind: str) -> list[str]:
        """Those whose finding stands."""
        return [sha256 for sha256 in self.all_of(kind) if sha256 in self.stands[kind]]

    def groups_shown(self) -> list[dict[str, Any]]:
        """Groups of near duplicates of which not all may be there."""
        return [group for group in self.found["groups"] if not self.stands["near_duplicate"].issuperset(group["images"])]

    def groups_left(self) -> list[list[str]]:
        """The images of each group that are not removed, of groups that have several of them."""
        remaining = [self._remaining(group["images"]) for group in self.groups_shown()]
        return [images for images in remaining if len(images) > 1]

    def _remaining(self, images: list[str]) -> list[str]:
        return [sha256 for sha256 in images if sha256 not in self.waiting or self.waiting[sha256].action != "remove"]

    def members(self, first: str) -> list[str]:
        """The images of the group that begins with this one. Raises Invalid."""
        for group in self.found["groups"]:
            if group["images"][0] == first:
                images: list[str] = group["images"]
                return images
        raise Invalid(f"{self.name} v{self.version} has no group of near duplicates that begins with {first[:12]}….", field="group")

    def surplus(self, groups: list[list[str]]) -> list[str]:
        """Of each group all that are not removed but the largest, of equal ones the first."""
        remaining = [self._remaining(images) for images in groups]
        rows = self._rows([sha256 for images in remaining for sha256 in images])
        best = {
            max(images, key=lambda sha: (rows[sha]["width"] * rows[sha]["height"], rows[sha]["bytes"])) for images in remaining if images
        }
        return [sha256 for images in remaining for sha256 in images if sha256 not in best]

    def section(self, kind: str, page: int | None) -> dict[str, Any]:
        """A kind with its first images, or a page of them: groups of near duplicates, cells of other kinds, rows of dropped files."""
        shown = self._near(page) if kind == "near_duplicate" else self._alone(kind, page)
        return {
            "kind": kind,
            "title": TITLES[kind][0],
            "about": TITLES[kind][1],
            "page": page,
            **shown,
            "stands": len(self.standing(kind)),
            "dropped": self.found["dropped"].get(kind, 0),
            "files": self._files(kind, PAGE if page else FIRST),
        }

    def counts(self, kind: str) -> dict[str, int]:
        """How many images one click on a kind would remove (`left`), and how many were removed because of it (`removed`)."""
        near = kind == "near_duplicate"
        left = sum(len(images) - 1 for images in self.groups_left()) if near else len(self.left(kind))
        return {"left": left, "removed": len(self.removed_for(kind))}

    def _near(self, page: int | None) -> dict[str, Any]:
        groups = self.groups_shown()
        pages = _packed(groups) if page else [groups[:GROUPS]]
        shown = pages[(page or 1) - 1] if (page or 1) <= len(pages) else []
        counts = {"count": len(groups), "shown": len(shown), "pages": len(pages)}
        kept = [group for group in self.found["groups"] if group not in groups][:GROUPS] if page else []
        return {**counts, "groups": self._grouped(shown, PAGE if page else FIRST), "kept_groups": self._grouped(kept, FIRST)}

    def _alone(self, kind: str, page: int | None) -> dict[str, Any]:
        images, size = self.shown(kind), PAGE if page else FIRST
        shown = images[((page or 1) - 1) * size :][:size]
        counts = {"count": len(images), "shown": len(shown), "pages": -(-len(images) // size)}
        return {**counts, "cells": self.cells(kind, shown), "kept_cells": self.cells(kind, self.standing(kind)[:PAGE]) if page else []}

    def group(self, first: str) -> dict[str, Any]:
        """One group as the page shows it. Raises Invalid."""
        images = self.members(first)
        return self._grouped([group for group in self.found["groups"] if group["images"] is images], PAGE)[0]

    def _grouped(self, groups: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        shown = [group["images"][:most] for group in groups]
        cells = {cell["row"]["sha256"]: cell for cell in self.cells("near_duplicate", [sha256 for images in shown for sha256 in images])}
        told = []
        for group, images in zip(groups, shown, strict=True):
            members = [{**cells[sha256], "side": side} for sha256, side in zip(images, group["sides"], strict=False) if sha256 in cells]
            remaining = self._remaining(group["images"])
            standing = self.stands["near_duplicate"].issuperset(group["images"])
            counts = {
                "more": len(group["images"]) - len(images),
                "remaining": len(remaining),
                "removed": len(group["images"]) - len(remaining),
            }
            told.append({"first": group["images"][0], "across": group["across"], "cells": members, "stands": standing, **counts})
        return told

    def cells(self, kind: str, images: list[str]) -> list[dict[str, Any]]:
        """Images as the page shows them: the manifest `row`, what waits (`edit`), whether the finding `stands`, what else was `offered` of the bytes."""
        rows = self._rows(images)
        offered: dict[str, list[dict[str, Any]]] = {}
        if kind in {"duplicate", "placeholder"} and images:
            for row in datasets.rows_of(self._manifest, images, status="dropped"):
                offered.setdefault(row["sha256"], []).append(row)
        return [
            {"row": rows[sha], "edit": self.waiting.get(sha), "stands": sha in self.stands[kind], "offered": offered.get(sha, [])}
            for sha in images
            if sha in rows
        ]

    def _rows(self, images: list[str]) -> dict[str, dict[str, Any]]:
        return {row["sha256"]: row for row in datasets.rows_of(self._manifest, images)} if images else {}

    @cached_property
    def _manifest(self) -> Any:
        return datasets.table(backend().storage, self.name, self.version)

    def _files(self, kind: str, most: int) -> list[dict[str, Any]]:
        """The first files that were dropped for what the kind says, of kinds that have no picture to show."""
        reasons = {"unreadable": findings.UNREADABLE, "too_small": ("too_small",)}.get(kind, ())
        if not reasons or not self.found["dropped"].get(kind):
            return []
        dropped = datasets.rows(backend().storage, self.name, self.version, status="dropped")
        return [row for row in dropped if row["reason"] in reasons][:most]


def _packed(groups: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups as pages of at most `PAGE` images; a group that is larger has a page of its own."""
    pages: list[list[dict[str, Any]]] = []
    room = 0
    for group in groups:
        if len(group["images"]) > room:
            pages.append([])
            room = PAGE
        pages[-1].append(group)
        room -= len(group["images"])
    return pages


@blueprint.app_context_processor
def common() -> dict[str, Any]:
    """What the page of a version shows of findings."""
    return {"finding_titles": TITLES}
