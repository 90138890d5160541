"""Training on several GPUs of one machine: torchrun, a process (rank) a GPU, each with its share of every batch.

`fit` is what the job's child does: it starts the ranks, hands on what rank 0 tells, and reads the checkpoint that they leave. A rank does
what a training of one process does, `learn`, with two differences: its loaders give it a `share`, and `Together` makes one network of all.
On a machine without any GPU the ranks are processes on the processor.

The ranks meet through files and speak to the child through a socket, all in a folder that only this user can open, and to each other over
loopback. Nothing of it can be reached from the network. They die with torchrun, and torchrun with the child.
"""

import faulthandler
import os
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.data.core import TfmdDL
from fastai.torch_core import set_seed
from torch import distributed
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from shared.errors import DarkroomError
from shared.log import configure
from shared.settings import Settings
from shared.specs import TrainSpec
from shared.storage import Storage
from worker.child import die_with
from worker.device import ChildDied
from worker.progress import Progress
from worker.training import SMALLEST_BATCH, checkpoints, learn
from worker.training.checkpoints import Checkpoint, Standing
from worker.training.pictures import Sample
from worker.training.recipe import build_learner
from worker.training.weights import origin_of

LEAD = """
import sys
from worker.child import die_with
die_with(int(sys.argv[1]))
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main
try:
    main(sys.argv[2:])
except SignalException:  # it was told to end, and has ended the ranks
    sys.exit(1)
"""
SOCKET, STORE, MEETING = "child", "ranks", "torchrun"  # names in the folder
EVERY = 0.2  # seconds between two looks at whether the job was cancelled
PATIENCE = timedelta(minutes=10)  # that a rank waits for the others


@dataclass(frozen=True)
class Order:
    """What each rank is told. `standing` is where the training is, its batch size that of a whole step."""

    spec: TrainSpec
    job: str
    samples: list[Sample]
    standing: Standing
    settings: Settings


def check_machine(gpus: int, there: int, cores: int) -> None:
    """Raises DarkroomError unless a machine with so many GPUs and processor cores can train with `gpus` processes."""
    if there and gpus > there:
        raise DarkroomError(
            f"This training asks for {gpus} GPUs, and this machine has {there}. Ask for {there}, or start a worker on a machine with {gpus}."
        )
    if not there and gpus > cores:
        raise DarkroomError(
            f"This training asks for {gpus} GPUs, and this machine has none; its processor can stand in for {cores} at most, a core each. "
            f"Ask for fewer, or start a worker on a machine with {gpus} GPUs."
        )


def fit(order: Order, storage: Storage, progress: Progress) -> Checkpoint:
    """Train to the end of the spec's epochs; returns the last checkpoint.

    Raises Cancelled, what a rank has raised, and ChildDied when one ended without a word; then no process of them is left, and the
    checkpoint of the last finished epoch is.
    """
    spec = order.spec
    images = sum(not s.valid for s in order.samples)
    if min(order.standing.batch_size, images) < SMALLEST_BATCH * spec.gpus:
        raise DarkroomError(f"There are only {images} images to train on, too few for {spec.gpus} GPUs. Ask for fewer.")
    with tempfile.TemporaryDirectory(prefix="darkroom-ranks-") as folder, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{folder}/{SOCKET}")
        door.listen(spec.gpus)
        torchrun = subprocess.Popen(_command(spec.gpus, folder), env=_environment(spec.gpus))
        try:
            _listen(door, torchrun, order, progress)
        except BaseException:
            torchrun.terminate()  # it ends the ranks and what they have started
            raise
        finally:
            torchrun.wait()
            storage.clear_unfinished(f"checkpoints/{order.job}")
    kept = checkpoints.read(storage, order.job)
    assert kept is not None, "ranks that are done have left a checkpoint"  # noqa: S101
    return kept


def _command(gpus: int, folder: str) -> list[str]:
    """torchrun, which dies with this process. `--standalone` would open a port to everybody."""
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{folder}/{MEETING}", "--rdzv-conf", "store_type=file"]
    ranks = ["--nnodes", "1", "--nproc-per-node", str(gpus), "--local-addr", "localhost"]
    return [sys.executable, "-c", LEAD, str(os.getpid()), *ranks, *meeting, "-m", "worker.training.several", folder]


def _environment(gpus: int) -> dict[str, str]:
    """The processor's cores are shared, too; loopback is enough for one machine."""
    threads = max(1, len(os.sched_getaffinity(0)) // gpus)
    return {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **os.environ}


def _listen(door: socket.socket, torchrun: "subprocess.Popen[bytes]", order: Order, progress: Progress) -> None:
    """Give each rank its order and hand on what rank 0 tells, until all have said that they are done. Raises as `fit` does."""
    gpus = order.spec.gpus
    death = ChildDied(f"(one of {gpus}) was killed, crashed or stopped answering; usually the machine ran out of memory")
    ranks: list[Connection] = []
    done = 0
    while done < gpus:
        progress.check()
        ended = torchrun.poll() is not None  # before the last words are read
        ready = wait([door, *ranks], EVERY)
        if ended and not ready:
            raise death
        for one in ready:
            try:
                if one is door:
                    ranks.append(Connection(door.accept()[0].detach()))
                    ranks[-1].send(order)
                    continue
                said = one.recv()  # type: ignore[union-attr]
            except (EOFError, ConnectionError):
                raise death from None
            if isinstance(said, dict):
                progress.hand_on(said)
            elif said is None:
                done += 1
                ranks.remove(one)  # type: ignore[arg-type]
            elif _of_another(said):
                ranks.remove(one)  # type: ignore[arg-type] # that one has a word of its own, or none
            else:
                raise said


def _of_another(error: Exception) -> bool:
    """Whether a rank failed only because it does not hear from another."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


# -- a rank ------------------------------------------------------------------------------------------------------------


def join(folder: Path) -> None:
    """Do the work of one rank."""
    die_with(os.getppid())
    faulthandler.enable()
    # taken away, for fastai would gather every metric of every batch if it knew
    rank, ranks = int(os.environ.pop("RANK")), int(os.environ.pop("WORLD_SIZE"))
    child = Client(str(folder / SOCKET))
    os.register_at_fork(after_in_child=child.close)  # or a loader process would keep it open when the rank has died
    order: Order = child.recv()
    configure(order.settings.log_level)
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(rank)
        meet(folder / STORE, rank, ranks)
        _work(order, rank, ranks, child.send if rank == 0 else lambda _: None)
        distributed.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it is, the child must hear of it
        error.add_note(traceback.format_exc())
        child.send(error)
        sys.exit(1)
    child.send(None)


def meet(store: Path, rank: int, ranks: int) -> None:
    """Wait for the other ranks. `store`: a file that is not there yet, the same for all."""
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=distributed.FileStore(str(store), ranks), rank=rank, world_size=ranks, timeout=PATIENCE)


def _work(order: Order, rank: int, ranks: int, emit: Callable[[dict[str, Any]], None]) -> None:
    spec, standing = order.spec, order.standing
    storage = Storage(order.settings.storage, order.settings.cache)
    kept = checkpoints.found(storage, order.job, spec)
    learner = build_learner(spec.model_copy(update={"batch_size": standing.batch_size}), order.samples, origin_of(spec, storage))
    put_together(learner, rank, ranks)
    learn(learner, spec, order.job, kept, standing, storage if rank == 0 else None, Progress(emit))


def put_together(learner: Any, rank: int, ranks: int) -> None:
    """Make a learner one of several that train the same network; each of them is to be built alike."""
    whole = learner.dls.train.bs
    learner.dls.loaders = [share(dl, rank, ranks) for dl in learner.dls.loaders]
    learner.add_cb(Together(rank, ranks, learner.dls.train.bs / whole))


def share(dl: TfmdDL, rank: int, ranks: int) -> TfmdDL:
    """A loader of one rank's images: of each batch every `ranks`-th, so that all ranks together see the batches of one process.

    Nothing is padded: in validation a rank may have an image less than another, and so may its share of every batch in training.
    """
    images = len(dl) * dl.bs if dl.drop_last else dl.n
    part = dl.new(bs=len(range(rank, dl.bs, ranks)), num_workers=-(-dl.fake_l.num_workers // ranks))

    def mine(items: Any) -> list[int]:
        return [item for place, item in enumerate(items) if place < images and place % dl.bs % ranks == rank]

    def get_idxs() -> list[int]:
        dl.rng = part.rng  # the same in all ranks
        return mine(dl.get_idxs())

    part.get_idxs, part.n = get_idxs, len(mine(range(dl.n)))
    return part


class Together(Callback):
    """Makes one network of those of all ranks: in each step the gradient of the whole batch, after each epoch the figures of all images.

    `part`: this rank's part of a batch, by which its loss is weighted. In the place of fastai's DistributedTrainer, which needs
    accelerate, and a GPU even to shuffle.
    """

    order = 11  # after Bf16, whose hooks stay with the network itself; before Recorder

    def __init__(self, rank: int, ranks: int, part: float) -> None:
        self.rank, self.ranks, self.part = rank, ranks, part

    def before_fit(self) -> None:
        """On GPUs batches are normalised as a whole; torch cannot do that on a processor."""
        if torch.cuda.is_available():
            self.learn.model = SyncBatchNorm.convert_sync_batchnorm(self.model)

    def before_train(self) -> None:
        """Wrap the network, anew each epoch, so that one after a crash adds up in the same order as one without. Crops differ by rank."""
        set_seed(torch.initial_seed() + self.rank)
        device = [torch.cuda.current_device()] if torch.cuda.is_available() else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the option has a new name, which older versions do not know
            self.learn.model = DistributedDataParallel(self.model, device_ids=device, broadcast_buffers=False)

    def after_loss(self) -> None:
        """Weight it: gradients are averaged as if all parts were equal."""
        if self.training:
            self.learn.loss_grad = self.loss_grad * (self.part * self.ranks)

    def after_batch(self) -> None:
        """Everybody knows the loss of the whole batch."""
        if self.training:
            loss = self.loss.detach().as_subclass(torch.Tensor) * self.part
            distributed.all_reduce(loss)
            self.learn.loss = loss

    def after_train(self) -> None:
        """Unwrap, and average what batch normalisation has seen; so the ranks are one network again."""
        self.after_fit()
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer.div_(self.ranks)

    def after_validate(self) -> None:
        """Sum the figures of all ranks."""
        for metric in [self.recorder.loss, *self.metrics]:
            figures = torch.tensor([metric.total, metric.count], dtype=torch.float64, device=self.dls.device)
            distributed.all_reduce(figures)
            metric.total, metric.count = figures.tolist()

    def after_fit(self) -> None:
        """Unwrap also when an epoch was broken off."""
        if isinstance(self.model, DistributedDataParallel):
            self.learn.model = self.model.module


if __name__ == "__main__":
    join(Path(sys.argv[1]))
