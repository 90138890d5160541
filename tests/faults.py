"""What the tests of faults share: orders, the oracle, and faults that are put into a real worker from outside."""

import os
import signal
import subprocess
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import redis
from conftest import alive, descendants, until

from cli.start import redis_server
from shared.jobs import State, connect
from shared.results import shard
from web.orders import submit

# Python runs `sitecustomize` before anything else: this one waits for a module of the worker, and changes it when it has been imported
SITECUSTOMIZE = """
import contextlib, importlib.machinery, os, signal, sys

def once():
    "Whether this is the first time that anybody asks."
    with contextlib.suppress(FileExistsError):
        os.close(os.open({mark!r}, os.O_CREAT | os.O_EXCL))
        return True
    return False

def kill_worker():
    "SIGKILL to the whole worker, from its child process."
    pool = os.getppid()
    main = int(open(f"/proc/{{pool}}/stat").read().rpartition(")")[2].split()[1])
    for pid in (main, pool, os.getpid()):
        os.kill(pid, signal.SIGKILL)

def change(module):
{code}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != {module!r}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), change(module))
        return spec

sys.meta_path.insert(0, Finder)
"""


def fault(folder: Path, module: str, code: str) -> dict[str, str]:
    """The environment of a worker in which `code` changes `module`, once imported; `code` may call `once()` and `kill_worker()`."""
    home = folder / "fault"
    home.mkdir()
    code = textwrap.indent(textwrap.dedent(code), "    ")
    (home / "sitecustomize.py").write_text(SITECUSTOMIZE.format(mark=str(happened(folder)), module=module, code=code))
    return {"PYTHONPATH": str(home)}


def happened(folder: Path) -> Path:
    """The file that is there once the fault of this folder has asked `once()`."""
    return folder / "fault-happened"


def order_batch(backend, folder, **more):
    spec = {"model": "digits", "source": {"kind": "folder", "path": str(folder)}, "shard_size": 4, **more}
    return submit(backend, "classify", spec).id


def order_training(backend, **more):
    spec = {"dataset": "digits", "model": "slow", "start": "scratch", "image_size": 32, "epochs": 300, "batch_size": 16, **more}
    return submit(backend, "train", spec).id


def many(digits: Path, tmp_path: Path, copies=3) -> Path:
    """A folder of 120 x copies images: long enough to be hit in the middle."""
    folder = tmp_path / "many"
    for n in range(copies):
        for path in digits.rglob("*.png"):
            target = folder / str(n) / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder


def ended(backend, job):
    return backend.store.get(job).state.terminal


def done(backend, job):
    return backend.store.get(job).counts.get("done", 0)


def working(backend, job, goal=40):
    """Wait until a batch is well under way."""
    until(lambda: done(backend, job) > goal, explain=explain(backend, job))
    assert not ended(backend, job)


def attempts(backend, job, unit="main"):
    return int(backend.store.redis.hget(f"darkroom:unit:{job}:{unit}", "attempts") or 0)


def explain(backend, job):
    log = Path(backend.settings.storage).with_name("workers.log")
    return lambda: f"{backend.store.get(job)}\n{log.read_text()[-3000:] if log.exists() else ''}"


def shard_files(backend, job):
    """Bytes and time of change of each shard file; a torn one would not open."""
    found = {}
    for name in backend.storage.list(f"batches/{job}/shards"):
        path = Path(backend.settings.storage) / f"batches/{job}/shards/{name}"
        shard(backend.storage, job, path.stem)
        found[name] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


def one_row_an_item(backend, job, items, errors=0):
    """The oracle: the batch is done, with exactly one row an item, and nothing of the work is left lying about."""
    until(lambda: ended(backend, job), 120, explain(backend, job))
    state = backend.store.get(job)
    assert state.state == State.DONE, explain(backend, job)()
    rows = rows_of(backend, job)
    assert [row["item_id"] for row in rows] == list(range(items))
    assert sum(bool(row["error_code"]) for row in rows) == errors
    assert (state.counts["done"], state.counts["items"], state.counts["errors"]) == (items, items, errors)
    assert state.counts["units_done"] == state.counts["units"]
    assert sum(backend.store.histogram(job, "labels").values()) == items - errors
    assert sum(backend.store.histogram(job, "reasons").values()) == errors
    nothing_is_left(backend)


def nothing_is_left(backend):
    """No lease and no half-written file. A web server that was killed may leave one beside the records, where nobody reads it."""
    until(lambda: backend.store.redis.zcard("darkroom:leases") == 0, 20)
    until(lambda: not [path for path in Path(backend.settings.storage).rglob("*.tmp") if path.parent.name != "jobs"], 20)


def rows_of(backend, job):
    with backend.storage.open(f"batches/{job}/results.parquet") as f:
        return pq.read_table(f).to_pylist()


def kill_all_of(process: subprocess.Popen) -> None:
    """SIGKILL to a process and everything it started, at once."""
    for pid in [process.pid, *descendants(process.pid)]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


class OwnRedis:
    """A redis-server that a test may kill, with its append-only file on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.start()

    def start(self):
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder), "--appendonly", "yes"]
        self.process = subprocess.Popen([redis_server(), *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL)
        until(self.answers)

    def answers(self):
        try:
            return connect(self.url).ping()
        except redis.RedisError:
            return False

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()

    def forget(self):
        """Delete all that it has written."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
