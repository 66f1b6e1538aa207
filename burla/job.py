"""A job of a cluster, whoever began it: how it stands, its results, output and errors, and its end."""

from __future__ import annotations

import concurrent.futures
import itertools
import operator
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

from burla import blobs, job_errors, serialize
from burla.client import current, running
from burla.client.connection import Connection
from burla.client.job import ClientJob, load_results, new_id
from burla.client.outcome import Outcome
from burla.display import job as display
from burla.errors import BurlaError, ClusterLost, InvalidType, StoreDamaged
from burla.job_errors import ErrorGroup
from burla.job_parts import JobProgress, LogLine, lines_of
from burla.protocol import (
    BLOB_BYTES,
    POLL_S,
    STDERR,
    STDOUT,
    Cancel,
    Delete,
    Detach,
    Ended,
    Event,
    GetInputs,
    GetJob,
    JobInfo,
    Kind,
    Output,
    Payload,
    Poll,
    Results,
    Retry,
    Snapshot,
)

GLANCE_S = 0.5  # a repr waits so long for news
ANSWER_S = 10.0  # a wait with a timeout gives the cluster so long to answer at all

_STREAMS = {None: (STDOUT, STDERR), "stdout": (STDOUT,), "stderr": (STDERR,)}


class Job:
    """A job of a cluster; `burla.submit`, `attach`, `jobs` and `current_job` return it.

    It can be read from any process that knows the cluster, while the job runs and until it is deleted or past its
    retention, any number of times. Every method raises UnknownJob when it is gone, ClusterLost when nobody answers.

    `status` is one of:

    - `receiving`: inputs arrive; nothing runs before the last one is there. Then `waiting`, or `cancelled`
    - `waiting`: for a free CPU. Then `running`, or `stopping`
    - `running`. Then `done`, `failed` (every call has an outcome, not all a result), or `stopping`
    - `stopping`: a call failed, or somebody cancelled it; calls are being ended. Then `failed` or `cancelled`
    - `done`: every call has a result. It stays so
    - `failed`: see `errors()`. It stays so; `retry_failed()` begins another job
    - `cancelled`. It stays so; `retry_failed()` begins another job
    """

    def __init__(self, connection: Connection | None, job_id: str, function_name: str, snapshot: Snapshot | None):
        self._connection = connection  # the last that was used; None: to the cluster in use when it is needed
        self._id = job_id
        self._function_name = function_name
        self._snapshot = snapshot  # the last that was seen

    @classmethod
    def of(cls, job: ClientJob) -> Job:
        """Return the job that this process follows."""
        return cls(job.connection, job.id, job.function_name, job.snapshot)

    @classmethod
    def told(cls, connection: Connection, info: JobInfo) -> Job:
        """Return a job that the head told of."""
        return cls(connection, info.id, info.function_name, info.snapshot)

    @property
    def id(self) -> str:
        """Its name on its cluster."""
        return self._id

    @property
    def function_name(self) -> str:
        """What its calls run."""
        return self._function_name

    @property
    def status(self) -> str:
        """Where it is now; see the class for the states."""
        return self._look().state.value

    @property
    def progress(self) -> JobProgress:
        """How far it is now."""
        return JobProgress.of(self._look())

    # outcomes

    def results(self, timeout_s: float | None = None) -> list[Any]:
        """Return all results in the order of the inputs, once the job has ended.

        Raises the first failure, with `burla_input_index`, and StoreDamaged if stored results cannot be read any more;
        TimeoutError if the job has not ended after `timeout_s`. All carry `burla_results` (what is there, by index).
        """
        parts: list[tuple[int, list[Any]]] = []
        outcome = Outcome(self._id)
        try:
            for start, values in self._results(outcome, timeout_s):
                parts.append((start, values))
            if outcome.error is not None:
                raise outcome.error
        except BaseException as error:
            there = {index: value for start, values in parts for index, value in enumerate(values, start)}
            vars(error).update(burla_results=there, burla_job=self)
            raise
        parts.sort(key=lambda part: part[0])
        return list(itertools.chain.from_iterable(values for _, values in parts))

    def iter_results(self) -> Generator[tuple[int, Any], None, None]:
        """Yield (index, result) in the order in which calls ended, from the first on, as they come.

        Raises as `results` does, after all results that there are; `burla_results` is empty then.
        """
        outcome = Outcome(self._id)
        try:
            for start, values in self._results(outcome, None):
                yield from enumerate(values, start)
            if outcome.error is not None:
                raise outcome.error
        except Exception as error:
            vars(error).update(burla_results={}, burla_job=self)
            raise

    def errors(self) -> list[ErrorGroup]:
        """Return the failures so far by type and line, the most frequent first."""
        batches = self._batches(Kind.FAILURE, follow=False)
        return job_errors.group(itertools.chain.from_iterable(batches))

    def logs(
        self, input_index: int | None = None, stream: str | None = None, follow: bool = False
    ) -> Iterator[LogLine]:
        """Yield what calls printed, line by line from the first on; with `follow`, up to the end of the job.

        `input_index`, `stream` ("stdout" or "stderr"): only that.
        """
        if stream not in _STREAMS:
            raise InvalidType(f'stream={stream!r}: it must be None, "stdout" or "stderr".')
        index = None if input_index is None else operator.index(input_index)
        return self._logs(index, _STREAMS[stream], follow)

    def _logs(self, index: int | None, streams: tuple[int, ...], follow: bool) -> Iterator[LogLine]:
        for events in self._batches(Kind.OUTPUT, index, follow):
            for event in events:
                if isinstance(event, Output) and event.stream in streams:
                    yield from lines_of(event)

    def input(self, index: int) -> Any:
        """Return the input of call `index`. Raises IndexError, StoreDamaged."""
        number = operator.index(index)
        total = self._look().total
        if not 0 <= number < total:
            raise IndexError(f"job {self._id} has no input {number}: they are numbered from 0 to {total - 1}")
        blocks = self._ask(GetInputs(self._id, number)).blocks
        block = next(block for block in blocks if block.first <= number < block.first + block.count)
        item = serialize.load_block(self._fetch(block.payload))[number - block.first]
        return serialize.load_value(item) if block.each else item

    # its course

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the job has ended, however that was. Raises TimeoutError after `timeout_s`."""
        for _ in self._batches(Kind.ENDED, timeout_s=timeout_s):
            pass

    def cancel(self) -> None:
        """Stop the job; return when no call of it runs any more. What it has brought stays."""
        self._ask(Cancel(self._id))

    def delete(self) -> None:
        """Delete the job and all that is kept of it. Raises JobUnfinished."""
        self._ask(Delete(self._id))

    def detach(self) -> None:
        """Have the job outlive the process that began it; return when its inputs are in the cluster's store."""
        self._ask(Detach(self._id))
        followed = running.find(self._id)
        if followed is not None:
            followed.detached = True

    def retry_failed(self, function_: Callable[..., Any] | None = None) -> Job:
        """Begin a detached job that has the results of this one, and runs the inputs without one.

        `function_` takes the place of the function. Raises JobUnfinished.
        """
        function: Payload | None = None
        if function_ is not None:
            if not callable(function_):
                raise InvalidType(f"function_={function_!r:.200}: it must be callable.")
            data = serialize.dump_function(function_)
            large = len(data) >= BLOB_BYTES
            function = self._run(lambda connection: blobs.put(connection.ask_again, self._id, data)) if large else data
        job_id = new_id()
        self._ask(Retry(self._id, job_id, function))
        info = self._ask(GetJob(job_id))
        return Job(self._connection, info.id, info.function_name, info.snapshot)

    # how it shows

    def __repr__(self) -> str:
        return display.line(self._id, self._function_name, self._glance())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        snapshot = self._glance()
        return {
            "text/plain": display.line(self._id, self._function_name, snapshot),
            "text/html": display.html(self._id, self._function_name, snapshot),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # it may travel with an error that carries it; keys do not
        return Job, (None, self._id, self._function_name, self._snapshot)

    def _glance(self) -> Snapshot | None:
        """Return how the job stands, as of now if that is soon known."""
        connection = self._connection
        if connection is not None and connection.alive and not (self._snapshot and self._snapshot.state.ended):
            try:
                asked = connection.begin(connection.ask_once(GetJob(self._id)))
                self._snapshot = asked.result(GLANCE_S).snapshot
            except (BurlaError, TimeoutError, concurrent.futures.CancelledError):
                pass  # a repr must not fail: what was known is shown
        return self._snapshot

    # the cluster

    def _look(self) -> Snapshot:
        if self._snapshot is None or not self._snapshot.state.ended:
            self._snapshot = self._ask(GetJob(self._id)).snapshot
        return self._snapshot

    def _results(self, outcome: Outcome, timeout_s: float | None) -> Iterator[tuple[int, list[Any]]]:
        for events in self._batches(Kind.RESULTS | Kind.FAILURE, timeout_s=timeout_s):
            for event in events:
                if not isinstance(event, Results):
                    outcome.note(event)
                    continue
                try:
                    data = self._fetch(event.payload)
                except StoreDamaged:
                    outcome.lose(event.start, event.stop)
                    continue
                outcome.results += event.stop - event.start
                yield event.start, load_results(event, data)
        if self._snapshot is not None:
            outcome.check(self._snapshot.total)

    def _batches(
        self, kinds: Kind, index: int | None = None, follow: bool = True, timeout_s: float | None = None
    ) -> Iterator[tuple[Event, ...]]:
        """Yield the journal from its beginning, up to the end of the job, or without `follow` up to now."""
        began_s = time.monotonic()
        after, ended = 0, False
        while True:
            left_s = POLL_S if timeout_s is None else max(0.0, began_s + timeout_s - time.monotonic())
            wait_s = min(left_s, POLL_S) if follow and not ended else 0.0
            poll = Poll(self._id, after, wait_s, kinds | Kind.ENDED, index)
            batch = self._ask(poll, None if timeout_s is None else wait_s + ANSWER_S)
            self._snapshot = batch.snapshot
            yield batch.events
            if any(isinstance(event, Ended) for event in batch.events) or (
                batch.next == after and (ended or not follow)
            ):
                return
            if not batch.snapshot.state.ended and left_s == 0.0:
                raise TimeoutError(
                    f"job {self._id} has not ended after {timeout_s:g} s: {JobProgress.of(batch.snapshot)}. "
                    "It goes on, and can be asked again."
                )
            if index is not None and batch.snapshot.state.ended and not ended:
                self.wait()  # its end is not about this input, so it does not come here; but all before it is there
                ended = True
            after = batch.next

    def _fetch(self, payload: Payload) -> bytes:
        if isinstance(payload, bytes):
            return payload
        return self._run(lambda connection: blobs.fetch(connection.ask_again, self._id, payload))

    def _ask(self, message: Any, timeout_s: float | None = None) -> Any:
        return self._run(lambda connection: connection.ask_again(message), timeout_s)

    def _run(self, make: Callable[[Connection], Coroutine[Any, Any, Any]], timeout_s: float | None = None) -> Any:
        while True:
            known = self._connection
            connection = current.connection(lambda text: None) if known is None else current.reach(known.target)
            self._connection = connection
            try:
                asked = connection.begin(make(connection))
                return asked.result(timeout_s)
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
