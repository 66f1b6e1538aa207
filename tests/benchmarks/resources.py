"""What burla takes while it does nothing, and while it does much: `python -m tests.benchmarks.resources [--only idle]`.

Each workload runs in a process of its own with a cluster of its own; memory is the proportional share (PSS) of each
process, looked at 20 times a second. Linux only. Prints a Markdown table. `generator` takes 10 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.contestants import caught, environment
from tests.benchmarks.drive import ROOT
from tests.benchmarks.functions import MB, noop
from tests.conftest import cluster_processes, process_kind

LOOK_S = 0.05
IDLE_S = 20.0
BIG = 50 * MB


class Peaks:
    """The most memory that each kind of process has had, in bytes, and what it had at first."""

    def __init__(self) -> None:
        self.first = self._look()
        self.most = dict(self.first)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            for kind, bytes_ in self._look().items():
                self.most[kind] = max(self.most.get(kind, 0), bytes_)

    @staticmethod
    def _look() -> dict[str, int]:
        found = {"client": _pss(os.getpid())}
        for process in cluster_processes(os.environ):
            kind = process_kind(process)
            found[kind] = max(found.get(kind, 0), _pss(process.pid))
        return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _map(function: Callable[[Any], Any], inputs: Any, **options: Any) -> Any:
    from burla import remote_parallel_map

    return remote_parallel_map(function, inputs, spinner=False, **options)


def idle() -> str:
    """Return CPU and memory of a cluster that has just run a call."""
    _map(noop, [1])
    time.sleep(3)
    processes = [psutil.Process(process.pid) for process in cluster_processes(os.environ)]
    before = sum(sum(process.cpu_times()[:2]) for process in processes)
    time.sleep(IDLE_S)
    cpu = (sum(sum(process.cpu_times()[:2]) for process in processes) - before) / IDLE_S
    memory = sum(_pss(process.pid) for process in processes)
    return f"{cpu:.2%} of a CPU (≤ 2 %), {memory / MB:.0f} MB (≤ 200)"


def inputs() -> str:
    """Return what a million inputs cost the head, and the client beside their own size."""
    _map(noop, [1])
    values = list(range(1_000_000))
    own = sys.getsizeof(values) + len(values) * sys.getsizeof(1 << 20)
    peaks = Peaks()
    assert len(_map(noop, values)) == len(values)
    peaks.close()
    head, client = (peaks.most[kind] - peaks.first[kind] for kind in ("head", "client"))
    return f"head + {head / MB:.0f} MB (≤ 300), client + {client / own:.1f} × the inputs' own {own / MB:.0f} MB (≤ 3)"


def big(x: int) -> bytes:
    return bytes([x % 256]) * BIG


def generator() -> str:
    """Return the most that any process had while 10 GB of results were read slowly."""
    _map(noop, [1])
    peaks = Peaks()
    for result in _map(big, range(200), generator=True):
        assert len(result) == BIG
        time.sleep(0.05)
    peaks.close()
    return _shown(peaks) + " (≤ 500 MB each)"


def gigabyte(x: int) -> int:
    line = "x" * 999
    for _ in range(1_000_000):
        print(line)
    return x


def output() -> str:
    """Return the most that any process had while a call printed 1 GB, of which 100 MB are kept."""
    _map(noop, [1])
    with open(os.devnull, "w") as nowhere:
        sys.stdout, before = nowhere, sys.stdout
        try:
            peaks = Peaks()
            assert _map(gigabyte, [1]) == [1]
            peaks.close()
        finally:
            sys.stdout = before
    return _shown(peaks)


def _shown(peaks: Peaks) -> str:
    return ", ".join(f"{kind} {most / MB:.0f} MB" for kind, most in sorted(peaks.most.items()) if kind != "gone")


WORKLOADS = {
    "idle": ("an idle warm cluster, 2 CPUs", idle),
    "inputs": ("1,000,000 inputs", inputs),
    "generator": ("200 results of 50 MB, read slowly", generator),
    "output": ("a call that prints 1 GB", output),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--run", choices=WORKLOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        with caught() as shown:
            figure = WORKLOADS[options.run][1]()
        del shown
        print(figure)
        return
    print("| | |\n| --- | --- |")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True) as home:
            environ = environment("burla", home)
            command = [sys.executable, "-m", "tests.benchmarks.resources", "--run", name]
            done = subprocess.run(command, env=environ, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            subprocess.run([sys.executable, "-m", "burla.cli", "cluster", "stop"], env=environ, check=True, stdout=2)
            print(f"| {WORKLOADS[name][0]} | {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
