"""Pictures of a dataset as a network will see it, kept on storage so that they are made once."""

from typing import Any

from shared.specs import LookSpec
from shared.storage import Storage, version_name

# in the order they are shown; worker/training/looks.py makes them
STRIPS = ("files", "batch", "resize", "crop", "augment")


def key(spec: LookSpec) -> str:
    """What distinguishes two looks at the same version: `224-0.5-course`."""
    return f"{spec.image_size}-{spec.min_scale:g}-{spec.augment}"


def path(dataset: str, version: int, look: str, file: str) -> str:
    """Where a file of a look lies on storage."""
    return f"looks/{dataset}/{version_name(version)}/{look}/{file}"


def index(storage: Storage, spec: LookSpec, version: int) -> dict[str, Any] | None:
    """What was looked at: the spec, and the `labels` of the pictures; None if nobody has looked yet."""
    file = path(spec.dataset, version, key(spec), "index.json")
    return storage.read_json(file) if storage.exists(file) else None
