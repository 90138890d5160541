"""One way of training a classifier on photographs, alone in a process of its own: `python -m benchmarks.trainers NAME FOLDER`.

FOLDER holds run.json (`Run`), and for Darkroom a storage with the dataset. The last line on standard output is JSON: `seconds`
from the call until the last epoch is over, with all that is prepared for it; `whole_seconds` until a model can be used; `last`, the error rate of the last epoch;
`wrong`, how many of the photographs
in `judged`, which training has not seen, are labelled wrongly by the model that was exported.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worker.device import SPINS


@dataclass(frozen=True)
class Run:
    """What every contender gets: paths of photographs, each in a folder named for its class, and the recipe's few numbers."""

    train: list[str]
    valid: list[str]
    judged: list[str]
    arch: str
    epochs: int
    seed: int
    dataset: str

    def keep(self, folder: Path) -> Path:
        """Write it into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(asdict(self)))
        return folder


def course(run: Run, folder: Path) -> dict[str, Any]:
    """The recipe of the fastai course as its chapter writes it."""
    import torchvision
    from fastai.callback import progress, schedule  # noqa: F401 - importing them gives a Learner no_bar and fine_tune
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import IndexSplitter, parent_label
    from fastai.metrics import error_rate
    from fastai.torch_core import set_seed
    from fastai.vision.augment import RandomResizedCrop, aug_transforms
    from fastai.vision.data import ImageBlock
    from fastai.vision.learner import vision_learner

    set_seed(run.seed, reproducible=True)
    files = [Path(path) for path in run.train + run.valid]
    started = time.perf_counter()
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=list,
        splitter=IndexSplitter(range(len(run.train), len(files))),
        get_y=parent_label,
        item_tfms=RandomResizedCrop(224, min_scale=0.5),
        batch_tfms=aug_transforms(),
    )
    learn = vision_learner(block.dataloaders(files), getattr(torchvision.models, run.arch), metrics=error_rate)
    with learn.no_bar():
        learn.fine_tune(run.epochs)
    seconds = time.perf_counter() - started
    learn.export(folder / "export.pkl")
    last = float(learn.recorder.values[-1][-1])
    return {"seconds": seconds, "whole_seconds": time.perf_counter() - started, "last": last}


def darkroom(run: Run, folder: Path) -> dict[str, Any]:
    """Darkroom's pipeline with its defaults, but for the last epoch, which the course keeps, in place of the best."""
    from shared.settings import Settings
    from shared.specs import parse
    from shared.storage import Storage
    from worker.progress import Progress
    from worker.training import train

    settings = Settings(storage=str(folder / "store"), cache=folder / "cache")
    storage = Storage(settings.storage, settings.cache)
    spec = {"dataset": run.dataset, "version": 1, "model": "bench", "arch": run.arch, "epochs": run.epochs, "seed": run.seed}
    trained: list[float] = []

    def listen(said: dict[str, Any]) -> None:
        if said.get("progress", {}).get("phase") == "evaluating" and not trained:
            trained.append(time.perf_counter() - started)

    started = time.perf_counter()
    train(parse("train", {**spec, "keep_best": False}), "bench", storage, settings, Progress(listen))
    whole = time.perf_counter() - started
    model = storage.local("models/bench/v0001/export.pkl")
    model.rename(folder / "export.pkl")
    last = storage.read_json("models/bench/v0001/report.json")["epochs"][-1]["error_rate"]
    return {"seconds": trained[0], "whole_seconds": whole, "last": last}


def wrong(run: Run, folder: Path) -> int:
    """How many of the photographs the exported model labels wrongly, with fastai's own prediction. The export was made here a moment ago."""
    import torch
    from fastai.callback import progress  # noqa: F401 - importing it gives a Learner no_bar
    from fastai.learner import load_learner

    learn = load_learner(folder / "export.pkl", cpu=not torch.cuda.is_available())
    files = [Path(path) for path in run.judged]
    with learn.no_bar():
        found = learn.get_preds(dl=learn.dls.test_dl(files))[0].argmax(dim=1)
    return sum(learn.dls.vocab[i] != file.parent.name for i, file in zip(found.tolist(), files, strict=True))


CONTENDERS = {"course": course, "darkroom": darkroom}


def main() -> None:
    """Train once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.name == "darkroom":
        os.environ["GOMP_SPINCOUNT"] = SPINS  # as worker/device.py starts it
    run = Run(**json.loads((args.folder / "run.json").read_text()))
    facts = CONTENDERS[args.name](run, args.folder)
    print(json.dumps({**facts, "wrong": wrong(run, args.folder)}))


if __name__ == "__main__":
    main()
