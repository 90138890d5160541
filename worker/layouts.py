"""What a folder or a zip says of the images in it: which class each is of, on which side of the split it is, and whose it is.

The first of these that is there:

    darkroom.jsonl            an export of a dataset (worker/packing.py)
    metadata.jsonl or .csv    an image folder of Hugging Face, in each split folder or above them; what it says no class of is of its folder's
    labels.csv                in the outermost folder; or the only CSV there, if its header names images and classes
    a folder per class        below train, valid and test or without; classes.json, if it is there, says which class a folder is

What all of it says is that of a stranger: names of files are looked up among those that are there and never become a path.
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shared.errors import Invalid
from shared.specs import check_class_name
from shared.tables import ADDRESS, CLASSES, DESCRIBED, EXPORTED, LABELS, SPLITS, Line, lines, table_name, tells

Parts = tuple[str, ...]
Files = list[tuple[str, str]]  # path below the root, locator
COLUMNS = ("split", "name", "source", "url", "page_url", "licence", "licence_url", "creator", "creator_url", "attribution", "query")


@dataclass(frozen=True)
class Offer:
    """A file that is offered to a dataset: where its bytes are (shared/items.py), and the columns of its row that are known before it is read."""

    path: str
    locator: str
    said: dict[str, str]  # `label` always; it is empty where nothing says the class
    sha256: str = ""  # that its bytes must have


class Renaming:
    """What classes are called from now on. Remembers which it has met."""

    def __init__(self, classes: dict[str, str | None]) -> None:
        """`classes`: new names by old ones, None for a class that is left out."""
        self._classes = classes
        self._met: set[str] = set()

    def __call__(self, label: str) -> str | None:
        """What a class is called; None: it is left out. Raises ValueError for a name that cannot be a class."""
        name = unicodedata.normalize("NFC", label).strip()
        self._met.add(name)
        return self._classes[name] if name in self._classes else check_class_name(name)

    def check(self) -> None:
        """Raises Invalid when a class was to be renamed that was not met: its name is mistyped."""
        if strange := [name for name in self._classes if name not in self._met]:
            there = ", ".join(repr(name) for name in sorted(self._met)[:10])
            raise Invalid(f"There is no class {strange[0]!r} to rename; the classes are {there or 'none'}.", field="classes")


def offers(files: Files, read: Callable[[str], bytes], renaming: Renaming) -> list[Offer]:
    """What is offered by the files of a folder or zip, pictures and tables, in order; every picture is in it, and every line of a table.

    `read`: the bytes of a table by its locator. Raises Invalid with a sentence for a table that cannot be read, and for a folder whose name cannot
    be a class.
    """
    files = [(path.replace("\\", "/"), locator) for path, locator in files]
    tables = [(path, locator) for path, locator in files if table_name(_base(path))]
    pictures = [(path, locator) for path, locator in files if not table_name(_base(path))]
    common = _common([_parents(path) for path, _ in files])
    outermost = [(path, locator) for path, locator in tables if _parents(path) == common[: len(_parents(path))]]
    for names in ((EXPORTED,), DESCRIBED):
        if found := [table for table in tables if _base(table[0]).lower() in names]:
            return _Told(pictures, read, renaming, common).offers(found)
    if labels := _labels(outermost, read):
        return _Told(pictures, read, renaming, common).offers([labels])
    if not pictures:
        raise Invalid("There are no pictures in the folder.", field="source")
    return by_folder(pictures, renaming, _class_of(outermost, read))


def _labels(tables: Files, read: Callable[[str], bytes]) -> tuple[str, str] | None:
    """The CSV that tells of the images, if there is one."""
    csvs = [table for table in tables if table[0].lower().endswith(".csv")]
    named = [table for table in csvs if _base(table[0]).lower() == LABELS]
    if named:
        return named[0]
    return csvs[0] if len(csvs) == 1 and tells(read(csvs[0][1])) else None


def _class_of(tables: Files, read: Callable[[str], bytes]) -> dict[str, str]:
    """The class of each folder, as classes.json has it. Other programs write files of this name, too: one of another form says nothing."""
    for path, locator in tables:
        if _base(path).lower() == CLASSES:
            try:
                found = json.loads(read(locator))
            except (ValueError, RecursionError):
                raise Invalid(f"{CLASSES} is not JSON; mend it, or leave it out.", field="source") from None
            if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
                return found
    return {}


# -- a folder per class -----------------------------------------------------------------------------------------------


def by_folder(pictures: Files, renaming: Renaming, class_of: dict[str, str] | None = None) -> list[Offer]:
    """The class of each picture is the first folder of its path, below any folders that merely hold the classes.

    Those are a single folder around everything, as most zips have, and `train`, `valid`, `val`, `validation` and `test`, whose classes are the
    same and which say on which side a picture is. Raises Invalid, naming the folder, for a name that cannot be a class.
    """
    parts = [path.replace("\\", "/").split("/") for path, _ in pictures]
    depth, sides = _class_depth(parts)
    names = {p[depth] for p in parts if len(p) > depth + 1}
    label_of = {name: _folder_class((class_of or {}).get(name, name), renaming) for name in sorted(names)}
    found = []
    for p, (path, locator) in zip(parts, pictures, strict=True):
        folder = p[depth] if len(p) > depth + 1 else None
        split = SPLITS.get(p[sides].lower(), "") if sides is not None and len(p) > sides + 1 else ""
        if folder is None:
            found.append(_refused(path, "no_class", "The file lies in no class folder.", split=split))
        elif (label := label_of[folder]) is None:
            found.append(_left_out(path, (class_of or {}).get(folder, folder), split=split))
        else:
            found.append(Offer(path, locator, {"label": label, "split": split}))
    return found


def _class_depth(parts: list[list[str]]) -> tuple[int, int | None]:
    """How many folders lie around the class folders, and which of them is train, valid or test, if one is."""
    depth, sides = 0, None
    while True:
        folders = {p[depth].lower() for p in parts if len(p) > depth + 1}
        deeper = any(len(p) > depth + 2 for p in parts)
        splits = folders <= SPLITS.keys() and sides is None
        if not deeper or (len(folders) != 1 and not splits):
            return depth, sides
        sides = depth if splits else sides
        depth += 1


def _folder_class(folder: str, renaming: Renaming) -> str | None:
    try:
        return renaming(folder)
    except ValueError as error:
        shown = folder.encode("utf-8", "replace").decode()
        raise Invalid(f"The folder {shown[:120]!r} cannot be a class: {error}.", field="source") from None


# -- tables -----------------------------------------------------------------------------------------------------------


class _Told:
    """What tables say of the pictures that lie beside and below them."""

    def __init__(self, pictures: Files, read: Callable[[str], bytes], renaming: Renaming, common: Parts) -> None:
        self._pictures = pictures
        self._read = read
        self._renaming = renaming
        self._common = common
        self._there: dict[str, str] = {}  # locator by path
        for path, locator in pictures:
            self._there.setdefault(_normal(path), locator)
        self._folder_labels: dict[str, str] | None = None

    def offers(self, tables: Files) -> list[Offer]:
        """A line of a table each, then the pictures that no line is about."""
        found = [offer for path, locator in tables for offer in self._of_table(path, locator)]
        told = {offer.locator for offer in found} | {self._there.get(_normal(offer.path), "") for offer in found}
        nothing = "No table says anything of it."
        return [*found, *(_refused(path, "no_class", nothing) for path, locator in self._pictures if locator not in told)]

    def _of_table(self, path: str, locator: str) -> Iterator[Offer]:
        base = _base(path)
        for line in lines(base, self._read(locator), labelled=base.lower() not in (EXPORTED, *DESCRIBED)):
            yield self._offer(path, line)

    def _offer(self, table: str, line: Line) -> Offer:
        here = f"{table}, line {line.number}"
        said, name = line.said, line.said.get("file") or ""
        if line.wrong:
            return _refused(here, "bad_line", line.wrong)
        exported = _base(table).lower() == EXPORTED
        url = name if ADDRESS.fullmatch(name) else said.get("url", "") if not name else ""
        if url and not exported:
            return self._known(url, url, {**said, "url": url})
        if not name:
            return _refused(here, "bad_line", "It names no image.")
        path = _below(_parents(table), name)
        if path is None:
            return _refused(here, "forbidden", f"The path {name[:200]!r} leads out of the folder of the table.")
        if _normal(path) not in self._there:
            return _refused(path, "not_found", f"There is no such file, though line {line.number} of {_base(table)} names it.")
        if not exported and not said.get("split"):
            said = {**said, "split": self._side(path)}
        if _base(table).lower() in DESCRIBED and not said.get("label"):
            said = {**said, "label": self._folder_label(path)}
        return self._known(path, self._there[_normal(path)], said)

    def _known(self, path: str, locator: str, said: dict[str, str]) -> Offer:
        """The offer of a picture that is there, with the class it is said to be of."""
        columns = {key: said[key] for key in COLUMNS if said.get(key)}
        if not said.get("label"):
            return _refused(path, "no_class", "Its line says no class.", **columns)
        try:
            label = self._renaming(said["label"])
        except ValueError as error:
            return _refused(path, "bad_label", f"{said['label'][:120]!r} cannot be a class: {error}.", **columns)
        if label is None:
            return _left_out(path, said["label"], **columns)
        return Offer(path, locator, {**columns, "label": label}, said.get("sha256", ""))

    def _side(self, path: str) -> str:
        """The split whose folder a picture lies in: around everything, or directly below that."""
        folders = _parents(path)[: len(self._common) + 1]
        return next((SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS), "")

    def _folder_label(self, path: str) -> str:
        """The class by folder, before it is renamed."""
        if self._folder_labels is None:
            parts = [picture.split("/") for picture, _ in self._pictures]
            depth, _ = _class_depth(parts)
            self._folder_labels = {_normal("/".join(p)): p[depth] for p in parts if len(p) > depth + 1}
        return self._folder_labels.get(_normal(path), "")


# -- paths and refusals -----------------------------------------------------------------------------------------------


def _refused(path: str, code: str, sentence: str, **said: str) -> Offer:
    return Offer(path, f"error:{code}:{sentence}", {"label": "", **said})


def _left_out(path: str, label: str, **said: str) -> Offer:
    return Offer(path, f"error:left_out:The class {label[:120]!r} was left out.", {**said, "label": ""})


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _parents(path: str) -> Parts:
    return tuple(path.split("/")[:-1])


def _common(folders: Iterable[Parts]) -> Parts:
    """The folders around everything."""
    found: Parts | None = None
    for parts in folders:
        if found is None:
            found = parts
        while found != parts[: len(found)]:
            found = found[:-1]
    return found or ()


def _below(folder: Parts, name: str) -> str | None:
    """A path that a table names, from the root on; None when it leads out of the table's folder."""
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or parts[0][1:2] == ":":
        return None
    return "/".join([*folder, *(part for part in parts if part not in {"", "."})])


def _normal(path: str) -> str:
    """Some systems write é as one character, some as two."""
    return unicodedata.normalize("NFC", path)
