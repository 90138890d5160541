"""How fast Darkroom gets pictures from a list of addresses, beside fastai's download_images and img2dataset.

`make bench-scrape`, or `python -m benchmarks.scrape --help`. A server on loopback serves JPEGs of about 100 kB, each after 200 ms, as 64 hosts. In each round every
contender gets all of them, one after the other, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._system import CACHE, ROOT, bench_folder, call, conclude, machine, median, say, table

SECTION = "bench-scrape"
HOSTS = 64
LATENCY = 0.2  # seconds
FEW = 1000  # pictures of the run that memory is compared with
PINS = Path(__file__).with_name("img2dataset.txt")
NAMES = {
    "download_images": "fastai download_images, its defaults",
    "img2dataset": "img2dataset, 256 threads, files as they are",
    "fetcher": "Darkroom, downloading alone",
    "scrape": "Darkroom: downloaded, decoded in full, hashed, measured, a dataset version",
}


def main() -> int:
    """Measure, write, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000, help="how many")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender gets them all")
    parser.add_argument("--dry", action="store_true", help="leave docs/benchmarks.md as it is")
    args = parser.parse_args()
    python = _img2dataset()
    with bench_folder() as home, _server(_pictures(args.pictures)) as port:
        urls = [f"http://127.0.0.{n % HOSTS + 1}:{port}/{n}.jpg" for n in range(args.pictures)]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
        for round_ in range(args.rounds):
            for name in NAMES:
                facts = _one(name, urls, home, python)
                found[name].append(facts)
                say(f"round {round_ + 1}  {name}: {len(urls) / facts['seconds']:.0f} images/s, {facts['files']} of {len(urls)} files")
        few = _one("scrape", urls[:FEW], home, python)
        lines, facts = _told(found, few, len(urls))
        conclude(SECTION, lines, facts, write=not args.dry)
    return 0


def _pictures(number: int) -> Path:
    """A folder with that many JPEGs of about 100 kB, no two alike; made once."""
    folder = CACHE / f"jpegs-{number}"
    if not folder.is_dir():
        say(f"{number:,} pictures are made, once")
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as processes:
            list(processes.map(_make, range(number), [part] * number, chunksize=50))
        part.rename(folder)
    return folder


def _make(number: int, folder: Path) -> None:
    """500 x 375 pixels: broad shapes and the grain of a photograph."""
    random = np.random.default_rng(number)
    shapes = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    grain = random.normal(0, 11, (375, 500, 1))
    Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    """The server's port."""
    command = [sys.executable, "-m", "benchmarks.slow_server", str(folder), str(HOSTS), str(LATENCY)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())  # type: ignore[union-attr]
        finally:
            process.kill()


def _one(name: str, urls: list[str], home: Path, python: Path) -> dict[str, Any]:
    os.sync()  # or the disk would still be busy with what the one before has written
    with tempfile.TemporaryDirectory(dir=home) as folder:
        (Path(folder) / "urls.txt").write_text("\n".join(urls))
        return _call_img2dataset(python, Path(folder)) if name == "img2dataset" else call("benchmarks.downloaders", name, folder)


def _img2dataset() -> Path:
    """The interpreter of an environment that holds img2dataset; made once. Its libraries and ours cannot be in one: it wants an old pyarrow."""
    home = CACHE / "img2dataset"
    if not (home / "ready").exists():
        say("img2dataset is installed, once, in an environment of its own")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", "-r", str(PINS)], check=True)
        (home / "ready").touch()
    return home / "bin/python"


def _call_img2dataset(python: Path, folder: Path) -> dict[str, Any]:
    """Its own clock: from the call of `download` on, when everything is imported."""
    program = (
        "import sys, time, json, pathlib; from img2dataset import download; folder = sys.argv[1]; started = time.perf_counter(); "
        "download(url_list=f'{folder}/urls.txt', output_folder=f'{folder}/files', output_format='files', resize_mode='no', "
        "disable_all_reencoding=True, thread_count=256, processes_count=1, enable_wandb=False); seconds = time.perf_counter() - started; "
        "print(json.dumps({'seconds': seconds, 'files': sum(1 for _ in pathlib.Path(folder, 'files').rglob('*.jpg'))}))"
    )
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run([str(python), "-c", program, str(folder)], stdout=subprocess.PIPE, env=environment, check=True, timeout=3600)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _told(found: dict[str, list[dict[str, Any]]], few: dict[str, Any], pictures: int) -> tuple[list[str], dict[str, Any]]:
    """The section of the page, and the last line of the output."""
    rates = {name: [pictures / each["seconds"] for each in found[name]] for name in NAMES}
    middle = {name: median(rates[name]) for name in NAMES}
    ours = [median(of / other for of, other in zip(rates[name], rates[beside], strict=True)) for name, beside in
            (("scrape", "download_images"), ("fetcher", "img2dataset"))]  # fmt: skip
    peak = max(each["peak_mb"] for each in found["scrape"])
    rows = [
        [NAMES[name], f"{middle[name]:.0f}", ", ".join(f"{rate:.0f}" for rate in rates[name]), f"{min(e['files'] for e in found[name]):,}"]
        for name in NAMES
    ]
    lines = [
        "## Downloading",
        f"{pictures:,} JPEGs of 500 x 375 pixels and about 100 kB, from a server on the same machine that answers after {LATENCY * 1000:.0f} ms, as {HOSTS} hosts; in each round",
        "every contender in turn, in a process of its own. The server takes its share of the cores.",
        "",
        *machine("aiohttp", "fastai", "pillow"),
        "",
        *table(["", "images/s", "of each round", "files"], rows),
        "",
        f"Downloading alone is {ours[1]:.2f} times img2dataset; the whole scrape is {ours[0]:.1f} times download_images, which verifies and records nothing. The scrape's",
        f"processes held {peak:.0f} MB at most, and {few['peak_mb']:.0f} MB with {FEW:,} of the pictures.",
    ]
    return lines, {"vs_download_images": round(ours[0], 2), "vs_img2dataset": round(ours[1], 2), "peak_mb": round(peak)}


if __name__ == "__main__":
    sys.exit(main())
