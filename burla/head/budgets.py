"""What jobs have used of nodes, what that costs, and the limits that they were given. Time is passed in.

A job uses a node, all of it, while it, or a job of its calls, holds a slot there: others may use it at the same time,
so what it has cost is at most what is counted. A node says in its offer what an hour of it costs, if that is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from burla.errors import LimitReached, NoCompatibleNodes
from burla.protocol import JobSpec, NodeOffer

if TYPE_CHECKING:
    from burla.head.head import Head
    from burla.head.running import RunningJob

SAVE_S = 10.0  # so much of a limited job is forgotten when the head is killed, at most


@dataclass(frozen=True, slots=True)
class Spent:
    """What a job has used: seconds with a node, seconds of all nodes, US dollars (None: no node has a price)."""

    ran_s: float = 0.0
    node_s: float = 0.0
    usd: float | None = None

    def more(self, elapsed_s: float, prices: Collection[float | None]) -> Spent:
        """Return what it is after a while with nodes of these prices, in US dollars an hour."""
        if not prices:
            return self
        known = [price for price in prices if price is not None]
        usd = (self.usd or 0.0) + sum(known) * elapsed_s / 3600 if known else self.usd
        return Spent(self.ran_s + elapsed_s, self.node_s + len(prices) * elapsed_s, usd)


def reached(spec: JobSpec, spent: Spent) -> LimitReached | None:
    """Return with what a job is to be stopped that has come to a limit of its own."""
    if spec.max_run_s is not None and spent.ran_s >= spec.max_run_s:
        limit, told = "max_minutes", f"max_minutes={spec.max_run_s / 60:g}, and it has run for {spent.ran_s / 60:.3g}"
    elif spec.max_cost_usd is not None and (spent.usd or 0.0) >= spec.max_cost_usd:
        limit, told = "max_cost_usd", f"max_cost_usd={spec.max_cost_usd:g}, and its nodes have cost {spent.usd:.3g}"
    else:
        return None
    return LimitReached(
        f"job {spec.id} was stopped at its limit: {told}. Its finished results are kept: burla_results of this error, "
        f"or iter_results(); job.retry_failed() goes on, with the same limit anew.",
        limit=limit,
    )


def check_price(spec: JobSpec, offers: Iterable[NodeOffer]) -> None:
    """Raise NoCompatibleNodes if a job may cost only so much, and no node says what it costs."""
    if spec.max_cost_usd is not None and all(offer.usd_per_hour is None for offer in offers):
        raise NoCompatibleNodes(
            f"max_cost_usd={spec.max_cost_usd:g}: no node of this cluster says what it costs, as those of a cluster in "
            "a cloud do whose machine is in burla's catalogue. Give max_minutes= instead.",
            asked="a known price",
            available="none",
        )


class Budgets:
    """Counts what jobs use, and stops those that come to a limit."""

    def __init__(self, head: Head, now: float):
        self._head = head
        self._ticked = now

    def tick(self, now: float) -> None:
        """Count what was used since the last time. `now` is monotonic."""
        elapsed_s, self._ticked = now - self._ticked, now
        nodes = self._head.dispatch.nodes
        for job_id, used in self._used().items():
            job = self._head.jobs[job_id]
            offers = [nodes[node].offer for node in used if node in nodes]
            job.spent = job.spent.more(elapsed_s, [offer.usd_per_hour for offer in offers])
            self._note_unpriced(job, offers)
            if (error := reached(job.spec, job.spent)) is not None:
                self._head.cancel(job, error)
            counts = job.spent.usd is not None or job.spec.max_run_s is not None
            if counts and job.spent.ran_s - job.stored_ran_s >= SAVE_S:
                job.stored_ran_s = job.spent.ran_s
                self._head.store.update_job(job.number, job.durable, **asdict(job.spent))

    def _used(self) -> dict[str, set[str]]:
        """Return the nodes that each unfinished job uses, with the jobs of its calls."""
        used: dict[str, set[str]] = {}
        for job in self._head.jobs.values():
            nodes = {node for node, slots in job.slots_held().items() if slots}
            one: RunningJob | None = None if job.state.ended else job
            while one is not None:
                used.setdefault(one.spec.id, set()).update(nodes)
                one = self._head.jobs.get(one.spec.parent or "")
        return used

    def _note_unpriced(self, job: RunningJob, offers: Iterable[NodeOffer]) -> None:
        if job.spec.max_cost_usd is None:
            return
        for offer in offers:
            if offer.usd_per_hour is None:
                job.note_once(f"node {offer.name} does not say what it costs: it counts nothing for max_cost_usd")
