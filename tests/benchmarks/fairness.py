"""How jobs share a cluster: `python tests/benchmarks/fairness.py [--rounds 3] [--seconds 120] [--json FILE]`.

Two questions, on local clusters whose calls sleep, so that they may have more slots than there are CPUs. How much
longer does a small job take beside a huge one than alone? And do jobs with func_cpu 1, 2 and 4 keep eight slots full,
each with its share? Prints medians as Markdown tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUGE, SHORT_S = 100_000, 0.01
SMALL, LONG_S = 10, 0.1
WIDTHS, SLOTS, CALL_S = (1, 2, 4), 8, 0.05


@contextlib.contextmanager
def cluster(slots: int) -> Iterator[Path]:
    """A local cluster of its own with so many slots, and a folder."""
    import burla
    from burla.cli import main

    with tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True) as home:
        os.environ |= {"BURLA_HOME": home, "BURLA_LOCAL_CPUS": str(slots)}
        burla.remote_parallel_map(abs, range(slots), spinner=False)
        try:
            yield Path(home)
        finally:
            with contextlib.redirect_stdout(None):
                main(["cluster", "stop"])


def nap(seconds: float) -> None:
    time.sleep(seconds)


def time_small() -> float:
    from burla import remote_parallel_map

    began = time.perf_counter()
    remote_parallel_map(nap, [LONG_S] * SMALL, spinner=False)
    return time.perf_counter() - began


def beside_huge(slots: int, rounds: int) -> dict[str, list[float]]:
    """Return how many seconds the small job takes, alone and beside the huge one."""
    import burla

    samples: dict[str, list[float]] = {"alone": [], "beside": []}
    with cluster(slots):
        time_small()  # warm
        for _ in range(rounds):
            samples["alone"].append(time_small())
            huge = burla.submit(nap, [SHORT_S] * HUGE, detach=False)
            while huge.progress.done < 100:
                time.sleep(0.02)
            samples["beside"].append(time_small())
            huge.cancel()
            huge.wait()
    return samples


def packing(seconds: float) -> dict[str, Any]:
    """Return how full the slots were and what each job had of them, over so many seconds of all jobs at once."""
    import burla

    def call(x: int, width: int, path: str) -> None:
        began = time.monotonic()
        time.sleep(CALL_S)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{width} {began} {time.monotonic()}\n".encode())
        os.close(fd)

    with cluster(SLOTS) as home:
        path = home / "calls"
        count = int(seconds / CALL_S * SLOTS) + SLOTS
        jobs = [
            burla.submit(call, [(x, width, str(path)) for x in range(count)], func_cpu=width, detach=False)
            for width in WIDTHS
        ]
        since = time.monotonic()
        time.sleep(seconds)
        until = time.monotonic()
        for job in jobs:
            job.cancel()
            job.wait()
        calls = [line.split() for line in path.read_text().splitlines()]
    cpu_s = dict.fromkeys(WIDTHS, 0.0)
    for width, began, ended in calls:
        cpu_s[int(width)] += int(width) * max(0.0, min(float(ended), until) - max(float(began), since))
    total_s = sum(cpu_s.values())
    return {
        "occupancy": total_s / SLOTS / (until - since),
        "shares": {str(width): used_s / total_s for width, used_s in cpu_s.items()},
    }


def tables(small: dict[int, dict[str, list[float]]], packed: dict[str, Any]) -> str:
    lines = ["| slots | small job alone | beside the huge one | |", "|" + " --- |" * 4]
    for slots, samples in small.items():
        alone_s, beside_s = (statistics.median(samples[name]) for name in ("alone", "beside"))
        lines.append(f"| {slots} | {alone_s:.2f} s | {beside_s:.2f} s | {beside_s / alone_s:.1f} × |")
    shares = packed["shares"]
    lines += ["", f"| {SLOTS} slots | {' | '.join(f'func_cpu={width}' for width in shares)} | slots in use |"]
    lines += ["|" + " --- |" * (len(shares) + 2)]
    lines += [f"| of the CPU time | {' | '.join(f'{x:.0%}' for x in shares.values())} | {packed['occupancy']:.1%} |"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the jobs of unlike width run")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    small = {slots: beside_huge(slots, options.rounds) for slots in (2, SLOTS)}
    packed = packing(options.seconds)
    print(tables(small, packed))
    if options.json:
        options.json.write_text(json.dumps({"small": small, "packing": packed, "python": sys.version}))


if __name__ == "__main__":
    main()
