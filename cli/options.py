"""Click options made from the fields of specs and settings, so that flags, defaults, bounds and help are theirs."""

import getpass
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from shared.errors import Invalid
from shared.settings import Settings
from shared.specs import AnySpec, Spec, check, parse

Decorator = Callable[[Any], Any]

json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="print one JSON value, for scripts")
wait_option: Decorator = click.option("--wait", is_flag=True, help="follow the job to its end")


def _user() -> str:
    """Who runs this, as the system says; empty where it does not know."""
    try:
        return getpass.getuser()[:100]
    except (OSError, KeyError):  # a user of a container, say, who has a number and no name
        return ""


note_option: Decorator = click.option("--note", default="", help="kept with the version, such as what was done and why")
author_option: Decorator = click.option("--author", default=_user, show_default="your user name", help="who makes the version")


def making(command: Any) -> Any:
    """The options of every command that makes a version of a dataset: --note and --author."""
    return note_option(author_option(command))


def spec_options(spec: type[Spec], leave_out: tuple[str, ...], defaults: bool = True) -> Decorator:
    """An option for every field of a spec but `leave_out`, with the field's default, bounds and description.

    Without `defaults` an option that is not given is None: what was ordered before stays.
    """

    def decorate(command: Any) -> Any:
        for name, field in reversed(spec.model_fields.items()):
            if name not in leave_out:
                command = _option(name, field, _default(field) if defaults else None)(command)
        return command

    return decorate


def setting_option(name: str) -> Decorator:
    """An option that overrides a setting. It is None unless given."""
    return _option(name, Settings.model_fields[name], None)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _option(name: str, field: FieldInfo, default: Any) -> Decorator:
    flag = "--" + name.replace("_", "-")
    annotation = _without_none(field.annotation)
    more: dict[str, Any] = {"help": field.description, "default": default, "show_default": default not in (None, "")}
    if annotation is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", **more)
    if get_origin(annotation) is list:
        return click.option(flag, type=_type(get_args(annotation)[0], field), multiple=True, **more)
    return click.option(flag, type=_type(annotation, field), **more)


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in get_args(annotation) else annotation


def _type(annotation: Any, field: FieldInfo) -> click.ParamType[Any]:
    """The click type of a field: a choice of literals, a range of numbers, or text."""
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if annotation in {int, float}:
        least = next((m for m in field.metadata if isinstance(m, Ge | Gt)), None)
        most = next((m for m in field.metadata if isinstance(m, Le | Lt)), None)
        return (click.IntRange if annotation is int else click.FloatRange)(
            min=getattr(least, "ge", getattr(least, "gt", None)),
            max=getattr(most, "le", getattr(most, "lt", None)),
            min_open=isinstance(least, Gt),
            max_open=isinstance(most, Lt),
        )
    return click.STRING


def checked(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The spec of `kind` out of flags, as the API takes it. Raises UsageError for a value that does not fit."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value is not None}
    try:
        spec: AnySpec = parse(kind, given)
    except Invalid as error:
        raise click.UsageError(str(error)) from None
    return spec.model_dump(mode="json", exclude_none=True)


class Checked(click.ParamType[str]):
    """An argument that is checked as a type of the specs, such as Name or ModelRef."""

    def __init__(self, name: str, annotation: Any) -> None:
        self.name = name
        self.annotation = annotation

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value as checked. Fails with the sentence of the specs."""
        try:
            return str(check(self.annotation, value))
        except Invalid as error:
            self.fail(f"{value!r}: {error}", param, ctx)
