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

from burla import serialize
from burla.client.connection import Connection
from burla.errors import BurlaError, ClusterLost, JobCancelled
from burla.protocol import (
    BLOB_BYTES,
    MESSAGE_BYTES,
    POLL_S,
    AddInputs,
    Blob,
    Block,
    Cancel,
    Ended,
    Events,
    Forget,
    GetPiece,
    JobSpec,
    Payload,
    Poll,
    PutPiece,
    Results,
    Submit,
)

log = logging.getLogger(__name__)

FIRST_BYTES = 1_000_000  # inputs up to this size go with the submit
CANCEL_S = 5.0


class ClientJob:
    """One job of this process. Read `events` to the end, or call `stop`; then `forget`."""

    def __init__(self, connection: Connection, spec: JobSpec, again: Callable[[Connection], Connection]):
        """`again` gives a connection in place of one whose cluster has ended."""
        self.id = spec.id
        self.total = 0
        self._connection = connection
        self._again = again
        self._spec = spec
        self._first: Events | None = None

    # inputs

    def submit(self, blocks: Iterable[Block]) -> None:
        """Send function and inputs; calls start when the last one is there.

        Raises what `blocks` raises (then no call has run), NoCompatibleNodes, ClusterLost.
        """
        stream = iter(blocks)
        first, rest = _fill(stream, FIRST_BYTES)
        try:
            if rest is None and not _is_large(self._spec.function):
                self.total = sum(block.count for block in first)
                self._first = self._begin(Submit(self._spec, tuple(first), self.total))
            else:
                self._send(first, stream if rest is None else itertools.chain([rest], stream))
        except ClusterLost:
            raise
        except BaseException:  # also an interrupt while the reply is awaited: calls may run already
            self.stop()
            self.forget()
            raise

    def _begin(self, message: Submit) -> Events:
        """Send the first message. A head takes a job once, so it may be repeated: the cluster may just have ended."""
        try:
            return self._connection.run(self._connection.ask_again(message))
        except (ClusterLost, JobCancelled):
            self._connection = self._again(self._connection)
            return self._connection.ask(message)

    def _send(self, first: list[Block], rest: Iterator[Block]) -> None:
        function = self._spec.function
        if _is_large(function):
            self._spec = replace(self._spec, function=Blob(secrets.token_hex(8), _bytes(function)))
        self._first = self._begin(Submit(self._spec, tuple(first)))
        self.total = sum(block.count for block in first)
        if isinstance(self._spec.function, Blob):
            self._put(self._spec.function, function)
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
            if sending is not None:  # one message is on its way while the next inputs are pickled
                sending.result()
            message = AddInputs(self.id, tuple(blocks), None if blocks else self.total)
            sending = self._connection.begin(self._connection.ask_once(message))
            if not blocks:
                sending.result()
                return

    def _uploaded(self, block: Block) -> Block:
        if not _is_large(block.payload):
            return block
        blob = Blob(secrets.token_hex(8), _bytes(block.payload))
        self._put(blob, block.payload)
        return replace(block, payload=blob)

    def _put(self, blob: Blob, payload: Payload) -> None:
        assert isinstance(payload, bytes)
        for offset in range(0, len(payload), MESSAGE_BYTES):
            self._connection.ask(PutPiece(self.id, blob.id, payload[offset : offset + MESSAGE_BYTES]))

    # events

    def events(self, tick_s: float | None = None) -> Iterator[Events | None]:
        """Yield the journal batch by batch until the job is over; with `tick_s`, None when none came for so long.

        One batch is asked for ahead, no more: who reads slowly holds up nobody, and fills no memory here.
        """
        batch, wait_s = self._first, POLL_S if tick_s is None else 1.0
        assert batch is not None
        while True:
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
            try:
                batch = asked.result()
            except concurrent.futures.CancelledError:
                raise ClusterLost("this process has left the cluster") from None

    def values(self, results: Results) -> list[Any]:
        """Return the results of a slice. Raises BurlaError if they cannot be loaded here."""
        payload = results.payload
        data = payload if isinstance(payload, bytes) else self._connection.run(self._fetch(payload))
        try:
            return serialize.load_results(results.each, data)
        except Exception as error:
            raise BurlaError(
                f"inputs {results.start} to {results.stop - 1} ran; their results cannot be loaded here: {error!r}. "
                "Are they objects of a class that only the node can import, or that cannot be unpickled?",
                start=results.start,
                stop=results.stop,
            ) from error

    async def _fetch(self, blob: Blob) -> bytes:
        data = bytearray()
        while len(data) < blob.size_bytes:
            data += await self._connection.ask_again(GetPiece(self.id, blob.id, len(data)))
        return bytes(data)

    # the end

    def stop(self) -> None:
        """Stop the job, and return when no call of it runs any more, or after `CANCEL_S`."""
        try:
            self._connection.begin(self._connection.ask_once(Cancel(self.id))).result(timeout=CANCEL_S)
        except ClusterLost:
            log.info("job %s has ended with its cluster, or is another process's", self.id)
        except TimeoutError:
            log.warning("job %s may still be running: the cluster does not answer", self.id)

    def forget(self) -> None:
        """Tell the head that nothing of this job is wanted any more."""
        with contextlib.suppress(ClusterLost):  # this process has left it, and its jobs have stopped
            self._connection.begin(self._connection.tell(Forget(self.id)))


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
