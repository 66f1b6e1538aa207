"""Jobs as the store knows them: ended ones are read from it, listed, deleted."""

from __future__ import annotations

from collections.abc import Callable

from burla import config
from burla.errors import BurlaError, JobUnfinished, StoreDamaged, UnknownJob
from burla.head.head import Head
from burla.head.reader import Reader
from burla.head.records import StoredJob
from burla.head.store import Store
from burla.protocol import (
    PARTS,
    Ended,
    Events,
    GetJob,
    GetPiece,
    Inputs,
    JobInfo,
    JobList,
    Kind,
    ListJobs,
    Poll,
    PutPiece,
    Snapshot,
)


class History:
    """See the module. `on_read` is told of each job whose results somebody has read to the end."""

    def __init__(self, head: Head, on_read: Callable[[str], None] = lambda job_id: None):
        self._head = head
        self._store: Store = head.store
        self._on_read = on_read

    # reading

    async def stored(self, job_id: str, prefix: bool = False) -> StoredJob:
        """Return a job; with `prefix`, by the beginning of its id. Raises UnknownJob."""
        found = await self._store.find(job_id)
        if found is None or (found.spec.id != job_id and not prefix):
            raise UnknownJob(
                f"the cluster has no job {job_id!r}: it was deleted, is past its retention, or is another cluster's. "
                "burla.jobs() lists what there is.",
                job=job_id,
            )
        return found

    async def number(self, job_id: str) -> int:
        """Return the number of a job in the store. Raises UnknownJob."""
        running = self._head.jobs.get(job_id)
        return running.number if running is not None else (await self.stored(job_id)).number

    async def poll(self, poll: Poll) -> Events:
        """Return events of a job that runs, or has ended. Raises UnknownJob."""
        running = self._head.jobs.get(poll.job)
        if running is not None:
            found = await running.events(poll.after, poll.wait_s, poll.kinds, poll.index)
        else:
            found = await stored_events(self._store, await self.stored(poll.job), poll)
        whole = poll.kinds & Kind.RESULTS and poll.index is None
        if whole and any(isinstance(event, Ended) for event in found.events):
            self._on_read(poll.job)
        return found

    async def piece(self, message: GetPiece | PutPiece) -> bytes | None:
        """Return, or take, a piece of a blob. Raises UnknownJob, StoreDamaged, BlobBroken, StoreFull."""
        if message.job == PARTS:
            return await self._head.parts.piece(message)
        running = self._head.jobs.get(message.job)
        number = await self.number(message.job)
        if isinstance(message, GetPiece):
            try:
                return await self._store.piece(number, message.blob, message.offset_bytes)
            except StoreDamaged:
                await self.number(message.job)  # if it was deleted meanwhile, that is what is said
                raise
        durable = running.durable if running is not None else True
        await self._store.put_piece(number, message.blob, message.offset_bytes, message.data, message.crc, durable)
        return None

    async def inputs(self, job_id: str, index: int) -> Inputs:
        """Return blocks of a job, from the one that holds input `index` on. Raises UnknownJob, StoreDamaged."""
        return Inputs(tuple(await self._store.blocks(await self.number(job_id), index)))

    async def info(self, message: GetJob) -> JobInfo:
        """Return what there is to know of one job. Raises UnknownJob."""
        if message.job is not None:
            return self.described(await self.stored(message.job, prefix=True))
        newest = await self._store.newest(message.owner)
        if newest is None:
            raise UnknownJob(f"{message.owner} has no job on this cluster", job=None)
        return self.described(newest)

    async def list(self, message: ListJobs) -> JobList:
        """Return the jobs that there are, newest first."""

        def wanted(stored: StoredJob) -> bool:
            running = self._head.jobs.get(stored.spec.id)
            state = stored.status.state if running is None else running.state
            return stored.listed and (not message.states or state in message.states)

        return JobList(
            jobs=tuple([self.described(stored) for stored in await self._store.jobs(wanted, message.limit)]),
            keep_s=config.keep_s(),
            used_bytes=self._store.used_bytes,
            limit_bytes=config.store_limit_bytes(),
            remarks=self._store.remarks,
        )

    def described(self, stored: StoredJob) -> JobInfo:
        """Return what there is to know of a job."""
        running = self._head.jobs.get(stored.spec.id)
        ended_at_s = stored.status.ended_at_s
        return JobInfo(
            id=stored.spec.id,
            function_name=stored.spec.function_name,
            owner=stored.spec.owner,
            detached=stored.status.detached if running is None else running.detached,
            on_error=stored.spec.on_error,
            resumed=stored.spec.resumed,
            snapshot=_snapshot(stored) if running is None else running.snapshot(),
            created_at_s=stored.created_at_s,
            ended_at_s=ended_at_s,
            kept_until_s=None if ended_at_s is None else ended_at_s + config.keep_s(),
            size_bytes=stored.size_bytes,
            events=stored.events if running is None else running.journal.shown,
        )

    # changing

    async def delete(self, job_id: str) -> None:
        """Delete a job. Raises UnknownJob, JobUnfinished."""
        stored = await self.ended(job_id, "delete")
        self._head.jobs.pop(stored.spec.id, None)
        self._store.delete_job(stored.number)
        await self._store.committed()

    async def sweep(self, now_s: float) -> None:
        """Delete ended jobs that are past their retention, and the oldest ones if all are too large."""
        kept = await self._store.jobs()
        self._head.parts.sweep(now_s, config.keep_s(), [one.spec.environment or "" for one in kept])
        for stored in expired(kept, now_s, config.keep_s(), config.store_limit_bytes()):
            self._head.jobs.pop(stored.spec.id, None)
            self._store.delete_job(stored.number)

    async def ended(self, job_id: str, verb: str) -> StoredJob:
        """Return a job that is to be deleted, retried or resumed. Raises UnknownJob, JobUnfinished."""
        stored = await self.stored(job_id)
        running = self._head.jobs.get(stored.spec.id)
        state = stored.status.state if running is None else running.state
        if running is not None and state.ended:
            await running.over.wait()  # who waited for its end may come a moment before its children are gone
        if not state.ended:
            raise JobUnfinished(
                f"job {stored.spec.id} has not ended, so it is too early to {verb} it: it is {state.value}. "
                "Wait for it, or cancel it first.",
                job=stored.spec.id,
            )
        return stored


async def stored_events(reader: Reader, stored: StoredJob, poll: Poll) -> Events:
    """Return events of a job that has ended. Raises BurlaError."""
    events, number = await reader.events(stored.number, poll.after, poll.kinds, poll.index)
    if not events and number >= stored.events:  # whatever has become of the row that says so
        if not stored.status.state.ended:
            raise BurlaError(
                f"burla failed at the head: job {poll.job} neither runs nor has ended. Please report this."
            )
        events = [Ended(stored.status.state, stored.status.error)]
    return Events(tuple(events), number, _snapshot(stored))


def expired(stored: list[StoredJob], now_s: float, keep_s: float, limit_bytes: int) -> list[StoredJob]:
    """Return the ended jobs to be deleted, of a list that is newest first: the newest is not, whatever its size."""
    gone: list[StoredJob] = []
    used = sum(one.size_bytes for one in stored if one.status.ended_at_s is None)
    newest = True
    for one in stored:
        if one.status.ended_at_s is None:
            continue
        too_much = used + one.size_bytes > limit_bytes and not newest
        newest = False
        if too_much or now_s - one.status.ended_at_s > keep_s:
            gone.append(one)
        else:
            used += one.size_bytes
    return gone


def _snapshot(stored: StoredJob) -> Snapshot:
    status = stored.status
    return Snapshot(
        status.state,
        status.total,
        status.done,
        status.failed,
        running=0,
        nodes=0,
        node_s=status.node_s,
        usd=status.usd,
    )
