"""The model registry on storage: versions with their lineage.

`models/<name>/v0001/` holds model.safetensors (the weights), int8.xml and int8.bin (the 8-bit form for processors, if it
is good enough), export.pkl (for notebooks; offered for download, never loaded here), report.json, validation.parquet (a row a
validation image, read by `validation.py`), model.onnx if somebody asked for it, and, last, info.json. An imported model has weights and
info.json alone. Aliases are in `aliases.py`.
"""

import time
from typing import Any

from shared import aliases
from shared.errors import Conflict, Invalid, NotFound
from shared.specs import Name, check, parse_model_ref
from shared.storage import Storage, version_name, versions


def key(name: str, version: int, file: str) -> str:
    """Where a file of a model version lies on storage."""
    return f"models/{name}/{version_name(version)}/{file}"


def checkpoint_key(job: str) -> str:
    """Where a training keeps its last finished epoch."""
    return f"checkpoints/{job}/last.safetensors"


def names(storage: Storage) -> list[str]:
    """Names of the models that have a version."""
    return [name for name in storage.list("models") if versions(storage, f"models/{name}")]


def resolve(storage: Storage, ref: str) -> tuple[str, int]:
    """`"clothing"` -> its newest version, `"clothing/v3"` -> that one, `"clothing@production"` -> where the alias points. Raises Invalid or NotFound."""
    try:
        name, version = parse_model_ref(ref)
    except ValueError as error:
        raise Invalid(f"{error}.", field="model") from None
    found = versions(storage, f"models/{name}")
    if not found:
        raise NotFound(f"There is no model {name!r}. `darkroom model list` shows what there is.")
    if isinstance(version, str):
        pointed = aliases.pointed(storage, name)
        if version not in pointed:
            there = f"there is {', '.join(pointed)}" if pointed else "it has none"
            raise NotFound(f"The model {name!r} has no alias {version!r}; {there}.")
        version = pointed[version]
    if version is not None and version not in found:
        raise NotFound(f"There is no version {version} of the model {name!r}; there is {', '.join(f'v{v}' for v in found)}.")
    return name, version or found[-1]


def info(storage: Storage, name: str, version: int) -> dict[str, Any]:
    """The info of a version. Raises NotFound.

    Keys: model, version, created (seconds since 1970), job, arch, classes (list, in the order of the outputs), image_size, resize (how an image becomes a square),
    spec (the TrainSpec), dataset ({name, version, hash, images}), parent, error_rate, valid_images, train_images,
    test_images (that the dataset's import keeps for tests, for neither of the two; missing for models from before they were),
    train_seconds, epochs (rows), best_epoch (whose weights these are, from 1), temperature (that the last layer was divided by; missing for
    models from before there was one), base_lr, batch_size, mixed_precision, remarks (sentences), device, gpus (missing for models from before there could be several), libraries ({name: version}), int8 ({offered, agreement: share of validation images with
    the exact network's label, images; if offered close: lead of the best class over the second, nats, below which the exact network
    looks again, twice: share of images it looks at} or {offered: False, why}; missing for models from before there was one), fast
    (the same of 16 bits; missing where the machine that trained has none).

    Of an imported model only model, version, created, job, arch, classes, image_size, resize, mean, std and int8 are there, `close` of fast and
    temperature if they were told, and imported: {at (seconds since 1970), job, from: {model, version, error_rate, created}, what was told of them}.
    """
    check(Name, name)
    try:
        return storage.read_json(key(name, version, "info.json"))  # type: ignore[no-any-return]
    except NotFound:
        raise NotFound(f"There is no version {version} of the model {name!r}.") from None


def report(storage: Storage, name: str, version: int) -> dict[str, Any]:
    """The evaluation report of a version, on its validation images. Raises NotFound.

    Keys: classes (list), confusion (rows are actual, columns predicted, counts), per_class (list of {label, precision,
    recall, f1, support}), top_losses (list of {sha256, ext, actual, predicted, probability, loss}), most_confused
    (list of {actual, predicted, count}), error_rate, interval ([low, high], 95 %), epochs (rows), loss (points [batch, loss]),
    calibration (`shared.validation` tells what is in it, as the model is; and temperature, why: a sentence if that is not the best one, before:
    bins and error without it; older models have bins and error alone), threshold (for 95 %, as `shared.validation` tells), lr_curve ([rate, loss], empty unless rates were tried), mistakes (list of {sha256, ext, actual, predicted, probability}),
    suspects (list of {sha256, ext, actual, suggested, probability, given (the probability of the actual label)}, images whose label is probably wrong, the
    worst first, at most 200; missing for models from before they were looked for).
    """
    if "imported" in info(storage, name, version):
        raise NotFound(f"{name}/v{version} was imported; its report stayed where it was trained.")
    return storage.read_json(key(name, version, "report.json"))  # type: ignore[no-any-return]


def check_start(info: dict[str, Any], arch: str) -> None:
    """Raises Invalid unless a training of the architecture can start from the model with this info."""
    if info["arch"] != arch:
        raise Invalid(
            f"{info['model']}/v{info['version']} is a {info['arch']}, and its weights do not fit a {arch}. "
            f"Choose {info['arch']}, or start from something else.",
            field="start",
        )


def retraining(info: dict[str, Any], start: str = "", **changes: Any) -> dict[str, Any]:
    """The TrainSpec, as data, that makes the next version of the model with this info: on its dataset's newest version, with `changes`.

    `start`: empty means from the weights of this version. Raises Invalid for a version whose recipe is not known.
    """
    ref = f"{info['model']}/v{info['version']}"
    if not info.get("spec"):
        raise Invalid(f"{ref} was not trained here, so how is not known. Train a model of this name instead.", field="model")
    own = {"version": None, "model": info["model"], "parent": ref, "start": start or ref, "continues": None, "rule": None, "notes": ""}
    return {**info["spec"], **own, **changes}


def delete(storage: Storage, name: str, version: int) -> None:
    """Delete a version that no alias points to. Its number is not given again. Raises NotFound, Conflict."""
    info(storage, name, version)
    if pointing := [alias for alias, target in aliases.pointed(storage, name).items() if target == version]:
        raise Conflict(f"{name}/v{version} is {', '.join(pointing)}. Let the alias point to another version first.")
    storage.write_json(key(name, version, "deleted.json"), {"at": time.time()})  # the folder stays, and with it the number
    for file in (
        "info.json",
        *(f for f in storage.list(f"models/{name}/{version_name(version)}") if f not in {"info.json", "deleted.json"}),
    ):
        storage.delete(key(name, version, file))


def all_versions(storage: Storage, name: str) -> list[dict[str, Any]]:
    """The info of every version of a model, newest first. Raises NotFound."""
    resolve(storage, name)
    return [info(storage, name, number) for number in reversed(versions(storage, f"models/{name}"))]
