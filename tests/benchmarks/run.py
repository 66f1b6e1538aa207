"""Compare burla with raw Dask and multiprocessing: `python tests/benchmarks/run.py [--rounds 5] [--json FILE]`.

Each contestant has a driver process of its own, that stays warm; the measurements of a round alternate between them, so
that whatever else the machine does hits all of them. Two slots each. Prints medians and ratios as a Markdown table.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOTS = 2
SLEEP_S = 0.01
NAMES = ("burla", "dask", "multiprocessing")


def noop(x: int) -> int:
    return x


def nap(x: int) -> int:
    time.sleep(SLEEP_S)
    return x


class Burla:
    def close(self) -> None:
        from burla.cli import main

        main(["cluster", "stop"])

    def map(self, function: Callable[[int], int], count: int) -> list[int]:
        from burla import remote_parallel_map

        return remote_parallel_map(function, range(count), spinner=False)

    def one(self, x: int) -> int:
        from burla import remote_parallel_map

        return remote_parallel_map(noop, [x], spinner=False)[0]


class Dask:
    def __init__(self) -> None:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(n_workers=SLOTS, threads_per_worker=1, processes=True, dashboard_address=":0")
        self.client = Client(cluster)
        self.close = self.client.shutdown

    def map(self, function: Callable[[int], int], count: int) -> list[int]:
        return self.client.gather(self.client.map(function, range(count), pure=False))  # type: ignore[return-value]

    def one(self, x: int) -> int:
        return self.client.submit(noop, x, pure=False).result()


class Multiprocessing:
    def __init__(self) -> None:
        self.pool = multiprocessing.Pool(SLOTS)
        self.close = self.pool.terminate

    def map(self, function: Callable[[int], int], count: int) -> list[int]:
        return self.pool.map(function, range(count), chunksize=1 if function is nap else None)

    def one(self, x: int) -> int:
        return self.pool.apply(noop, (x,))


def drive(name: str) -> None:
    """Measure what is asked for on stdin: a workload and a count a line; answer with seconds."""
    contestant: Any = {"burla": Burla, "dask": Dask, "multiprocessing": Multiprocessing}[name]()
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")
    assert contestant.one(1) == 1
    print(0, file=answers, flush=True)  # a cold start is over now
    for line in sys.stdin:
        workload, count = line.split()[0], int(line.split()[1])
        began = time.perf_counter()
        if workload == "one":
            results = [contestant.one(x) for x in range(count)]
        else:
            results = contestant.map(nap if workload == "sleep" else noop, count)
        print(time.perf_counter() - began, file=answers, flush=True)
        assert results == list(range(count))
    contestant.close()


class Driver:
    """A contestant in a process of its own; `started_s` after its interpreter began, it had its first result."""

    def __init__(self, name: str):
        self.home = tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True)
        environ = os.environ | {"BURLA_HOME": self.home.name, "BURLA_LOCAL_CPUS": str(SLOTS)}
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--driver", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=self.home.name,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        self.answers.readline()
        self.started_s = time.perf_counter() - began

    def measure(self, workload: str, count: int) -> float:
        print(workload, count, file=self.questions, flush=True)
        return float(self.answers.readline())  # an empty line: the driver failed, and has said why

    def close(self) -> None:
        self.questions.close()
        self.process.wait()
        self.home.cleanup()


def measure(rounds: int, scale: float) -> dict[str, dict[str, list[float]]]:
    """Return, by workload and contestant, one figure a round: seconds a call, or a cold start."""
    many, few, naps, ones = (max(2, int(count * scale)) for count in (100_000, 2_000, 1_000, 50))
    workloads = {
        "noop": {"burla": many, "dask": few, "multiprocessing": many},  # Dask would need a minute for all of them
        "one": dict.fromkeys(NAMES, ones),
        "sleep": dict.fromkeys(NAMES, naps),
    }
    samples: dict[str, dict[str, list[float]]] = {w: {name: [] for name in NAMES} for w in (*workloads, "cold start")}
    drivers = {name: Driver(name) for name in NAMES}
    try:
        for name in NAMES:
            drivers[name].measure("noop", workloads["noop"][name])  # warm
        for number in range(rounds):
            order = NAMES[number % 3 :] + NAMES[: number % 3]
            for workload, counts in workloads.items():
                for name in order:
                    samples[workload][name].append(drivers[name].measure(workload, counts[name]) / counts[name])
            for name in order:
                cold = Driver(name)
                cold.close()
                samples["cold start"][name].append(cold.started_s)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        for driver in drivers.values():
            driver.close()
    return samples


def table(samples: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians, and what they say about burla."""
    middle = {w: {name: statistics.median(values) for name, values in by.items()} for w, by in samples.items()}
    noop_s, one_s, sleep_s, cold_s = (middle[w] for w in ("noop", "one", "sleep", "cold start"))
    ideal_s = SLEEP_S / SLOTS
    against = {w: by["burla"] / by["dask"] for w, by in middle.items()}
    rows: list[tuple[str, Callable[[str], str], str]] = [
        (
            "no-op × 100,000 (Dask 2,000)",
            lambda n: f"{1 / noop_s[n]:,.0f} /s",
            f"{1 / against['noop']:,.0f} × the rate",
        ),
        ("one warm call", lambda n: f"{one_s[n] * 1e3:.2f} ms", f"{against['one']:.2f} × the time"),
        ("sleep 10 ms × 1,000", lambda n: f"{sleep_s[n] / ideal_s:.2f} × ideal", f"{against['sleep']:.2f} × the time"),
        ("cold start, first result", lambda n: f"{cold_s[n]:.2f} s", f"{against['cold start']:.2f} × the time"),
    ]
    lines = [f"| workload, {SLOTS} slots | {' | '.join(NAMES)} | burla : Dask |", "|" + " --- |" * 5]
    lines += [f"| {title} | {' | '.join(map(shown, NAMES))} | {verdict} |" for title, shown, verdict in rows]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("burla-dask", "dask", "distributed")}
    return found | {"python": platform.python_version(), "system": platform.platform(), "cpus": str(os.cpu_count())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every sample, and the versions, to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads; 1 is what the table says")
    parser.add_argument("--driver", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        drive(options.driver)
        return
    samples = measure(options.rounds, options.scale)
    print(table(samples))
    print("\n" + ", ".join(f"{name} {version}" for name, version in versions().items()))
    if options.json:
        options.json.write_text(json.dumps({"versions": versions(), "rounds": options.rounds, "samples": samples}))


if __name__ == "__main__":
    main()
