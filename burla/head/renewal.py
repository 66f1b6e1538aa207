"""New jobs that take over what another one has: its results, and for a retry its function and inputs too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from burla import blobs, serialize
from burla.errors import BurlaError, EnvironmentNeeded, JobCancelled, JobUnfinished, StoreDamaged
from burla.head import jobs
from burla.head.head import Head
from burla.head.history import History
from burla.head.members import Session
from burla.head.records import StoredJob
from burla.head.running import RunningJob
from burla.protocol import BLOB_BYTES, Blob, JobSpec, JobState, Kind, Payload, Results, Resume, Retry

log = logging.getLogger(__name__)


class Renewal:
    """See the module. What is asked again after a break goes on where it was."""

    def __init__(self, head: Head, history: History):
        self._head = head
        self._store = head.store
        self._history = history
        self._locks: dict[str, asyncio.Lock] = {}  # of jobs that are being filled

    async def retry(self, message: Retry, session: Session) -> None:
        """Begin a job anew that has ended, with the results it has.

        Raises UnknownJob, JobUnfinished, StoreDamaged, JobCancelled.
        """
        async with self._alone(message.id):
            job = self._head.jobs.get(message.id)
            if job is None and self._store.knows(message.id):
                return  # asked again after a break
            source = await self._history.ended(message.job, "retry")
            if not source.status.complete:
                raise JobUnfinished(
                    f"not all inputs of job {source.spec.id} had arrived when it ended, so it cannot be retried. "
                    f"Submit it again: resume={source.spec.id!r} takes over what it has.",
                    job=source.spec.id,
                )
            if job is None:
                job = self._head.new_job(await self._spec(message, source), session)
            if job.state is JobState.RECEIVING:
                await self._fill(job, source)
        await self._store.committed()

    async def adopt(self, job: RunningJob, resume: Resume) -> None:
        """Take results of another job over, of the same inputs, and start.

        Raises UnknownJob, JobUnfinished, JobCancelled.
        """
        async with self._alone(job.spec.id):
            if job.state is JobState.RECEIVING:
                await self._adopt(job, await self._history.ended(resume.job, "resume"), resume.ranges)
                self._head.start(job)

    @contextlib.asynccontextmanager
    async def _alone(self, job_id: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(job_id, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(job_id, None)

    async def _spec(self, message: Retry, source: StoredJob) -> JobSpec:
        spec, function, environment = source.spec, message.function, message.environment
        if function is None:  # else the old one is not needed: it may be what is damaged
            function = (await self._store.with_function(source)).spec.function
            environment = spec.environment
        elif environment is None and spec.environment is not None:
            raise EnvironmentNeeded("the corrected function may need something else", shared=spec.origin is not None)
        return replace(
            spec, id=message.id, resumed=spec.id, function=function, environment=environment,
            detach=True, parent=None, depth=0, grow=False,
        )  # fmt: skip

    async def _fill(self, job: RunningJob, source: StoredJob) -> None:
        """Give a new job function, inputs and results of another; where that cannot be, it is not kept."""
        try:
            await self._link(job, source, job.spec.function)
            while job.core.total < source.status.total:
                blocks = tuple(await self._store.blocks(source.number, job.core.total))
                for block in blocks:
                    await self._link(job, source, block.payload)
                _check(job)
                self._head.add_inputs(job, blocks, last=False)
                await self._store.committed()
            await self._adopt(job, source, ((0, source.status.total),))
        except BurlaError:
            self._head.forget(job)
            raise
        self._head.start(job)

    async def _link(self, job: RunningJob, source: StoredJob, payload: Payload) -> None:
        """Give a job what is a blob of another. Raises StoreDamaged."""
        if isinstance(payload, Blob):
            await self._store.check_blob(source.number, payload)
            await self._store.link_blob(source.number, job.number, payload, job.durable)

    async def _adopt(self, job: RunningJob, source: StoredJob, ranges: tuple[tuple[int, int], ...]) -> None:
        after = 0
        while after < source.events:
            events, after = await self._store.events(source.number, after, Kind.RESULTS)
            for results in (event for event in events if isinstance(event, Results)):
                for start, stop in _overlaps(results, ranges):
                    if job.core.pending.covers(start, stop):  # not yet taken over, before a break
                        await self._take_over(job, source, results, start, stop)
            _check(job)
            await self._store.committed()

    async def _take_over(self, job: RunningJob, source: StoredJob, results: Results, start: int, stop: int) -> None:
        try:
            payload = await self._part(job, source, results, start, stop)
        except StoreDamaged as error:
            log.warning("inputs %d to %d of job %s run again: %s", start, stop - 1, job.spec.id, error)
            return
        _check(job)
        job.record(Results(start, stop, results.each, payload))
        self._head.apply(job, jobs.Adopted(start, stop))

    async def _part(self, job: RunningJob, source: StoredJob, results: Results, start: int, stop: int) -> Payload:
        payload = results.payload
        if (start, stop) == (results.start, results.stop):
            await self._link(job, source, payload)
            return payload
        whole = await blobs.fetch(self._history.piece, source.spec.id, payload)
        cut = serialize.cut_results, whole, start - results.start, stop - results.start
        part = await asyncio.to_thread(*cut)  # it may be hundreds of MB
        return await blobs.put(self._history.piece, job.spec.id, part) if len(part) >= BLOB_BYTES else part


def _check(job: RunningJob) -> None:
    """Raise JobCancelled if somebody did that while the job was being filled."""
    if job.state is not JobState.RECEIVING:
        raise JobCancelled(f"job {job.spec.id} was cancelled before it had begun")


def _overlaps(results: Results, ranges: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    for start, stop in ranges:
        start, stop = max(start, results.start), min(stop, results.stop)
        if start < stop:
            yield start, stop
