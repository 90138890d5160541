"""A worker whose child looks at no picture: what is left is the cost of queue, ledger and Parquet. Takes the arguments of `darkroom`.

Everything else is as always: plan, claim, commit and the files it writes. Only the benchmark starts it.
"""

import subprocess
from types import SimpleNamespace
from typing import Any

import worker.device
from cli.main import main


def _noop_child(command: list[str], **more: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["benchmarks.noop_child" if part == "worker.child" else part for part in command], **more)


if __name__ == "__main__":
    worker.device.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": _noop_child})  # type: ignore[assignment]
    main()
