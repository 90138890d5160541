"""How fast Darkroom labels photographs, beside fastai's own ways and Ray Data, and whether the labels are the same.

`make bench-classify`, or `python -m benchmarks.classify --help`. Every contender gets the same files and the same weights and,
in turn, the whole machine; each round runs each of them once, and what is reported is the median of the rounds.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks._system import (
    Installation,
    ask_for_photos,
    bench_folder,
    call,
    conclude,
    link_files,
    machine,
    median,
    model_folder,
    photo_folders,
    say,
    table,
    trained,
)
from shared.errors import DarkroomError
from worker.app import device

SECTION = "bench-classify"
PRECISIONS = ("exact", "fast", "int8")
# no ImageNet weights need to be at hand: from scratch on small pictures, which is quick, and on from there with large ones
FROM_SCRATCH = {"start": "scratch", "epochs": 12, "augment": "light", "image_size": 96, "base_lr": 5e-3}
ENLARGED = {"epochs": 3, "frozen_epochs": 0, "augment": "light", "image_size": 224, "base_lr": 2e-2}
FINE_TUNED = {"arch": "squeezenet1_0", "epochs": 1, "frozen_epochs": 1, "image_size": 224}
WARM_UP = 64  # photographs of the batch that warms a worker up
OTHERS = ("predict", "get_preds_0", "get_preds_2", "get_preds_last", "ray_tasks", "ray_actors")  # of benchmarks/contenders.py
ALONE = 256  # photographs on which decoding and the network are measured alone


@dataclass
class Photos:
    """The files of a run: lists in the benchmark's folder, and the same as folders that a batch can name."""

    home: Path
    every: list[Path]
    validation: list[Path]
    few: list[Path] = field(default_factory=list)

    def listed(self, name: str, files: list[Path]) -> str:
        """A text file that lists some files."""
        path = self.home / f"{name}.txt"
        path.write_text("\n".join(map(str, files)))
        return str(path)

    def source(self, name: str, files: list[Path]) -> dict[str, Any]:
        """A folder with some files, in their order, as the source of a batch."""
        folder = self.home / name
        if not folder.exists():
            link_files(files, folder, (f"{i:06d}{file.suffix}" for i, file in enumerate(files)))
        return {"kind": "folder", "path": str(folder)}


def main() -> int:
    """Measure, write, print; the exit code."""
    args = _arguments()
    train, validation = photo_folders(args.photos)
    models = _models(args, train)
    with bench_folder() as home:
        checked = _pictures(validation)
        every = _spread([*_pictures(train), *checked], args.images)
        photos = Photos(home, every, checked, _spread(every, args.few))
        lines, facts = _measure(args, home, photos, models)
    conclude(SECTION, lines, facts, write=not args.dry)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask_for_photos(parser)
    parser.add_argument("--images", type=int, default=1500, help="label so many photographs; 0: all")
    parser.add_argument("--few", type=int, default=200, help="photographs for learn.predict, which is slow")
    parser.add_argument("--arch", default="resnet18", help="network that is measured, trained from scratch")
    parser.add_argument("--epochs", type=int, default=FROM_SCRATCH["epochs"], help="epochs of its training on small pictures")
    parser.add_argument("--runs", type=int, default=3, help="rounds")
    parser.add_argument("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    return parser.parse_args()


def _models(args: argparse.Namespace, train: Path) -> dict[str, Path]:
    """The storages of the models by name: the one that is measured first, then the one whose labels are compared too."""
    from worker.training.weights import weights_file

    found = {
        (name := args.arch.replace("_", "-")): trained(
            name, train, {**FROM_SCRATCH, "arch": args.arch, "epochs": args.epochs}, {**ENLARGED, "arch": args.arch}
        )
    }
    try:
        present = weights_file(FINE_TUNED["arch"]).exists()
    except DarkroomError:
        present = False
    if present:
        found["squeezenet"] = trained("squeezenet", train, FINE_TUNED)
    else:
        say("no ImageNet weights of squeezenet1_0 where TORCH_HOME points: its labels are not compared")
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})


def _spread(files: list[Path], wanted: int) -> list[Path]:
    """So many of the files, evenly spread; all of them for 0."""
    if not wanted or wanted >= len(files):
        return files
    return [files[i * len(files) // wanted] for i in range(wanted)]


def _measure(args: argparse.Namespace, home: Path, photos: Photos, models: dict[str, Path]) -> tuple[list[str], dict[str, Any]]:
    arch, store = next(iter(models.items()))
    # the first engine of all converts the network, once a machine; from then on every worker here finds it converted
    convert_seconds = _engine("exact", model_folder(store, arch), photos.listed("one", photos.every[:1]))["load_seconds"]
    agreement = {name: _agreement(home, photos, name, path) for name, path in models.items()}
    precisions = [p for p in PRECISIONS if p in agreement[arch]]
    rates, start_ups, alone = _rounds(args.runs, home, photos, arch, store, precisions)
    limits = {precision: _limit(rounds) for precision, rounds in alone.items()}
    facts = _facts(rates, limits, agreement)
    lines = [
        "## Labelling photographs",
        *_words(photos, args.runs, arch),
        "",
        *machine("torch", "torchvision", "fastai", "openvino", "ray", "pillow", "pyarrow"),
        "",
        *_table_of_rates(rates, start_ups, facts),
        "",
        *_table_of_limits(limits, rates, convert_seconds),
        "",
        *_table_of_agreement(agreement, len(photos.validation)),
    ]
    return lines, facts


# -- the rounds -----------------------------------------------------------------------------------------------------------------


def _rounds(
    runs: int, home: Path, photos: Photos, arch: str, store: Path, precisions: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[dict[str, Any]]]]:
    """Images a second, and seconds of starting up, a value a round, by contender; by precision what `_alone` found in each round."""
    rates: dict[str, list[float]] = defaultdict(list)
    start_ups: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, list[dict[str, Any]]] = defaultdict(list)
    folder = model_folder(store, arch)
    for n in range(1, runs + 1):

        def note(name: str, rate: float, start_up: float, n: int = n) -> None:
            rates[name].append(rate)
            start_ups[name].append(start_up)
            say(f"round {n}/{runs}  {name}: {rate:.1f} images/s, first prediction after {start_up:.1f} s")

        for name in OTHERS:
            files = photos.few if name == "predict" else photos.every
            facts = call("benchmarks.contenders", name, str(folder), photos.listed(name, files))
            note(name, facts["images"] / facts["seconds"], facts["start_up"])
        for precision in precisions:
            note(precision, *_darkroom(home / f"round{n}-{precision}", photos, arch, store, precision))
        for precision, facts in _alone(photos, folder, precisions).items():
            alone[precision].append(facts)
    return rates, start_ups, alone


def _darkroom(home: Path, photos: Photos, arch: str, store: Path, precision: str) -> tuple[float, float]:
    """Images a second from order to results, warm; and seconds from starting a worker until a batch of one picture is done."""
    with Installation(home, store) as darkroom:
        since_start = _clock()
        darkroom.worker()
        darkroom.label(photos.source("single", photos.every[:1]), arch, precision=precision)
        start_up = since_start()
        darkroom.label(photos.source("warm-up", photos.every[:WARM_UP]), arch, precision=precision)
        job, seconds = darkroom.label(photos.source("all", photos.every), arch, precision=precision)
        return job.result["items"] / seconds, start_up


def _clock() -> Callable[[], float]:
    """A function that says how many seconds ago this was called."""
    started = time.perf_counter()
    return lambda: time.perf_counter() - started


# -- what is possible --------------------------------------------------------------------------------------------------------------


def _alone(photos: Photos, model: Path, precisions: list[str]) -> dict[str, dict[str, Any]]:
    """By precision: seconds an image of decoding on one core and of the network on all, and the engine's name."""
    listed = photos.listed("alone", _spread(photos.every, ALONE))
    decode = call("benchmarks.contenders", "decode", str(model), listed)["seconds_an_image"]
    found = {}
    for precision in precisions:
        facts = _engine(precision, model, listed)
        on_gpu = precision == "fast" and "gpu" in decode
        found[precision] = {
            "engine": facts["engine"],
            "decode": decode["gpu" if on_gpu else "exact" if precision == "exact" else "fast"],
            "decoders": 1 if on_gpu else len(os.sched_getaffinity(0)),
            "forward": facts["seconds_an_image"],
        }
        say(
            f"alone, {precision}: decoding {found[precision]['decode'] * 1e3:.2f} ms{'' if on_gpu else ' on a core'}, network {found[precision]['forward'] * 1e3:.2f} ms"
        )
    return found


def _limit(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the rounds, and `limit`: the images a second that decoding and network allow together."""
    decode, forward = (median(facts[key] for facts in rounds) for key in ("decode", "forward"))
    decoders, engine = rounds[0]["decoders"], rounds[0]["engine"]
    # on a processor both want the same cores; with a GPU the slower of them is the limit
    seconds = max(decode / decoders, forward) if "cuda" in engine else decode / decoders + forward
    return {"engine": engine, "decode": decode, "forward": forward, "decoders": decoders, "limit": 1 / seconds}


def _engine(precision: str, model: Path, listed: str) -> dict[str, Any]:
    """What a worker's engine for a precision can do alone; only `missing`, the reason, where there is none."""
    if precision == "int8" and not device().startswith("CPU"):
        return {"missing": "it is for processors, and this machine has a GPU."}
    return call("benchmarks.contenders", f"forward_{precision}", str(model), listed)


# -- are the labels the same ------------------------------------------------------------------------------------------------------


def _agreement(home: Path, photos: Photos, name: str, store: Path) -> dict[str, Any]:
    """How each precision's rows compare with `learn.predict`: share of equal labels, largest difference of a probability.

    `missing` tells why a precision is not available for this model.
    """
    out, model = home / f"{name}.npy", model_folder(store, name)
    call("benchmarks.contenders", "predict", str(model), photos.listed("validation", photos.validation), "--out", str(out))
    reference = np.load(out)
    found: dict[str, Any] = {"missing": {}}
    with Installation(home / f"agreement-{name}", store) as darkroom:
        darkroom.worker()
        for precision in PRECISIONS:
            engine = _engine(precision, model, photos.listed("one", photos.validation[:1]))
            if "missing" in engine:
                say(f"{name} has no {precision}: {engine['missing']}")
                found["missing"][precision] = engine["missing"]
                continue
            rows = _probabilities(darkroom, photos, name, precision)
            same = float((rows.argmax(axis=1) == reference.argmax(axis=1)).mean())
            found[precision] = {"top1": same, "difference": float(np.abs(rows - reference).max())}
            say(
                f"{name}, {precision}: {same:.2%} of the labels as learn.predict, probabilities differ by at most {found[precision]['difference']:.1e}"
            )
    return found


def _probabilities(darkroom: Installation, photos: Photos, name: str, precision: str) -> np.ndarray:
    """(N, C) of the validation photographs, classes in order of name, out of a batch's results."""
    job, _ = darkroom.label(photos.source("validation", photos.validation), name, precision=precision, top_k=20)
    with darkroom.backend.storage.open(job.result["parquet"]) as f:
        rows = pq.read_table(f, columns=["top_labels", "top_probabilities"]).to_pylist()
    classes = sorted(rows[0]["top_labels"])  # all of them: there are fewer than 20
    by_class = [dict(zip(row["top_labels"], row["top_probabilities"], strict=True)) for row in rows]
    return np.array([[row[c] for c in classes] for row in by_class], dtype=np.float32)


# -- what came out ----------------------------------------------------------------------------------------------------------------


def _facts(rates: dict[str, list[float]], limits: dict[str, dict[str, Any]], agreement: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last line of the output. Ratios above 1: Darkroom is faster; agreements are those of the model that agrees least."""
    rate = {name: median(values) for name, values in rates.items()}
    shares = [rate[p] / limits[p]["limit"] for p in ("fast", "int8") if p in limits]

    def top1(precision: str) -> float | None:
        found = [a[precision]["top1"] for a in agreement.values() if precision in a]
        return round(min(found), 4) if found else None

    return {
        "vs_predict_loop": round(rate["fast"] / rate["predict"], 2),
        "vs_get_preds": round(rate["fast"] / max(rate["get_preds_0"], rate["get_preds_2"]), 2),
        "vs_ray_data": round(rate["fast"] / max(rate["ray_tasks"], rate["ray_actors"]), 2),
        "share_of_limit": round(min(shares), 3),
        "int8_vs_predict_loop": round(rate["int8"] / rate["predict"], 2) if "int8" in rate else None,
        "top1_agreement_fast": top1("fast"),
        "top1_agreement_exact": top1("exact"),
        "top1_agreement_int8": top1("int8"),
    }


def _words(photos: Photos, runs: int, arch: str) -> list[str]:
    sizes = [Image.open(file).size for file in _spread(photos.every, 100)]
    width, height = (int(median(size[i] for size in sizes)) for i in (0, 1))
    return [
        f"{len(photos.every):,} JPEG photographs of about {width} x {height} pixels, labelled by a {arch} at 224 pixels that Darkroom trained; the median of {runs} rounds,",
        f"in each of which every contender ran once, alone on the machine and warm. `learn.predict` labelled {len(photos.few)} of them. Darkroom's time is that of a user: from the order",
        "until results.csv and results.parquet lie there, with Redis, the ledger, and a row of 18 fields for each picture.",
    ]


NAMES = {
    "predict": "`learn.predict` in a loop",
    "get_preds_0": "`learn.get_preds`, no loader processes",
    "get_preds_2": "`learn.get_preds`, 2 loader processes",
    "get_preds_last": "the same, the model in `channels_last`",
    "ray_tasks": "Ray Data, `read_images`, `map` and an actor",
    "ray_actors": "Ray Data, an actor a core does all",
    "exact": "Darkroom, `exact`",
    "fast": "Darkroom, `fast`",
    "int8": "Darkroom, `int8`",
}


def _table_of_rates(rates: dict[str, list[float]], start_ups: dict[str, list[float]], facts: dict[str, Any]) -> list[str]:
    base = median(rates["predict"])
    rows = [
        [
            NAMES[name],
            f"{median(values):.1f}",
            f"{min(values):.1f} to {max(values):.1f}",
            f"{median(values) / base:.2f}",
            f"{median(start_ups[name]):.1f}",
        ]
        for name, values in rates.items()
    ]
    against = f"`fast` against the better of each: {facts['vs_get_preds']} times `get_preds`, {facts['vs_ray_data']} times Ray Data."
    columns = ["labelled by", "images/s", "least to most", "times predict", "start-up, s"]
    note = "Start-up is from starting the process to its first prediction (of Ray, until its actors have their models; of Darkroom, until a batch of one is done)."
    return [*table(columns, rows), "", against, note]


def _table_of_limits(limits: dict[str, dict[str, Any]], rates: dict[str, list[float]], convert_seconds: float) -> list[str]:
    rows = [
        [
            f"`{name}`: {facts['engine']}",
            f"{1 / facts['decode']:.0f}",
            f"{1 / facts['forward']:.0f}",
            f"{facts['limit']:.1f}",
            f"{median(rates[name]) / facts['limit']:.1%}",
        ]
        for name, facts in limits.items()
    ]
    return [
        "What is possible, images/s: decoding alone on one core (or on the GPU), the network alone on all of them (or on the GPU), and the limit of both together.",
        f"The engine was ready for its first mini-batch in {convert_seconds:.1f} s when it had to make the engine, once a machine, out of the weights.",
        "",
        *table(["precision", "decoding", "network", "limit", "reached"], rows),
    ]


def _table_of_agreement(agreement: dict[str, dict[str, Any]], photographs: int) -> list[str]:
    rows = []
    reasons = []
    for name, found in agreement.items():
        rows += [
            [f"{name}, `{precision}`", f"{found[precision]['top1']:.2%}", f"{found[precision]['difference']:.1e}"]
            for precision in PRECISIONS
            if precision in found
        ]
        reasons += [f"{name} has no `{precision}`: {reason}" for precision, reason in found["missing"].items()]
    return [
        f"Darkroom's rows beside `learn.predict` on {photographs} photographs that training did not see.",
        "",
        *table(["model", "same label", "largest difference of a probability"], rows),
        *(["", *reasons] if reasons else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
