"""A file of weights and an info.json from outside, looked at before anything is built or loaded from them: both are hostile until proven otherwise.

The file is safetensors: eight bytes with the length of a JSON header, the header ({name: dtype, shape, offsets}), and the numbers. Nothing
in it can run, and its header says how much memory it will take. A pickle can run anything; it is never opened.
"""

import json
import math
from collections.abc import Mapping
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from shared.errors import Invalid
from shared.specs import Arch, ClassName, Name, Version, invalid

MAX_HEADER = 16 * 2**20  # bytes; a tensor takes a hundred
MAX_AXES = 8  # of a tensor
MAX_INFO = 2**20  # bytes of an info.json
LEAST_STD = 0.001  # of a channel of pixels in [0, 1]: less would make noise of them
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
PICKLE = (
    "The file is a pickle, as .pkl, .pt and .pth files are: whoever opens one runs whatever code is in it, so Darkroom never does. "
    "Where the model comes from, save its weights as safetensors, `safetensors.torch.save_file(model.state_dict(), 'model.safetensors')`; "
    "a model of Darkroom has them beside its export.pkl."
)


def key(upload: str, file: str) -> str:
    """Where a file of an uploaded model lies on storage. `file`: model.safetensors or info.json."""
    return f"uploads/{upload}.{file}"


def check_safetensors(file: IO[bytes], size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors that a file of `size` bytes holds, {name: (dtype, shape)}; only its header is read. Raises Invalid, with what it is instead."""
    head = file.read(9)
    length = int.from_bytes(head[:8], "little")
    if size < 10 or length > min(MAX_HEADER, size - 8) or head[8:] != b"{":
        raise Invalid(_what_it_is(head), field="weights")
    try:
        header = json.loads(head[8:] + file.read(length - 1))
        header.pop("__metadata__", None)
        tensors = {str(name): _tensor(told) for name, told in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Invalid("The header of the safetensors file cannot be read; the file is damaged. Fetch it again.", field="weights") from None
    at = 0
    for begin, end in sorted(stretch for _, _, stretch in tensors.values()):
        if begin != at:
            raise Invalid(
                "The tensors of the safetensors file overlap or leave gaps; the file is damaged. Fetch it again.", field="weights"
            )
        at = end
    if at != size - 8 - length:
        raise Invalid(f"The safetensors file should have {at + 8 + length:,} bytes and has {size:,}. Fetch it again.", field="weights")
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def _tensor(told: Mapping[str, Any]) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, (begin, end)) of one entry of a header. Raises ValueError, TypeError, KeyError."""
    dtype, shape, (begin, end) = told["dtype"], tuple(told["shape"]), told["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**48 for number in (*shape, begin, end)) or len(shape) > MAX_AXES:
        raise ValueError(told)
    if end - begin != BYTES[dtype] * math.prod(shape):
        raise ValueError(told)
    return dtype, shape, (begin, end)


def _what_it_is(head: bytes) -> str:
    """Why a file that begins so is no safetensors."""
    if head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":  # a bare pickle, or torch's zip of one
        return PICKLE
    return "The file is no safetensors file. Choose the model.safetensors of a model version."


def _or_none(value: Any, check: Any) -> Any:
    try:
        return check(value)
    except ValidationError:
        return None


class _Told(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


Sane = WrapValidator(_or_none)  # what a model can do without is left out when it is no such value
Rate = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[list[Annotated[float, Field(ge=-10, le=10)]], Field(min_length=3, max_length=3)]


class Fast(_Told):
    """How the 16-bit form was found: `close`, the lead of the best class over the second, nats, below which 32 bits look again."""

    close: Rate


class ModelInfo(_Told):
    """What is taken over from the info.json of another installation, each value checked; whatever else it holds is passed over."""

    arch: Arch
    classes: list[ClassName] = Field(min_length=2, max_length=20_000)
    image_size: int = Field(ge=16, le=1024)
    resize: Literal["squish", "crop", "pad"] = "squish"
    mean: Channels | None
    std: Channels | None
    temperature: Annotated[float | None, Field(gt=0, le=1000), Sane] = None
    fast: Annotated[Fast | None, Sane] = None
    model: Annotated[Name | None, Sane] = None
    version: Annotated[Version | None, Sane] = None
    error_rate: Annotated[Rate | None, Sane] = None
    created: Annotated[float | None, Field(ge=0, le=1e11), Sane] = None

    @model_validator(mode="after")
    def check_values(self) -> "ModelInfo":
        """Classes differ, and pixels can be divided by `std`."""
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        if (self.mean is None) != (self.std is None) or min(self.std or [1.0]) < LEAST_STD:
            raise ValueError(f"mean and std must be three numbers each, those of std at least {LEAST_STD}, or null both")
        return self


def read_info(data: bytes) -> ModelInfo:
    """The info.json of a model. Raises Invalid."""
    if len(data) > MAX_INFO:
        raise Invalid(
            f"The info.json has more than {MAX_INFO:,} bytes, so it is none. Choose the info.json of a model version.", field="info"
        )
    try:
        return ModelInfo.model_validate_json(data)
    except ValidationError as error:
        said = str(invalid(error))
        raise Invalid(f"The info.json does not fit: {said if len(said) < 500 else said[:500] + '...'}", field="info") from None
