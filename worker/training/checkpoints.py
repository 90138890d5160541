"""What a training leaves after each epoch, so that it goes on from there whatever happens to it.

`checkpoints/<job>/last.safetensors` holds the weights, the optimizer's state and the best weights so far; its header says, as JSON,
how far the training is. It is replaced as a whole, so that there is always a whole one. There are no random states in it:
every epoch draws from a seed of its own (`recipe.Seeds`).
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from safetensors import SafetensorError
from safetensors.torch import load, save

from shared.errors import DarkroomError, NotFound
from shared.models import checkpoint_key
from shared.specs import TrainSpec
from shared.storage import Storage
from worker.progress import Progress

# what may differ between a training and the one it goes on from
FREE = {"model", "notes", "parent", "continues", "rule", "gpus"}
# what must be the same where a finished training gets more epochs
BOUND = ("dataset", "version", "arch", "image_size", "valid_pct", "seed")

Tensors = dict[str, torch.Tensor]


@dataclass
class Standing:
    """How far a training is: what its live part knows, and all that a checkpoint holds besides tensors.

    `rows`: one a finished epoch; `earlier`: how many of them belong to the training that this one prolongs; `points`: [batch,
    smoothed loss]; `smooth`: fastai's running loss, its value and count; `best`: the epoch with the lowest error rate, from 1;
    `base_lr` and `lr_curve` ([rate, loss]): what was found when the spec says so; `batch_size`: what is left of the spec's after
    halving; `over`: all epochs are done, or it was stopped early.
    """

    batch_size: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    points: list[list[float]] = field(default_factory=list)
    earlier: int = 0
    smooth: tuple[float, int] = (0.0, 0)
    best: int = 0
    base_lr: float | None = None
    lr_curve: list[list[float]] = field(default_factory=list)
    over: bool = False

    @property
    def epochs(self) -> int:
        """Finished epochs of this training alone."""
        return len(self.rows) - self.earlier


@dataclass
class Checkpoint:
    """A training as it was after an epoch."""

    spec: TrainSpec
    standing: Standing
    weights: Tensors
    optimizer: list[dict[str, Any]]  # a dict a parameter, tensors and numbers
    best: Tensors  # empty: the weights are the best


def write(storage: Storage, job: str, spec: TrainSpec, learner: Learner, standing: Standing, best: Tensors) -> None:
    """Keep a learner as it stands in place of the checkpoint before. Raises OSError, and then the one before is still there."""
    tensors = {f"model.{name}": value for name, value in weights_of(learner).items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    numbers: list[dict[str, Any]] = []
    for i, state in enumerate(learner.opt.state_dict()["state"]):
        numbers.append({name: value for name, value in state.items() if not isinstance(value, torch.Tensor)})
        tensors |= {f"optimizer.{i}.{name}": _plain(value) for name, value in state.items() if isinstance(value, torch.Tensor)}
    head = {"spec": spec.model_dump(), "standing": asdict(standing), "optimizer": numbers}
    storage.write(checkpoint_key(job), save(tensors, {"darkroom": json.dumps(head)}))


def read(storage: Storage, job: str) -> Checkpoint | None:
    """The checkpoint of a training, None if it has none. Raises DarkroomError when it cannot be read."""
    try:
        data = storage.read(checkpoint_key(job))
    except NotFound:
        return None
    try:
        tensors = load(data)
        head = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["darkroom"])
        optimizer = head["optimizer"]
        for name, value in _below("optimizer.", tensors).items():
            i, _, number = name.partition(".")
            optimizer[int(i)][number] = value
        return Checkpoint(
            TrainSpec(**head["spec"]),
            Standing(**head["standing"]),
            _below("model.", tensors),
            optimizer,
            _below("best.", tensors),
        )
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DarkroomError(
            f"The checkpoint {checkpoint_key(job)} cannot be read ({error}). Delete it, and train from the beginning."
        ) from None


def found(storage: Storage, job: str, spec: TrainSpec) -> Checkpoint | None:
    """What a training goes on from: its own last epoch, or that of the job it continues; None: it begins.

    Raises DarkroomError when there is none of the job it continues, or when it is of another training.
    """
    own = read(storage, job)
    if own or spec.continues is None:
        return own
    kept = read(storage, spec.continues)
    if kept is None:
        raise DarkroomError(
            f"The job {spec.continues} has left no checkpoint: it ended before its first epoch did. Train from the beginning."
        )
    now, then = spec.model_dump(), kept.spec.model_dump()
    prolongs = kept.standing.over and _done(storage, spec.continues)
    fields = BOUND if prolongs else tuple(now.keys() - FREE)
    if differ := sorted(name for name in fields if now[name] != then[name]):
        raise DarkroomError(
            f"The job {spec.continues} cannot go on with another {', '.join(differ)}. Train from the beginning, or start from its model."
        )
    if prolongs:  # more epochs, a cycle of their own
        kept.standing.earlier, kept.standing.over = len(kept.standing.rows), False
    return kept


def _done(storage: Storage, job: str) -> bool:
    """Whether a training has made its model; otherwise all that is left of one whose epochs are over is to publish it."""
    try:
        return bool(storage.read_json(f"jobs/{job}.json")["state"] == "done")
    except NotFound:  # trained without a ledger
        return True


def put_weights_back(learner: Learner, kept: Checkpoint) -> None:
    """Give a new learner the weights of a checkpoint. Raises DarkroomError when they do not fit."""
    try:
        learner.model.load_state_dict(kept.weights, strict=True)
    except RuntimeError:  # its message is a page of layer names
        raise DarkroomError("The checkpoint does not fit this training: it is of another network. Train from the beginning.") from None


def _put_optimizer_back(learner: Learner, kept: Checkpoint) -> None:
    """In the parameters' own order of memory: another is gone through by other instructions, which round otherwise."""
    for (parameter, _, state, _), before in zip(learner.opt.all_params(), kept.optimizer, strict=True):
        for name, value in before.items():
            tensor = isinstance(value, torch.Tensor)
            state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value) if tensor else value


class Keep(Callback):
    """Writes a checkpoint after each epoch and then tells of it, remembers the best weights, and stops early when there is nothing more to gain."""

    order = 71  # after Live has the row of the epoch

    def __init__(
        self, storage: Storage | None, job: str, spec: TrainSpec, standing: Standing, kept: Checkpoint | None, told: Progress
    ) -> None:
        """`storage`: None where another of several processes writes."""
        self.storage, self.job, self.spec, self.standing, self.told = storage, job, spec, standing, told
        self.best: Tensors = kept.best or kept.weights if kept else {}
        self.seen = len(standing.rows)
        self.kept = kept

    def before_train(self) -> None:
        """Go on with optimizer and running loss as they were. A cycle that follows another begins without: `freeze_to` clears them."""
        kept, self.kept = self.kept, None
        if kept and (self.epoch or not self.standing.epochs):
            _put_optimizer_back(self.learn, kept)
            value, self.recorder.smooth_loss.count = self.standing.smooth
            self.recorder.smooth_loss.val = torch.tensor(value)

    def after_epoch(self) -> None:
        """Keep the learner as it is now. Raises OSError when the storage cannot be written."""
        standing = self.standing
        if len(standing.rows) == self.seen:  # an epoch of before, passed over
            return
        self.seen = len(standing.rows)
        if best_epoch(standing.rows) == self.seen:
            standing.best = self.seen
            self.best = {name: value.clone() for name, value in weights_of(self.learn).items()}
        smooth = self.recorder.smooth_loss
        standing.smooth = (float(smooth.val), smooth.count)
        stop = stale(self.spec, standing)
        standing.over = stop or standing.epochs == self.spec.frozen + self.spec.epochs
        if self.storage:
            write(self.storage, self.job, self.spec, self.learn, standing, self.best if standing.best < self.seen else {})
        self.told.kept()
        self.told.row("epochs", standing.rows[-1])
        if stop:
            raise CancelFitException


def stale(spec: TrainSpec, standing: Standing) -> bool:
    """Whether patience is over: it begins with the best epoch, but not before the whole network is trained, nor in an earlier training."""
    since = max(standing.best, standing.earlier + spec.frozen)
    return 0 < spec.patience <= len(standing.rows) - since


def best_epoch(rows: list[dict[str, Any]]) -> int:
    """The epoch, from 1, with the lowest error rate; of several the one with the lowest validation loss."""
    return min(range(len(rows)), key=lambda i: (rows[i]["error_rate"], rows[i]["valid_loss"])) + 1


def weights_of(learner: Learner) -> Tensors:
    """The weights by name, on the processor, contiguous: safetensors writes no views."""
    return {name: _plain(value) for name, value in learner.model.state_dict().items()}


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().cpu().contiguous()


def _below(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
