"""One connection to the head, of a client or of a node: turns messages into calls of `Head`, results into replies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from burla.channel import Channel, Transport
from burla.errors import BurlaError, ClusterError, ClusterLost, JobCancelled
from burla.head import crashpoints, disks
from burla.head.copier import Copier
from burla.head.garbage import Garbage
from burla.head.head import Head
from burla.head.history import History
from burla.head.keeping import Keeping
from burla.head.members import Session
from burla.head.needs import need_of
from burla.head.renewal import Renewal
from burla.protocol import (
    PROTOCOL_VERSION,
    AddInputs,
    Beat,
    Cancel,
    ClusterStatus,
    Delete,
    Detach,
    Forget,
    GetInputs,
    GetJob,
    GetMissing,
    GetNeed,
    GetPiece,
    GetStatus,
    Goodbye,
    Growth,
    Hello,
    Join,
    Joined,
    ListJobs,
    Need,
    Poll,
    Preparing,
    PutPiece,
    Relay,
    RelayEnded,
    Released,
    Retry,
    Submit,
    Trade,
    Welcome,
    Work,
)

log = logging.getLogger(__name__)

SWEEP_S = 60.0  # how often it is looked for jobs past their retention
STOP_S = 3.0  # for the calls of a cluster that is ended; longer than a call that does not obey can take


class Service:
    """What all connections share: the head, and its end. `idle_after_s` None: the head does not end by itself."""

    def __init__(self, head: Head, idle_after_s: float | None, stop: Callable[[], None], supervised: bool):
        self.head = head
        self.history = History(head, self._read)
        self.keeping: Keeping | None = None  # for whose results it stays
        self.copier: Copier | None = None
        self.renewal = Renewal(head, self.history)
        self.scheduler = ""  # that holds all jobs; empty: the store does
        self.supervised = supervised  # ended by its machine alone, and started again: also what the user is told
        self.idle_after_s = idle_after_s
        self.closing = False
        self.over = False  # nothing can be asked any more
        self.version = ""  # that nodes must have; empty: they cannot have another
        self.open: set[Channel] = set()
        self._stop = stop

    def stop(self) -> None:
        """End the head, and first what runs: its clients are told; from now on others are sent away."""
        if not self.closing:
            self.closing = True
            self._stopping = asyncio.ensure_future(self._stop_in_order())

    async def _stop_in_order(self) -> None:
        unfinished = []
        for job in list(self.head.jobs.values()):
            if job.detached and not job.state.ended:
                job.suspend(
                    ClusterLost(
                        f"the cluster was ended; job {job.spec.id} goes on when it is next started: "
                        f"burla.attach({job.spec.id!r}) does that"
                    )
                )
            elif not job.state.ended:
                self.head.cancel(job, ClusterLost("the cluster was ended while the job ran"))
                unfinished.append(job)
        if unfinished:
            await asyncio.wait([asyncio.ensure_future(job.over.wait()) for job in unfinished], timeout=STOP_S)
        await asyncio.sleep(0.05)  # the replies go first
        self._stop()

    def hang_up(self) -> None:
        """Close every connection: who asks more asks the next head, not a store that is closed."""
        self.over = True
        for channel in list(self.open):
            channel.close()

    def end(self, only_if_idle: bool) -> list[str]:
        """Stop, unless that is only wanted if idle and it is not.

        Return the names of unfinished jobs: those that kept it, or those that go on when it is next started.
        """
        unfinished = [job for job in self.head.jobs.values() if not job.state.ended]
        if not (only_if_idle and unfinished):
            unfinished = [job for job in unfinished if job.detached]
            self.stop()
        return [job.spec.function_name for job in unfinished]

    def needed(self) -> list[str]:
        """Return in words who needs this head."""
        names = [job.spec.function_name for job in self.head.jobs.values() if not job.state.ended]
        clients = sum(session.channel is not None for session in self.head.sessions.values() if session.node is None)
        return [f"{name} runs" for name in names] + ([f"clients that use it: {clients}"] if clients else [])

    def _read(self, job_id: str) -> None:
        if self.keeping is not None and self.copier is None:
            self.keeping.settle(job_id)
            self.head.last_active = time.monotonic()  # large values are fetched after that

    async def delete(self, job_id: str) -> None:
        """Delete a job, and first its copy. Raises UnknownJob, JobUnfinished, StoreUnreachable."""
        stored = await self.history.ended(job_id, "delete")
        if self.copier is not None:
            await self.copier.remove(stored.spec.id)
        await self.history.delete(stored.spec.id)
        if self.keeping is not None:
            self.keeping.settle(stored.spec.id)

    def remarks(self) -> tuple[str, ...]:
        """Say for what an idle head stays."""
        return () if self.keeping is None else self.keeping.remarks(time.time())

    def needed_results(self) -> list[str]:
        """Return in words which results would be lost with this machine, though they are to be copied."""
        if self.keeping is None or self.copier is None:
            return []
        return [f"job {job_id} is not copied to {self.keeping.url} yet" for job_id in self.keeping.waiting]

    async def watch(self) -> None:
        """Look at leases and idleness for ever."""
        head, had_client, began = self.head, False, time.monotonic()
        swept, garbage = 0.0, Garbage()
        while True:
            await asyncio.sleep(0.2 if self.idle_after_s == 0 else 1.0)
            now = time.monotonic()
            try:
                head.tick(now)
                if self.supervised:
                    garbage.tick(frozenset(head.dispatch.nodes), idle=head.idle_for_s(now) > 0)
                if now - swept > SWEEP_S:
                    swept = now
                    await self.history.sweep(time.time())
            except Exception:
                log.exception("looking at leases")  # and look again: nobody else ends what nobody wants
            connected = any(session.channel is not None for session in head.sessions.values())
            had_client = had_client or connected or now - began > 30
            if self.idle_after_s is None or self.closing:
                continue
            if self.is_idle(now, time.time(), self.idle_after_s) and (
                self.idle_after_s > 0 or (had_client and not connected)
            ):
                self.stop()

    def is_idle(self, now: float, now_s: float, after_s: float) -> bool:
        """Whether nothing has run for so long, and nobody may still come for results. `now` is monotonic."""
        idle_s = self.head.idle_for_s(now)
        if self.keeping is not None:
            self.keeping.look(self.head.jobs.values(), now_s)
            if self.keeping.stays(now_s):
                return False
        return idle_s > after_s


class Connection:
    """Serves one channel; who is at its other end shows in its first message."""

    def __init__(self, service: Service, transport: Transport):
        self._service = service
        self._head = service.head
        self._history = service.history
        self._channel = Channel(transport, self._handle)
        self._session: Session | None = None
        self._node: str | None = None

    async def run(self) -> None:
        """Serve until the connection ends, then see to what it leaves behind."""
        self._service.open.add(self._channel)
        try:
            reason = await self._channel.run()
        finally:
            self._service.open.discard(self._channel)
        if self._node is not None:
            self._head.dispatch.leave(self._node, self._channel)
        session = self._session
        if session is not None and session.channel is self._channel:
            session.channel = None
            session.gone = session.seen = time.monotonic()
            session.gone_cleanly = reason.clean
            if not session.jobs:
                self._head.sessions.pop(session.id, None)

    async def _handle(self, message: Any) -> Any:
        now = time.monotonic()
        if self._session is not None:
            session = self._session = self._head.session_of(self._session.id)  # anew, if it was given up meanwhile
            session.channel, session.gone, session.seen = self._channel, None, now
            return await self._from_client(message, self._session)
        if self._node is not None:
            if self._node in self._head.dispatch.nodes:
                self._head.dispatch.nodes[self._node].seen = now
            return await self._from_node(message, self._node)
        match message:
            case Hello(session_id):
                return self._welcome(session_id, now)
            case Join(offer):
                if self._service.version and offer.version != self._service.version:
                    raise ClusterError(f"node {offer.name} runs another version of burla than its head")
                self._node = offer.id
                return Joined(
                    kept=self._head.dispatch.join(message, self._channel),
                    trade_every_s=self._head.dispatch.trade_every_s,
                )
            case _:
                raise BurlaError(f"{type(message).__name__} before Hello or Join")

    def _welcome(self, session_id: str, now: float) -> Welcome:
        head = self._head
        if not self._service.closing:
            session = self._session = head.session_of(session_id)
            session.channel, session.gone, session.seen = self._channel, None, now
        return Welcome(PROTOCOL_VERSION, self._service.closing, self._service.supervised, self._service.scheduler)

    async def _from_node(self, message: Any, node: str) -> Any:
        head = self._head
        match message:
            case Trade():
                work = self._trade(message, node)
                if message.news:  # what the node is told of as taken must not be lost
                    await head.store.committed()
                    crashpoints.reach("head.before_acknowledge")
                return work
            case Released(job_id):
                if job_id in head.jobs:
                    head.dispatch.released(head.jobs[job_id], node)
            case Relay(session_id, parent, depth, inner):
                session = head.session_of(session_id)
                session.node, session.parent, session.depth = node, parent, depth
                return await self._from_client(inner, session)
            case RelayEnded(session_id):
                if session_id in head.sessions:
                    head.end_session(head.sessions[session_id], "the call that made it is gone")
            case Beat():
                pass
            case Preparing(job_id):
                if job_id in head.jobs:
                    head.dispatch.preparing(head.jobs[job_id], node, message)
            case GetPiece() | PutPiece():
                return await self._history.piece(message)
            case _:
                raise BurlaError(f"a node sent {type(message).__name__}")

    def _trade(self, message: Trade, node: str) -> Work:
        try:
            return self._head.dispatch.trade(node, message)
        except Exception as error:  # a mistake of ours must end the job, not leave it hanging
            log.exception("trading with %s", node)
            if message.job in self._head.jobs:
                failure = BurlaError(f"burla failed at the head: {error!r}. Please report this.")
                self._head.cancel(self._head.jobs[message.job], failure)
            return Work()

    async def _from_client(self, message: Any, session: Session) -> Any:
        head = self._head
        match message:
            case Beat():
                return None
            case Hello(session_id):
                if session.node is not None:
                    return Welcome(PROTOCOL_VERSION, closing=False)
                return self._welcome(session_id, time.monotonic())
            case Submit(_, _, total):
                if self._service.closing:
                    raise JobCancelled("the cluster is ending; call again to start another")
                wait_s = 0.0 if total is None else 1.0
                if message.spec.id not in head.jobs and not head.store.knows(message.spec.id):
                    await disks.look(message.spec.origin, head.dispatch.nodes.values())
                    if message.spec.id not in head.jobs:  # sent again meanwhile
                        head.submit(message, session)
                events = await self._history.poll(Poll(message.spec.id, 0, wait_s))
                if not events.next:
                    await head.written()  # what follows is about a job that a head started again knows
                return events
            case AddInputs():
                await self._add_inputs(message)
            case Poll():
                return await self._history.poll(message)
            case Cancel():
                await self._cancel(message)
            case Forget(job_id):
                if job_id in head.jobs:
                    head.forget(head.jobs[job_id])
            case Detach(job_id):
                await self._detach(job_id)
            case Delete(job_id):
                await self._service.delete(job_id)
            case Retry():
                await self._service.renewal.retry(message, session)
            case GetJob():
                return await self._history.info(message)
            case ListJobs():
                listed = await self._history.list(message)
                return replace(listed, remarks=listed.remarks + self._service.remarks())
            case GetInputs(job_id, index):
                return await self._history.inputs(job_id, index)
            case GetPiece() | PutPiece():
                return await self._history.piece(message)
            case GetMissing(blobs):
                return head.parts.missing(blobs)
            case Goodbye():
                head.end_session(session, "its client has ended")
            case GetStatus():
                return self._status()
            case GetNeed(job_id):
                if job_id in head.jobs:
                    job, offers = head.jobs[job_id], head.dispatch.offers
                    return need_of(job, head.dispatch.wish(job, offers), list(head.jobs.values()), offers)
                await self._history.stored(job_id)
                return Need()
            case Growth(job_id, text, over):
                if job_id in head.jobs:
                    head.growth(head.jobs[job_id], text, over)
            case _:
                raise BurlaError(f"a client sent {type(message).__name__}")

    async def _add_inputs(self, message: AddInputs) -> None:
        job = self._head.jobs.get(message.job)
        if job is None:
            await self._history.stored(message.job)  # asked again after a break: it has them all, and has ended
            return
        self._head.add_inputs(job, message.blocks, last=message.total is not None and message.resume is None)
        if message.resume is not None:
            await self._service.renewal.adopt(job, message.resume)
        await self._head.written()
        crashpoints.reach("head.before_inputs_reply")

    async def _cancel(self, message: Cancel) -> None:
        job = self._head.jobs.get(message.job)
        if job is None:
            await self._history.stored(message.job)  # it has ended, or there is none
        elif not (message.if_attached and job.detached):
            self._head.cancel(job, JobCancelled(f"job {message.job} was cancelled"))
            await job.over.wait()

    async def _detach(self, job_id: str) -> None:
        job = self._head.jobs.get(job_id)
        if job is not None:
            await self._head.detach(job)
        else:
            await self._history.stored(job_id)  # it has ended, and is kept

    def _status(self) -> ClusterStatus:
        head = self._head
        return ClusterStatus(
            nodes=tuple(head.dispatch.offers),
            jobs=tuple(job.status() for job in head.jobs.values() if not job.state.ended),
            clients=sum(session.channel is not None for session in head.sessions.values()),
            idle_after_s=self._service.idle_after_s,
            idle_for_s=head.idle_for_s(time.monotonic()),
            remarks=self._service.remarks(),
        )
