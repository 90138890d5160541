"""How long Darkroom trains, beside the recipe of the fastai course as it is written there, and which errs more.

`make bench-train`, or `python -m benchmarks.train --help`. Both get the same photographs to train and to validate on, the same
network, weights, epochs and seeds and, in turn, the whole machine. Both are judged on photographs that neither was trained on.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks._system import ask_for_photos, bench_folder, call, conclude, machine, median, photo_folders, say, table
from benchmarks.trainers import Run
from shared import datasets
from shared.settings import Settings
from shared.specs import TrainSpec, parse
from shared.storage import Storage

SECTION = "bench-train"
DATASET = "photographs"
FIRST_SEED = 42
FROZEN = 1  # fine_tune's
NAMES = {"course": "the course's recipe", "darkroom": "Darkroom"}


def main() -> int:
    """Measure, write, print; the exit code."""
    args = _arguments()
    train, held_out = photo_folders(args.photos)
    with bench_folder() as home:
        storage = _imported(home, train)
        found = []
        for seed in range(FIRST_SEED, FIRST_SEED + args.seeds):
            found.append(_both(home, storage, train, held_out, args, seed))
            lines, facts = _told(found, args)
            conclude(SECTION, lines, facts, write=not args.dry)  # after each: a seed takes long, and a run may be ended
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask_for_photos(parser)
    parser.add_argument("--arch", default="squeezenet1_0", help="network")
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/weights"), help="TORCH_HOME with its ImageNet weights, if that is not set"
    )
    parser.add_argument("--epochs", type=int, default=4, help="epochs after the frozen one")
    parser.add_argument("--seeds", type=int, default=3, help="how often both train, each time with another seed")
    parser.add_argument("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    if args.weights.is_dir():
        os.environ.setdefault("TORCH_HOME", str(args.weights.resolve()))
    return args


def _imported(home: Path, train: Path) -> Storage:
    """A storage with the photographs as a dataset."""
    from worker.importing import import_dataset
    from worker.progress import Progress

    settings = Settings(storage=str(home / "store"), cache=home / "cache")
    storage = Storage(settings.storage, settings.cache)
    order = parse("import", {"dataset": DATASET, "source": {"kind": "folder", "path": str(train)}})
    import_dataset(order, "bench-import", storage, settings, Progress(lambda _: None))  # type: ignore[arg-type]
    return storage


def _both(home: Path, storage: Storage, train: Path, held_out: Path, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What each contender has to say of a seed, and how many photographs it was trained and judged on."""
    rows = datasets.rows(storage, DATASET, 1)
    split = datasets.sides(rows, TrainSpec(dataset=DATASET).valid_pct, seed)
    sides = [[str(train / row["name"]) for row, on in zip(rows, split, strict=True) if on == side] for side in ("train", "valid")]
    judged = sides[1] + sorted(str(path) for path in held_out.glob("*/*.jpg"))
    run = Run(*sides, judged, args.arch, args.epochs, seed, DATASET)
    found: dict[str, Any] = {"images": len(sides[0]), "valid": len(sides[1]), "judged": len(judged)}
    for name in NAMES:
        folder = run.keep(home / f"{name}-{seed}")
        if name == "darkroom":
            shutil.copytree(home / "store", folder / "store")
        found[name] = call("benchmarks.trainers", name, str(folder))
        shutil.rmtree(folder)
        say(f"seed {seed}  {name}: {found[name]['seconds']:.0f} s, {found[name]['wrong']} of {len(judged)} wrong")
    return found


def _told(found: list[dict[str, Any]], args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The section of the page, and the last line of the output."""
    ratios = [each["darkroom"]["seconds"] / each["course"]["seconds"] for each in found]
    errors = {name: sum(each[name]["wrong"] for each in found) / sum(each["judged"] for each in found) for name in NAMES}
    first = found[0]
    rows = [
        [
            NAMES[name],
            f"{median(each[name]['seconds'] for each in found):.0f}",
            f"{median(each[name]['whole_seconds'] for each in found):.0f}",
            f"{errors[name]:.1%}",
            ", ".join(f"{each[name]['wrong'] / each['judged']:.1%}" for each in found),
            ", ".join(f"{each[name]['last']:.1%}" for each in found),
        ]
        for name in NAMES
    ]
    lines = [
        "## Training",
        f"A {args.arch} with ImageNet weights, {FROZEN} frozen epoch and {args.epochs} more at 224 pixels, on about {first['images']:,} photographs of 400 x 533 pixels; {len(found)} seed{'s' if len(found) > 1 else ''},",
        "for each of which both trained in turn, alone on the machine, on the same photographs. The error rate is that of fastai's own prediction with each one's export",
        f"on about {first['judged']:,} photographs that neither was trained on: the {first['valid']:,} each validated on, and those of a folder that neither saw.",
        "",
        *machine("torch", "torchvision", "fastai", "pillow"),
        "",
        *table(
            ["trained by", "until trained, s", "until usable, s", "error rate", "of each seed", "last epoch's validation"],
            rows,
        ),
        "",
        f"Darkroom trained in {median(ratios):.3f} of the course's time ({', '.join(f'{ratio:.3f}' for ratio in ratios)}). Until usable: with the report and, for Darkroom, the forms with 16 and 8 bits.",
    ]
    return lines, {
        "time_ratio": round(median(ratios), 3),
        "error_rate_ours": round(errors["darkroom"], 4),
        "error_rate_course": round(errors["course"], 4),
    }


if __name__ == "__main__":
    sys.exit(main())
