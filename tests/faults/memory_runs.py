"""Jobs at random on a node that runs short of memory: who is blamed must have been too big.

    python -m tests.faults.memory_runs --runs 100 [--seed 1]

Each run is two jobs at once on a local cluster in a cgroup of 1.3 GB, with calls of all sizes that fit alone, and some
that do not. A wrong blame is a call that fails and would have fitted, or does not fail and could not fit.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time

import burla
from burla import OutOfMemory
from tests.faults.memory_limit import limited, start_cluster

LIMIT_BYTES = 1_300_000_000
FITS_MB = 600  # alone, with head and node beside it
TOO_BIG_MB = 1_600
LONGEST_S = 8.0  # parallelism comes back after 5 s without want


def hold(size_mb: int, seconds: float) -> int:
    """Have so much memory for so long."""
    held = bytearray()
    for _ in range(size_mb // 10):
        held += b"1" * 10_000_000
    time.sleep(seconds)
    return size_mb


def random_run(dice: random.Random) -> list[str]:
    """Run two jobs at once; return what was wrong."""
    jobs = []
    for number in range(2):
        count = dice.randrange(1, 25)
        largest = dice.choice([20, 100, 300, FITS_MB])
        sizes = [dice.randrange(1, largest + 1) for _ in range(count)]
        fixed = dice.random() < 0.2
        for index in range(count):
            if dice.random() < 0.05:
                sizes[index] = TOO_BIG_MB
        seconds = dice.choice([0.0, 0.05, 0.3])
        long = [dice.random() < 0.03 for _ in sizes]
        inputs = [(size, dice.uniform(1, LONGEST_S) if one else seconds) for size, one in zip(sizes, long, strict=True)]
        ram = 1 if fixed and number else "dynamic"
        jobs.append((sizes, burla.submit(hold, inputs, func_ram=ram, on_error="continue")))
    wrong = []
    for sizes, job in jobs:
        job.wait()
        for index, size_mb in enumerate(sizes):
            try:
                blamed = job.result(index) != size_mb
            except OutOfMemory as error:
                blamed = True
                said = str(error)
            if blamed != (size_mb >= TOO_BIG_MB):
                wrong.append(f"job {job.id}: call {index} of {size_mb} MB: {said if blamed else 'not blamed'}")
        job.delete()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    problems = 0
    with tempfile.TemporaryDirectory(prefix="burla-test-") as home, limited(LIMIT_BYTES) as group:
        os.environ.update(BURLA_HOME=home, BURLA_LOCAL_CPUS="4")
        start_cluster(group)
        dice, began = random.Random(options.seed), time.monotonic()
        for run in range(options.runs):
            wrong = random_run(dice)
            problems += len(wrong)
            print("\n".join([f"run {run}, {time.monotonic() - began:.0f} s: {len(wrong)} wrong", *wrong]), flush=True)
        kills = group.kills
        subprocess.run([sys.executable, "-m", "burla.cli", "cluster", "stop"], check=True, capture_output=True)
    print(f"{options.runs} runs: {problems} wrong blames; the kernel ended {kills} processes")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
