"""What each job has had of the CPUs, turn by turn: pure, time is passed in.

`place` takes it into account, and it changes only from turn to turn: within one, a plan that was carried out stays.
What was had long ago counts for less and less, so nobody can save up. A turn is long beside the calls, because a wide
slot that follows narrow ones has CPUs wait for it until the last of their calls has ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SHORTEST_S, LONGEST_S = 10.0, 300.0  # of a turn
CALLS = 8.0  # in a turn, in each slot, of the job with the longest
KEPT = 0.85  # of what was had before, after one more turn
BEFORE = 1 - 1e-6  # a newcomer goes before the one that has had most, by no more than that


@dataclass(frozen=True, slots=True)
class Share:
    """What a job has now: `slots` of `func_cpu` CPUs; `finished` calls so far."""

    slots: int
    func_cpu: int
    finished: int


class Turns:
    """See the module."""

    def __init__(self, now_s: float):
        self.had: dict[str, float] = {}  # job → CPUs for a turn, as of its beginning
        self._shares: Mapping[str, Share] = {}
        self._cpu_s: dict[str, float] = {}  # in this turn
        self._slot_s: dict[str, float] = {}  # in all
        self._noted_s = self._began_s = now_s

    def note(self, shares: Mapping[str, Share], now_s: float) -> bool:
        """Take in what unfinished jobs have from now on; return whether a new turn begins."""
        elapsed_s, self._noted_s = now_s - self._noted_s, now_s
        for job, share in self._shares.items():
            self._slot_s[job] += share.slots * elapsed_s
            self._cpu_s[job] += share.slots * share.func_cpu * elapsed_s
        most = max(self.had.values(), default=0.0)
        self.had = {job: self.had.get(job, most * BEFORE) for job in shares}
        self._cpu_s = {job: self._cpu_s.get(job, 0.0) for job in shares}
        self._slot_s = {job: self._slot_s.get(job, 0.0) for job in shares}
        self._shares = shares
        lasted_s = now_s - self._began_s
        if lasted_s < self._turn_s():
            return False
        self.had = {job: KEPT * had + self._cpu_s[job] / lasted_s for job, had in self.had.items()}
        self._cpu_s = dict.fromkeys(shares, 0.0)
        self._began_s = now_s
        return True

    def _turn_s(self) -> float:
        calls_s = [self._slot_s[job] / max(1, share.slots, share.finished) for job, share in self._shares.items()]
        return min(max(SHORTEST_S, CALLS * max(calls_s, default=0.0)), LONGEST_S)
