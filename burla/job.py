"""A job of a cluster, whoever began it: how it stands, its results, output and errors, and its end."""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from burla import blobs, equip, growth, outputs, serialize, views
from burla.client import running
from burla.client.connection import Connection
from burla.client.job import ClientJob, new_id
from burla.client.outcome import Outcome
from burla.configured import configure
from burla.display import job as display
from burla.display.failures import ErrorGroup, FailureGroups
from burla.display.progress import Progress
from burla.display.view import View
from burla.errors import EnvironmentNeeded, InvalidType
from burla.follower import Follower, whereabouts
from burla.job_parts import JobProgress, LogLine, lines_of
from burla.job_reader import JobReader
from burla.protocol import (
    BLOB_BYTES,
    STDERR,
    STDOUT,
    Cancel,
    Delete,
    Detach,
    GetInputs,
    GetJob,
    JobInfo,
    Kind,
    Payload,
    Retry,
    Snapshot,
)

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
        self._reader = JobReader(connection, job_id, snapshot)
        self._function_name = function_name
        self._near: tuple[int, list[Any]] = (0, [])  # the slice of small results that `result` has read last

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
        return self._reader.id

    @property
    def function_name(self) -> str:
        """What its calls run."""
        return self._function_name

    @property
    def status(self) -> str:
        """Where it is now; see the class for the states."""
        return self._reader.look().state.value

    @property
    def progress(self) -> JobProgress:
        """How far it is now."""
        return JobProgress.of(self._reader.look())

    # outcomes

    def results(self, timeout_s: float | None = None) -> list[Any]:
        """Return all results in the order of the inputs, once the job has ended.

        Raises the first failure, with `burla_input_index`, and StoreDamaged if stored results cannot be read any more;
        TimeoutError if the job has not ended after `timeout_s`. All carry `burla_results` (what is there, by index).
        """
        __tracebackhide__ = True
        parts: list[tuple[int, list[Any]]] = []
        outcome = Outcome(self._reader.id)
        try:
            for start, values in self._reader.results(outcome, timeout_s):
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
        __tracebackhide__ = True
        outcome = Outcome(self._reader.id)
        try:
            for start, values in self._reader.results(outcome, None):
                yield from enumerate(values, start)
            if outcome.error is not None:
                raise outcome.error
        except Exception as error:
            vars(error).update(burla_results={}, burla_job=self)
            raise

    def result(self, index: int) -> Any:
        """Return the result of call `index`, once it has one, without reading others that are large.

        Raises its failure, IndexError, StoreDamaged, and NoResult if the job ended before the call did.
        """
        __tracebackhide__ = True
        number = operator.index(index)
        start, values = self._near
        if not start <= number < start + len(values):
            self._check(number)
            start, values = self._reader.results_at(number)
            if len(values) > 1:  # small ones, which are kept together: the next is likely to be asked for, too
                self._near = start, values
        return values[number - start]

    def errors(self) -> list[ErrorGroup]:
        """Return the failures so far by type and line, the most frequent first."""
        failures = FailureGroups()
        for events in self._reader.batches(Kind.FAILURE, follow=False):
            for event in events:
                failures.add(event)
        return failures.groups()

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
        for events in self._reader.batches(Kind.OUTPUT, index, follow):
            for one in itertools.chain.from_iterable(map(outputs.unpack, events)):
                if one.stream in streams:
                    yield from lines_of(one)

    def input(self, index: int) -> Any:
        """Return the input of call `index`. Raises IndexError, StoreDamaged."""
        number = operator.index(index)
        self._check(number)
        blocks = self._reader.ask(GetInputs(self._reader.id, number)).blocks
        block = next(block for block in blocks if block.first <= number < block.first + block.count)
        item = serialize.load_block(self._reader.fetch(block.payload))[number - block.first]
        return serialize.load_value(item) if block.each else item

    def _check(self, number: int) -> None:
        total = self._reader.look().total
        if not 0 <= number < total:
            raise IndexError(f"job {self._reader.id} has no input {number}: they are numbered from 0 to {total - 1}")

    # its course

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the job has ended, however that was. Raises TimeoutError after `timeout_s`."""
        for _ in self._reader.batches(Kind.ENDED, timeout_s=timeout_s):
            pass

    def follow(self, wait: bool = True, spinner: bool = True) -> None:
        """Show the job here from its first event on, as `remote_parallel_map` does, until it ends; raise its failure.

        Ctrl-C ends it if it is not detached. With `wait=False`, return at once, and raise nothing: it is shown from a
        thread.
        """
        __tracebackhide__ = True
        view = views.make_view(spinner)
        if wait:
            self._follow(view)
        else:
            threading.Thread(target=self._follow_quietly, args=(view,), daemon=True).start()

    def _follow(self, view: View) -> None:
        __tracebackhide__ = True
        info: JobInfo = self._reader.ask(GetJob(self._reader.id))
        began_s = time.monotonic() - max(0.0, time.time() - info.created_at_s)
        progress = Progress(self._function_name, None, began_s)
        follower = Follower(self._reader, view, progress)
        failed: BaseException | None = None
        try:
            progress.begun(info.id, info.snapshot.total)
            progress.apply(info.snapshot, time.monotonic())
            view.begin(self, info.detached)
            view.update(progress, time.monotonic())
            for _ in follower.events():
                pass
            if follower.outcome.error is not None:
                raise follower.outcome.error
        except BaseException as error:
            failed = error
            if not follower.outcome.over and isinstance(error, KeyboardInterrupt):
                self._interrupted(view)
            vars(error)["burla_job"] = self
            raise
        finally:
            view.close(failed, kept=True)

    def _follow_quietly(self, view: View) -> None:
        with contextlib.suppress(Exception):  # the view shows it; who wants it raised asks for the results
            self._follow(view)

    def _interrupted(self, view: View) -> None:
        if self._reader.ask(GetJob(self._reader.id)).detached and self._reader.connection is not None:
            view.say(
                f"burla: job {self._reader.id}: {whereabouts(self._reader.id, self._reader.connection)}", always=True
            )
        else:
            self.cancel()

    def cancel(self) -> None:
        """Stop the job; return when no call of it runs any more. What it has brought stays."""
        self._reader.ask(Cancel(self._reader.id))

    def delete(self) -> None:
        """Delete the job and all that is kept of it. Raises JobUnfinished."""
        self._reader.ask(Delete(self._reader.id))

    def detach(self) -> None:
        """Have the job outlive the process that began it; return when its inputs are in the cluster's store."""
        self._reader.ask(Detach(self._reader.id))
        followed = running.find(self._reader.id)
        if followed is not None:
            followed.detached = True

    def grow(self) -> None:
        """Boot what the job needs and its cluster lacks, as `grow=True` does; return when that is ordered.

        As long as this process lives and the job runs, more follow when it needs more. Raises InvalidValue if the
        cluster is not one in a cloud that is known here, MissingExtra.
        """
        self._reader.look()
        connection = self._reader.connection
        assert connection is not None
        growth.start(growth.needed_cluster(connection), self._reader.id, connection, until_ordered=True)

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
            function = (
                self._reader.run(lambda connection: blobs.put(connection.ask_again, self._reader.id, data))
                if large
                else data
            )
        job_id = new_id()
        self._retry(Retry(self._reader.id, job_id, function), function_)
        info = self._reader.ask(GetJob(job_id))
        return Job(self._reader.connection, info.id, info.function_name, info.snapshot)

    def _retry(self, message: Retry, function: Callable[..., Any] | None) -> None:
        try:
            self._reader.ask(message)
        except EnvironmentNeeded:
            connection = self._reader.connection
            assert connection is not None and function is not None
            document = equip.send(connection, function, configure().packages)
            self._reader.ask(replace(message, environment=document))

    # how it shows

    def __repr__(self) -> str:
        return display.line(self._reader.id, self._function_name, self._reader.glance())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        snapshot = self._reader.glance()
        return {
            "text/plain": display.line(self._reader.id, self._function_name, snapshot),
            "text/html": display.html(self._reader.id, self._function_name, snapshot),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # it may travel with an error that carries it; keys do not
        return Job, (None, self._reader.id, self._function_name, self._reader.snapshot)
