"""A job as its client sees it: send function and inputs, read the journal, stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from burla import blobs, serialize
from burla.client import running
from burla.client.connection import Connection
from burla.errors import BlobBroken, BurlaError, ClusterLost, EnvironmentNeeded, JobCancelled, UnknownJob
from burla.protocol import (
    BLOB_BYTES,
    MESSAGE_BYTES,
    POLL_S,
    AddInputs,
    Block,
    Cancel,
    Ended,
    Events,
    Forget,
    JobSpec,
    Payload,
    Poll,
    Results,
    Resume,
    Snapshot,
    Submit,
    Variables,
)

log = logging.getLogger(__name__)

FIRST_BYTES = 1_000_000  # inputs up to this size go with the submit
CANCEL_S = 5.0


class ClientJob:
    """One job of this process. Read `events` to the end, or call `stop`; `forget` what nobody wants any more."""

    def __init__(
        self,
        connection: Connection,
        spec: JobSpec,
        variables: Variables,
        again: Callable[[Connection], Connection],
        equip: Callable[[JobSpec, bool], JobSpec],
        grows: bool = False,
    ):
        """`again` gives a connection in place of one whose cluster has ended.

        `equip` adds what the function needs on nodes without this machine's disk; it is told whether others have it.
        `grows`: this process boots machines for it.
        """
        self.total = 0
        self.detached = False  # it goes on without this process
        self._connection = connection
        self._again = again
        self._equip = equip
        self._grows = grows
        self._spec = spec
        self._variables = variables
        self._first: Events | None = None
        self._snapshot: Snapshot | None = None

    @property
    def id(self) -> str:
        return self._spec.id

    @property
    def function_name(self) -> str:
        return self._spec.function_name

    @property
    def connection(self) -> Connection:
        return self._connection

    @property
    def snapshot(self) -> Snapshot | None:
        """How it stood at last; None before the head has taken it."""
        return self._snapshot

    # inputs

    def submit(
        self,
        blocks: Iterable[Block],
        resume: Callable[[], Resume] | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> None:
        """Send function and inputs; calls start when the last one is there. `resume` is called when it has been read.

        `sent` is told how many inputs have gone to the head.

        A job that is to be detached is so when this returns: its inputs are in the store. Raises what `blocks` raises
        (then no call has run), NoCompatibleNodes, ClusterLost, JobUnfinished (of the job that is resumed).
        """
        stream = iter(blocks)
        first, rest = _fill(stream, FIRST_BYTES)
        try:
            whole = rest is None and resume is None and not _is_large(self._spec.function)
            if whole and not self._spec.detach:  # the reply waits a moment for results, not for the store
                self.total = sum(block.count for block in first)
                self._begin(tuple(first), self.total)
            else:
                self._send(first, stream if rest is None else itertools.chain([rest], stream), resume, sent)
            self.detached = self._spec.detach
        except BaseException as error:  # also an interrupt while the reply is awaited: calls may run already
            running.remove(self)
            if not isinstance(error, ClusterLost):
                self.stop()
                self.forget()
            raise

    def _begin(self, blocks: tuple[Block, ...], total: int | None) -> None:
        """Send the first message; when the head says that the function needs more than itself, that too."""
        try:
            first = self._ask_begin(blocks, total)
        except EnvironmentNeeded as needed:
            self._spec = self._equip(self._spec, needed.shared)
            first = self._ask_begin(blocks, total)
        self._first, self._snapshot = first, first.snapshot
        running.add(self)

    def _ask_begin(self, blocks: tuple[Block, ...], total: int | None) -> Events:
        """Begin the job. A head takes a job once, so it may be asked again: the cluster may just have ended."""
        message = Submit(self._spec, blocks, total, self._variables, self._grows)
        try:
            return self._connection.run(self._connection.ask_again(message))
        except (ClusterLost, JobCancelled):
            self._connection = self._again(self._connection)
            return self._connection.ask(message)

    def _send(
        self,
        first: list[Block],
        rest: Iterator[Block],
        resume: Callable[[], Resume] | None,
        sent: Callable[[int], None] | None,
    ) -> None:
        self._send_function(tuple(first))
        self.total = sum(block.count for block in first)
        sending: concurrent.futures.Future[Any] | None = None
        while True:
            blocks, over = _fill(rest, MESSAGE_BYTES)
            if over is not None:
                if blocks:
                    rest = itertools.chain([over], rest)
                else:
                    blocks = [over]  # alone larger than a message
            blocks = [self._uploaded(block) for block in blocks]
            self.total += sum(block.count for block in blocks)
            if sent is not None:
                sent(self.total)
            if sending is not None:  # one message is on its way while the next inputs are pickled
                _wait(sending)
            if blocks:
                message = AddInputs(self.id, tuple(blocks))
            else:
                message = AddInputs(self.id, (), self.total, resume() if resume is not None else None)
            sending = self._connection.begin(self._connection.ask_again(message))
            if not blocks:
                _wait(sending)
                return

    def _send_function(self, first: tuple[Block, ...]) -> None:
        """Begin the job with its first blocks, and send its function after it if that is large."""
        data = self._spec.function
        if not isinstance(data, bytes) or not _is_large(data):
            return self._begin(first, None)
        while True:
            blob = blobs.describe(data)
            self._spec = replace(self._spec, function=blob)
            self._begin(first, None)
            try:
                return self._connection.run(blobs.send(self._connection.ask_again, self.id, blob, data))
            except BlobBroken:  # the head was started again in the middle; a job names its function for good
                running.remove(self)
                self.forget()
                self._spec = replace(self._spec, id=new_id())

    def _uploaded(self, block: Block) -> Block:
        payload = block.payload
        if not isinstance(payload, bytes) or not _is_large(payload):
            return block
        blob = self._connection.run(blobs.put(self._connection.ask_again, self.id, payload))
        return replace(block, payload=blob)

    # events

    def events(self, tick_s: float | None = None) -> Iterator[Events | None]:
        """Yield the journal batch by batch until the job is over; with `tick_s`, None when none came for so long.

        One batch is asked for ahead, no more: who reads slowly holds up nobody, and fills no memory here.
        """
        batch, wait_s = self._first, POLL_S if tick_s is None else 1.0
        assert batch is not None
        while True:
            self._snapshot = batch.snapshot
            over = any(isinstance(event, Ended) for event in batch.events)
            ask = None if over else self._connection.ask_again(Poll(self.id, batch.next, wait_s))
            asked = None if ask is None else self._connection.begin(ask)
            yield batch
            if asked is None:
                return
            self._connection.check_process()
            while tick_s is not None and not asked.done():
                concurrent.futures.wait([asked], timeout=tick_s)
                if not asked.done():
                    yield None
            batch = _wait(asked)

    def values(self, results: Results) -> list[Any]:
        """Return the results of a slice. Raises StoreDamaged, or BurlaError if they cannot be loaded here."""
        payload = results.payload
        if not isinstance(payload, bytes):
            payload = self._connection.run(blobs.fetch(self._connection.ask_again, self.id, payload))
        return load_results(results, payload)

    # the end

    def stop(self) -> None:
        """Stop the job unless it is detached, and return when no call of it runs any more, or after `CANCEL_S`."""
        try:
            self._connection.begin(self._connection.ask_once(Cancel(self.id, if_attached=True))).result(
                timeout=CANCEL_S
            )
        except (ClusterLost, UnknownJob):
            log.info("job %s has ended with its cluster, or is another process's", self.id)
        except TimeoutError:
            log.warning("job %s may still be running: the cluster does not answer", self.id)

    def forget(self) -> None:
        """Tell the head that nothing of this job is wanted any more, unless it is detached."""
        with contextlib.suppress(ClusterLost):  # this process has left it, and its jobs have stopped
            self._connection.begin(self._connection.tell(Forget(self.id)))


def new_id() -> str:
    """Return an id for a new job."""
    return secrets.token_hex(6)


def load_results(results: Results, data: bytes) -> list[Any]:
    """Return the results of a slice from its payload. Raises BurlaError if they cannot be loaded here."""
    try:
        return serialize.load_results(results.each, data)
    except Exception as error:
        raise BurlaError(
            f"inputs {results.start} to {results.stop - 1} ran; their results cannot be loaded here: {error!r}. "
            "Are they objects of a class that only the node can import, or that cannot be unpickled?",
            start=results.start,
            stop=results.stop,
        ) from error


def _wait(asked: concurrent.futures.Future[Any]) -> Any:
    try:
        return asked.result()
    except concurrent.futures.CancelledError:
        raise ClusterLost("this process has left the cluster") from None


def _fill(stream: Iterator[Block], limit_bytes: int) -> tuple[list[Block], Block | None]:
    """Take blocks up to a size; return them, and the block that was too much."""
    taken: list[Block] = []
    size = 0
    for block in stream:
        size += _bytes(block.payload)
        if size > limit_bytes:
            return taken, block
        taken.append(block)
    return taken, None


def _bytes(payload: Payload) -> int:
    return len(payload) if isinstance(payload, bytes) else payload.size_bytes


def _is_large(payload: Payload) -> bool:
    return isinstance(payload, bytes) and len(payload) >= BLOB_BYTES
