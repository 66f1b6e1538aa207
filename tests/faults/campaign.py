"""A detached job while processes are killed and stopped at random, and what became of every input.

    python -m tests.faults.campaign --faults 1000 --at-once 4

Faults are drawn from a seed: kill -9, or SIGSTOP for 5 to 60 s, of head, node, supervisor, a child that runs a call, or
the client that follows the job. A ledger says which call began when and in which process; a client, started again
whenever it was killed, writes down every result that it is given.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import math
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import burla
from tests.conftest import cluster_processes, end_cluster, process_kind, wait_until

VICTIMS = ("head", "node", "supervisor", "child", "client")
KINDS = tuple(f"{how} {whom}" for how in ("kill", "stop") for whom in VICTIMS)
SLOTS = 4
SHORTEST_S, LONGEST_S = 0.01, 30.0  # of calls
STOPPED_S = (5.0, 60.0)
BETWEEN_S = (0.5, 4.0)

CLIENT = """
import sys, burla
job, path = burla.attach(sys.argv[1]), sys.argv[2]
with open(path, "w") as file:
    for index, result in job.iter_results():
        print(index, result, file=file, flush=True)
    print("end", file=file, flush=True)
"""


def between(low: float, high: float, dice: random.Random, skew: int) -> float:
    """Draw from a wide range, small numbers more often."""
    return low * math.exp(dice.random() ** skew * math.log(high / low))


@dataclass
class Fault:
    kind: str
    at_s: float
    hit: bool  # a call was running
    pids: set[int]  # children that were lost with it
    next_result_s: float | None = None  # from the fault to the next call that ended


@dataclass
class Report:
    """What a campaign has found; `problems` is empty if all promises held."""

    seed: int
    faults: list[Fault] = field(default_factory=list)
    calls: int = 0
    begun: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def summary(reports: list[Report]) -> list[str]:
    """Return what campaigns have found, in words."""
    faults = [fault for report in reports for fault in report.faults]
    count = collections.Counter(fault.kind for fault in faults)
    heads = [fault.next_result_s for fault in faults if fault.kind == "kill head" and fault.next_result_s] or [0.0]
    calls, begun = sum(report.calls for report in reports), sum(report.begun for report in reports)
    return [
        f"seeds {', '.join(str(report.seed) for report in reports)}: {len(faults)} faults in "
        f"{max(report.seconds for report in reports):.0f} s: " + ", ".join(f"{kind} {count[kind]}" for kind in KINDS),
        f"{calls:,} calls, {begun - calls} of them begun again ({100 * (begun - calls) / calls:.1f} %)",
        f"{100 * hits(faults):.0f} % of the faults hit a running call",
        f"from the kill of a head to the next new result: median {statistics.median(heads):.1f} s, "
        f"at most {max(heads):.1f} s",
        *(f"PROBLEM (seed {report.seed}): {problem}" for report in reports for problem in report.problems),
    ]


def hits(faults: list[Fault]) -> float:
    """Return how many of the faults met a running call, from 0 to 1."""
    return sum(fault.hit for fault in faults) / max(len(faults), 1)


class Campaign:
    """One run. `folder` holds BURLA_HOME, ledger and what the client wrote; it is in the environment already."""

    def __init__(self, folder: Path, faults: int, seed: int):
        self.folder = folder
        self.dice = random.Random(seed)
        self.seed = seed
        self.ledger = folder / "ledger"
        self.finish = folder / "finish"
        self.report = Report(seed)
        self.client: subprocess.Popen[bytes] | None = None
        rounds = -(-faults // len(KINDS))
        self.plan = [kind for _ in range(rounds) for kind in self.dice.sample(KINDS, len(KINDS))][:faults]

    def run(self) -> Report:
        began = time.monotonic()
        calls = 100 + 30 * len(self.plan)
        dice = random.Random(self.seed)
        seconds = [between(SHORTEST_S, LONGEST_S, dice, 3) for _ in range(calls)]
        job = burla.submit(recorded(str(self.ledger), str(self.finish)), list(enumerate(seconds)))
        self.report.calls = calls
        try:
            for kind in self.plan:  # grows if there was nobody to hit
                self._keep_client(job.id)
                time.sleep(self.dice.uniform(*BETWEEN_S))
                if len(self._ended()) > calls - 10:
                    self.report.problems.append(
                        f"the job was over after {len(self.report.faults)} faults: too few calls"
                    )
                    break
                self._fault(kind)
            self.finish.touch()  # what is left need not take long
            self._check_client(job.id)
            self._check(burla.attach(job.id))
        finally:
            if self.client is not None:
                self.client.kill()
                self.client.wait()
        self.report.seconds = time.monotonic() - began
        return self.report

    # faults

    def _fault(self, kind: str) -> None:
        how, whom = kind.split()
        victim = self._victim(whom)
        if victim is None:
            self.plan.append(kind)
            return
        running = self._running()
        lost = self._children(victim) if whom in ("node", "supervisor") else set()
        if whom == "child":
            lost.add(victim.pid)
        fault = Fault(kind, time.monotonic(), bool(running), lost if how == "kill" else set())
        self.report.faults.append(fault)
        ended = len(self._ended())
        try:
            if how == "kill":
                victim.send_signal(signal.SIGKILL)
                if whom == "client" and self.client is not None:
                    self.client.wait()
                fault.pids |= self._children(victim) if whom in ("node", "supervisor") else set()
            else:
                victim.send_signal(signal.SIGSTOP)
                time.sleep(between(*STOPPED_S, self.dice, 2))
                victim.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            return  # it had just ended by itself
        if kind == "kill head":
            wait_until(lambda: len(self._ended()) > ended, 90, "a result after the kill of a head")
            fault.next_result_s = time.monotonic() - fault.at_s

    def _victim(self, whom: str) -> psutil.Process | None:
        if whom == "client":
            return psutil.Process(self.client.pid) if self.client is not None and self.client.poll() is None else None
        found: list[psutil.Process] = []
        until = time.monotonic() + 30
        while not found and time.monotonic() < until:  # it may be on its way back from the last fault
            running = self._running()
            for process in cluster_processes(os.environ):
                kind = process_kind(process)
                if kind == whom and (kind != "child" or process.pid in running):
                    found.append(process)
            time.sleep(0.1)
        return self.dice.choice(sorted(found, key=lambda process: process.pid)) if found else None

    def _children(self, process: psutil.Process) -> set[int]:
        try:
            return {child.pid for child in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            return set()

    # the client

    def _keep_client(self, job_id: str) -> None:
        if self.client is None or self.client.poll() is not None:
            with open(self.folder / "client.log", "ab") as log:
                self.client = subprocess.Popen(
                    [sys.executable, "-c", CLIENT, job_id, str(self.folder / "followed")], stdout=log, stderr=log
                )

    def _check_client(self, job_id: str) -> None:
        self._keep_client(job_id)
        assert self.client is not None
        status = self.client.wait(600)
        lines = (self.folder / "followed").read_text().splitlines()
        if lines[-1:] != ["end"]:
            self.report.problems.append(
                f"the client ended early, with {status}: {(self.folder / 'client.log').read_text()[-3000:]}"
            )
        given = collections.Counter(int(line.split()[0]) for line in lines[:-1])
        if given != collections.Counter(range(self.report.calls)):
            self.report.problems.append("the client was not given every index exactly once")

    # what became of it

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines()] if self.ledger.exists() else []

    def _ended(self) -> set[int]:
        return {int(index) for what, index, _ in self._lines() if what == "end"}

    def _running(self) -> dict[int, int]:
        """Return process and input of calls that run."""
        running = {}
        for what, index, pid in self._lines():
            if what == "begin":
                running[int(pid)] = int(index)
            else:
                running.pop(int(pid), None)
        return {pid: index for pid, index in running.items() if psutil.pid_exists(pid)}

    def _check(self, job: burla.Job) -> None:
        problems, calls = self.report.problems, self.report.calls
        if job.results(timeout_s=600) != [index * index + 1 for index in range(calls)]:
            problems.append("a result is wrong, or not in its place")
        progress = job.progress
        if (progress.done, progress.failed, progress.total) != (calls, 0, calls):
            problems.append(f"the job ended as {progress}")
        lost = set().union(*(fault.pids for fault in self.report.faults))
        pids: dict[int, list[int]] = collections.defaultdict(list)
        for what, index, pid in self._lines():
            if what == "begin":
                pids[int(index)].append(int(pid))
        self.report.begun = sum(map(len, pids.values()))
        for index, ran in pids.items():
            if needless := set(ran[:-1]) - lost:
                problems.append(f"input {index} ran again although its process {needless} was not killed")
        if sorted(pids) != list(range(calls)):
            problems.append("not every input has run")


def recorded(ledger: str, finish: str) -> Callable[[int, float], int]:
    """Return a function that notes when it begins and ends; it hurries once there is a file `finish`."""

    def call(index: int, seconds: float) -> int:
        import os
        import time

        def note(what: str) -> None:
            fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{what} {index} {os.getpid()}\n".encode())
            os.close(fd)

        note("begin")
        print("call", index)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not os.path.exists(finish):
            time.sleep(0.005)
        note("end")
        return index * index + 1

    return call


def run(faults: int, seed: int) -> Report:
    """Run a campaign on a cluster of its own."""
    with tempfile.TemporaryDirectory(prefix="burla-faults-") as folder:
        os.environ |= {"BURLA_HOME": folder, "BURLA_LOCAL_CPUS": str(SLOTS)}
        campaign = Campaign(Path(folder), faults, seed)
        for step in (campaign.run, lambda: end_cluster(os.environ)):
            try:
                step()
            except Exception:  # noqa: BLE001 - whatever it is belongs into the report, beside what was found before
                campaign.report.problems.append(traceback.format_exc())
        return campaign.report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000, help="in all")
    parser.add_argument("--at-once", type=int, default=1, help="so many campaigns, each with a cluster of its own")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the first one")
    chosen = parser.parse_args()
    share, seeds = -(-chosen.faults // chosen.at_once), range(chosen.seed, chosen.seed + chosen.at_once)
    spawn = multiprocessing.get_context("spawn")  # each process has an environment of its own
    with concurrent.futures.ProcessPoolExecutor(chosen.at_once, mp_context=spawn) as pool:
        reports = list(pool.map(run, [share] * chosen.at_once, seeds))
    print(*summary(reports), sep="\n")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
