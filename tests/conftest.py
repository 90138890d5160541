"""Real parts for every test: a Redis of its own, a storage folder of its own."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cli.start import redis_server
from shared.settings import Settings


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
