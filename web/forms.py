"""Forms drawn from the specs: a field's title, help, bounds and default are written once, in shared/specs.py.

A form keeps what was typed, as it was typed, and says at each field what is wrong with it.
"""

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from werkzeug.datastructures import MultiDict

from shared.errors import DarkroomError, Unavailable
from shared.specs import ARCHITECTURES, SPECS

LONG = 1000  # a text that may be longer than this gets several lines
KNOWN = {"arch": ARCHITECTURES}  # what is offered where a spec checks itself, and takes other values as well


@dataclass(frozen=True)
class Field:
    """One field as the template draws it. `kind`: text, number, checkbox, select, suggested (text with a list to choose from), checkboxes or textarea."""

    name: str
    title: str
    help: str
    kind: str
    value: Any
    error: str
    required: bool
    options: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: str = ""


class SpecForm:
    """The form of one kind of spec: what is shown, what was typed, what is wrong."""

    def __init__(self, kind: str, values: Mapping[str, Any] | None = None, typed: MultiDict[str, str] | None = None) -> None:
        """`values` replace the spec's defaults; `typed` is what a browser sent and replaces both."""
        self.kind = kind
        self.fields = SPECS[kind].model_fields
        self.errors: dict[str, str] = {}
        self.typed = typed
        self.values = {name: self._value(name, info, values or {}) for name, info in self.fields.items()}

    def _value(self, name: str, info: FieldInfo, values: Mapping[str, Any]) -> Any:
        if self.typed is not None:
            kind = _kind(name, info)
            if kind == "checkbox":
                return name in self.typed
            return self.typed.getlist(name) if kind == "checkboxes" else self.typed.get(name, "")
        if name in values:
            return values[name]
        return "" if info.is_required() else info.default

    def __getitem__(self, name: str) -> Field:
        """The field as the template draws it."""
        info = self.fields[name]
        low, high, open_low = _bounds(info)
        number = int if int in _members(info.annotation) else float
        return Field(
            name=name,
            title=info.title or name,
            help=_sentence(info.description or ""),
            kind=_kind(name, info),
            value="" if self.values[name] is None else self.values[name],
            error=self.errors.get(name, ""),
            required=info.is_required(),
            options=_options(name, info),
            low=None if open_low else low,
            high=high,
            step="1" if number is int else "any",
        )

    @property
    def top(self) -> str:
        """What is wrong with the form as a whole."""
        return " ".join(sentence for name, sentence in self.errors.items() if name not in self.fields)

    def data(self, **more: Any) -> dict[str, Any]:
        """What to order: empty fields are left to their defaults. `more` replaces fields that a form gathers otherwise."""
        filled = {
            name: value
            for name, value in self.values.items()
            if value not in ("", None, []) or _kind(name, self.fields[name]) == "checkbox"
        }
        filled = {name: value.strip() if isinstance(value, str) else value for name, value in filled.items()}
        return {**filled, **more}

    def refuse(self, data: Any, error: DarkroomError) -> int:
        """Put the error at its field, or every finding at its own; returns the HTTP status of the page that shows it."""
        named = getattr(error, "field", None)
        self.errors = findings(self.kind, data) or {named if named in self.fields else "": str(error)}
        if named and named not in data:  # it could not even be put together: its own sentence says more than "this is needed"
            self.errors[named] = str(error)
        return 503 if isinstance(error, Unavailable) else 422


def findings(kind: str, data: Any) -> dict[str, str]:
    """What is wrong with each field of a spec, a sentence a field; "" stands for the whole."""
    try:
        SPECS[kind].model_validate(data)
    except ValidationError as error:
        found: dict[str, str] = {}
        for e in error.errors(include_url=False):
            where = [str(part) for part in e["loc"]]
            line = _entry(data, where) if len(where) > 2 and where[1].isdigit() else ""
            text = "this is needed" if e["type"] == "missing" else e["msg"].removeprefix("Value error, ")
            found.setdefault(where[0] if where else "", line + (text if line else _sentence(text, stop=True)))
        return found
    return {}


def _entry(data: Any, where: list[str]) -> str:
    """Which entry of a list is at fault: by its name, or by its number where it has none."""
    name = str(data[where[0]][int(where[1])].get("name", ""))[:60].strip()
    return f"{name}: " if name else f"Class {int(where[1]) + 1}: "


def class_lines(text: str) -> list[dict[str, Any]]:
    """Class names, one a line, `name = words to search` where they differ, and below each the addresses of its images, if any.

    Empty lines are passed over.
    """
    found: list[dict[str, Any]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if found and line.lower().startswith(("http://", "https://")):
            found[-1].setdefault("urls", []).append(line)
        else:
            name, _, query = line.partition("=")
            found.append({"name": name.strip(), "query": query.strip()})
    return found


def _sentence(text: str, stop: bool = False) -> str:
    text = text[:1].upper() + text[1:]
    return f"{text}." if stop and not text.endswith(".") else text


def _members(annotation: Any) -> tuple[Any, ...]:
    """The types of `X | None`, without None."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return tuple(a for a in get_args(annotation) if a is not type(None))
    return (annotation,)


def _kind(name: str, info: FieldInfo) -> str:
    kinds = _members(info.annotation)
    if bool in kinds:
        return "checkbox"
    if int in kinds or float in kinds:
        return "number"
    if get_origin(info.annotation) is list:
        return "checkboxes" if _options(name, info) else "textarea"
    if name in KNOWN:
        return "suggested"
    if _options(name, info):
        return "select"
    long = any(getattr(m, "max_length", None) is not None and m.max_length > LONG for m in info.metadata)
    return "textarea" if long else "text"


def _options(name: str, info: FieldInfo) -> tuple[str, ...]:
    annotation = get_args(info.annotation)[0] if get_origin(info.annotation) is list else info.annotation
    return tuple(get_args(annotation)) if get_origin(annotation) is Literal else KNOWN.get(name, ())


def _bounds(info: FieldInfo) -> tuple[float | None, float | None, bool]:
    """(lowest, highest, whether the lowest itself is excluded), where a spec says so."""
    low = high = None
    excluded = False
    for m in info.metadata:
        low = getattr(m, "ge", low)
        high = getattr(m, "le", high)
        if getattr(m, "gt", None) is not None:
            low, excluded = m.gt, True
    return low, high, excluded
