"""What a request asks: its body and its query, read and checked, for pages and API alike."""

import json
import re
from typing import Any

from flask import request
from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from shared.errors import Invalid

MAX_JSON_BYTES = 64 * 2**20  # a list of 100,000 long addresses


def body(**fields: str) -> dict[str, Any]:
    """The JSON object of the body with `fields` from the address. Raises Invalid, BadRequest, UnsupportedMediaType."""
    if not request.is_json:  # a page of another site cannot send this type without asking first
        raise UnsupportedMediaType("Send the spec as JSON, with the header Content-Type: application/json.")
    request.max_content_length = MAX_JSON_BYTES
    try:
        body = json.loads(request.get_data(cache=False) or b"{}", parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON that can be read: {error}.") from None
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    for field, value in fields.items():
        if body.setdefault(field, value) != value:
            raise Invalid(f"The address names {value!r}, the body another {field}.", field=field)
    return body


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def image(most: int) -> bytes:
    """One image of at most `most` bytes: the body, or the form's `image`. Raises Invalid, UnsupportedMediaType."""
    request.max_content_length = most + 2**16  # the parts of a form around it
    if request.mimetype == "multipart/form-data":
        file = request.files.get("image")
        if file is None:
            raise Invalid("The form has no file named `image`.", field="image")
        data: bytes = file.read()
    elif request.mimetype.startswith("image/") or request.mimetype == "application/octet-stream":
        data = request.get_data(cache=False)
    else:
        raise UnsupportedMediaType("Send the image as the body with a content type such as image/jpeg, or as the file `image` of a form.")
    if not data:
        raise Invalid("The image is empty.", field="image")
    return data


def number(name: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises Invalid."""
    text = request.args.get(name) or str(default)
    if not re.fullmatch(r"\d{1,16}", text, re.ASCII) or not least <= int(text) <= most:
        raise Invalid(f"{name} must be a whole number from {least:,} to {most:,}.", field=name)
    return int(text)


def share(name: str, default: float) -> float:
    """A number from 0 to 1 of the query. Raises Invalid."""
    text = request.args.get(name) or str(default)
    if not re.fullmatch(r"\d{0,3}\.?\d{0,9}", text, re.ASCII) or not re.search(r"\d", text, re.ASCII) or float(text) > 1:
        raise Invalid(f"{name} must be a number from 0 to 1.", field=name)
    return float(text)


def one_of(name: str, choices: tuple[str, ...]) -> str | None:
    """One of some words of the query, None if it names none. Raises Invalid."""
    value = request.args.get(name) or None
    if value is not None and value not in choices:
        raise Invalid(f"{name} must be one of {', '.join(choices)}.", field=name)
    return value


def page(name: str = "page") -> int:
    """The page of a list that a page's address asks for; 1 for what is no number."""
    text = request.args.get(name, "1")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else 1
