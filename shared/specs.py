"""What can be asked of Darkroom: one spec a kind of job, the one truth behind the web form, the API, the command line and the worker.

A field's default, bounds, title and description are shown by the form and by `--help` alike. Names of datasets and models
are part of URLs and paths and therefore plain; class names are data and may be any text without control characters.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from shared.errors import Invalid

MAX_ADDRESSES = 10_000  # of images, in the order of a scrape: the ledger keeps it
SMALL, SIDE = 64, 32  # pixels: no epoch trains on less; networks halve an image five times
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MODEL_REF = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})(?:/(?:v)?(\d{1,6})|@([a-z0-9][a-z0-9_-]{0,62}))?")
UPLOAD_ID = r"^[0-9a-z]{10,40}$"
JOB_ID = r"^[0-9a-v]{20}$"
MAX_RENAMES = 10_000
MAX_FOLDER = 300  # characters of the old name of a class: a folder may have any
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # Unicode categories: control, bidirectional, invisible, half of a pair, ends of lines
SOURCES = ("folder", "upload", "urls", "list", "dataset", "failed", "review", "edits", "restore")
# torchvision's, which are offered first; any other name is timm's
ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "squeezenet1_0", "squeezenet1_1", "mobilenet_v3_small", "mobilenet_v3_large",
    "efficientnet_b0", "densenet121", "convnext_tiny",
)  # fmt: skip
STEMS = ("resnet", "squeezenet", "densenet")  # the families of these in which fastai tells a stem from the rest of the body


def check_name(value: str) -> str:
    """A dataset or model name: it is part of URLs and paths, so it is plain. Raises ValueError with a sentence."""
    if not NAME.fullmatch(value):
        raise ValueError("a name is lower-case letters, digits, - and _, starts with a letter or digit, and has at most 63 characters")
    return value


def check_class_name(value: str) -> str:
    """A class name, NFC-normalised and stripped. Raises ValueError for control or bidirectional characters or over 100 characters."""
    value = unicodedata.normalize("NFC", value).strip()
    if not value:
        raise ValueError("a class name cannot be empty")
    if len(value) > 100:
        raise ValueError("a class name has at most 100 characters")
    if any(unicodedata.category(c) in HIDDEN for c in value):
        raise ValueError("a class name cannot hold control, bidirectional or invisible characters")
    return value


def check_renames(value: Any) -> Any:
    """New names by old ones; None for a class that is left out. Raises ValueError when two new names differ by case alone."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_RENAMES or any(len(str(old)) > MAX_FOLDER for old in value):
        raise ValueError(f"at most {MAX_RENAMES:,} classes are renamed at once, of at most {MAX_FOLDER} characters each")
    seen: dict[str, str] = {}
    for new in value.values():
        if isinstance(new, str) and seen.setdefault(new.casefold(), new) != new:
            raise ValueError(f"{seen[new.casefold()]!r} and {new!r} differ by upper and lower case alone; give them one name")
    return {unicodedata.normalize("NFC", str(old)).strip(): None if new in ("", None) else new for old, new in value.items()}


def rename_lines(lines: Iterable[str]) -> dict[str, str | None]:
    """What classes are called from now on, out of lines `old = new`, or `old =` for a class that is left out. Raises ValueError.

    A name that holds `=` itself wants blanks around the one between the two: `a=b = c`.
    """
    found: dict[str, str | None] = {}
    for line in filter(str.strip, lines):
        old, equals, new = line.rpartition(" = ") if " = " in line else line.partition("=")
        if not equals or not old.strip():
            raise ValueError(f"{line.strip()[:120]!r} does not say which class becomes which, as in: old = new")
        if old.strip() in found:
            raise ValueError(f"the class {old.strip()!r} is renamed twice")
        found[old.strip()] = new.strip() or None
    return found


def parse_model_ref(value: str) -> tuple[str, int | str | None]:
    """What names a model: its name with a version, an alias or neither. Raises ValueError.

    `"clothing"` -> `("clothing", None)`, `"clothing/v3"` or `"clothing/3"` -> `("clothing", 3)`, `"clothing@production"` ->
    `("clothing", "production")`.
    """
    match = MODEL_REF.fullmatch(value)
    if not match:
        raise ValueError("a model is named as name, name/v3 or name@alias")
    return match[1], int(match[2]) if match[2] else match[3]


def check_model_ref(value: str) -> str:
    """A model reference, as it was given. Raises ValueError."""
    parse_model_ref(value)
    return value


@cache
def timm_names() -> frozenset[str]:
    """The networks that timm can build, and, as `name.tag`, those it has trained weights of. timm itself needs torch, which few processes have."""
    return frozenset(Path(__file__).with_name("architectures.txt").read_text(encoding="utf-8").split())


def known_arch(value: str) -> str:
    """A network that can be built from its name: one of `ARCHITECTURES`, or timm's. Raises ValueError with the closest names."""
    if value in ARCHITECTURES or value in timm_names():
        return value
    close = difflib.get_close_matches(value[:100], sorted({*ARCHITECTURES, *timm_names()}), n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(ARCHITECTURES)}, or any network of timm"
    raise ValueError(f"unknown architecture {value[:60]!r} ({hint})")


def pretrained(arch: str) -> bool:
    """Whether there are trained weights of a known network for others to start from."""
    return arch in ARCHITECTURES or "." in arch or any(name.startswith(f"{arch}.") for name in timm_names())


def check_start(value: str) -> str:
    """Where a training starts from, as it was given: `imagenet`, `scratch` or a model reference. Raises ValueError."""
    if value not in {"imagenet", "scratch"} and not MODEL_REF.fullmatch(value):
        raise ValueError("a training starts from imagenet, from scratch, or from a model named as name, name/v3 or name@alias")
    return value


def check_region(value: str) -> str:
    """A country and a language, or nothing. Raises ValueError with a sentence."""
    value = value.strip().lower()
    if value and not re.fullmatch(r"[a-z]{2}-[a-z]{2}", value, re.ASCII):
        raise ValueError("a region is a country and a language, two letters each, such as us-en or de-de")
    return value


SourceName = Literal[
    "openverse", "commons", "flickr", "brave", "serpapi", "google", "pexels", "unsplash", "duckduckgo", "bing", "urls", "folder"
]
Licence = Literal["any", "known", "commercial", "modification", "public"]


def check_note(value: str) -> str:
    """A text that people leave, one line or several, stripped. Raises ValueError for control, bidirectional or invisible characters."""
    value = unicodedata.normalize("NFC", value).strip()
    lines = value.replace("\r\n", "\n").split("\n")
    if any(unicodedata.category(c) in HIDDEN for line in lines for c in line):
        raise ValueError("a note cannot hold control, bidirectional or invisible characters")
    return "\n".join(lines)


def check_author(value: str) -> str:
    """Who did something, one line, stripped. Raises ValueError for control, bidirectional or invisible characters."""
    value = unicodedata.normalize("NFC", value).strip()
    if any(unicodedata.category(c) in HIDDEN for c in value):
        raise ValueError("a name cannot hold control, bidirectional or invisible characters")
    return value


Name = Annotated[str, AfterValidator(check_name)]
ClassName = Annotated[str, AfterValidator(check_class_name)]
ModelRef = Annotated[str, AfterValidator(check_model_ref)]
Start = Annotated[str, AfterValidator(check_start)]
Arch = Annotated[str, AfterValidator(known_arch)]
Renames = Annotated[dict[str, ClassName | None], BeforeValidator(check_renames)]
Region = Annotated[str, AfterValidator(check_region)]
Words = Annotated[str, StringConstraints(strip_whitespace=True)]
Version = Annotated[int, Field(ge=1, le=999_999)]
Epochs = Annotated[int, Field(ge=1, le=500)]
JobId = Annotated[str, StringConstraints(pattern=JOB_ID)]


class Spec(BaseModel):
    """Common to all specs: unknown fields are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderSource(Spec):
    """A folder that the server and its workers can see, or an address of a bucket that they can read."""

    kind: Literal["folder"] = "folder"
    path: str = Field(min_length=1, max_length=4096, description="absolute path on the server, or s3://bucket/prefix")


class UploadSource(Spec):
    """What was uploaded: a zip, files sent one by one, or the single files of a form."""

    kind: Literal["upload"] = "upload"
    id: str = Field(pattern=UPLOAD_ID, description="id that the upload answered")


class ListSource(Spec):
    """An uploaded list of addresses or of paths on the server, a line each, or a CSV."""

    kind: Literal["list"] = "list"
    id: str = Field(pattern=UPLOAD_ID, description="id that the upload of the list answered")


class DatasetSource(Spec):
    """The images of a dataset version."""

    kind: Literal["dataset"] = "dataset"
    dataset: Name = Field(description="name of the dataset")
    version: int | None = Field(None, ge=1, description="empty: the newest when the job is submitted")


class ClassesSource(DatasetSource):
    """Classes of a dataset version, for another dataset or for the next version of the same."""

    classes: list[ClassName] | None = Field(None, min_length=1, max_length=10_000, description="only these classes; empty: all")


class FailedSource(Spec):
    """The items of an earlier batch that ended with an error."""

    kind: Literal["failed"] = "failed"
    batch: str = Field(pattern=JOB_ID, description="id of the batch")


class ReviewSource(Spec):
    """The images of a batch that a person has accepted or relabelled, with the labels they were given."""

    kind: Literal["review"] = "review"
    batch: str = Field(pattern=JOB_ID, description="id of the batch")


class EditsSource(Spec):
    """The dataset itself, with what people have decided about its images since its newest version was made."""

    kind: Literal["edits"] = "edits"
    model: ModelRef | None = Field(None, description="the model whose suspects gave cause; the page of the job offers to train it again")


def check_addresses(urls: list[str]) -> list[str]:
    """Addresses without the blanks around them, empty ones left out. Raises ValueError for anything but http and https."""
    urls = [url.strip() for url in urls if url.strip()]
    for url in urls:
        if not re.match(r"https?://[^/\s]+", url, re.IGNORECASE) or len(url) > 4096:
            raise ValueError(f"not an http or https address: {url[:80]!r}")
    return urls


Addresses = Annotated[list[str], AfterValidator(check_addresses)]


class RestoreSource(Spec):
    """The dataset itself, with the images and labels that an earlier version had."""

    kind: Literal["restore"] = "restore"
    version: int = Field(ge=1, le=999_999, description="the version whose images and labels are to be there again")


class UrlsSource(Spec):
    """Addresses of images."""

    kind: Literal["urls"] = "urls"
    urls: Addresses = Field(min_length=1, max_length=100_000, description="http or https addresses")

    @field_validator("urls")
    @classmethod
    def check_urls(cls, urls: list[str]) -> list[str]:
        """Blank lines alone are no list."""
        if not urls:
            raise ValueError("the list of addresses is empty")
        return urls


class ImportSpec(Spec):
    """Make a dataset from images that have classes, or its next version from what was decided about it or from one of its earlier versions."""

    dataset: Name = Field(title="Name", description="name of the dataset; an existing one gets a new version")
    source: Annotated[FolderSource | UploadSource | ClassesSource | ReviewSource | EditsSource | RestoreSource, Field(discriminator="kind")]
    classes: Renames = Field(
        {}, title="Rename classes", description="what a class is called from now on, by its old name; null leaves it out"
    )
    then: ModelRef | None = Field(
        None, title="Then retrain", description="model that is retrained on the version once it is there, with the spec that made it"
    )
    note: str = Field("", max_length=500, title="Note", description="kept with the version")
    author: str = Field(
        "", max_length=100, title="Author", description="who makes the version; there are no accounts, so it is what was given"
    )

    _note = field_validator("note")(check_note)
    _author = field_validator("author")(check_author)


class ClassQuery(Spec):
    """A class and what to search for it."""

    name: ClassName = Field(description="name of the class")
    query: Words = Field("", max_length=200, description="words to search for; empty: the class name")
    urls: Addresses = Field([], max_length=10_000, description="addresses of images of the class, for the source `urls`")


class ScrapeSpec(Spec):
    """Make a dataset by searching image sources for each class name."""

    dataset: Name = Field(title="Name", description="name of the dataset; an existing one gets a new version")
    classes: list[ClassQuery] = Field(
        min_length=2, max_length=1000, title="Classes", description="class names, with the words to search for where they differ"
    )
    folder: str = Field(
        "",
        max_length=4096,
        title="Folder",
        description="absolute path on the server of a folder with a folder a class, for the source `folder`",
    )
    sources: list[SourceName] = Field(
        ["openverse", "commons"],
        validate_default=True,
        title="Sources",
        description="where to search, in this order: the next is asked for what the one before lacks",
    )
    per_class: int = Field(50, ge=2, le=1000, title="Images per class", description="how many images to keep of each class")
    licence: Licence = Field(
        "any",
        title="Licence",
        description="known: one that is named; commercial: commercial use is allowed; modification: changes are allowed; public: public domain and CC0",
    )
    min_side: int = Field(64, ge=1, le=4096, title="Smallest side", description="images with a shorter side are dropped, pixels")
    safe: bool = Field(True, title="Safe search", description="sources are asked to leave out what is not for everybody")
    region: Region = Field(
        "",
        title="Region",
        description="country and language, such as us-en or de-de, for sources that tell them apart; empty: theirs",
    )
    note: str = Field("", max_length=500, title="Note", description="kept with the version")
    author: str = Field(
        "", max_length=100, title="Author", description="who makes the version; there are no accounts, so it is what was given"
    )

    _note = field_validator("note")(check_note)
    _author = field_validator("author")(check_author)

    @field_validator("classes")
    @classmethod
    def check_distinct(cls, classes: list[ClassQuery]) -> list[ClassQuery]:
        """Two classes may not differ by case alone: on some disks they would be one folder."""
        seen: dict[str, str] = {}
        for c in classes:
            if c.name.casefold() in seen:
                raise ValueError(f"the class {c.name!r} is named twice (also as {seen[c.name.casefold()]!r})")
            seen[c.name.casefold()] = c.name
        if sum(len(c.urls) for c in classes) > MAX_ADDRESSES:
            raise ValueError(f"the classes have more than {MAX_ADDRESSES:,} addresses together")
        return classes

    @field_validator("sources")
    @classmethod
    def check_sources(cls, names: list[SourceName], known: ValidationInfo) -> list[SourceName]:
        """Each once; addresses and a folder are looked at first when they are given and not named."""
        classes, folder = known.data.get("classes", []), known.data.get("folder", "")
        given: dict[SourceName, bool] = {"urls": any(c.urls for c in classes), "folder": bool(folder.strip())}
        if "folder" in names and not given["folder"]:
            raise ValueError("the source `folder` needs a folder to be named")
        if "urls" in names and not given["urls"] and "classes" in known.data:
            raise ValueError("the source `urls` needs addresses below a class")
        found = list(dict.fromkeys([*(name for name, there in given.items() if there and name not in names), *names]))
        if not found:
            raise ValueError("choose one source or more")
        return found


class ViewSpec(Spec):
    """How a network sees the images it is trained on."""

    image_size: int = Field(224, ge=16, le=1024, title="Image size", description="side of the square that the network sees, pixels")
    min_scale: float = Field(0.5, gt=0, le=1, title="Smallest crop", description="smallest share of an image that a random crop keeps")
    augment: Literal["none", "light", "course", "strong"] = Field(
        "course",
        title="Augmentation",
        description="course: fastai's aug_transforms (flip, rotate, zoom, warp, light); light: the same without flip and warp; strong: twice as much; none: the random crop alone",
    )


class LookSpec(ViewSpec):
    """Look at a dataset as a network will see it."""

    dataset: Name = Field(title="Dataset", description="dataset to look at")
    version: int | None = Field(None, ge=1, title="Dataset version", description="empty: the newest when the job is submitted")


class TrainSpec(ViewSpec):
    """Train a classifier: the recipe of the fastai course, each part of it a field with the course's default."""

    dataset: Name = Field(title="Dataset", description="dataset to train on")
    version: int | None = Field(None, ge=1, title="Dataset version", description="empty: the newest when the job is submitted")
    resize: Literal["squish", "crop", "pad"] = Field(
        "squish",
        title="Resize",
        description="how a whole image becomes a square: squish: squeezed, and all but a small margin kept; crop: its middle; pad: all of it, with black bars",
    )
    model: Name | None = Field(None, title="Model name", description="empty: the dataset's name; an existing model gets a new version")
    arch: Arch = Field(
        "resnet18",
        title="Architecture",
        description="network: " + ", ".join(ARCHITECTURES) + ", or any of timm, such as vit_tiny_patch16_224",
    )
    start: Start = Field(
        "imagenet",
        validate_default=True,
        title="Start from",
        description="imagenet: ImageNet weights; scratch: chance; or one of your models with the same architecture, as name, name/v3 or name@alias",
    )
    epochs: Epochs = Field(4, title="Epochs", description="epochs that train the network and not its head alone")
    frozen_epochs: int = Field(
        1, ge=0, le=100, title="Frozen epochs", description="epochs before those that train the new head alone; none from scratch"
    )
    frozen_stem: bool = Field(
        True,
        title="Frozen stem",
        description="leave the first layers, which see edges and textures, as they came; otherwise they learn at a hundredth of the rate, and a step takes 1.3 to 2 times as long; for resnet, squeezenet and densenet",
    )
    batch_size: int = Field(64, ge=2, le=2048, title="Batch size", description="images a step")
    base_lr: float = Field(2e-3, gt=0, le=1, title="Learning rate", description="fine_tune's base learning rate")
    find_lr: bool = Field(
        False, title="Find the learning rate", description="try learning rates first (lr_find) and use the one that is suggested"
    )
    weight_decay: float = Field(0.01, ge=0, le=1, title="Weight decay", description="how strongly weights are pulled to zero")
    mixup: float = Field(
        0, ge=0, le=2, title="Mixup", description="mix pairs of training images, alpha of the share; 0: none, 0.4 is usual"
    )
    label_smoothing: float = Field(
        0, ge=0, lt=1, title="Label smoothing", description="share of certainty withheld from training labels; 0: none, 0.1 is usual"
    )
    class_weights: bool = Field(False, title="Class weights", description="let rare classes count as much as common ones")
    patience: int = Field(
        0, ge=0, le=500, title="Patience", description="stop early when so many epochs did not lower the error rate; 0: never"
    )
    keep_best: bool = Field(
        True, title="Keep the best", description="the model is that of the epoch with the lowest error rate; otherwise of the last"
    )
    mixed_precision: Literal["auto", "on", "off"] = Field(
        "auto",
        title="Mixed precision",
        description="train with 16 bits where that loses nothing, which takes half the time; auto: where the processor or GPU has them",
    )
    gpus: int = Field(
        1, ge=1, le=16, title="GPUs", description="how many GPUs of one machine train together, each on its share of every batch"
    )
    progressive: bool = Field(
        False,
        title="Progressive resizing",
        description="train on smaller images first, on the full size in the last quarter of the epochs: a tenth of the time less, and a point or two more error in short trainings; validation always sees the full size",
    )
    valid_pct: float = Field(0.2, ge=0.01, le=0.9, title="Validation share", description="share of the images kept for validation")
    seed: int = Field(42, ge=0, le=2**31 - 1, title="Seed", description="of the split and of training")
    parent: ModelRef | None = Field(None, title="Retrain of", description="the model version whose form this was, kept as lineage")
    continues: JobId | None = Field(
        None,
        title="Goes on from",
        description="a training whose last finished epoch this one goes on from; one that is done gets `epochs` more",
    )
    rule: JobId | None = Field(None, title="Rule", description="the rule that ordered this, if it was one")
    notes: str = Field("", max_length=2000, title="Notes", description="kept with the model")

    @property
    def from_model(self) -> bool:
        """Whether training starts from one of our models."""
        return self.start not in {"imagenet", "scratch"}

    @property
    def frozen(self) -> int:
        """Epochs that train the head alone: none from scratch, where no body is worth freezing."""
        return 0 if self.start == "scratch" else self.frozen_epochs

    @property
    def keeps_stem(self) -> bool:
        """Whether the first layers are never trained: of networks that have a stem, and not from scratch, where none is worth keeping."""
        return self.frozen_stem and self.start != "scratch" and self.arch in ARCHITECTURES and self.arch.startswith(STEMS)

    @property
    def sides(self) -> list[int]:
        """The side of the images that each epoch trains on, pixels. Progressive ones grow from half to the whole in three quarters of the epochs, in steps that networks divide well."""
        epochs = self.frozen + self.epochs
        if not self.progressive or self.image_size < 2 * SMALL or epochs == 1:
            return [self.image_size] * epochs
        shares = [0.5 + n / (1.5 * (epochs - 1)) for n in range(epochs)]
        return [self.image_size if share >= 1 else max(SMALL, SIDE * round(self.image_size * share / SIDE)) for share in shares]

    @field_validator("gpus")
    @classmethod
    def check_gpus(cls, gpus: int, info: ValidationInfo) -> int:
        """Each of several has two images of a batch at least."""
        batch = info.data.get("batch_size", 2 * gpus)  # missing: it is at fault itself
        if gpus > 1 and batch < 2 * gpus:
            raise ValueError(f"{gpus} GPUs cannot share a batch of {batch} images; each needs two at least")
        return gpus

    @field_validator("start")
    @classmethod
    def check_weights(cls, start: str, known: ValidationInfo) -> str:
        """Of some networks nobody has published weights."""
        arch = known.data.get("arch")
        if start == "imagenet" and arch and not pretrained(arch):
            raise ValueError(f"there are no pretrained weights of {arch}; train it from scratch (start: scratch), or choose another")
        return start


class ClassifySpec(Spec):
    """Label a batch of images with a model."""

    model: ModelRef = Field(
        title="Model", description="name, name/v3 for a version, or name@alias; a name alone is the newest when the job is submitted"
    )
    source: Annotated[FolderSource | UploadSource | UrlsSource | ListSource | DatasetSource | FailedSource, Field(discriminator="kind")]
    precision: Literal["exact", "fast", "int8"] = Field(
        "fast",
        title="Precision",
        description="exact: 32 bits, the numbers that training saw; fast: 16 bits, and 32 where two labels are close; int8: 8 bits, on processors, for models whose labels it keeps",
    )
    top_k: int = Field(3, ge=1, le=20, title="Top k", description="how many labels with probabilities to keep of each image")
    review_below: float = Field(
        0.6, ge=0, le=1, title="Review below", description="an image whose probability is lower is marked for review"
    )
    priority: Literal["low", "normal", "high"] = Field(
        "normal", title="Priority", description="waiting batches of a higher priority are served first"
    )
    max_failure_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        title="Largest failure rate",
        description="the batch stops when a larger share of its images cannot be labelled, judged from the 100th image on; 1 never stops",
    )
    shard_size: int = Field(
        256, ge=1, le=10_000, title="Shard size", description="images a unit of work; a shard is what a dying worker loses"
    )


class ExportSpec(Spec):
    """Write a model in the form of ONNX, for other programs than Darkroom."""

    model: ModelRef = Field(title="Model", description="name, name/v3 or name@alias; a name alone is the newest when the job is submitted")


class PackSpec(Spec):
    """Write a dataset version as a zip, for other programs than Darkroom or for another installation."""

    dataset: Name = Field(title="Dataset", description="dataset to export")
    version: int | None = Field(None, ge=1, title="Dataset version", description="empty: the newest when the job is submitted")
    format: Literal["folder", "csv", "coco", "huggingface", "labelstudio"] = Field(
        "folder",
        title="Format",
        description="folder: a folder per class; csv: images and labels.csv; coco: annotations.json as COCO has it; huggingface: an image folder with metadata.jsonl; labelstudio: tasks.json",
    )


class AdoptSpec(Spec):
    """Make a version of a model out of the files of another installation."""

    model: Name = Field(title="Model name", description="name that the model gets here; an existing one gets a new version")
    upload: str = Field(pattern=UPLOAD_ID, description="id of the upload that holds model.safetensors and info.json")


SPECS: dict[str, type[Spec]] = {
    "import": ImportSpec,
    "scrape": ScrapeSpec,
    "look": LookSpec,
    "pack": PackSpec,
    "train": TrainSpec,
    "export": ExportSpec,
    "adopt": AdoptSpec,
    "classify": ClassifySpec,
}
AnySpec = ImportSpec | ScrapeSpec | LookSpec | PackSpec | TrainSpec | ExportSpec | AdoptSpec | ClassifySpec


def parse(kind: str, data: Any) -> AnySpec:
    """Validate `data` as the spec of `kind`. Raises Invalid with one sentence that names each field at fault."""
    try:
        return SPECS[kind].model_validate(data)  # type: ignore[return-value]
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> Invalid:
    """One sentence for the user out of pydantic's list of findings; `field` is the first field at fault."""
    findings = []
    for e in error.errors(include_url=False):
        where = ".".join(str(part) for part in e["loc"] if part not in SOURCES or len(e["loc"]) == 1)
        findings.append(f"{where or 'the spec'}: {e['msg'].removeprefix('Value error, ')}")
    first = error.errors()[0]["loc"]
    return Invalid("; ".join(findings) + ".", field=str(first[0]) if first else None)


def check(annotation: Any, value: Any) -> Any:
    """Validate one value against a type such as `Name`; returns it as validated. Raises Invalid."""
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise Invalid(error.errors()[0]["msg"].removeprefix("Value error, ") + ".") from None
