"""Starting and stopping as a user does: `darkroom up`, `worker`, `demo`."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from conftest import alive, descendants, until

from cli.start import check_port, environment, free_port, with_redis
from shared.errors import DarkroomError
from shared.settings import Settings

pytestmark = pytest.mark.slow


class Up:
    """A `darkroom up` of its own, on a free port."""

    def __init__(self, home, port=None):
        self.port = port or free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}/api/v1"
        self.storage = home / "store"
        self.log = home / "up.log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
        self.environ = {**environ, "DARKROOM_CACHE": str(home / "cache"), "DARKROOM_STORAGE": str(self.storage)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command("up", "--port", str(self.port)), env=self.environ, stdout=log, stderr=log)

    def command(self, *words):
        return [sys.executable, "-m", "cli", *words]

    def ready(self):
        until(lambda: "Darkroom is at" in self.log.read_text() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def stop(self, how=signal.SIGINT):
        family = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(60)
        until(lambda: not [pid for pid in family if alive(pid)], 20, lambda: "processes left behind")


@pytest.fixture
def up(tmp_path):
    system = Up(tmp_path).ready()
    yield system
    system.stop()


def test_stopping_and_starting_again_loses_nothing(up, tmp_path, digits):
    spec = {"source": {"kind": "folder", "path": str(digits)}}
    job = httpx.post(f"{up.url}/datasets/digits/import", json=spec).json()["id"]
    until(lambda: httpx.get(f"{up.url}/jobs/{job}").json()["state"] == "done")
    up.stop()
    again = Up(tmp_path).ready()
    try:
        assert httpx.get(f"{again.url}/jobs/{job}").json()["state"] == "done"
        assert httpx.get(f"{again.url}/datasets").json()["datasets"][0]["images"] == 120
    finally:
        again.stop()


def test_nothing_is_left_when_it_is_killed_and_what_dies_is_started_again(up):
    def worker():
        return next(w for w in httpx.get(f"{up.url}/workers").json()["workers"] if w["queues"] == ["train"])

    until(lambda: len(httpx.get(f"{up.url}/workers").json()["workers"]) == 3, 30)
    first = worker()["pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: "worker-train ended" in up.log.read_text(), 30)
    until(lambda: any(w["pid"] != first and w["queues"] == ["train"] for w in httpx.get(f"{up.url}/workers").json()["workers"]), 60)
    up.stop(signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_it_stops_in_order_even_when_a_shell_started_it_in_the_background(tmp_path, how):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does for `darkroom up &`
    try:
        system = Up(tmp_path).ready()
    finally:
        signal.signal(signal.SIGINT, before)
    system.stop(how)
    assert system.process.returncode == 0
    assert "Stopping" in system.log.read_text()


def test_a_worker_finds_the_redis_of_its_storage(up):
    worker = subprocess.Popen(up.command("worker", "--queues", "scrape", "--name", "extra"), env=up.environ, stderr=subprocess.DEVNULL)
    until(lambda: "extra" in [w["name"] for w in httpx.get(f"{up.url}/workers").json()["workers"]], 30)
    worker.terminate()
    worker.wait(30)
    until(lambda: "extra" not in [w["name"] for w in httpx.get(f"{up.url}/workers").json()["workers"]], 40)


def test_two_of_them_on_one_storage_are_one_too_many(up, tmp_path):
    second = subprocess.run(
        up.command("up", "--port", str(free_port("127.0.0.1"))), env=up.environ, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "Darkroom runs already on the storage" in second.stderr


def test_a_port_that_is_taken_is_a_sentence():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(DarkroomError, match=r"cannot listen on 127.0.0.1:\d+ .*Choose another with --port"):
            check_port("127.0.0.1", other.getsockname()[1])


def test_without_any_redis_a_worker_says_how_to_get_one(tmp_path):
    with pytest.raises(DarkroomError, match="Start `darkroom up`"):
        with_redis(Settings(storage=str(tmp_path)))


def test_settings_pass_through_the_environment_unchanged(monkeypatch, tmp_path):
    settings = Settings(storage=str(tmp_path), import_roots=[str(tmp_path)], fetch_allow=["127.0.0.0/8"], lease_seconds=3.5, port=8123)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


def test_the_demonstration_does_the_whole_job(tmp_path):
    environ = {**os.environ, "DARKROOM_STORAGE": str(tmp_path / "store"), "DARKROOM_CACHE": str(tmp_path / "cache")}
    environ["DARKROOM_PORT"] = str(free_port("127.0.0.1"))
    command = [sys.executable, "-m", "cli", "demo", "--once", "--json"]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=280)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout.splitlines()[-1])
    assert list(facts) == ["dataset", "images", "model", "error_rate", "train_seconds", "items", "errors", "images_per_second", "results"]
    assert (facts["images"], facts["items"], facts["errors"]) == (1797, 1797, 0)
    assert facts["error_rate"] < 0.05
    with open(facts["results"]) as f:  # noqa: PTH123
        assert len(f.readlines()) == 1798
