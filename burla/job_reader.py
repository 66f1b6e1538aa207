"""Reads a job of a cluster: how it stands, and its journal from the beginning."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from burla import blobs
from burla.client import current
from burla.client.connection import Connection
from burla.client.job import load_results
from burla.client.outcome import Outcome
from burla.errors import BurlaError, ClusterLost, NoResult, StoreDamaged
from burla.job_parts import JobProgress
from burla.protocol import POLL_S, Ended, Event, Events, GetJob, Kind, Payload, Poll, Results, Snapshot

GLANCE_S = 0.5  # a repr waits so long for news
ANSWER_S = 10.0  # a wait with a timeout gives the cluster so long to answer at all
LOOK_S = 1.0  # a view hears at least so often how a job stands


class JobReader:
    """See the module. `connection`: the last that was used; None: to the cluster in use when it is needed."""

    def __init__(self, connection: Connection | None, job_id: str, snapshot: Snapshot | None):
        self.connection = connection
        self.id = job_id
        self.snapshot = snapshot  # the last that was seen

    def look(self) -> Snapshot:
        """Return how the job stands now."""
        if self.snapshot is None or not self.snapshot.state.ended:
            self.snapshot = self.ask(GetJob(self.id)).snapshot
        return self.snapshot

    def glance(self) -> Snapshot | None:
        """Return how the job stands, as of now if that is soon known."""
        connection = self.connection
        if connection is not None and connection.alive and not (self.snapshot and self.snapshot.state.ended):
            try:
                asked = connection.begin(connection.ask_once(GetJob(self.id)))
                self.snapshot = asked.result(GLANCE_S).snapshot
            except (BurlaError, TimeoutError, concurrent.futures.CancelledError):
                pass  # a repr must not fail: what was known is shown
        return self.snapshot

    # the journal

    def results(self, outcome: Outcome, timeout_s: float | None) -> Iterator[tuple[int, list[Any]]]:
        """Yield slices of results, with the index of the first, as they come; `outcome` says how the job went."""
        for events in self.batches(Kind.RESULTS | Kind.FAILURE, timeout_s=timeout_s):
            for event in events:
                if not isinstance(event, Results):
                    outcome.note(event)
                    continue
                try:
                    data = self.fetch(event.payload)
                except StoreDamaged:
                    outcome.lose(event.start, event.stop)
                    continue
                outcome.results += event.stop - event.start
                yield event.start, load_results(event, data)
        if self.snapshot is not None:
            outcome.check(self.snapshot.total)

    def results_at(self, index: int) -> tuple[int, list[Any]]:
        """Return the slice of results with this one in it, and the index of the first, as soon as it is there.

        Raises the failure of the call, or NoResult.
        """
        __tracebackhide__ = True
        outcome = Outcome(self.id)
        for events in self.batches(Kind.RESULTS | Kind.FAILURE, index):
            for event in events:
                if isinstance(event, Results):
                    return event.start, load_results(event, self.fetch(event.payload))
                outcome.note(event)
        raise outcome.error or NoResult(
            f"job {self.id} ended before call {index} had a result: it is {self.look().state.value}. "
            "job.retry_failed() runs the calls without one.",
            job=self.id,
            index=index,
        )

    def events(self, tick_s: float | None) -> Iterator[Events | None]:
        """Yield the journal without results; with `tick_s`, None when nothing came for so long."""
        poll_s = POLL_S if tick_s is None else LOOK_S
        return self._polls(Kind.ALL & ~Kind.RESULTS, None, True, None, poll_s, tick_s)

    def batches(
        self, kinds: Kind, index: int | None = None, follow: bool = True, timeout_s: float | None = None
    ) -> Iterator[tuple[Event, ...]]:
        """Yield the journal from its beginning, up to the end of the job, or without `follow` up to now.

        Raises TimeoutError if the job has not ended after `timeout_s`.
        """
        polls = self._polls(kinds, index, follow, timeout_s, POLL_S, None)
        return (batch.events for batch in polls if batch is not None)

    def _polls(
        self,
        kinds: Kind,
        index: int | None,
        follow: bool,
        timeout_s: float | None,
        poll_s: float,
        tick_s: float | None,
    ) -> Iterator[Events | None]:
        began_s = time.monotonic()
        after, ended = 0, False
        while True:
            left_s = poll_s if timeout_s is None else max(0.0, began_s + timeout_s - time.monotonic())
            wait_s = min(left_s, poll_s) if follow and not ended else 0.0
            poll = Poll(self.id, after, wait_s, kinds | Kind.ENDED, index)
            answer_s = None if timeout_s is None else wait_s + ANSWER_S
            batch: Events | None = None
            for batch in self._ticking(lambda connection, poll=poll: connection.ask_again(poll), answer_s, tick_s):
                if batch is None:
                    yield None
            assert batch is not None
            self.snapshot = batch.snapshot
            yield batch
            if any(isinstance(event, Ended) for event in batch.events) or (
                batch.next == after and (ended or not follow)
            ):
                return
            if not batch.snapshot.state.ended and left_s == 0.0:
                raise TimeoutError(
                    f"job {self.id} has not ended after {timeout_s:g} s: {JobProgress.of(batch.snapshot)}. "
                    "It goes on, and can be asked again."
                )
            if index is not None and batch.snapshot.state.ended and not ended:
                for _ in self.batches(Kind.ENDED):  # it is not about this input, so it does not come here
                    pass
                ended = True
            after = batch.next

    # the cluster

    def fetch(self, payload: Payload) -> bytes:
        """Return what a payload holds. Raises StoreDamaged."""
        if isinstance(payload, bytes):
            return payload
        return self.run(lambda connection: blobs.fetch(connection.ask_again, self.id, payload))

    def ask(self, message: Any, timeout_s: float | None = None) -> Any:
        """Return the cluster's reply. Raises TimeoutError after `timeout_s`, and what the head refuses with."""
        return self.run(lambda connection: connection.ask_again(message), timeout_s)

    def run(self, make: Callable[[Connection], Coroutine[Any, Any, Any]], timeout_s: float | None = None) -> Any:
        """Carry out what `make` makes for a live connection."""
        return next(self._ticking(make, timeout_s, None))

    def _ticking(
        self, make: Callable[[Connection], Coroutine[Any, Any, Any]], timeout_s: float | None, tick_s: float | None
    ) -> Iterator[Any]:
        """Yield what `make` brings, as the last; with `tick_s`, before it None whenever so much time has passed."""
        while True:
            known = self.connection
            connection = current.to_read(None if known is None else known.target)
            if known is not None:
                known.check_same(connection)
            self.connection = connection
            try:
                asked = connection.begin(make(connection))
                while tick_s is not None and not concurrent.futures.wait([asked], tick_s).done:
                    yield None
                yield asked.result(timeout_s)
                return
            except concurrent.futures.CancelledError:
                continue  # another thread has closed the connection, as burla.use() does
            except ClusterLost:
                if not _is_closed(connection):
                    raise


def _is_closed(connection: Connection) -> bool:
    try:
        connection.check_process()
    except ClusterLost:
        return True
    return False
