"""Rules: retrain a model by itself when a dataset has gained so many images that its newest version was not trained on.

`rules/<id>/rule.json` is what a person made, and never changes; a rule exists if and only if this file does. `rules/<id>/last.json`
is what came of looking at it last, written by whoever looks: so nobody who deletes a rule meets somebody who writes it. Workers look
(worker/sweeper.py). Whoever looks, and however many at once: the order of a rule for a version of a dataset has an Idempotency-Key
of its own, and is given once.
"""

import time
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from shared import datasets, models
from shared.errors import Conflict, DarkroomError, NotFound, Unavailable
from shared.jobs import ID, new_id
from shared.orders import Desk, submit
from shared.specs import JobId, Name, Spec, invalid
from shared.storage import Storage, store_errors, versions


class Wish(Spec):
    """What a person asks for: retrain `model` when `dataset` has gained so many images."""

    dataset: Name = Field(title="Dataset", description="dataset that is watched")
    gained: int = Field(
        ge=1, le=10_000_000, title="Images gained", description="so many images that the model's newest version was not trained on"
    )
    model: Name = Field(title="Model", description="model that gets a new version, with the spec of its newest one")
    start: Literal["model", "imagenet", "scratch"] = Field(
        "model", title="Start from", description="model: the weights of its newest version; imagenet: ImageNet weights; scratch: chance"
    )


class Rule(Wish):
    """A wish that was kept. `created`: seconds since 1970."""

    id: JobId
    created: float

    def __str__(self) -> str:
        images = "1 image" if self.gained == 1 else f"{self.gained:,} images"
        return f"retrain {self.model} when {self.dataset} has gained {images}"


def make(storage: Storage, data: Any) -> Rule:
    """Keep a rule. Raises Invalid, NotFound for a dataset or model that is not there, and Conflict for a second rule for the two."""
    try:
        wish = Wish.model_validate(data)
    except ValidationError as error:
        raise invalid(error) from None
    datasets.latest(storage, wish.dataset)
    models.retraining(models.info(storage, *models.resolve(storage, wish.model)))
    if any(rule.model == wish.model for rule in found(storage, wish.dataset)):
        raise Conflict(f"There is a rule already that retrains {wish.model} when {wish.dataset} grows. Delete it first.")
    rule = Rule(**wish.model_dump(), id=new_id(), created=time.time())
    storage.write_json(_key(rule.id, "rule"), rule.model_dump())
    return rule


def found(storage: Storage, dataset: str | None = None) -> list[Rule]:
    """The rules, of one dataset if it is named, the oldest first. Raises DarkroomError when a file was damaged."""
    there = []
    for rule_id in storage.list("rules"):
        try:
            there.append(get(storage, rule_id))
        except NotFound:  # deleted
            continue
    return [rule for rule in there if dataset in {None, rule.dataset}]


def get(storage: Storage, rule_id: str) -> Rule:
    """A rule. Raises NotFound, and DarkroomError when its file was damaged."""
    if not ID.fullmatch(rule_id):
        raise NotFound(f"There is no rule {rule_id[:40]!r}.")
    try:
        return Rule.model_validate(_read(storage, _key(rule_id, "rule")))
    except NotFound:
        raise NotFound(f"There is no rule {rule_id!r}.") from None
    except ValidationError:
        raise _damaged(_key(rule_id, "rule")) from None


def delete(storage: Storage, rule_id: str) -> None:
    """Delete a rule; what it has ordered goes on. Raises NotFound."""
    get(storage, rule_id)
    storage.delete(_key(rule_id, "rule"))  # first: from here on there is no rule
    storage.delete(f"rules/{rule_id}")


def last(storage: Storage, rule_id: str) -> dict[str, Any]:
    """What came of looking at a rule last, empty if nobody has looked. Raises DarkroomError when its file was damaged.

    Keys: at (seconds since 1970); version of the dataset and model_version that it was looked at with (None: there is none); gained;
    error (a sentence, None if all is well); ordered (version of the dataset for which it ordered last) and job (that order), or None.
    """
    try:
        return _read(storage, _key(rule_id, "last"))
    except NotFound:
        return {}


def look(desk: Desk, rule: Rule) -> None:
    """Order a training if it is time. Raises Unavailable when that cannot be said now; whatever else is wrong is kept with the rule.

    Nothing is looked at twice: only a new version of the dataset or of the model is a reason to. While what it ordered last is under
    way the rule waits, for nobody knows yet what the next version will have seen.
    """
    storage, before = desk.storage, last(desk.storage, rule.id)
    seen = {"version": _newest(storage, f"datasets/{rule.dataset}"), "model_version": _newest(storage, f"models/{rule.model}")}
    if all(name in before and before[name] == value for name, value in seen.items()) or _under_way(desk, before.get("job")):
        return
    now: dict[str, Any] = {**seen, "gained": None, "error": None, "ordered": before.get("ordered"), "job": before.get("job")}
    try:
        info = models.info(storage, *models.resolve(storage, rule.model))
        version = datasets.info(storage, rule.dataset)["version"]
        now["gained"] = gained(storage, rule.dataset, version, info.get("dataset"))
        if now["gained"] >= rule.gained and version != now["ordered"]:
            start = "" if rule.start == "model" else rule.start
            spec = models.retraining(info, start, dataset=rule.dataset, version=version, rule=rule.id, notes=f"Ordered by a rule: {rule}.")
            now |= {"job": submit(desk, "train", spec, f"rule-{rule.id}-v{version}").id, "ordered": version}
    except Unavailable:
        raise
    except DarkroomError as error:
        now["error"] = str(error)
    if storage.exists(_key(rule.id, "rule")):
        storage.write_json(_key(rule.id, "last"), {**now, "at": time.time()})


def look_at_all(desk: Desk) -> list[str]:
    """Look at every rule; returns a sentence for each that could not be looked at now."""
    wrong = []
    for rule_id in desk.storage.list("rules"):
        try:
            look(desk, get(desk.storage, rule_id))
        except NotFound:  # deleted
            continue
        except (DarkroomError, ValueError) as error:  # ValueError: a damaged file
            wrong.append(f"{rule_id}: {error}")
        except store_errors() as error:
            wrong.append(f"{rule_id}: {error}")
    return wrong


def gained(storage: Storage, dataset: str, version: int, trained_on: dict[str, Any] | None) -> int:
    """How many images a dataset version keeps that another does not, {name, version}: not one that is more or less, but those that are new.

    A picture under another label is none; one of the bytes in two versions is one. Without another every image is new. Raises NotFound.
    """
    there = _hashes(storage, dataset, version)
    known = _hashes(storage, trained_on["name"], trained_on["version"]) if trained_on else pa.array([], pa.string())
    return len(there) - int(pc.sum(pc.is_in(there, value_set=known)).as_py() or 0)


def _hashes(storage: Storage, dataset: str, version: int) -> pa.Array:
    """The SHA-256 of each image that a version keeps, as Arrow holds them: a million take 64 MB."""
    batches = datasets.row_batches(storage, dataset, version, ["sha256", "status"])
    kept = [batch["sha256"].filter(pc.equal(batch["status"], "kept")) for batch in batches]
    return pa.concat_arrays(kept).unique() if kept else pa.array([], pa.string())


def _newest(storage: Storage, parent: str) -> int | None:
    return max(versions(storage, parent), default=None)


def _under_way(desk: Desk, job_id: str | None) -> bool:
    try:
        return bool(job_id) and not desk.store.get(job_id or "").state.terminal
    except NotFound:  # the ledger was lost, and nobody has recovered it
        return False


def _read(storage: Storage, key: str) -> dict[str, Any]:
    try:
        return storage.read_json(key)  # type: ignore[no-any-return]
    except ValueError:
        raise _damaged(key) from None


def _damaged(key: str) -> DarkroomError:
    return DarkroomError(f"The file {key} of the storage cannot be read. Delete it, and make the rule again if it is gone.")


def _key(rule_id: str, file: str) -> str:
    return f"rules/{rule_id}/{file}.json"
