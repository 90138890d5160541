"""`python -m worker.health`: exit code 0 when a worker of this host announced itself in the last 30 seconds."""

import socket
import sys

from shared.errors import DarkroomError
from shared.jobs import JobStore, connect
from shared.settings import load


def main() -> int:
    """Ask the ledger, which costs one small read and wakes no worker."""
    try:
        store = JobStore(connect(load().redis_url or "", timeout=3))
        return 0 if any(worker["host"] == socket.gethostname() for worker in store.workers()) else 1
    except DarkroomError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
