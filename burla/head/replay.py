"""A head that was started again takes its jobs up from the store, where they stood."""

from __future__ import annotations

import logging
import pickle
import time

from burla.errors import BurlaError
from burla.head import jobs
from burla.head.budgets import Spent
from burla.head.head import Head
from burla.head.journal import Journal
from burla.head.members import Session
from burla.head.reader import Replay
from burla.head.running import RunningJob
from burla.protocol import JobState

log = logging.getLogger(__name__)


async def replay(head: Head, nodes_survived: bool) -> None:
    """Continue what had not ended. `nodes_survived`: nodes of before may come back, with calls that run."""
    found = head.store.unfinished()
    if nodes_survived and found:
        head.dispatch.awaited = head.store.nodes()
    else:
        head.store.forget_nodes()
    for one in found:
        await _restore(head, one)


async def _restore(head: Head, one: Replay) -> None:
    stored = one.job
    spec = stored.spec
    journal = Journal(head.store, stored.number, stored.events, one.output_bytes)
    job = RunningJob(head.store, stored.number, spec, stored.session, stored.created_at_s, journal)
    job.detached = stored.status.detached
    job.trades = dict(one.trades)
    job.spent = Spent(stored.status.ran_s, stored.status.node_s, stored.status.usd)
    job.stored_ran_s = job.spent.ran_s
    head.jobs[spec.id] = job
    error: BurlaError | None = one.damage
    if error is None:
        job.spec = (await head.store.with_function(stored)).spec
    job.restore_blocks([first for first, _ in one.blocks])
    head.apply(job, jobs.InputsAdded(tuple(count for _, count in one.blocks)))
    if job.core.total < stored.status.total:  # blocks are lost: how many inputs it has is known, and must stay so
        head.apply(job, jobs.InputsAdded((stored.status.total - job.core.total,)))
    for start, stop, failed in one.outcomes:
        head.apply(job, jobs.Adopted(start, stop, failed))
    job.core.crashed_before(one.crashes)
    if stored.status.state is JobState.STOPPING and stored.status.error is not None:
        error = pickle.loads(stored.status.error)
    log.info("job %s goes on: %d of %d calls have an outcome", spec.id, job.core.done + job.core.failed, job.core.total)
    if error is not None:
        head.cancel(job, error)
        return
    if not job.detached:
        _keep_for_client(head, job)
    if stored.status.complete:
        job.complete.set()
        head.apply(job, jobs.InputsComplete())


def _keep_for_client(head: Head, job: RunningJob) -> None:
    """An attached job is its client's, who may come back; one of a call within a call is its node's."""
    session = head.sessions.setdefault(job.session, Session(job.session, time.monotonic()))
    session.jobs.add(job.spec.id)
    if job.spec.parent is not None:
        session.node, session.parent, session.depth = job.session.partition("/")[0], job.spec.parent, job.spec.depth - 1
