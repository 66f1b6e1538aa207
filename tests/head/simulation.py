"""A cluster without processes: what `place` and `turns` lead to when calls take their time, second by second."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from burla.head.demands import Demand
from burla.head.place import place
from burla.head.turns import Share, Turns
from burla.protocol import NodeOffer

TICK_S = 1.0


class Simulation:
    """Calls run as nodes run them: one after another in a slot; a slot that is not wanted ends with its call."""

    def __init__(self, nodes: Sequence[NodeOffer], call_s: Callable[[str], float]):
        self.now_s = 0.0
        self.jobs: dict[str, Demand] = {}
        self.cpu_s: Counter[str] = Counter()  # of calls
        self.waits_s: dict[str, float] = {}  # job → the longest time that it ran nothing
        self.ended_s: dict[str, float] = {}
        self.opened: Counter[str] = Counter()  # slots, each a process
        self._nodes = nodes
        self._call_s = call_s
        self._left: dict[str, int] = {}  # calls that have not begun
        self._finished: Counter[str] = Counter()
        self._held: Counter[tuple[str, str]] = Counter()
        self._granted: Mapping[tuple[str, str], int] = {}
        self._idle: Counter[tuple[str, str]] = Counter()
        self._ends: list[tuple[float, int, tuple[str, str]]] = []
        self._since: dict[str, float] = {}  # a job has run nothing
        self._turns = Turns(0.0)
        self._numbers = itertools.count()

    def submit(self, job: Demand) -> None:
        self.jobs[job.job] = job
        self._left[job.job] = job.unfinished
        self._since[job.job] = self.now_s
        self.waits_s[job.job] = 0.0
        self._place()

    def run(self, until_s: float) -> None:
        """Go on until then, or until no job is left."""
        while self.jobs and self.now_s < until_s:
            tick_s = (self.now_s // TICK_S + 1) * TICK_S
            at_s = min(tick_s, until_s, self._ends[0][0] if self._ends else tick_s)
            running = Counter(where[0] for _, _, where in self._ends)
            for name, job in self.jobs.items():
                self.cpu_s[name] += running[name] * job.func_cpu * (at_s - self.now_s)
                if not running[name]:
                    self.waits_s[name] = max(self.waits_s[name], at_s - self._since[name])
                else:
                    self._since[name] = at_s
            self.now_s = at_s
            changed = self._note()
            while self._ends and self._ends[0][0] <= at_s:
                changed = self._end_call(heapq.heappop(self._ends)[2]) or changed
            if changed:
                self._place()

    @property
    def used_cpus(self) -> int:
        return sum(self.jobs[where[0]].func_cpu for _, _, where in self._ends)

    def _end_call(self, where: tuple[str, str]) -> bool:
        name = where[0]
        self._finished[name] += 1
        job = self.jobs[name] = dataclasses.replace(self.jobs[name], unfinished=self.jobs[name].unfinished - 1)
        if not job.unfinished:
            self.ended_s[name] = self.now_s
            del self.jobs[name]
            for at in [at for at in self._held if at[0] == name]:
                del self._held[at], self._idle[at]
            return True
        if self._held[where] > self._granted.get(where, 0):
            self._held[where] -= 1
            return True
        self._idle[where] += 1
        self._begin_calls(where)
        return job.unfinished < sum(count for at, count in self._held.items() if at[0] == name)

    def _begin_calls(self, where: tuple[str, str]) -> None:
        while self._idle[where] and self._left[where[0]]:
            self._idle[where] -= 1
            self._left[where[0]] -= 1
            end_s = self.now_s + self._call_s(where[0])
            heapq.heappush(self._ends, (end_s, next(self._numbers), where))

    def _note(self) -> bool:
        shares = {
            name: Share(sum(n for at, n in self._held.items() if at[0] == name), job.func_cpu, self._finished[name])
            for name, job in self.jobs.items()
        }
        return self._turns.note(shares, self.now_s)

    def _place(self) -> None:
        self._note()
        demands = [dataclasses.replace(job, had=self._turns.had[job.job]) for job in self.jobs.values()]
        self._granted = place(demands, self._nodes, {at: count for at, count in self._held.items() if count}, {})
        for where, granted in self._granted.items():
            surplus = self._held[where] - granted
            idle = min(max(0, surplus), self._idle[where])
            self._held[where] -= idle
            self._idle[where] -= idle
            if surplus < 0:
                self._held[where] = granted
                self._idle[where] -= surplus
                self.opened[where[0]] -= surplus
            self._begin_calls(where)
