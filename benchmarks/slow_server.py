"""A server of pictures that lets every client wait: `python -m benchmarks.slow_server FOLDER HOSTS SECONDS`.

It serves the files of FOLDER on one port of HOSTS loopback addresses (127.0.0.1, 127.0.0.2, ...), as many hosts as a client sees, each answer
SECONDS after it was asked for, and says its port on standard output. It speaks just enough HTTP/1.1 that it is not what is measured: keep-alive, GET, Content-Length.
"""

import asyncio
import socket
import sys
from pathlib import Path


class Pictures(asyncio.Protocol):
    """One connection; requests that come while another is waited for are answered in turn."""

    def __init__(self, pictures: dict[bytes, bytes], seconds: float) -> None:
        self._pictures, self._seconds = pictures, seconds
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is sent before it is asked for."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request after a while."""
        *whole, self._unread = (self._unread + data).split(b"\r\n\r\n")
        for request in whole:
            asyncio.get_running_loop().call_later(self._seconds, self._answer, request.split(b" ", 2)[1][1:])

    def _answer(self, name: bytes) -> None:
        body = self._pictures.get(name)
        status = b"200 OK" if body is not None else b"404 Not Found"
        head = b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (status, len(body or b""))
        self._transport.write(head + (body or b""))  # type: ignore[attr-defined]


async def serve(pictures: dict[bytes, bytes], hosts: int, seconds: float) -> None:
    """Until the process is ended."""
    loop = asyncio.get_running_loop()
    port = 0
    for host in range(1, hosts + 1):
        listening = socket.create_server((f"127.0.0.{host}", port), backlog=1024)
        port = listening.getsockname()[1]
        await loop.create_server(lambda: Pictures(pictures, seconds), sock=listening)
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    held = {path.name.encode(): path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    asyncio.run(serve(held, int(sys.argv[2]), float(sys.argv[3])))
