"""The whole job on real images, as a user would do it: a dataset, a classifier, a labelled batch.

The images are scikit-learn's handwritten digits, 1,797 real scans of 8 x 8 pixels, written out as PNG files in a folder
per class. Each step is an order through the API of a system started here.
"""

import csv
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli.client import Client
from cli.follow import follow, notice
from cli.start import check_port, free_port, running
from shared.errors import DarkroomError
from shared.settings import Settings

DATASET = MODEL = "digits"
SIDE = 32  # pixels; the scans were 32 x 32 before they were reduced to 8 x 8
# small scans of upright digits: from scratch, without flips; 0.9 to 2.2 % errors over three seeds
TRAINING = {"start": "scratch", "image_size": SIDE, "min_scale": 0.8, "augment": "light", "epochs": 8, "base_lr": 5e-3}


def demo(settings: Settings, once: bool = False, as_json: bool = False) -> int:
    """Start everything, do the whole job, show the results; then keep the page up until Ctrl-C, unless `once`.

    Returns the exit code. With `as_json` the last line on standard output is one JSON object; all else goes to standard error.
    """
    with running(_on_free_port(settings)) as system:
        notice(f"Darkroom is at {system.address}")
        facts = run_job(Client(system.address), Path(system.home))
        if as_json:
            print(json.dumps(facts), flush=True)
        else:
            _tell(facts, system.address)
        if not once:
            notice(f"The page stays up at {system.address} until Ctrl-C.")
            system.watch()
    return 0


def run_job(client: Client, home: Path) -> dict[str, Any]:
    """Import, train, classify; the facts of what was done. Raises DarkroomError when a job does not end well."""
    folder = write_digits(home / "demo" / DATASET)
    data = _step("1/3  Making the dataset from 1,797 scans of handwritten digits", client, lambda: _dataset(client, folder))
    model = _step(
        "2/3  Training a classifier (resnet18 from scratch)",
        client,
        lambda: client.submit("trainings", spec={"dataset": DATASET, **TRAINING}),
    )
    source = {"kind": "folder", "path": str(folder)}
    ref = f"{model['result']['model']}/v{model['result']['version']}"
    batch = _step("3/3  Labelling all of them as a batch", client, lambda: client.submit("batches", spec={"model": ref, "source": source}))
    result = batch["result"]
    return {
        "dataset": f"{DATASET}/v{data['version']}",
        "images": data["images"],
        "model": ref,
        "error_rate": round(model["result"]["error_rate"], 4),
        "train_seconds": round(model["result"]["train_seconds"], 1),
        "items": result["items"],
        "errors": result["errors"],
        "images_per_second": result["images_per_second"],
        "results": str(home / result["csv"]),
    }


def _dataset(client: Client, folder: Path) -> dict[str, Any]:
    return client.submit("datasets", DATASET, "import", spec={"source": {"kind": "folder", "path": str(folder)}})


def _step(title: str, client: Client, order: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    notice(title)
    started = time.monotonic()
    job = follow(client, order()["id"])
    if job["state"] != "done":
        raise DarkroomError(job["error"] or f"The job {job['id']} was {job['state']}.")
    notice(f"     done in {time.monotonic() - started:.1f} s")
    return {**job, **job["result"]} if job["kind"] == "import" else job


def write_digits(folder: Path) -> Path:
    """The digits as PNG files in a folder per class, unless they lie there already."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (scan, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{index:04d}.png"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # 0 is paper and 16 is ink
        image = Image.fromarray((255 - scan * (255 / 16)).astype("uint8"))
        image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return folder


def _tell(facts: dict[str, Any], address: str) -> None:
    print(f"\nError rate on images that training did not see: {facts['error_rate']:.1%}  ({facts['train_seconds']:.0f} s of training)")
    print(f"Labelled {facts['items']:,} images, {facts['errors']} errors, {facts['images_per_second']:,.0f} images/s\n")
    with Path(facts["results"]).open(newline="") as f:
        rows = [row for row, _ in zip(csv.DictReader(f), range(5), strict=False)]
    print(f"{'image':<14} {'label':<6} {'probability':>11}  decision")
    for row in rows:
        print(f"{row['uri']:<14} {row['label']:<6} {float(row['probability']):>11.3f}  {row['decision']}")
    print(f"...\n\nAll rows: {facts['results']}\nThe page: {address}/models/{facts['model'].replace('/v', '/v/')}", flush=True)


def _on_free_port(settings: Settings) -> Settings:
    """The settings, on another port if theirs is taken: a demonstration should not fail for that. It says where it is."""
    try:
        check_port(settings.host, settings.port)
        return settings
    except DarkroomError:
        port = free_port(settings.host)
        print(f"Port {settings.port} is taken; this demonstration uses {port}.", file=sys.stderr)
        return settings.model_copy(update={"port": port})
