"""Follows a job: prints what its calls print, shows its progress, collects results, raises errors."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from typing import Any

from burla.client import running
from burla.client.connection import DaskTarget
from burla.client.job import ClientJob
from burla.client.outcome import Outcome
from burla.client.signals import interruptible
from burla.display.progress import Progress
from burla.display.terminal import PlainView, TerminalView
from burla.errors import StoreDamaged
from burla.job import Job
from burla.protocol import Event, Notice, Output, Results

TICK_S = 0.1  # how often a status line is looked at

View = TerminalView | PlainView


class Follower:
    """One job being followed."""

    def __init__(self, job: ClientJob, view: View, progress: Progress):
        self._job = job
        self._view = view
        self._progress = progress
        self._remark: str | None = None  # what was said last
        self.outcome = Outcome(job.id)

    def results(self) -> Iterator[tuple[Results, list[Any]]]:
        """Yield slices of results as they come, up to the end of the job; `outcome.error` says how that was.

        It is not raised here, because no generator can raise a StopIteration.
        """
        tick_s = TICK_S if isinstance(self._view, TerminalView) else None
        batches = self._job.events(tick_s)
        while True:
            with interruptible():
                batch = next(batches, None) if tick_s is None else self._next_batch(batches)
                if batch is None:
                    break
                self._progress.apply(batch.snapshot, time.monotonic())
                self._print(batch.events)
                self._tell_remark()
            for event in batch.events:
                if isinstance(event, Results):
                    with interruptible():
                        values = self._values(event)
                    if values is not None:
                        self.outcome.results += len(values)
                        yield event, values
                else:
                    self.outcome.note(event)
                    if isinstance(event, Notice):
                        self._view.say(event.text, always=True)
            self._view.update(self._progress, time.monotonic())
        self.outcome.check(self._job.total)

    def _next_batch(self, batches: Iterator[Any]) -> Any:
        for batch in batches:
            if batch is not None:
                return batch
            self._view.update(self._progress, time.monotonic())
        return None

    def _print(self, events: tuple[Event, ...]) -> None:
        written = (event for event in events if isinstance(event, Output))
        for stream, outputs in itertools.groupby(written, lambda output: output.stream):
            self._view.write(stream, b"".join(output.data for output in outputs).decode("utf-8", "surrogateescape"))

    def _tell_remark(self) -> None:
        """Say what holds the job up, once."""
        remark = self._progress.remark
        if remark is not None and remark != self._remark:
            self._view.say(f"burla: {remark}", always=True)
        elif remark is None and self._remark is not None:
            self._view.say("burla: the job goes on", always=True)
        self._remark = remark

    def _values(self, results: Results) -> list[Any] | None:
        try:
            return self._job.values(results)
        except StoreDamaged:
            self.outcome.lose(results.start, results.stop)
            return None


def collect(job: ClientJob, view: View, progress: Progress) -> list[Any]:
    """Return all results in the order of the inputs. On an error, those that are there are on its `burla_results`."""
    parts: list[tuple[int, list[Any]]] = []
    follower = Follower(job, view, progress)
    failed: BaseException | None = None
    try:
        for part, values in follower.results():
            parts.append((part.start, values))
        if follower.outcome.error is not None:
            raise follower.outcome.error
    except BaseException as error:
        failed = error
        # not setattr: a frozen dataclass can be an exception
        vars(error)["burla_results"] = {i: value for start, values in parts for i, value in enumerate(values, start)}
        vars(error)["burla_job"] = Job.of(job)
        raise
    finally:
        _close(job, view, failed, follower.outcome.over)
    parts.sort(key=lambda part: part[0])
    return list(itertools.chain.from_iterable(values for _, values in parts))


def stream(job: ClientJob, view: View, progress: Progress) -> Generator[Any, None, None]:
    """Return a generator of the results in the order in which their calls end; closing it stops an attached job.

    An error is raised after all results that came before it, so that its `burla_results` is empty.
    """
    generator = _stream(job, view, progress)
    next(generator)  # up to the first yield, so that closing a generator that nobody has asked yet stops the job too
    return generator


def _stream(job: ClientJob, view: View, progress: Progress) -> Generator[Any, None, None]:
    follower = Follower(job, view, progress)
    failed: BaseException | None = None
    try:
        yield
        for _, values in follower.results():
            view.hide()
            yield from values
        if follower.outcome.error is not None:
            raise follower.outcome.error
    except BaseException as error:
        failed = error
        if not isinstance(error, GeneratorExit):
            vars(error)["burla_results"] = {}
            vars(error)["burla_job"] = Job.of(job)
        raise
    finally:
        _close(job, view, failed, follower.outcome.over)


def _close(job: ClientJob, view: View, error: BaseException | None, over: bool) -> None:
    """Follow a job no more. One that failed or was stopped is not forgotten: it can be read and retried."""
    view.close()
    running.remove(job)
    if error is None:
        job.forget()
    elif not job.detached:
        job.stop()
    elif not over and not isinstance(error, GeneratorExit):
        view.say(f"burla: job {job.id}: {whereabouts(job)}", always=True)


def whereabouts(job: ClientJob) -> str:
    """Return in words where a detached job goes on, and how to come back to it."""
    target = job.connection.target
    if job.connection.welcome.ends_with_machine:
        where = "it goes on until this machine stops, and continues when the cluster is next started"
    elif isinstance(target, DaskTarget):
        where = f"it goes on on the cluster {target.address} without this process"
    else:
        where = "it goes on without this process"
    return f"{where}. To come back: burla.attach({job.id!r})"
