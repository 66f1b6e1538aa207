"""Decides how many slots each job has on each node: pure, without clock, and the same answer for the same question.

A slot is room for one call. The plan starts from the slots held now and is improved until nothing improves it:

1. The job with the fewest CPUs takes a slot (ties: the deeper job, then the one that has had less, then the earlier
   one): in room that is free now, else in room that is idle or about to be released, else in room of jobs that stay
   richer than it was. A job without any slot may also take the last slots of jobs that come after it.
2. A job keeps what it holds until a poorer one takes it, so a plan that was carried out is its own next plan.
3. What jobs have had in earlier turns (see `turns`) counts like CPUs, as far as it differs by more than `SLACK`: slots
   of unlike width cannot be equal at every moment, but over some turns they can, and nobody waits for ever.

What is granted at once is the plan as far as the slots held now leave room for it. Room taken from others comes free
when their calls end; until then it stays reserved, because the next plan gives it to the same poorer job again.

Room is a list of numbers per node: CPUs, RAM, company, GPUs. CPUs are one number per depth D of jobs: those of the
node, and those lent by calls shallower than D, less those used at depths up to D. A slot counts at its own depth and
deeper.
"""

from __future__ import annotations

import heapq
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from burla.head.demands import Demand, fits
from burla.protocol import ANY_GPU, NodeOffer

SLACK = 1.5  # CPUs for a turn; for less, no warm process is ended
COMPANY = 1 << 20  # slots of a node; one of a call that has to be alone takes them all


def place(
    jobs: Sequence[Demand],
    nodes: Sequence[NodeOffer],
    held: Mapping[tuple[str, str], int],
    lent: Mapping[str, Mapping[int, int]],
) -> dict[tuple[str, str], int]:
    """Return the slots by (job, node) that each job may have from now on; safe to carry out at once, in any order.

    `held` are slots in use or granted and not yet released, `lent` CPUs by node and depth of the calls that wait for a
    nested job. A slot held at a node that is not among `nodes` is lost: it counts nowhere. Where a job holds slots, the
    answer has an entry, even 0. Raises KeyError if a job in `held` is not among `jobs`.
    """
    plan = _Plan(jobs, nodes, held, lent)
    while plan.deal():
        pass
    return plan.grants()


class _Source(Enum):
    FREE = 0  # nobody holds it
    IDLE = 1  # held by jobs that end, or that have more slots than unfinished inputs; or already taken from a job
    RICHER = 2  # of jobs that stay richer, see `_Plan._may_lose`


_Costs = tuple[tuple[int, int], ...]  # (position in a node's room, amount) of one slot


class _Plan:
    """Slots by node and job, from those held on to those that nothing improves; jobs and nodes are numbers in here."""

    def __init__(
        self,
        jobs: Sequence[Demand],
        nodes: Sequence[NodeOffer],
        held: Mapping[tuple[str, str], int],
        lent: Mapping[str, Mapping[int, int]],
    ):
        # the smaller number wins a tie
        self.jobs = sorted(jobs, key=lambda job: (-job.depth, job.had, job.order, job.job))
        usual = statistics.median_high([job.had for job in jobs if job.unfinished] or [0.0])
        self.ahead = [_beyond_slack(job.had - usual) for job in self.jobs]
        self.nodes = nodes
        self.depths = sorted({job.depth for job in jobs})
        kinds = {gpu.name for node in nodes for gpu in node.gpus} | {job.func_gpu for job in jobs if job.func_gpu}
        self.kinds = sorted(kinds - {ANY_GPU})
        self.costs = [self._costs(job) for job in self.jobs]
        self.touched = [frozenset(at for at, _ in costs) for costs in self.costs]
        self.total = [0] * len(jobs)  # planned slots, job by job
        self.left = [0.0] * len(jobs)  # what `_wealth` would be, were the job to lose a slot
        self.idle: set[int] = set()  # jobs with more slots than unfinished inputs
        self.lent = [lent.get(node.id, {}) for node in nodes]
        self.held: list[dict[int, int]] = [{} for _ in nodes]
        self.unheld = [self._capacity(*pair) for pair in zip(nodes, self.lent, strict=True)]  # room beside what is held
        job_number = {job.job: number for number, job in enumerate(self.jobs)}
        node_number = {node.id: number for number, node in enumerate(nodes)}
        for (job_id, node_id), count in held.items():
            job, node = job_number[job_id], node_number.get(node_id)
            if count > 0 and node is not None:
                self.held[node][job] = count
                _occupy(self.unheld[node], self.costs[job], count)
                self._tally(job, count)
        self.slots = [dict(slots) for slots in self.held]  # the plan
        self.room = [list(room) for room in self.unheld]  # room beside the plan
        self.free = [list(room) for room in self.unheld]  # room beside the plan and what is held
        self.order = [self._order(job) for job in range(len(self.jobs))]
        for number, job in enumerate(self.jobs):
            if job.max_parallelism is not None:
                self._shed(number, self.total[number] - job.max_parallelism)
        self.lost = [self._relieve(node) for node in range(len(nodes))]  # of what is held

    def deal(self) -> bool:
        """Deal slots until each job has what it can use or finds no more room; return whether any was dealt."""
        queue = [(self._wealth(job), job) for job in range(len(self.jobs)) if self._wants(job) > 0]
        heapq.heapify(queue)
        spots = {job: self._spots(job) for _, job in queue}
        spot = {job: next(spots[job], None) for _, job in queue}
        dealt = False
        while queue:
            _, job = heapq.heappop(queue)
            turns = 1 if queue else self._wants(job)  # in bulk when only one job wants more
            while here := spot[job]:
                if count := self._claim(job, *here, turns):
                    self._add(job, here[0], count)
                    dealt = True
                    if self._wants(job) > 0:
                        heapq.heappush(queue, (self._wealth(job), job))
                    break
                spot[job] = next(spots[job], None)
        return dealt

    def grants(self) -> dict[tuple[str, str], int]:
        """Return the plan, less the growth that has no room yet beside what is held now."""
        granted: dict[tuple[int, int], int] = {}
        growth: list[tuple[int, int]] = []
        held_total = [0] * len(self.jobs)
        for slots in self.held:
            for job, count in slots.items():
                held_total[job] += count
        for node, slots in enumerate(self.slots):
            for job in self.held[node].keys() | slots.keys():
                held = self.held[node].get(job, 0) - self.lost[node].get(job, 0)
                planned = slots.get(job, 0)
                granted[job, node] = min(held, planned) if self.jobs[job].unfinished else 0
                if planned > held:
                    growth.append((job, node))
        for job, node in sorted(growth, key=lambda at: (self._wealth(at[0], held_total[at[0]]), at)):
            wanted = min(self.slots[node][job] - granted[job, node], self.jobs[job].limit - held_total[job])
            count = max(0, min(wanted, _count(self.unheld[node], self.costs[job])))
            _occupy(self.unheld[node], self.costs[job], count)
            held_total[job] += count
            granted[job, node] += count
        return {
            (self.jobs[job].job, self.nodes[node].id): count
            for (job, node), count in sorted(granted.items())
            if count or job in self.held[node]
        }

    def _spots(self, job: int) -> Iterator[tuple[int, _Source]]:
        """Yield where the job may find room, best first; later spots are worked out only when earlier ones are used."""
        order = self.order[job]
        yield from ((node, _Source.FREE) for node in order)
        for node in order:
            if self.room[node] != self.free[node] or not self.idle.isdisjoint(self.slots[node]):
                yield node, _Source.IDLE
        if any(self._may_lose(other, job) for other in range(len(self.jobs))):
            # the node that lacks least is waited for: it was so in the last plan too, and lacks less by now
            lacks = {n: [max(0, amount - self.free[n][at]) for at, amount in self.costs[job]] for n in order}
            yield from ((node, _Source.RICHER) for node in sorted(order, key=lambda node: lacks[node]))

    def _claim(self, job: int, node: int, source: _Source, turns: int) -> int:
        """Return how many slots the job may add at the node, after taking them from others where that is needed."""
        if source is _Source.FREE:
            return min(turns, _count(self.free[node], self.costs[job]))
        taken: list[int] = []
        room = self.room[node]
        while short := [at for at, amount in self.costs[job] if room[at] < amount]:
            if (loser := self._loser(job, node, source, short[0])) is None:
                for other in taken:
                    self._add(other, node, 1)
                return 0
            taken.append(loser)
            self._add(loser, node, -1)
        return 1

    def _loser(self, job: int, node: int, source: _Source, short: int) -> int | None:
        """Return which job gives up a slot at the node that relieves what is short there."""
        slots = [other for other, count in self.slots[node].items() if count and short in self.touched[other]]
        idle = [other for other in slots if other in self.idle]
        if idle or source is _Source.IDLE:
            return max(idle, default=None)
        able = [(self.left[other], other) for other in slots if self._may_lose(other, job)]
        return next((other for _, other in sorted(able, reverse=True) if self._runs(other, node)), None)

    def _may_lose(self, other: int, job: int) -> bool:
        left, mine = self.left[other], self._wealth(job)
        last = self.total[other] == 1 and self.total[job] == 0
        return other != job and (left > mine or (left == mine and last and job < other))

    def _runs(self, job: int, node: int) -> bool:
        """Return whether a slot can come free: those of calls that wait for nested jobs stay until these are done."""
        depth, slots = self.jobs[job].depth, self.slots[node]
        alike = [other for other in slots if self.jobs[other].depth == depth] if depth in self.lent[node] else []
        used = sum(slots[other] * self.jobs[other].func_cpu for other in alike)
        return not alike or used - self.jobs[job].func_cpu >= self.lent[node][depth]

    def _wealth(self, job: int, slots: int | None = None) -> float:
        """Return the CPUs of a job, with what it is ahead of others; `slots` None: those that are planned."""
        return (self.total[job] if slots is None else slots) * self.jobs[job].func_cpu + self.ahead[job]

    def _wants(self, job: int) -> int:
        return self.jobs[job].limit - self.total[job]

    def _add(self, job: int, node: int, count: int) -> None:
        before, held = self.slots[node].get(job, 0), self.held[node].get(job, 0)
        after = self.slots[node][job] = before + count
        self._tally(job, count)
        _occupy(self.room[node], self.costs[job], count)
        _occupy(self.free[node], self.costs[job], max(after, held) - max(before, held))

    def _tally(self, job: int, count: int) -> None:
        self.total[job] += count
        self.left[job] = self._wealth(job, self.total[job] - 1)
        (self.idle.add if self.total[job] > self.jobs[job].unfinished else self.idle.discard)(job)

    def _shed(self, job: int, count: int) -> None:
        for node, slots in reversed(list(enumerate(self.slots))):
            if (lost := min(count, slots.get(job, 0))) > 0:
                self._add(job, node, -lost)
                count -= lost

    def _relieve(self, node: int) -> dict[int, int]:
        """Take back slots of jobs that cannot run there, or are now thought to need more room than there is.

        Return how many by job: to have them again is growth.
        """
        slots = self.slots[node]
        before = dict(slots)
        for job in [job for job in slots if self.nodes[node].id in self.jobs[job].barred]:
            self._add(job, node, -slots[job])
        for at in (len(self.depths), len(self.depths) + 1):
            while self.room[node][at] < 0:
                costs = {job: dict(self.costs[job]).get(at, 0) for job in slots if slots[job]}
                dynamic = [job for job, amount in costs.items() if amount and self.jobs[job].dynamic]
                if not dynamic:
                    break
                self._add(max(dynamic, key=lambda job: (costs[job], self._wealth(job), job)), node, -1)
        return {job: count - slots[job] for job, count in before.items()}

    def _order(self, job: int) -> list[int]:
        """Return the nodes that fit: where the job is already, then those whose GPUs it would not keep from others."""
        wants_gpu = self.jobs[job].func_gpu is not None
        return sorted(
            (number for number, node in enumerate(self.nodes) if fits(self.jobs[job], node)),
            key=lambda node: (job not in self.held[node], not wants_gpu and bool(self.nodes[node].gpus)),
        )

    def _capacity(self, node: NodeOffer, lent: Mapping[int, int]) -> list[int]:
        cpus = [node.cpus + sum(cpus for depth, cpus in lent.items() if depth < limit) for limit in self.depths]
        # a kind that is not there bounds nothing: it must not keep off jobs that take any, and `fits` keeps off others
        gpus = node.gpu_counts
        return [*cpus, node.ram_bytes, COMPANY, *(gpus.get(kind) or sys.maxsize for kind in self.kinds)]

    def _costs(self, job: Demand) -> _Costs:
        ram_at = len(self.depths)
        cpus = ((at, job.func_cpu) for at in range(self.depths.index(job.depth), ram_at))
        ram = ((ram_at, job.func_ram_bytes),) if job.func_ram_bytes else ()
        # which GPU a call that takes any is given is not known here, so it counts against every kind
        kinds = [at for at, kind in enumerate(self.kinds, ram_at + 2) if job.func_gpu in (kind, ANY_GPU)]
        # nested calls must find room beside those that wait for them
        company = () if job.depth else ((ram_at + 1, COMPANY if job.alone else 1),)
        return (*cpus, *ram, *company, *((at, 1) for at in kinds))


def _beyond_slack(ahead: float) -> float:
    return math.copysign(max(0.0, abs(ahead) - SLACK), ahead)


def _occupy(room: list[int], costs: _Costs, count: int) -> None:
    for at, amount in costs:
        room[at] -= amount * count


def _count(room: list[int], costs: _Costs) -> int:
    """Return how many slots fit; none, never fewer, where more is used than there is."""
    return max(0, min(room[at] // amount for at, amount in costs))
