"""Tables that tell of images, each a file of a stranger: which class every image is of, on which side of the split it is, and whose it is.

    darkroom.jsonl                  what an export of a dataset holds (worker/packing.py); the key `file` names the image
    metadata.jsonl, metadata.csv    as the image folders of Hugging Face have them; `file_name` names the image
    labels.csv, or another CSV      `path` names an image beside the table, or `url` one that is fetched

A table is read as a whole, at most MAX_TABLE bytes of it. A line that cannot be understood is told as such and the others stay.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shared.errors import Invalid

MAX_TABLE = 2**28  # bytes
MAX_LINE = 2**17  # characters
EXPORTED = "darkroom.jsonl"
DESCRIBED = ("metadata.jsonl", "metadata.csv")
LABELS = "labels.csv"
ATTRIBUTION = "ATTRIBUTION.csv"
CLASSES = "classes.json"  # of an export as a folder per class: the class of each folder
SPLITS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
# by column of a manifest the names that a table may give it, the first that is there
NAMES = {
    "file": ("file", "path", "file_name", "filename", "filepath", "image", "image_path"),
    "url": ("url", "uri", "image_url"),
    "label": ("label", "labels", "class", "category"),
    "split": ("split",),
    "sha256": ("sha256",),
    "name": ("name", "title"),
    "source": ("source",),
    "page_url": ("page_url",),
    "licence": ("licence", "license"),
    "licence_url": ("licence_url", "license_url"),
    "creator": ("creator", "author"),
    "creator_url": ("creator_url",),
    "attribution": ("attribution",),
    "query": ("query",),
}
EXACT = ("file", "label")  # looked up and checked as they are, so nothing may be taken away from them
ADDRESSES = ("url", "page_url", "licence_url", "creator_url")
ADDRESS = re.compile(r"https?://[^\s/]\S{0,4000}", re.IGNORECASE)
DEFUSED = re.compile(r"'+[=+\-@\t\r\n]")
FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
UNSEEN = {"Cc", "Cs", "Zl", "Zp"}  # Unicode categories: control, half of a pair, ends of lines
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Line:
    """A line of a table: what it says, by NAMES, or what is wrong with it, a sentence."""

    number: int
    said: dict[str, str]
    wrong: str = ""


def table_name(name: str) -> bool:
    """Whether a file may be a table by its name."""
    lower = name.lower()
    return lower in {EXPORTED, CLASSES, *DESCRIBED} or (lower.endswith(".csv") and lower != ATTRIBUTION.lower())


def tells(data: bytes) -> bool:
    """Whether a CSV names images and their classes by its header."""
    first = data[:MAX_LINE].lstrip(b"\xef\xbb\xbf\r\n").partition(b"\n")[0].decode("utf-8", "replace")
    _, columns = _header(first)
    return "label" in columns and bool(columns.keys() & {"file", "url"})


def lines(name: str, data: bytes, labelled: bool = True) -> Iterator[Line]:
    """The lines of a table, the blank ones left out.

    `labelled`: it must have a column for the class. Raises Invalid with a sentence that holds `name`: no UTF-8 text, no such columns, or
    quotes that never end.
    """
    if len(data) > MAX_TABLE:
        raise Invalid(f"{name} has more than {MAX_TABLE:,} bytes, the most a table may have.", field="source")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Invalid(f"{name} is no UTF-8 text near its line {line}; save it as UTF-8.", field="source") from None
    return _json_lines(text) if name.lower().endswith(".jsonl") else _csv_lines(name, text, labelled)


def _json_lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):  # a line of JSON may hold other ends of lines
        if not line.strip():
            continue
        try:
            values = json.loads(line) if len(line) <= MAX_LINE else None
        except (ValueError, RecursionError):
            values = None
        if isinstance(values, dict):
            yield _line(number, {key: values[found] for key, names in NAMES.items() if (found := _first(names, values))})
        else:
            yield Line(number, {}, f"It is longer than {MAX_LINE:,} characters." if len(line) > MAX_LINE else "It is no JSON object.")


def _csv_lines(name: str, text: str, labelled: bool) -> Iterator[Line]:
    head = text[:MAX_LINE].lstrip("\r\n").partition("\n")[0]
    delimiter, columns = _header(head)
    if not columns.keys() & {"file", "url"}:
        raise Invalid(f"{name} has no column `path` or `url` that names the images; its first line is {head[:100]!r}.", field="source")
    if labelled and "label" not in columns:
        raise Invalid(f"{name} has no column `label` that names the classes; its first line is {head[:100]!r}.", field="source")
    rows = csv.reader(io.StringIO(text.lstrip("\r\n"), newline=""), delimiter=delimiter, strict=True)
    try:
        next(rows)
        for row in rows:
            if any(cell.strip() for cell in row):
                yield _line(rows.line_num, {key: undefused(row[at]) for key, at in columns.items() if at < len(row)})
    except csv.Error as error:
        raise Invalid(f"{name} cannot be read near its line {rows.line_num + 1}: {error}.", field="source") from None


def _header(line: str) -> tuple[str, dict[str, int]]:
    """(delimiter, position by NAMES) of the header of a CSV; nothing by NAMES when it is none."""
    best: tuple[str, dict[str, int]] = (",", {})
    for delimiter in ",;\t":
        try:
            cells = [cell.strip().casefold() for cell in next(csv.reader([line], delimiter=delimiter), [])]
        except csv.Error:
            continue
        columns = {key: cells.index(found) for key, names in NAMES.items() if (found := _first(names, cells))}
        best = max(best, (delimiter, columns), key=lambda pair: len(pair[1]))
    return best


def _first(names: tuple[str, ...], there: Any) -> str:
    return next((name for name in names if name in there), "")


def _line(number: int, values: dict[str, Any]) -> Line:
    """The values of a line as text that any file may keep."""
    if isinstance(values.get("label"), list):
        if len(values["label"]) != 1:
            return Line(number, {}, f"It names {len(values['label'])} classes; an image has one.")
        values["label"] = values["label"][0]
    if wrong := next((key for key, value in values.items() if not isinstance(value, str | int | None) or isinstance(value, bool)), ""):
        return Line(number, {}, f"Its {wrong} is neither text nor a number.")
    try:
        texts = {key: "" if value is None else str(value) for key, value in values.items()}
    except ValueError:  # a number of thousands of digits
        return Line(number, {}, "It holds a number that is too long.")
    said = {key: text.strip() if key in EXACT else printable(text) for key, text in texts.items()}
    said |= {key: said[key] if ADDRESS.fullmatch(said[key]) else "" for key in ADDRESSES if key in said}
    split = said.get("split", "").casefold()
    if split and split not in SPLITS:
        return Line(number, {}, f"Its split {split[:60]!r} is none of train, valid and test.")
    return Line(number, {**said, "split": SPLITS.get(split, "")})


def printable(text: str) -> str:
    """Text on one line, without what turns its direction or cannot be written."""
    if text.isascii() and text.isprintable():
        return text.strip()
    kept = (" " if unicodedata.category(c) in UNSEEN else c for c in text if c not in BIDIRECTIONAL)
    return "".join(kept).strip()


def defused(text: str) -> str:
    """Text for a CSV: what a spreadsheet would run as a formula gets an apostrophe in front (OWASP), which `undefused` takes away again."""
    return f"'{text}" if FORMULA.match(text) else text


def undefused(text: str) -> str:
    """Text of a CSV as it was before it was `defused`."""
    return text[1:] if DEFUSED.match(text) else text
