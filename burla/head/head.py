"""The head: holds jobs, hands their calls to nodes, keeps their journals for clients.

Who runs what is decided by `place`, what becomes of an input by `jobs.Job`; here are the effects. All of it is written
to the store, and from there a head that is started again takes it up (`replay`).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from burla import config, serialize
from burla.channel import Channel
from burla.errors import (
    BurlaError,
    JobCancelled,
    NoCompatibleNodes,
    NoNodes,
    StoreDamaged,
    StoreFull,
    WorkerCrashed,
)
from burla.head import jobs, place
from burla.head.journal import Journal
from burla.head.members import NodeState, Session
from burla.head.running import RunningJob
from burla.head.store import Store
from burla.protocol import (
    BeginLease,
    Block,
    Crash,
    Ended,
    EndLease,
    Failure,
    JobSpec,
    JobState,
    Join,
    MoreWork,
    Notice,
    Output,
    Results,
    SetSlots,
    Slice,
    Submit,
    Trade,
    Work,
)

log = logging.getLogger(__name__)

TICK_S = 1.0
SETTLE_S = 8.0  # a head that was started again waits so long for nodes that may still run its calls
REMEMBER_S = 60.0  # how long a job stays in memory after its end
MOST_DEPTH = 20  # of calls within calls: a function that calls itself without end must not fill the machine


class Head:
    """See the module. `changed`: called when a lease begins or ends."""

    def __init__(self, store: Store, changed: Callable[[], None] = lambda: None):
        self.store = store
        self.jobs: dict[str, RunningJob] = {}  # that have not ended, or did a moment ago; of others the store knows
        self.nodes: dict[str, NodeState] = {}
        self.sessions: dict[str, Session] = {}
        self.last_active = time.monotonic()
        self.full: StoreFull | None = None
        self._is_full = asyncio.Event()
        self.awaited: set[str] = set()  # nodes of before a restart: what they still run must not begin elsewhere
        self._changed = changed
        self._placing = False
        self._started = self._ticked = self._without_nodes = time.monotonic()

    @property
    def trade_every_s(self) -> float:
        return max(0.05, len(self.nodes) / 1000)

    @property
    def paused(self) -> bool:
        """Whether no calls are handed out for now."""
        return bool(self.awaited) or self.full is not None

    def set_full(self, error: StoreFull | None) -> None:
        """The disk is full: nothing new begins, and who waits is told; with None, all goes on."""
        self.full = error
        (self._is_full.clear if error is None else self._is_full.set)()
        for job in self.jobs.values():
            job.remark = None if error is None else str(error)
            job.journal.wake()
        self._resume()

    async def written(self) -> None:
        """Return when all that was taken is in the store. Raises StoreFull, at once, and ClusterLost."""
        written, full = asyncio.ensure_future(self.store.committed()), asyncio.ensure_future(self._is_full.wait())
        try:
            await asyncio.wait([written, full], return_when=asyncio.FIRST_COMPLETED)
            if self.full is not None and not written.done():
                raise self.full
            await written
        finally:
            written.cancel()
            full.cancel()

    def _resume(self) -> None:
        if not self.paused:
            self._feed()
            self.replace()

    # clients

    def submit(self, message: Submit, session: Session) -> None:
        """Take a new job. Raises NoCompatibleNodes at once if there are nodes and none fits; StoreFull."""
        spec = message.spec
        if self.full is not None:
            raise self.full
        if session.node is not None:
            spec = replace(spec, depth=session.depth + 1, parent=session.parent)
            if spec.depth > MOST_DEPTH:
                raise BurlaError(
                    f"calls within calls are nested {MOST_DEPTH} deep; does {spec.function_name} call itself?"
                )
        if self.nodes:
            self._check_fit(spec)
        job = self.new_job(spec, session)
        if spec.grow:
            job.record(Notice("this cluster cannot grow: the job runs on what is there"))
        self.add_inputs(job, message.blocks, last=message.total is not None)

    def new_job(self, spec: JobSpec, session: Session) -> RunningJob:
        """Write a job down; its inputs follow."""
        created_at_s = time.time()
        number = self.store.add_job(spec, session.id, created_at_s, spec.detach)
        job = RunningJob(self.store, number, spec, session.id, created_at_s, Journal(self.store, number))
        job.remark = None if self.full is None else str(self.full)
        self.jobs[spec.id] = job
        session.jobs.add(spec.id)
        self.last_active = time.monotonic()
        return job

    def add_inputs(self, job: RunningJob, blocks: tuple[Block, ...], last: bool) -> None:
        """Add blocks that are not here yet; with the last of them the job may start."""
        if job.state is not JobState.RECEIVING:
            return
        blocks = tuple(block for block in blocks if block.first >= job.core.total)
        self.store.add_blocks(job.number, blocks, job.durable)
        job.add_blocks(blocks)
        self.apply(job, jobs.InputsAdded(tuple(block.count for block in blocks)))
        if last:
            self.start(job)

    def start(self, job: RunningJob) -> None:
        """All inputs are there."""
        job.detached = job.spec.detach
        self.store.update_job(job.number, job.durable, complete=True, detached=job.detached, total=job.core.total)
        job.complete.set()
        self.store.after_commit(lambda: self._begin(job))  # calls of a job that the store did not know would run again

    def _begin(self, job: RunningJob) -> None:
        self.apply(job, jobs.InputsComplete())
        if self.nodes:  # the first one may have come while the inputs did
            self._cancel_misfit(job)
        self.replace()

    async def detach(self, job: RunningJob) -> None:
        """Have a job outlive its client; return once it and its inputs are on the disk.

        Raises JobCancelled if it was stopped before all inputs had arrived.
        """
        ended, complete = (asyncio.ensure_future(one.wait()) for one in (job.over, job.complete))
        try:
            await asyncio.wait([ended, complete], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            complete.cancel()
        if not job.complete.is_set():
            raise JobCancelled(f"job {job.spec.id} was stopped before all its inputs had arrived")
        if not job.detached:
            job.detached = True
            self.store.update_job(job.number, True, detached=True)
        await self.store.committed()

    def cancel(self, job: RunningJob, error: BurlaError) -> None:
        """Stop a job, unless it is stopping; `error` is what a client that still listens is told."""
        if job.state is JobState.STOPPING or job.state.ended:
            return
        self.store.update_job(job.number, job.durable, state=JobState.STOPPING, error=pickle.dumps(error, 5))
        self.apply(job, jobs.CancelAsked(error))

    def forget(self, job: RunningJob) -> None:
        """Delete a job that is not detached, now or when it is over."""
        session = self.sessions.get(job.session)
        if session is not None:
            session.jobs.discard(job.spec.id)
        job.session = ""
        if job.detached:
            return
        job.unwanted = True
        if job.over.is_set():
            self.drop(job)
        else:
            self.cancel(job, JobCancelled("its client wants it no more"))

    def drop(self, job: RunningJob) -> None:
        """A job is over: it leaves the memory, and if nobody wants it, the store."""
        self.jobs.pop(job.spec.id, None)
        if job.unwanted:
            self.store.delete_job(job.number)

    def end_session(self, session: Session, why: str) -> None:
        """A client is gone: its attached jobs stop. What they have brought stays; but not of calls within calls."""
        self.sessions.pop(session.id, None)
        for job_id in list(session.jobs):
            job = self.jobs.get(job_id)
            if job is None or job.detached:
                continue
            log.info("job %s stops: %s", job_id, why)
            if job.spec.parent is not None:
                self.forget(job)
                continue
            job.session = ""
            received = "" if job.state is not JobState.RECEIVING else ", before all its inputs had arrived"
            self.cancel(job, JobCancelled(f"job {job_id} was stopped: {why}{received}"))

    # nodes

    def join(self, message: Join, channel: Channel) -> dict[str, tuple[tuple[int, int], ...]]:
        """Take a node in; return what of the calls that it still has is its own again, by job."""
        node = message.offer.id
        sessions = {one: self.sessions[one] for one in message.sessions if one in self.sessions}
        self.leave(node, keep=set(sessions))
        self.nodes[node] = NodeState(message.offer, channel, message.address, time.monotonic())
        self.store.set_node(node, True)
        for session in [s for s in self.sessions.values() if s.node == node and s.id not in sessions]:
            self.end_session(session, "the call that made it is gone")
        kept: dict[str, tuple[tuple[int, int], ...]] = {}
        for claim in message.claims:
            job = self.jobs.get(claim.job)
            if job is None or job.state not in (JobState.WAITING, JobState.RUNNING):
                continue
            self.apply(job, jobs.LeaseGranted(node))
            ranges = claim.ranges if claim.number <= job.trades.get(node, 0) else claim.ranges + claim.sent
            kept[claim.job] = job.core.claim(node, ranges)
            job.granted[node], job.held[node], job.leases[node] = claim.slots, claim.held, claim.leases
            job.running[node] = claim.held
        for job in list(self.jobs.values()):
            if job.state is JobState.WAITING:
                self._cancel_misfit(job)
        self._settle(node)
        self.replace()
        self._changed()
        return kept

    def _settle(self, node: str) -> None:
        if node in self.awaited:
            self.awaited.discard(node)
            self._resume()

    def leave(self, node: str, channel: Channel | None = None, keep: Collection[str] = ()) -> None:
        """A node is lost: its calls without outcome run elsewhere, and its sessions end but for those in `keep`."""
        known = self.nodes.get(node)
        if known is None or (channel is not None and known.channel is not channel):
            return
        del self.nodes[node]
        self.store.set_node(node, False)
        for session in [s for s in self.sessions.values() if s.node == node and s.id not in keep]:
            self.end_session(session, "its node is lost")
        for job in list(self.jobs.values()):
            self.apply(job, jobs.NodeLost(node))
            self.released(job, node)
        self._feed()
        self.replace()

    def trade(self, node: str, trade: Trade) -> Work:
        """Take a node's news of a job in; return what it should run next."""
        job = self.jobs.get(trade.job)
        if job is None or node not in self.nodes or job.state.ended:
            return Work()
        unfinished = job.core.unfinished
        if trade.number > job.trades.get(node, 0):
            self._take_news(job, node, trade)
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
            slices = self._slices(job, node, self._share(job, trade.want))
            got = sum(one.stop - one.start for one in slices)
            if got < trade.want and (self.paused or not job.core.waiting):
                job.hungry[node] = trade.want - got
        self._feed()
        return Work(slices, self._give_back(job, node, trade.queued))

    def _take_news(self, job: RunningJob, node: str, trade: Trade) -> None:
        for one in trade.news:
            match one:
                case Results():
                    self.apply(job, jobs.CallsDone(node, one))
                case Failure():
                    self.apply(job, jobs.CallFailed(node, one))
                case Crash():
                    self.apply(job, jobs.CallCrashed(node, one))
                case Output():
                    job.record(one)
        for start, stop in trade.handed_back:
            self.apply(job, jobs.HandedBack(node, start, stop))
        if trade.news:
            job.trades[node] = trade.number
            self.store.set_trade(job.number, node, trade.number, job.durable)

    def _slices(self, job: RunningJob, node: str, want: int) -> tuple[Slice, ...]:
        if self.paused:
            return ()
        try:
            return job.slices(node, want)
        except StoreDamaged as error:  # the job cannot be finished; others are not concerned
            self.cancel(job, error)
            return ()

    def released(self, job: RunningJob, node: str) -> None:
        """A node runs no call of an ending job any more."""
        job.releasing.discard(node)
        for known_slots in (job.granted, job.held, job.leases, job.running, job.queued, job.hungry):
            known_slots.pop(node, None)
        if not job.releasing:
            self._over(job)
        self.replace()

    def _over(self, job: RunningJob) -> None:
        self.apply(job, jobs.AllReleased())
        if job.state.ended and not job.over.is_set():
            job.over.set()
            job.over_since = time.monotonic()
            if job.unwanted:
                self.drop(job)

    def _share(self, job: RunningJob, want: int) -> int:
        """Leave something for the other nodes when the end is near."""
        nodes = len(job.granted)
        return want if nodes < 2 else min(want, max(1, -(-job.core.waiting // (2 * nodes))))

    def _give_back(self, job: RunningJob, node: str, queued: int) -> int:
        others = sum(want for other, want in job.hungry.items() if other != node)
        return 0 if job.core.waiting or not queued else min(others, -(-queued // 2))

    def _feed(self) -> None:
        """Give calls that came back to nodes that asked for some in vain."""
        for job in list(self.jobs.values()):
            while job.hungry and job.core.waiting and not self.paused:
                node, want = job.hungry.popitem()
                if slices := self._slices(job, node, self._share(job, want)):
                    self._tell(node, MoreWork(job.spec.id, slices))

    # effects

    def apply(self, job: RunningJob, event: jobs.JobEvent) -> None:
        """Let an event happen to a job, with all its effects."""
        for effect in job.core.apply(event):
            match effect:
                case jobs.Record(outcome):
                    job.record(outcome)
                case jobs.FailCrashed(crash, attempts):
                    error = WorkerCrashed.of(crash.index, crash.signal, crash.exit_code, attempts)
                    job.record(Failure(crash.index, serialize.dump_exception(error, crash.index, ())))
                case jobs.NoteCrash(index, attempts):
                    self.store.set_crashes(job.number, index, attempts, job.durable)
                case jobs.StopCalls():
                    self._end_leases(job)
                case jobs.End(state, error):
                    job.running.clear()
                    self.last_active = time.monotonic()
                    ended = Ended(state, None if error is None else pickle.dumps(error, 5))
                    job.record(ended)
                    core = job.core
                    self.store.update_job(
                        job.number, job.durable, state=state, error=ended.error, ended_at_s=time.time(),
                        total=core.total, done=core.done, failed=core.failed,
                    )  # fmt: skip

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
        if self.paused:
            return
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
                self.apply(job, jobs.LeaseGranted(node))
            if node not in job.granted:
                self._tell(node, BeginLease(job.spec))
            job.granted[node] = slots
            job.leases[node] = job.leases.get(node, 0) + 1
            job.held[node] = max(before, job.held.get(node, 0))  # until the node has heard of this, and says so
            self._tell(node, SetSlots(job_id, slots, self._slices(job, node, max(0, slots - before))))
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

    def _check_fit(self, spec: JobSpec) -> None:
        offers = [node.offer for node in self.nodes.values()]
        demand = place.demand_of(spec, 0, 0)
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
            self._check_fit(job.spec)
        except NoCompatibleNodes as error:
            self.cancel(job, error)

    # time

    def tick(self, now: float) -> None:
        """Give up silent clients and nodes, and jobs that no node comes for. To be called every `TICK_S`.

        `now` is monotonic: what the wall clock does changes nothing.
        """
        late_s = now - self._ticked - TICK_S
        self._ticked = now
        if late_s > TICK_S:  # it was this process that stood still: what the others said meanwhile is not read yet
            for one in [*self.sessions.values(), *self.nodes.values()]:
                one.seen += late_s
        for session in list(self.sessions.values()):
            if session.expired(now):
                self.end_session(session, "its client is gone")
        for node_id, node in list(self.nodes.items()):
            if now - node.seen > config.NODE_LEASE_S:
                text = f"node {node.offer.name} has been silent for {now - node.seen:.0f} s: its calls run elsewhere"
                log.warning(text)
                for job in self.jobs.values():
                    if node_id in job.granted and not job.state.ended:
                        job.record(Notice(text))
                self.leave(node_id)
                node.channel.close()
        if self.awaited and now - self._started > SETTLE_S:
            self._give_up_awaited()
        if self.nodes:
            self._without_nodes = now
        for job in list(self.jobs.values()):
            job.note_rate(now)
            if job.over_since is not None and job.journal.shown == job.journal.length:
                job.let_go()
                if now - job.over_since > REMEMBER_S:
                    self.drop(job)
            waited_s = now - max(job.created, self._without_nodes)
            waits = job.state in (JobState.WAITING, JobState.RUNNING)
            if waits and job.detached and self.full is None:
                late = not self.nodes and waited_s > job.spec.start_timeout_s
                job.remark = f"no node of the cluster has come for {waited_s:.0f} s: the job waits" if late else None
                continue
            if waits and not self.nodes and waited_s > job.spec.start_timeout_s:
                text = f"the cluster has no node, and none came in {waited_s:.0f} s. Is it still starting?"
                self.cancel(job, NoNodes(text, waited_s=waited_s))

    def _give_up_awaited(self) -> None:
        log.warning("nodes %s did not come back: their calls run elsewhere", ", ".join(sorted(self.awaited)))
        for node in self.awaited:
            self.store.set_node(node, False)
            for session in [s for s in self.sessions.values() if s.node == node]:
                self.end_session(session, "its node is lost")
        self.awaited.clear()
        self._resume()

    def idle_for_s(self, now: float) -> float:
        """Return for how long no job has been unfinished."""
        if any(not job.state.ended for job in self.jobs.values()):
            self.last_active = now
        return now - self.last_active

    def session_of(self, session_id: str) -> Session:
        """Return a session, made now if it is new."""
        return self.sessions.setdefault(session_id, Session(session_id, time.monotonic()))
