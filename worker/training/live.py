"""Tells how far a training is, and stops it when its job is cancelled or its loss is no number any more."""

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders

from shared.errors import DarkroomError
from shared.specs import TrainSpec
from worker.progress import Progress
from worker.training.checkpoints import Standing

EVERY = 0.25  # seconds between two updates
POINTS_PER_EPOCH = 300
POINTS = 3000  # of a whole run: all of them lie in memory that others need too
# of a batch, relative to a forward pass: a backward pass is twice that; a frozen body or stem has half of it
FORWARD, FROZEN, WHOLE = 1, 2, 3


class Watch(Callback):
    """Raises Cancelled between two batches, training or validating."""

    order = 70  # after fastai's Recorder (50) and ParamScheduler (60)

    def __init__(self, told: Progress) -> None:
        self.told = told  # fastai's own bar is called `progress`

    def after_batch(self) -> None:
        """Stop when the job was cancelled."""
        self.told.check()


class Live(Watch):
    """Publishes batches, losses and epochs of a run; one for the frozen and the unfrozen phase together.

    It writes into `standing`: a row each finished epoch, and the smoothed loss of the training batches, thinned.
    """

    def __init__(self, told: Progress, spec: TrainSpec, dls: DataLoaders, standing: Standing) -> None:
        super().__init__(told)
        self.standing = standing
        self.frozen_epochs = spec.frozen
        self.epochs = standing.earlier + spec.frozen + spec.epochs
        self.batches = len(dls.train)
        self.total = self.epochs * self.batches
        self.step = max(math.ceil(self.batches / POINTS_PER_EPOCH), math.ceil(self.total / POINTS))
        self.sides = spec.sides
        self.step_work = [
            (FROZEN if n < spec.frozen or spec.keeps_stem else WHOLE) * (side / spec.image_size) ** 2 for n, side in enumerate(self.sides)
        ]
        self.work = 0.0
        self.work_total = sum(self.batches * step + len(dls.valid) * FORWARD for step in self.step_work[standing.epochs :])
        self.device = device_name(dls.device, spec.gpus)
        self.done = len(standing.rows) * self.batches
        self.started = self.epoch_started = self.told_at = 0.0
        self.images = 0  # trained on in this epoch

    def begin(self) -> None:
        """Say what is to come, and what there is already."""
        self.started = time.monotonic()
        self.told.update(phase="training", device=self.device, done=self.done, total=self.total, epochs=self.epochs, batches=self.batches)
        self.told.anew("epochs")
        self.told.anew("loss")
        for row in self.standing.rows:
            self.told.row("epochs", row)
        for point in self.standing.points:
            self.told.row("loss", point)

    def before_train(self) -> None:
        """Start the clock of the epoch."""
        self.epoch_started = time.monotonic()
        self.images = 0

    def after_batch(self) -> None:
        """Count the batch and publish its loss. Raises Cancelled, and DarkroomError when the loss is no number."""
        super().after_batch()
        self.work += self.step_work[self.standing.epochs] if self.training else FORWARD
        if not self.training:
            self._tell()
            return
        self.done += 1
        self.images += len(self.y)
        loss = float(self.smooth_loss)
        self._check(loss)
        if (self.done - 1) % self.step == 0:
            self.standing.points.append([self.done, round(loss, 5)])
            self.told.row("loss", self.standing.points[-1])
        rate = round(self.images / (time.monotonic() - self.epoch_started), 1)
        self._tell(batch=self.iter + 1, done=self.done, loss=round(loss, 5), lr=float(self.opt.hypers[-1]["lr"]), images_per_second=rate)

    def after_epoch(self) -> None:
        """Note the row of the epoch, which `Keep` publishes when it is on storage. Raises DarkroomError when its loss is no number."""
        if not self.epoch_started:  # an epoch of before a crash, passed over
            return
        train_loss, valid_loss, error_rate = (round(float(value), 5) for value in self.recorder.values[-1])
        self._check(valid_loss)
        row = {"epoch": self.number, "frozen": self.frozen, "train_loss": train_loss, "valid_loss": valid_loss, "error_rate": error_rate}
        self.standing.rows.append({**row, "seconds": round(time.monotonic() - self.epoch_started, 2)})

    @property
    def number(self) -> int:
        """The epoch that runs, from 1, frozen epochs and those of a training that is prolonged counted."""
        return len(self.standing.rows) + 1

    @property
    def frozen(self) -> bool:
        """Whether the head alone is trained now."""
        return self.standing.epochs < self.frozen_epochs

    def history(self) -> dict[str, Any]:
        """`epochs` and `loss` for the report, at most 1,000 points."""
        points = self.standing.points
        return {"epochs": self.standing.rows, "loss": points[:: math.ceil(len(points) / 1000) or 1]}

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DarkroomError(
                f"The loss is no number any more in epoch {self.number}: training has diverged. Choose a smaller learning rate."
            )

    def _tell(self, **fields: Any) -> None:
        now = time.monotonic()
        if now - self.told_at < EVERY and self.done < self.total:
            return
        self.told_at = now
        left = (now - self.started) * (self.work_total - self.work) / self.work
        self.told.update(epoch=self.number, seconds_left=round(left), **memory(), **fields)


def memory() -> dict[str, int]:
    """What training holds now, in MB of a million bytes: of this process, and where there is one of the GPU, cached blocks counted."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    held = {"memory_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)}
    return held | ({"gpu_memory_mb": round(torch.cuda.memory_reserved() / 1e6)} if torch.cuda.is_available() else {})


def device_name(device: torch.device, how_many: int = 1) -> str:
    """The device as a person calls it, and how many of them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return name if how_many == 1 else f"{how_many} x {name}"
