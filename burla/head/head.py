"""The head: holds jobs, hands their calls to nodes, keeps their journals for clients.

Who runs what is decided by `place`, what becomes of an input by `jobs.Job`; here are the effects.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from burla import serialize
from burla.channel import Channel
from burla.errors import BurlaError, ClusterLost, JobCancelled, NoCompatibleNodes, NoNodes, WorkerCrashed
from burla.head import jobs, place
from burla.head.members import NodeState, Session
from burla.head.running import RunningJob
from burla.protocol import (
    BeginLease,
    Block,
    Crash,
    Ended,
    EndLease,
    Failure,
    JobState,
    MoreWork,
    NodeOffer,
    Notice,
    Output,
    Results,
    SetSlots,
    Submit,
    Trade,
    Work,
)

log = logging.getLogger(__name__)

TICK_S = 1.0
NODE_LEASE_S = 20.0  # a node beats every 5 s; silent for so long, its calls run elsewhere
MOST_DEPTH = 20  # of calls within calls: a function that calls itself without end must not fill the machine


class Head:
    """See the module. `folder`: for what does not fit into memory. `changed`: called when a lease begins or ends."""

    def __init__(self, folder: Path, changed: Callable[[], None] = lambda: None):
        self.folder = folder
        self.jobs: dict[str, RunningJob] = {}
        self.nodes: dict[str, NodeState] = {}
        self.sessions: dict[str, Session] = {}
        self.last_active = time.monotonic()
        self._changed = changed
        self._orders = 0
        self._placing = False
        self._ticked = self._without_nodes = time.monotonic()

    @property
    def trade_every_s(self) -> float:
        return max(0.05, len(self.nodes) / 1000)

    # clients

    def job(self, job_id: str) -> RunningJob:
        """Return a job. Raises ClusterLost if it is not known here."""
        try:
            return self.jobs[job_id]
        except KeyError:
            raise ClusterLost(f"the cluster was restarted, and has lost job {job_id}. Call again.") from None

    def submit(self, message: Submit, session: Session) -> RunningJob:
        """Take a new job. Raises NoCompatibleNodes at once if there are nodes and none fits."""
        spec = message.spec
        if spec.id in self.jobs:
            return self.jobs[spec.id]  # the client has asked again after a break
        if session.node is not None:
            spec = replace(spec, depth=session.depth + 1, parent=session.parent)
            if spec.depth > MOST_DEPTH:
                raise BurlaError(
                    f"calls within calls are nested {MOST_DEPTH} deep; does {spec.function_name} call itself?"
                )
        self._orders += 1
        job = RunningJob(spec, session.id, self._orders, self.folder / spec.id)
        if self.nodes:
            self._check_fit(job)
        self.jobs[spec.id] = job
        session.jobs.add(spec.id)
        self.last_active = time.monotonic()
        if spec.grow:
            job.record(Notice("this cluster cannot grow: the job runs on what is there"))
        self.add_inputs(job, message.blocks, last=message.total is not None)
        return job

    def add_inputs(self, job: RunningJob, blocks: tuple[Block, ...], last: bool) -> None:
        """Add blocks; with the last of them the job may start."""
        job.add_blocks(blocks)
        self._apply(job, jobs.InputsAdded(tuple(block.count for block in blocks)))
        if last:
            self._apply(job, jobs.InputsComplete())
            if self.nodes:  # the first one may have come while the inputs did
                self._cancel_misfit(job)
            self.replace()

    def cancel(self, job: RunningJob, error: BurlaError) -> None:
        self._apply(job, jobs.CancelAsked(error))

    def forget(self, job: RunningJob) -> None:
        """Delete a job that ended, now or when it does."""
        session = self.sessions.get(job.session)
        if session is not None:
            session.jobs.discard(job.spec.id)
        if job.state.ended and not job.releasing:
            self.jobs.pop(job.spec.id, None)
            job.close()
        else:
            job.session = ""
            self.cancel(job, JobCancelled("its client wants it no more"))

    def end_session(self, session: Session, why: str) -> None:
        """A client is gone: its attached jobs stop."""
        self.sessions.pop(session.id, None)
        for job_id in list(session.jobs):
            if job_id in self.jobs:
                log.info("job %s stops: %s", job_id, why)
                self.forget(self.jobs[job_id])

    # nodes

    def join(self, offer: NodeOffer, channel: Channel, address: str) -> None:
        """Take a node in; one that is known comes back with nothing running."""
        self.leave(offer.id)
        self.nodes[offer.id] = NodeState(offer, channel, address, time.monotonic())
        for job in list(self.jobs.values()):
            if job.state is JobState.WAITING:
                self._cancel_misfit(job)
        self.replace()

    def leave(self, node: str, channel: Channel | None = None) -> None:
        """A node is lost: its calls without outcome run elsewhere."""
        known = self.nodes.get(node)
        if known is None or (channel is not None and known.channel is not channel):
            return
        del self.nodes[node]
        for session in [s for s in self.sessions.values() if s.node == node]:
            self.end_session(session, "its node is lost")
        for job in list(self.jobs.values()):
            self._apply(job, jobs.NodeLost(node))
            self.released(job, node)
        self._feed()
        self.replace()

    def trade(self, node: str, trade: Trade) -> Work:
        """Take a node's news of a job in; return what it should run next."""
        job = self.jobs.get(trade.job)
        if job is None or node not in self.nodes or job.state.ended:
            return Work()
        unfinished = job.core.unfinished
        for one in trade.news:
            match one:
                case Results():
                    self._apply(job, jobs.CallsDone(node, one))
                case Failure():
                    self._apply(job, jobs.CallFailed(node, one))
                case Crash():
                    self._apply(job, jobs.CallCrashed(node, one))
                case Output():
                    job.record(one)
        for start, stop in trade.handed_back:
            self._apply(job, jobs.HandedBack(node, start, stop))
        job.running[node] = trade.running
        job.queued[node] = trade.queued
        job.hungry.pop(node, None)
        if trade.leases == job.leases.get(node) and job.held.get(node) != trade.held:
            job.held[node] = trade.held
            self.replace()
        if job.core.unfinished < min(unfinished, sum(job.granted.values())):
            self.replace()  # slots that it cannot use any more are somebody else's
        slices = ()
        if trade.want and job.granted.get(node):
            slices = job.slices(node, self._share(job, trade.want))
            got = sum(one.stop - one.start for one in slices)
            if got < trade.want and not job.core.waiting:
                job.hungry[node] = trade.want - got
        self._feed()
        return Work(slices, self._give_back(job, node, trade.queued))

    def released(self, job: RunningJob, node: str) -> None:
        """A node runs no call of an ending job any more."""
        job.releasing.discard(node)
        for known_slots in (job.granted, job.held, job.leases, job.running, job.queued, job.hungry):
            known_slots.pop(node, None)
        if not job.releasing:
            self._over(job)
        self.replace()

    def _over(self, job: RunningJob) -> None:
        self._apply(job, jobs.AllReleased())
        if job.state.ended:
            job.over.set()
            if not job.session:
                self.forget(job)

    def _share(self, job: RunningJob, want: int) -> int:
        """Leave something for the other nodes when the end is near."""
        nodes = len(job.granted)
        return want if nodes < 2 else min(want, max(1, -(-job.core.waiting // (2 * nodes))))

    def _give_back(self, job: RunningJob, node: str, queued: int) -> int:
        others = sum(want for other, want in job.hungry.items() if other != node)
        return 0 if job.core.waiting or not queued else min(others, -(-queued // 2))

    def _feed(self) -> None:
        """Give calls that came back to nodes that asked for some in vain."""
        for job in self.jobs.values():
            while job.hungry and job.core.waiting:
                node, want = job.hungry.popitem()
                if slices := job.slices(node, self._share(job, want)):
                    self._tell(node, MoreWork(job.spec.id, slices))

    # effects

    def _apply(self, job: RunningJob, event: jobs.JobEvent) -> None:
        for effect in job.core.apply(event):
            match effect:
                case jobs.Record(outcome):
                    job.record(outcome)
                case jobs.FailCrashed(crash, attempts):
                    error = WorkerCrashed.of(crash.index, crash.signal, crash.exit_code, attempts)
                    job.record(Failure(crash.index, serialize.dump_exception(error, crash.index, ())))
                case jobs.StopCalls():
                    self._end_leases(job)
                case jobs.End(state, error):
                    job.running.clear()
                    self.last_active = time.monotonic()
                    job.record(Ended(state, None if error is None else pickle.dumps(error, 5)))

    def _end_leases(self, job: RunningJob) -> None:
        for session in [s for s in self.sessions.values() if s.parent == job.spec.id]:
            self.end_session(session, "the call that made it is stopped")
        job.releasing = set(job.granted) & set(self.nodes)
        job.hungry.clear()
        for node in job.releasing:
            self._tell(node, EndLease(job.spec.id))
        if not job.releasing:
            asyncio.get_running_loop().call_soon(self._over, job)
        self._changed()

    def replace(self) -> None:
        """Decide anew who runs what; once for all that changes at this moment."""
        if not self._placing:
            self._placing = True
            asyncio.get_running_loop().call_soon(self._place)

    def _place(self) -> None:
        self._placing = False
        active = [job for job in self.jobs.values() if job.state is not JobState.RECEIVING]
        held = {(job.spec.id, node): slots for job in active for node, slots in job.slots_held().items()}
        offers = [node.offer for node in self.nodes.values()]
        wanted = place.place([job.demand() for job in active], offers, held, self._lent())
        for (job_id, node), slots in wanted.items():
            job = self.jobs[job_id]
            before = job.granted.get(node, 0)
            if job.core.unfinished == 0 or slots == before:
                continue
            if not job.granted:
                self._apply(job, jobs.LeaseGranted(node))
            if node not in job.granted:
                self._tell(node, BeginLease(job.spec))
            job.granted[node] = slots
            job.leases[node] = job.leases.get(node, 0) + 1
            job.held[node] = max(before, job.held.get(node, 0))  # until the node has heard of this, and says so
            self._tell(node, SetSlots(job_id, slots, job.slices(node, max(0, slots - before))))
            self._changed()

    def _lent(self) -> dict[str, dict[int, int]]:
        """Return, by node and depth, the CPUs of calls that wait for jobs of their own."""
        lent: dict[str, dict[int, int]] = {}
        for session in self.sessions.values():
            parent = self.jobs.get(session.parent or "")
            waits = any(job in self.jobs and not self.jobs[job].state.ended for job in session.jobs)
            if session.node is not None and parent is not None and waits:
                depths = lent.setdefault(session.node, {})
                depths[session.depth] = depths.get(session.depth, 0) + parent.spec.func_cpu
        return lent

    def _tell(self, node: str, message: object) -> None:
        self.nodes[node].channel.post(message)

    def _check_fit(self, job: RunningJob) -> None:
        offers = [node.offer for node in self.nodes.values()]
        demand = job.demand()
        if any(place.fits(demand, offer) for offer in offers):
            return
        asked, available = place.explain_misfit(demand, offers)
        raise NoCompatibleNodes(
            f"no node of this cluster can run a call with {asked}: there is {available}. Ask for less.",
            asked=asked,
            available=available,
        )

    def _cancel_misfit(self, job: RunningJob) -> None:
        try:
            self._check_fit(job)
        except NoCompatibleNodes as error:
            self.cancel(job, error)

    # time

    def tick(self, now: float) -> None:
        """Give up silent clients and nodes, and jobs that no node comes for. To be called every `TICK_S`."""
        late_s = now - self._ticked - TICK_S
        self._ticked = now
        if late_s > TICK_S:  # it was this process that stood still: what the others said meanwhile is not read yet
            for one in [*self.sessions.values(), *self.nodes.values()]:
                one.seen += late_s
        for session in list(self.sessions.values()):
            if session.expired(now):
                self.end_session(session, "its client is gone")
        for node_id, node in list(self.nodes.items()):
            if now - node.seen > NODE_LEASE_S:
                text = f"node {node.offer.name} has been silent for {now - node.seen:.0f} s: its calls run elsewhere"
                log.warning(text)
                for job in self.jobs.values():
                    if node_id in job.granted and not job.state.ended:
                        job.record(Notice(text))
                self.leave(node_id)
                node.channel.close()
        if self.nodes:
            self._without_nodes = now
        for job in list(self.jobs.values()):
            waited_s = now - max(job.created, self._without_nodes)
            waits = job.state in (JobState.WAITING, JobState.RUNNING)
            if waits and not self.nodes and waited_s > job.spec.start_timeout_s:
                text = f"the cluster has no node, and none came in {waited_s:.0f} s. Is it still starting?"
                self.cancel(job, NoNodes(text, waited_s=waited_s))

    def idle_for_s(self, now: float) -> float:
        """Return for how long no job has been unfinished."""
        if any(not job.state.ended for job in self.jobs.values()):
            self.last_active = now
        return now - self.last_active

    def session_of(self, session_id: str) -> Session:
        """Return a session, made now if it is new."""
        return self.sessions.setdefault(session_id, Session(session_id, time.monotonic()))
