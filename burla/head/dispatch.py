"""Nodes: who they are, what they run, and what they run next.

Which slots a job gets is decided by `place`; here are the leases that it leads to, and the trades of nodes.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from burla import config
from burla.channel import Channel, pack
from burla.errors import EnvironmentNeeded, NoCompatibleNodes, PythonMismatch, StoreDamaged
from burla.head import budgets, demands, disks, jobs, place
from burla.head.demands import Demand
from burla.head.members import NodeState
from burla.head.room import Verdict, judge
from burla.head.running import RunningJob
from burla.head.turns import Turns
from burla.protocol import (
    BeginLease,
    Crash,
    EndLease,
    Evicted,
    Failure,
    JobSpec,
    JobState,
    Join,
    MoreWork,
    NodeOffer,
    Notice,
    Output,
    Outputs,
    Preparing,
    Results,
    SetSlots,
    Slice,
    Trade,
    Variables,
    Work,
)

if TYPE_CHECKING:
    from burla.head.head import Head

log = logging.getLogger(__name__)

FIRST_CALLS = 16  # for each slot, before it is known how long they take; what is not begun soon can be had back
PLACE_S, REST = 0.001, 20.0  # a plan that takes longer is not made again before so many times as long
SMALL = 50  # a node wants what it does in half a second: such a part of it, 10 ms of work, is not shared out
SETTLE_S = 8.0  # a head that was started again waits so long for nodes that may still run its calls


class Dispatch:
    """See the module. `changed`: called when a lease begins or ends."""

    def __init__(self, head: Head, changed: Callable[[], None]):
        self.nodes: dict[str, NodeState] = {}
        self.awaited: set[str] = set()  # nodes of before a restart: what they still run must not begin elsewhere
        self.without_nodes_since = self._started = time.monotonic()
        self._head = head
        self._changed = changed
        self._placing = False
        self._place_at = 0.0  # not before
        self._turns = Turns(self._started)

    @property
    def trade_every_s(self) -> float:
        return max(0.05, len(self.nodes) / 1000)

    @property
    def offers(self) -> list[NodeOffer]:
        """What the nodes have, each GPU once."""
        offers = [node.offer for node in self.nodes.values()]
        if not any(offer.gpus for offer in offers):
            return offers
        used: Counter[str] = Counter()
        for job in self._head.jobs.values():
            used.update(job.slots_held() if job.spec.func_gpu else {})
        return demands.share_out_gpus(offers, used)

    @property
    def paused(self) -> bool:
        """Whether no calls are handed out for now."""
        return bool(self.awaited) or self._head.full is not None

    def resume(self) -> None:
        """Hand out calls again, if nothing is in the way."""
        if not self.paused:
            self._feed()
            self.replace()

    def join(self, message: Join, channel: Channel) -> dict[str, tuple[tuple[int, int], ...]]:
        """Take a node in; return what of the calls that it still has is its own again, by job."""
        node = message.offer.id
        sessions = {one: self._head.sessions[one] for one in message.sessions if one in self._head.sessions}
        self.leave(node, keep=set(sessions))
        self.nodes[node] = NodeState(message.offer, channel, message.address, time.monotonic())
        self._head.store.set_node(node, True)
        for session in [s for s in self._head.sessions_at(node) if s.id not in sessions]:
            self._head.end_session(session, "the call that made it is gone")
        kept: dict[str, tuple[tuple[int, int], ...]] = {}
        for claim in message.claims:
            job = self._head.jobs.get(claim.job)
            if job is None or job.state not in (JobState.WAITING, JobState.RUNNING):
                continue
            self._head.apply(job, jobs.LeaseGranted(node))
            ranges = claim.ranges if claim.number <= job.trades.get(node, 0) else claim.ranges + claim.sent
            kept[claim.job] = job.core.claim(node, ranges)
            job.granted[node], job.held[node], job.leases[node] = claim.slots, claim.held, claim.leases
            job.running[node] = claim.held
        for job in list(self._head.jobs.values()):
            if job.state is JobState.WAITING:
                self.cancel_misfit(job)
        self._settle(node)
        self.replace()
        self._changed()
        return kept

    def _settle(self, node: str) -> None:
        if node in self.awaited:
            self.awaited.discard(node)
            self.resume()

    def leave(self, node: str, channel: Channel | None = None, keep: Collection[str] = ()) -> None:
        """A node is lost: its calls without outcome run elsewhere, and its sessions end but for those in `keep`."""
        known = self.nodes.get(node)
        if known is None or (channel is not None and known.channel is not channel):
            return
        del self.nodes[node]
        largest_bytes = max((one.offer.ram_bytes for one in self.nodes.values()), default=None)
        self._head.store.set_node(node, False)
        for session in [s for s in self._head.sessions_at(node) if s.id not in keep]:
            self._head.end_session(session, "its node is lost")
        for job in list(self._head.jobs.values()):
            job.begun_again += 0 if job.state.ended else job.running.get(node, 0)
            self._head.apply(job, jobs.NodeLost(node))
            job.core.lower_needs(largest_bytes)
            self.released(job, node)
        self._feed()
        self.replace()

    def trade(self, node: str, trade: Trade) -> Work:
        """Take a node's news of a job in; return what it should run next."""
        job = self._head.jobs.get(trade.job)
        if job is None or node not in self.nodes or job.state.ended:
            return Work()
        unfinished = job.core.unfinished
        if trade.number > job.trades.get(node, 0):
            self._take_news(job, node, trade)
        job.running[node] = trade.running
        job.room.seen(trade.peak_bytes, time.monotonic())
        job.long[node] = tuple((time.monotonic() - age_s, index) for index, age_s in trade.slowest)
        job.queued[node] = trade.queued
        job.hungry.pop(node, None)
        if trade.leases == job.leases.get(node) and job.held.get(node) != trade.held:
            job.held[node] = trade.held
            self.replace()
            self._changed()
        if job.core.unfinished < min(unfinished, sum(job.granted.values())):
            self.replace()  # slots that it cannot use any more are somebody else's
        if trade.handed_back and trade.running >= trade.held:
            self._feed()  # others first: what waits behind a long call would come back to it
        slices = ()
        if trade.want and job.granted.get(node):
            slices = self._slices(job, node, share(trade.want, job.core.waiting, len(job.granted)))
            got = sum(one.stop - one.start for one in slices)
            if got < trade.want and (self.paused or not got or not job.core.waiting):
                job.hungry[node] = trade.want - got
        self._feed()
        return Work(slices, self._give_back(job, node, trade.queued))

    def _take_news(self, job: RunningJob, node: str, trade: Trade) -> None:
        for one in trade.news:
            match one:
                case Results():
                    self._head.apply(job, jobs.CallsDone(node, one))
                case Failure():
                    self._head.apply(job, jobs.CallFailed(node, one))
                case Crash():
                    self._head.apply(job, jobs.CallCrashed(node, one))
                case Evicted():
                    self._evicted(job, node, one)
                case Output() | Outputs():
                    job.record(one)
        for start, stop in trade.handed_back:
            self._head.apply(job, jobs.HandedBack(node, start, stop))
        if trade.news:
            job.trades[node] = trade.number
            self._head.store.set_trade(job.number, node, trade.number, job.durable)

    def _evicted(self, job: RunningJob, node: str, one: Evicted) -> None:
        """A call was ended for want of memory: it runs again with more room, if there is any."""
        now, ram_bytes = time.monotonic(), self.nodes[node].offer.ram_bytes
        job.room.seen(one.peak_bytes, now)
        verdict = judge(one, job.core.evictions(one.index, alone=True))
        if verdict is Verdict.AGAIN and not one.fixed:
            if not job.room.ever_short:
                name, had_mb = self.nodes[node].offer.name, one.peak_bytes / 1e6
                text = (
                    f"node {name} is short of memory: the call of input {one.index} ({had_mb:,.0f} MB) was ended and "
                )
                job.record(Notice(text + "begins again with more room; fewer calls run at once from now on"))
            again = job.core.evictions(one.index) > 0  # what it was given room beside was in its way once more
            job.room.short(ram_bytes, 0 if again else one.beside, now)
        need_bytes = ram_bytes + 1 if verdict is Verdict.LARGER else 0
        hopeless = verdict is Verdict.NEVER or not self._any_has(need_bytes, job)
        self._head.apply(job, jobs.CallEvicted(node, one, hopeless, need_bytes))
        if node in job.granted:  # nothing begins there until it is clear who has room
            job.granted[node] = 0
            job.unsettled.add(node)
        self.replace()

    def _any_has(self, ram_bytes: int, job: RunningJob) -> bool:
        demand = replace(demands.demand_of(job.spec, 0, 0), barred=disks.barred(job.spec, self.nodes.values()))
        return any(
            node.offer.ram_bytes >= ram_bytes and demands.fits(demand, node.offer) for node in self.nodes.values()
        )

    def _slices(self, job: RunningJob, node: str, want: int) -> tuple[Slice, ...]:
        if self.paused:
            return ()
        try:
            return job.slices(node, want, self.nodes[node].offer.ram_bytes)
        except StoreDamaged as error:  # the job cannot be finished; others are not concerned
            self._head.cancel(job, error)
            return ()

    def released(self, job: RunningJob, node: str) -> None:
        """A node runs no call of an ending job any more."""
        job.releasing.discard(node)
        job.installing.discard(node)
        for known_slots in (job.granted, job.held, job.leases, job.running, job.long, job.queued, job.hungry):
            known_slots.pop(node, None)
        job.unsettled.discard(node)
        if not job.releasing:
            self._head.end_of_calls(job)
        self.replace()

    def _give_back(self, job: RunningJob, node: str, queued: int) -> int:
        if job.core.waiting or not queued:
            return 0
        others = sum(want for other, want in job.hungry.items() if other != node)
        return min(others, -(-queued // 2))

    def _feed(self) -> None:
        """Give calls that came back to nodes that asked for some in vain."""
        for job in list(self._head.jobs.values()):
            if not job.core.waiting:
                continue
            idle = {node: job.held.get(node, 0) - job.running.get(node, 0) for node in job.hungry}
            for node in sorted(idle, key=lambda node: -idle[node]):
                if not job.core.waiting or self.paused:
                    break
                if slices := self._slices(job, node, share(job.hungry[node], job.core.waiting, len(job.granted))):
                    del job.hungry[node]
                    self._tell(node, MoreWork(job.spec.id, slices))

    def stop_calls(self, job: RunningJob, at_once: bool) -> None:
        """End all leases of a job, `at_once` or when its outcomes are stored: a node that ends one forgets them."""
        job.releasing = set(job.granted) & set(self.nodes)
        job.hungry.clear()
        if at_once:
            self._end_leases(job)
        else:
            self._head.store.after_commit(lambda: self._end_leases(job))
        if not job.releasing:
            asyncio.get_running_loop().call_soon(self._head.end_of_calls, job)
        self._changed()

    def _end_leases(self, job: RunningJob) -> None:
        for session in [s for s in self._head.sessions.values() if s.parent == job.spec.id]:
            self._head.end_session(session, "the call that made it is stopped")
        for node in job.releasing & set(self.nodes):
            self._tell(node, EndLease(job.spec.id))

    def replace(self) -> None:
        """Decide anew who runs what; once for all that changes at this moment, or a little later where that is work."""
        if not self._placing:
            self._placing = True
            loop = asyncio.get_running_loop()
            if (wait_s := self._place_at - time.monotonic()) > 0:
                loop.call_later(wait_s, self._place)
            else:
                loop.call_soon(self._place)

    def _place(self) -> None:
        self._placing = False
        if self.paused:
            return
        began = time.monotonic()
        slots_held = {job: job.slots_held() for job in self._head.jobs.values() if job.state is not JobState.RECEIVING}
        active = [job for job, slots in slots_held.items() if slots or not job.state.ended]
        held = {(job.spec.id, node): count for job in active for node, count in slots_held[job].items()}
        offers = self.offers
        self._note_turn(time.monotonic())
        wishes = [self.wish(job, offers) for job in active]
        wanted = place.place(wishes, offers, held, self._lent())
        took_s = time.monotonic() - began
        self._place_at = began + (REST * took_s if took_s > PLACE_S else 0.0)
        leases: dict[str, bytes] = {}  # that begin, by job: the same message for each node
        nodes_of = Counter(job_id for (job_id, _), slots in wanted.items() if slots)
        for (job_id, node), slots in wanted.items():
            job = self._head.jobs[job_id]
            before = job.granted.get(node, 0)
            if job.core.unfinished == 0 or (slots == before and node not in job.unsettled):
                continue
            job.unsettled.discard(node)
            if not job.granted:
                self._head.apply(job, jobs.LeaseGranted(node))
            if node not in job.granted:
                if job_id not in leases:
                    leases[job_id] = pack(BeginLease(job.spec, self._variables(job)))
                self.nodes[node].channel.post_packed(leases[job_id])
            job.granted[node] = slots
            job.leases[node] = job.leases.get(node, 0) + 1
            job.held[node] = max(before, job.held.get(node, 0))  # until the node has heard of this, and says so
            alone = nodes_of[job_id] == 1  # else calls would not begin in the order of the inputs
            first = max(1, min(FIRST_CALLS, job.core.waiting // (2 * slots))) if alone and slots else 1
            self._tell(node, SetSlots(job_id, slots, self._slices(job, node, first * max(0, slots - before))))
            self._changed()

    def _note_turn(self, now: float) -> bool:
        """Take in what each job has of the CPUs; return whether a turn begins that others may gain by."""
        contending = [job for job in self._head.jobs.values() if job.core.unfinished and job.complete.is_set()]
        return self._turns.note({job.spec.id: job.share() for job in contending}, now) and len(contending) > 1

    def wish(self, job: RunningJob, offers: list[NodeOffer]) -> Demand:
        """Return what a job asks of these nodes, and which of them cannot run it."""
        wish = job.demand(offers, self._turns.had.get(job.spec.id, 0.0))
        small = {node.id for node in offers if not job.core.has_work_for(node.id, node.ram_bytes)}
        return replace(wish, barred=disks.barred(job.spec, self.nodes.values()) | small)

    def _variables(self, job: RunningJob) -> Variables:
        try:
            return self._head.vault.open(job.spec.sealed)
        except StoreDamaged as error:
            self._head.cancel(job, error)
            return Variables()

    def _lent(self) -> dict[str, dict[int, int]]:
        """Return, by node and depth, the CPUs of calls that wait for jobs of their own."""
        lent: dict[str, dict[int, int]] = {}
        for session in self._head.sessions.values():
            parent = self._head.jobs.get(session.parent or "")
            waits = any(job in self._head.jobs and not self._head.jobs[job].state.ended for job in session.jobs)
            if session.node is not None and parent is not None and waits:
                depths = lent.setdefault(session.node, {})
                depths[session.depth] = depths.get(session.depth, 0) + parent.spec.func_cpu
        return lent

    def _tell(self, node: str, message: object) -> None:
        self.nodes[node].channel.post(message)

    def preparing(self, job: RunningJob, node: str, message: Preparing) -> None:
        """A node tells how far it is with what the job's function needs."""
        (job.installing.add if message.busy else job.installing.discard)(node)
        for text in message.notices:
            job.note_once(text)
        job.journal.wake()
        if message.error is None:
            return
        error = pickle.loads(message.error)
        if isinstance(error, EnvironmentNeeded) and job.spec.origin is not None and node in self.nodes:
            self.nodes[node].disks[job.spec.origin.digest] = False  # it came after the job did
            job.record(Notice(f"node {self.nodes[node].offer.name} cannot run calls of this job: {error}"))
            self.replace()
        else:
            self._head.cancel(job, error)

    def check_fit(self, spec: JobSpec) -> None:
        """Raise NoCompatibleNodes or PythonMismatch if there are nodes and none of them fits."""
        if not self.nodes:
            return
        disks.check_python(spec, self.nodes.values())
        offers = self.offers
        budgets.check_price(spec, offers)
        demand = demands.demand_of(spec, 0, 0)
        if any(demands.fits(demand, offer) for offer in offers):
            return
        asked, available = demands.explain_misfit(demand, offers)
        raise NoCompatibleNodes(
            f"no node of this cluster can run a call with {asked}: there is {available}. Ask for less.",
            asked=asked,
            available=available,
        )

    def cancel_misfit(self, job: RunningJob) -> None:
        """Stop a job if there are nodes and none of them fits, nor will."""
        if job.growing:
            return
        try:
            self.check_fit(job.spec)
        except (NoCompatibleNodes, PythonMismatch) as error:
            self._head.cancel(job, error)

    def tick(self, now: float) -> None:
        """Give up silent nodes. `now` is monotonic."""
        for node_id, node in list(self.nodes.items()):
            if now - node.seen > config.NODE_LEASE_S:
                text = f"node {node.offer.name} has been silent for {now - node.seen:.0f} s: its calls run elsewhere"
                log.warning(text)
                for job in self._head.jobs.values():
                    if node_id in job.granted and not job.state.ended:
                        job.record(Notice(text))
                self.leave(node_id)
                node.channel.close()
        if self.awaited and now - self._started > SETTLE_S:
            self._give_up_awaited()
        if self.nodes:
            self.without_nodes_since = now
        offers = self.offers
        for job in self._head.jobs.values():
            if job.room.tick(offers, now, held_up=job.core.waits_for_room):
                self.replace()
        if self._note_turn(now):
            self.replace()

    def _give_up_awaited(self) -> None:
        log.warning("nodes %s did not come back: their calls run elsewhere", ", ".join(sorted(self.awaited)))
        for node in self.awaited:
            self._head.store.set_node(node, False)
            for session in self._head.sessions_at(node):
                self._head.end_session(session, "its node is lost")
        self.awaited.clear()
        self.resume()


def share(want: int, waiting: int, nodes: int) -> int:
    """Return how many calls a node gets of those that wait; it wants so many, and is one of the job's nodes.

    Something is left for the others when the end is near, unless it is hardly worth a message.
    """
    return want if nodes < 2 else min(want, max(1, want // SMALL, -(-waiting // (2 * nodes))))
