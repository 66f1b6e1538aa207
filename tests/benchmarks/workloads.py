"""What is measured: functions, inputs, and what burla has to reach beside whom."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.contestants import SLOTS, Contestant
from tests.benchmarks.functions import MB, NAP_S, megabyte, nap, noop, say, size, sleep, spin, weigh

SHORT_S, LONG_S = 0.005, 0.5


@dataclass(frozen=True)
class Target:
    """At least, and at best: burla's figure by a peer's, or by what is ideal; of a rate, lines a second."""

    against: str  # a contestant, "ideal", or "lines/s"
    at_least: float
    aim: float | None = None


@dataclass(frozen=True)
class Workload:
    """`run` is given a contestant and a size, and returns seconds; `ideal_s`: what no two workers can go below."""

    title: str
    count: int
    run: Callable[[Contestant, int], float]
    targets: tuple[Target, ...]
    ideal_s: Callable[[int], float] | None = None
    fewer: int = 0  # for Dask, which would take minutes
    peers: tuple[str, ...] = ("multiprocessing", "futures", "joblib", "dask", "ray")


def timed(work: Callable[[], Any], expected: Callable[[Any], bool]) -> float:
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    assert expected(result)
    return seconds


def mapping(function: Callable[[Any], Any], long: bool = False) -> Callable[[Contestant, int], float]:
    def run(contestant: Contestant, count: int) -> float:
        return timed(lambda: contestant.map(function, range(count), long), lambda got: got == list(range(count)))

    return run


def one(contestant: Contestant, count: int) -> float:
    """Return the median of single calls."""
    each = sorted(timed(lambda: contestant.one(noop, 1), lambda got: got == 1) for _ in range(count))
    return each[count // 2]


def lines(contestant: Contestant, count: int) -> float:
    return timed(lambda: contestant.lines(say, range(count)), lambda got: got == count)


def naps(count: int, at_end: bool) -> list[float]:
    """Return how long each call sleeps: 1 % of them a hundred times as long."""
    seconds = [SHORT_S] * (count - count // 100) + [LONG_S] * (count // 100)
    if not at_end:
        random.Random(1).shuffle(seconds)
    return seconds


def skewed(at_end: bool, contestant: Contestant, count: int) -> float:
    inputs = naps(count, at_end)
    return timed(lambda: contestant.map(sleep, inputs, True), lambda got: got == inputs)


def megabytes_in(contestant: Contestant, count: int) -> float:
    inputs = [megabyte(x) for x in range(count)]
    return timed(lambda: contestant.map(size, inputs, False), lambda got: got == [MB] * count)


def megabytes_out(contestant: Contestant, count: int) -> float:
    return timed(
        lambda: contestant.map(megabyte, range(count), False), lambda got: [len(one) for one in got] == [MB] * count
    )


def closure(contestant: Contestant, count: int) -> float:
    function = functools.partial(weigh, random.Random(1).randbytes(50 * MB))
    return timed(lambda: contestant.map(function, range(count), False), lambda got: len(got) == count)


def skew_ideal_s(count: int) -> float:
    return sum(naps(count, True)) / SLOTS


POOL, JOBLIB, RAY = "multiprocessing", "joblib", "ray"
WORKLOADS = {
    "noop-1m": Workload("no-op × 1,000,000", 1_000_000, mapping(noop),
        (Target(POOL, 4, 1.5), Target(JOBLIB, 0.3)), fewer=2_000),
    "noop-100k": Workload("no-op × 100,000", 100_000, mapping(noop),
        (Target(POOL, 4, 1.5), Target(JOBLIB, 0.3)), fewer=2_000),
    "one": Workload("one call, warm", 50, one, (Target("dask", 0.4, 0.2),)),
    "noop-1k": Workload("no-op × 1,000", 1_000, mapping(noop), (Target(JOBLIB, 0.8), Target(RAY, 1.0, 0.6))),
    "print-1k": Workload("print × 1,000", 1_000, lines, (Target(JOBLIB, 0.8), Target(RAY, 1.0, 0.6))),
    "print-100k": Workload("print × 100,000", 100_000, lines, (Target("lines/s", 50_000, 300_000),), peers=()),
    "sleep": Workload("sleep 10 ms × 1,000", 1_000, mapping(nap, long=True), (Target("ideal", 1.08, 1.03),),
        ideal_s=lambda count: count * NAP_S / SLOTS),
    "cpu": Workload("5 ms of CPU × 2,000", 2_000, mapping(spin, long=True), (Target(JOBLIB, 1.08, 1.0),)),
    "skewed": Workload("1 % of calls 100 × as long, at random", 1_000, functools.partial(skewed, False),
        (Target("ideal", 1.12, 1.05),), ideal_s=skew_ideal_s, peers=(POOL, JOBLIB, "dask")),
    "skewed-end": Workload("… all at the end", 1_000, functools.partial(skewed, True),
        (Target("ideal", 1.12, 1.05),), ideal_s=skew_ideal_s, peers=(POOL, JOBLIB, "dask")),
    "in": Workload("1 MB in × 200", 200, megabytes_in, (Target(POOL, 0.9), Target(RAY, 2.0, 2.0))),
    "out": Workload("1 MB out × 200", 200, megabytes_out, (Target(POOL, 0.9), Target(RAY, 2.0, 2.0))),
    "closure": Workload("a function of 50 MB × 200", 200, closure, (Target(POOL, 0.7), Target(JOBLIB, 1.5, 1.5))),
}  # fmt: skip
