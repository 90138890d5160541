"""Real parts for every test: a Redis of its own, a storage folder of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from cli.start import environment, free_port, redis_server
from shared.settings import Settings
from shared.storage import Storage
from web.backend import Backend

# as in children (worker/device.py), before torch is imported: on a busy machine waiting threads spin instead of letting others work
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real redis-server on a unix socket, for the whole session."""
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [redis_server(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(unix_socket_path=str(socket))
    for _ in range(100):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    yield f"unix://{socket}"
    process.terminate()
    process.wait()


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Settings on an empty Redis and an empty storage folder."""
    redis.Redis.from_url(redis_url).flushall()
    return Settings(redis_url=redis_url, storage=str(tmp_path / "store"), cache=tmp_path / "cache")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class with 30 real scans each of the digits 0, 1, 2 and 3, PNG files of 32 x 32 pixels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for label in range(4):
        (folder / f"digit {label}").mkdir()
        for n, scan in enumerate(data.images[data.target == label][:30]):
            image = Image.fromarray((255 - scan * (255 / 16)).astype("uint8"))
            image.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"digit {label}" / f"{n:02}.png")
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with the dataset `digits` and a model `digits` trained on it by the real pipeline."""
    from shared.specs import parse
    from worker.classifying.engines import load
    from worker.importing import import_dataset
    from worker.progress import Progress
    from worker.training import train

    home = tmp_path_factory.mktemp("trained")
    settings = Settings(storage=str(home / "store"), cache=home / "cache")
    storage = Storage(settings.storage, settings.cache)
    source = {"kind": "folder", "path": str(digits)}
    import_dataset(parse("import", {"dataset": "digits", "source": source}), "job-import", storage, settings, Progress(lambda _: None))
    spec = {"dataset": "digits", "start": "scratch", "image_size": 32, "epochs": 6, "augment": "none", "base_lr": 2e-3, "batch_size": 16}
    train(parse("train", {**spec, "version": 1, "model": "digits"}), "job-train", storage, settings, Progress(lambda _: None))
    (settings.cache / "engines").mkdir(exist_ok=True)
    load(storage.local("models/digits/v0001/info.json").parent, "fast", settings.cache)  # converted once, and not by each test's worker
    return home / "store"


@pytest.fixture
def ready(tmp_path: Path) -> tuple[Settings, Storage]:
    """Settings and storage with a dataset version of handwritten digits."""
    from handwriting import digits, place, publish

    settings, storage = place(tmp_path)
    publish(storage, tmp_path / "files", digits())
    return settings, storage


@pytest.fixture
def with_model(settings: Settings, trained: Path) -> Settings:
    """Settings whose storage holds the dataset and the model `digits`; leases run out quickly."""
    shutil.copytree(trained, settings.storage)
    shutil.copytree(trained.parent / "cache" / "engines", settings.cache / "engines")
    return settings.model_copy(update={"lease_seconds": 3, "heartbeat_seconds": 0.2})


@pytest.fixture
def start_worker(with_model: Settings) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts real workers as a user would; at the end they are stopped, and none may leave a process behind."""
    started: list[subprocess.Popen[bytes]] = []
    log = Path(with_model.storage).with_name("workers.log")

    def start(queues: str = "predict,classify", settings: Settings = with_model, **environ: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as out:
            command = [sys.executable, "-m", "cli", "worker", "--queues", queues]
            env = {**os.environ, **environment(settings), **environ}
            process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
    try:
        for process in started:
            process.wait(30)
    except subprocess.TimeoutExpired as late:  # it would answer the questions of other tests
        for pid in working_for(with_model):
            os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"a worker did not end when it was told to:\n{log.read_text()[-3000:]}") from late
    until(lambda: not working_for(with_model), 15, lambda: f"processes left behind: {working_for(with_model)}\n{log.read_text()[-3000:]}")


def working_for(settings: Settings) -> list[int]:
    """Ids of all processes, whoever is their parent by now, that were started for this storage."""
    mark = f"DARKROOM_STORAGE={settings.storage}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if alive(pid)]


def descendants(pid: int) -> list[int]:
    """Ids of all processes that a process has started, directly or not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object], seconds: float = 60, explain: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds; fails the test with an explanation when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true in {seconds} s. {explain()}"
        time.sleep(0.05)


@pytest.fixture
def backend(with_model: Settings) -> Backend:
    """What the web orders through, beside `start_worker`."""
    return Backend(with_model)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium or Chrome. Without one browser tests skip, but not in CI."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("CI needs a Chromium on PATH; `make chromium` installs one on Debian")
    pytest.skip("there is no Chromium or Chrome on PATH")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Everything as `darkroom up` starts it, Redis included, on an empty storage; its address."""
    home = tmp_path_factory.mktemp("system")
    port = free_port("127.0.0.1")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    command = [sys.executable, "-m", "cli", "up", "--port", str(port), "--storage", str(home / "store")]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(command, env={**environ, "DARKROOM_CACHE": str(home / "cache")}, stdout=log, stderr=log)
    ready = f"http://127.0.0.1:{port}"
    until(lambda: "Darkroom is at" in (home / "up.log").read_text() or process.poll() is not None, 60)
    assert process.poll() is None, (home / "up.log").read_text()
    family = descendants(process.pid)
    yield ready
    process.send_signal(signal.SIGINT)
    process.wait(60)
    until(lambda: not [pid for pid in family if alive(pid)], 15, lambda: "darkroom up left processes behind")
