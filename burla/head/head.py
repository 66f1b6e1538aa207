"""The head: holds jobs, hands their calls to nodes, keeps their journals for clients.

Who runs what is decided by `place`, what becomes of an input by `jobs.Job`; here are the effects. All of it is written
to the store, and from there a head that is started again takes it up (`replay`).
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from burla import serialize
from burla.config import GROWTH_S
from burla.errors import (
    BurlaError,
    JobCancelled,
    NoNodes,
    OutOfMemory,
    StoreFull,
    WorkerCrashed,
)
from burla.head import disks, jobs
from burla.head.budgets import Budgets
from burla.head.dispatch import Dispatch
from burla.head.journal import Journal
from burla.head.members import Session
from burla.head.parts import Parts
from burla.head.running import RunningJob
from burla.head.store import Store
from burla.head.vault import Vault
from burla.protocol import (
    Block,
    Ended,
    Failure,
    JobSpec,
    JobState,
    Notice,
    Submit,
)

log = logging.getLogger(__name__)

TICK_S = 1.0
REMEMBER_S = 60.0  # how long a job stays in memory after its end
MOST_DEPTH = 20  # of calls within calls: a function that calls itself without end must not fill the machine


class Head:
    """See the module. `leases_changed` is called when a lease begins or ends."""

    def __init__(self, store: Store, parts: Parts, vault: Vault, leases_changed: Callable[[], None] = lambda: None):
        self.store = store
        self.parts = parts
        self.vault = vault
        self.jobs: dict[str, RunningJob] = {}  # that have not ended, or did a moment ago; of others the store knows
        self.sessions: dict[str, Session] = {}
        self.last_active = time.monotonic()
        self.full: StoreFull | None = None
        self._is_full = asyncio.Event()
        self.dispatch = Dispatch(self, leases_changed)
        self._ticked = time.monotonic()
        self._budgets = Budgets(self, self._ticked)

    def set_full(self, error: StoreFull | None) -> None:
        """The disk is full: nothing new begins, and who waits is told; with None, all goes on."""
        self.full = error
        (self._is_full.clear if error is None else self._is_full.set)()
        for job in self.jobs.values():
            job.remark = None if error is None else str(error)
            job.journal.wake()
        self.dispatch.resume()

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

    # clients

    def submit(self, message: Submit, session: Session) -> None:
        """Take a new job.

        Raises NoCompatibleNodes or PythonMismatch at once if there are nodes and none fits; EnvironmentNeeded,
        StoreFull.
        """
        spec = replace(message.spec, sealed=self.vault.seal(message.variables) or message.spec.sealed)
        if self.full is not None:
            raise self.full
        if session.node is not None:
            spec = replace(spec, depth=session.depth + 1, parent=session.parent)
            if spec.depth > MOST_DEPTH:
                raise BurlaError(
                    f"calls within calls are nested {MOST_DEPTH} deep; does {spec.function_name} call itself?"
                )
        grows = message.grows and session.node is None
        if not (spec.grow and grows):
            self.dispatch.check_fit(spec)
        disks.check_environment(spec, self.dispatch.nodes.values())
        job = self.new_job(replace(spec, grow=spec.grow and grows), session)
        if spec.grow and not grows:
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
        self.dispatch.cancel_misfit(job)  # the first node may have come while the inputs did
        self.dispatch.replace()

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

    def growth(self, job: RunningJob, text: str, over: bool) -> None:
        """Who boots machines for a job tells how that goes; with `over`, it has what it will get."""
        if job.state.ended:
            return
        job.record(Notice(text))
        job.growing_until = 0.0 if over else time.monotonic() + GROWTH_S
        if over and job.state is JobState.WAITING:
            self.dispatch.cancel_misfit(job)

    def cancel(self, job: RunningJob, error: BurlaError) -> None:
        """Stop a job, unless it is stopping; `error` is what a client that still listens is told."""
        if job.state is JobState.STOPPING or job.state.ended:
            return
        self.store.update_job(job.number, job.durable, state=JobState.STOPPING, error=pickle.dumps(error, 5))
        self.apply(job, jobs.CancelAsked(error))

    def end_of_calls(self, job: RunningJob) -> None:
        """No node runs a call of an ending job any more."""
        self.apply(job, jobs.AllReleased())
        if job.state.ended and not job.over.is_set():
            job.over.set()
            job.over_since = time.monotonic()
            if job.unwanted:
                self.drop(job)

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
                case jobs.FailEvicted(one):
                    facts = (one.index, one.peak_bytes, one.limit_bytes, one.fixed, one.others_bytes)
                    error = OutOfMemory.of(*facts, tried=job.core.evictions(one.index))
                    job.record(Failure(one.index, serialize.dump_exception(error, one.index, ())))
                case jobs.NoteCrash(index, attempts):
                    self.store.set_crashes(job.number, index, attempts, job.durable)
                case jobs.StopCalls():
                    self.dispatch.stop_calls(job, at_once=isinstance(event, jobs.CancelAsked))
                case jobs.End(state, error):
                    job.running.clear()
                    job.long.clear()
                    self.last_active = time.monotonic()
                    ended = Ended(state, None if error is None else pickle.dumps(error, 5))
                    job.record(ended)
                    core = job.core
                    self.store.update_job(
                        job.number, job.durable, state=state, error=ended.error, ended_at_s=time.time(),
                        total=core.total, done=core.done, failed=core.failed, **asdict(job.spent),
                    )  # fmt: skip

    # time

    def tick(self, now: float) -> None:
        """Give up silent clients and nodes, and jobs that no node comes for. To be called every `TICK_S`.

        `now` is monotonic: what the wall clock does changes nothing.
        """
        late_s = now - self._ticked - TICK_S
        self._ticked = now
        if late_s > TICK_S:  # it was this process that stood still: what the others said meanwhile is not read yet
            for one in [*self.sessions.values(), *self.dispatch.nodes.values()]:
                one.seen += late_s
        for session in list(self.sessions.values()):
            if session.expired(now):
                self.end_session(session, "its client is gone")
        self.dispatch.tick(now)
        self._budgets.tick(now)
        for job in list(self.jobs.values()):
            job.note_rate(now)
            if job.over_since is not None and job.journal.shown == job.journal.length:
                job.let_go()
                if now - job.over_since > REMEMBER_S:
                    self.drop(job)
            if job.growing_until and not job.growing:  # who grows it has gone
                job.growing_until = 0.0
                if job.state is JobState.WAITING:
                    self.dispatch.cancel_misfit(job)
            waited_s = now - max(job.created, self.dispatch.without_nodes_since)
            waits = job.state in (JobState.WAITING, JobState.RUNNING) and not job.growing
            if waits and job.detached and self.full is None:
                late = not self.dispatch.nodes and waited_s > job.spec.start_timeout_s
                job.remark = f"no node of the cluster has come for {waited_s:.0f} s: the job waits" if late else None
                continue
            if waits and not self.dispatch.nodes and waited_s > job.spec.start_timeout_s:
                text = f"the cluster has no node, and none came in {waited_s:.0f} s. Is it still starting?"
                self.cancel(job, NoNodes(text, waited_s=waited_s))

    def idle_for_s(self, now: float) -> float:
        """Return for how long no job has been unfinished."""
        if any(not job.state.ended for job in self.jobs.values()):
            self.last_active = now
        return now - self.last_active

    def sessions_at(self, node: str) -> list[Session]:
        """Return the sessions of calls that run on a node."""
        return [session for session in self.sessions.values() if session.node == node]

    def session_of(self, session_id: str) -> Session:
        """Return a session, made now if it is new."""
        return self.sessions.setdefault(session_id, Session(session_id, time.monotonic()))
