"""What both benchmarks stand on: a Darkroom of their own that ends with them, measuring it, and writing down what came out.

Everything runs on loopback in a temporary folder. Processes that lose their parent come to the benchmark, so that at its
end, on Ctrl-C and after an error it finds and ends every process that it or one of its children has started.
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import redis

from cli.start import environment, free_port, redis_server
from shared.jobs import Job, connect
from shared.settings import Settings
from web.backend import Backend
from web.orders import submit
from worker.app import device

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path("~/.cache/darkroom-bench").expanduser()  # what takes long to make and never changes: trained models
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Measured by `make bench-classify`, `bench-scale`, `bench-scrape` and `bench-train`, which write this page: what stands between two markers is replaced by the next run. Numbers are medians
where a thing was measured several times. Nothing else ran on the machine.
"""
SAMPLE_SECONDS = 0.2


def say(text: str) -> None:
    """Tell how far it is, on standard error: standard output is for the tables and the last line."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


# -- processes ----------------------------------------------------------------------------------------------------------


@contextmanager
def bench_folder() -> Iterator[Path]:
    """A temporary folder for one benchmark; at the end it is gone, and so is every process started meanwhile."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans come to us
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell that starts us in the background ignores Ctrl-C for us
        signal.signal(number, signal.default_int_handler)
    home = Path(tempfile.mkdtemp(prefix="darkroom-bench-"))
    try:
        yield home
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would leave something behind
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_family()
        shutil.rmtree(home, ignore_errors=True)


def family(root: int) -> list[int]:
    """Ids of all processes below `root`, nearest first, without the dead."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):  # it ended meanwhile
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def end_family() -> None:
    """Kill all that this process has started, directly or not, and take leave of the dead."""
    while left := family(os.getpid()):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _bury()
        time.sleep(0.05)
    _bury()


def _bury() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def call(module: str, *args: str, timeout: float = 3600) -> dict[str, Any]:
    """Run `python -m module` alone on the machine; the JSON object that is the last line of its standard output.

    `start_up` in it is turned from a time into seconds since the process was started.
    """
    started = time.time()
    done = subprocess.run([sys.executable, "-m", module, *args], cwd=ROOT, stdout=subprocess.PIPE, timeout=timeout, check=False)
    if done.returncode:
        raise SystemExit(f"`python -m {module} {' '.join(args)}` failed with exit code {done.returncode}; what it said stands above.")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts | ({"start_up": facts["start_up"] - started} if "start_up" in facts else {})


def ask_for_photos(parser: argparse.ArgumentParser) -> None:
    """Add the option `--photos`."""
    parser.add_argument(
        "--photos",
        type=Path,
        default=Path("../shared/data/clothing"),
        help="folder with train/ and validation/, each with a folder per class",
    )


def photo_folders(photos: Path) -> tuple[Path, Path]:
    """The folders to train on and to judge by. Ends the program with a sentence when there are none."""
    train, validation = photos.resolve() / "train", photos.resolve() / "validation"
    if not (train.is_dir() and validation.is_dir()):
        say(f"There are no photographs in {photos}: it needs a folder `train` and a folder `validation`, each with a folder per class.")
        raise SystemExit(2)
    return train, validation


# -- an installation ------------------------------------------------------------------------------------------------------


class Installation:
    """A Redis, and any number of webs and workers, on a storage of their own. Use it in a `with` block."""

    def __init__(self, home: Path, model_store: Path) -> None:
        """`model_store`: a storage whose models are copied into this one. Installations in one folder share their cache."""
        home.mkdir(parents=True)
        self.home = home
        port = free_port("127.0.0.1")
        self.settings = Settings(redis_url=f"unix://{home}/redis.sock", storage=str(home / "store"), cache=home.parent / "cache", port=port)
        self.address = f"http://127.0.0.1:{port}"
        self.backend = Backend(self.settings)
        self._processes: list[subprocess.Popen[bytes]] = []
        shutil.copytree(model_store / "models", home / "store" / "models")

    def __enter__(self) -> "Installation":
        files = ["--dir", str(self.home), "--unixsocket", f"{self.home}/redis.sock"]
        # as `darkroom up` runs it: an append-only file, no snapshots
        self.start([redis_server(), "--port", "0", *files, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"])
        self.wait(self._redis_answers, 30, "Redis to answer")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            self.stop(process)

    def start(self, command: list[str], cores: set[int] | None = None) -> "subprocess.Popen[bytes]":
        """Start a process, on certain cores only if some are given; its output goes to a log file."""

        def pin() -> None:
            os.sched_setaffinity(0, cores or os.sched_getaffinity(0))

        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the benchmark to handle
                preexec_fn=pin,  # noqa: PLW1509 - two system calls
            )
        self._processes.append(process)
        return process

    def stop(self, process: "subprocess.Popen[bytes]") -> None:
        """End a process as a service manager would, and all it started."""
        members = family(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in [process.pid, *members]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._processes.remove(process)

    def worker(self, module: str = "cli", cores: set[int] | None = None) -> "subprocess.Popen[bytes]":
        """Start a worker that labels, and wait until it takes work. `module`: what stands in for the command line."""
        before = len(self.backend.store.workers())
        process = self.start([sys.executable, "-m", module, "worker", "--queues", "predict,classify"], cores)
        self.wait(lambda: len(self.backend.store.workers()) > before, 60, "the worker to take work")
        return process

    def web(self) -> "subprocess.Popen[bytes]":
        """Start the web, and wait until it answers."""
        process = self.start([sys.executable, "-m", "cli", "web"])
        self.wait(self._web_answers, 60, "the web to answer")
        return process

    def order(self, source: dict[str, Any], model: str, **more: Any) -> str:
        """Order a batch as the page does, without the web; the id of the job."""
        return submit(self.backend, "classify", {"model": model, "source": source, **more}).id

    def finish(self, job_id: str, seconds: float = 7200) -> Job:
        """Wait until a job has ended. Raises SystemExit when it did not end well."""
        self.wait(lambda: self.backend.store.get(job_id).state.terminal, seconds, f"the job {job_id} to end")
        job = self.backend.store.get(job_id)
        if job.state != "done":
            raise SystemExit(f"The job {job_id} was {job.state}: {job.error}\n{self.last_words()}")
        return job

    def label(self, source: dict[str, Any], model: str, **more: Any) -> tuple[Job, float]:
        """Label a batch: the job, and the seconds from ordering it until its results lay on storage."""
        started = time.perf_counter()
        job = self.finish(self.order(source, model, **more))
        seconds = time.perf_counter() - started
        for form in ("csv", "parquet"):
            if not self.backend.storage.exists(job.result[form]):
                raise SystemExit(f"The job {job.id} is done without {job.result[form]}.")
        if job.result["errors"]:
            raise SystemExit(f"{job.result['errors']} pictures of the job {job.id} were not labelled.")
        return job, seconds

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until a condition holds. Raises SystemExit when it does not within `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise SystemExit(f"Waited {seconds:.0f} s for {what}, in vain.\n{self.last_words()}")
            time.sleep(0.05)  # it takes time from what is measured

    def last_words(self) -> str:
        """The end of what the processes wrote into their log."""
        return (self.home / "log").read_text(errors="replace")[-4000:]

    def _redis_answers(self) -> bool:
        try:
            return bool(connect(self.settings.redis_url or "").ping())
        except redis.RedisError:
            return False

    def _web_answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


# -- models -----------------------------------------------------------------------------------------------------------------


def trained(name: str, images: Path, *specs: dict[str, Any]) -> Path:
    """A storage with the model `name`, trained by Darkroom on a folder per class; kept between runs.

    `specs` are those of trainings without dataset and model; each after the first starts from the model that the one before it
    made, and the last makes `name`. Other specs, images or libraries train anew.
    """
    files = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.*"))
    key = hashlib.sha256(json.dumps([name, specs, files, _version("torch"), _version("openvino"), _version("nncf")]).encode()).hexdigest()[
        :12
    ]
    home = CACHE / f"{name}-{key}"
    if home.exists():
        return home
    *before, spec = specs
    origin = f"{name}-{len(before)}"
    store = trained(origin, images, *before) if before else None
    say(f"training {name} on {len(files):,} images, once; it stays in {home}")
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=_made(CACHE)) as part:
        if store:
            shutil.copytree(store / "models", Path(part) / "store" / "models")
            spec = {**spec, "start": origin}
        # a process of its own: torch, its threads and a GPU's memory go with it
        process = get_context("spawn").Process(target=_train, args=(name, images, spec, Path(part) / "store"))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"Training {name} failed with exit code {process.exitcode}; what it said stands above.")
        (Path(part) / "store").rename(home)
    return home


def _train(name: str, images: Path, spec: dict[str, Any], store: Path) -> None:
    """Import and train with the plain functions of the pipeline."""
    from shared.specs import parse
    from shared.storage import Storage
    from worker.importing import import_dataset
    from worker.progress import Progress
    from worker.training import train

    settings = Settings(storage=str(store), cache=store.parent / "cache")
    storage = Storage(settings.storage, settings.cache)
    order = parse("import", {"dataset": name, "source": {"kind": "folder", "path": str(images)}})
    import_dataset(order, "bench-import", storage, settings, Progress(_ignore))
    order = parse("train", {**spec, "dataset": name, "version": 1, "model": name})
    result = train(order, "bench-train", storage, settings, Progress(_tell()))
    say(f"trained {name} in {result['train_seconds']:.0f} s; error rate {result['error_rate']:.1%}")


def _ignore(_: dict[str, Any]) -> None:
    pass


def _tell() -> Callable[[dict[str, Any]], None]:
    """Says each epoch that ended."""

    def tell(message: dict[str, Any]) -> None:
        if "row" in message and message["row"][0] == "epochs":
            row = message["row"][1]
            say(f"  epoch {row['epoch']}: error rate {row['error_rate']:.1%}, {row['seconds']:.0f} s")

    return tell


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def model_folder(store: Path, name: str) -> Path:
    """The folder of the model that `trained` made."""
    return store / "models" / name / "v0001"


def link_files(files: Iterable[Path], folder: Path, names: Iterable[str]) -> None:
    """The same files under other names in another folder: hard links, or copies where the disk is another."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, name in zip(files, names, strict=False):
        try:
            os.link(file, folder / name)
        except OSError:
            shutil.copyfile(file, folder / name)


# -- measuring ----------------------------------------------------------------------------------------------------------------


class Peak(threading.Thread):
    """The largest memory of a process and all below it, bytes: the sum of each one's own peak (VmHWM), looked at 5 times a second.

    A child counts while it lives, so that one that takes another's place does not count twice.
    """

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.bytes = 0
        self._stop_now = threading.Event()

    def __enter__(self) -> "Peak":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()

    def run(self) -> None:
        """Look until told to stop."""
        last = False
        while not last:
            last = self._stop_now.wait(SAMPLE_SECONDS)
            self.bytes = max(self.bytes, sum(_high_water(pid) for pid in [self.root, *family(self.root)]))


def _high_water(pid: int) -> int:
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024
    return 0


class LargestRedis(threading.Thread):
    """The most memory that Redis had in use, bytes, looked at 5 times a second."""

    def __init__(self, client: "redis.Redis") -> None:
        super().__init__(daemon=True)
        self.client = client
        self.before = self._used()
        self.bytes = self.before
        self._stop_now = threading.Event()

    def __enter__(self) -> "LargestRedis":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._stop_now.wait(SAMPLE_SECONDS):
            self.bytes = max(self.bytes, self._used())

    def _used(self) -> int:
        return int(self.client.info("memory")["used_memory"])


def median(values: Iterable[float]) -> float:
    """The median."""
    return float(statistics.median(values))


# -- writing it down ----------------------------------------------------------------------------------------------------------


def machine(*libraries: str) -> list[str]:
    """Markdown lines that say where and with what something was measured."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
    found = device()
    gpu = "no GPU" if found.startswith("CPU,") else found
    versions = [f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in libraries)]
    return [
        f"Machine: {cpu[1] if cpu else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory / 2**20:.0f} GiB of memory, {gpu}.  ",
        f"Versions: {', '.join(versions)}. Measured {datetime.now(UTC):%Y-%m-%d}.",
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table whose columns stand below each other in a terminal too; the first is words, the others are numbers."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))) + " |"

    ruler = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [line(columns), ruler, *(line(row) for row in rows)]


def write_section(name: str, text: str, path: Path = PAGE) -> None:
    """Replace the section `name` of the page, or add it; every other section stays as it is."""
    page = path.read_text(encoding="utf-8") if path.exists() else HEAD
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{first}\n{text.strip()}\n{last}"
    if first in page and last in page:
        head, _, rest = page.partition(first)
        page = head + section + rest.partition(last)[2]
    else:
        page = f"{page.rstrip()}\n\n{section}\n"
    path.write_text(page, encoding="utf-8")


def conclude(name: str, lines: list[str], facts: dict[str, Any], write: bool = True) -> None:
    """Print the tables, write them to docs/benchmarks.md, and print the facts as the last line of all."""
    text = "\n".join(lines)
    print(text)
    if write:
        write_section(name, text)
    print(json.dumps(facts), flush=True)
