"""The driver of a contestant: a process that stays warm, and measures what it is asked for.

python -m tests.benchmarks.drive CONTESTANT      workload and count a line on stdin, seconds a line on stdout
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.contestants import MAKERS, environment
from tests.benchmarks.functions import noop
from tests.benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]


class Driver:
    """A contestant in a process of its own."""

    def __init__(self, name: str):
        self.home = tempfile.TemporaryDirectory(prefix="burla-bench-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.drive", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(name, self.home.name), cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        self.answers.readline()  # it is warm now

    def measure(self, workload: str, count: int) -> float:
        """Return seconds. Raises ValueError: the driver failed, and has said why on stderr."""
        print(workload, count, file=self.questions, flush=True)
        return float(self.answers.readline())

    def close(self) -> None:
        self.questions.close()
        self.process.wait()
        self.home.cleanup()


SCRIPTS = {
    "burla": "from burla import remote_parallel_map\nprint(remote_parallel_map(abs, [-1, -2], spinner=False))",
    "joblib": "from joblib import Parallel, delayed\nprint(Parallel(n_jobs=2)(delayed(abs)(x) for x in (-1, -2)))",
}


def script_s(name: str, home: str) -> float:
    """Return how long a fresh interpreter takes, from its start to its end, to map two inputs."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", SCRIPTS[name]], check=True, capture_output=True, env=environment(name, home), cwd=ROOT
    )
    return time.perf_counter() - began


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:  # for what the workers of others print
        os.dup2(nowhere.fileno(), 1)
    contestant = MAKERS[name]()
    assert contestant.one(noop, 1) == 1
    assert contestant.map(noop, range(100), False) == list(range(100))
    print(0, file=answers, flush=True)
    for line in sys.stdin:
        workload, count = line.split()
        print(WORKLOADS[workload].run(contestant, int(count)), file=answers, flush=True)
    contestant.close()


if __name__ == "__main__":
    main(sys.argv[1])
