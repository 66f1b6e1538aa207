"""Follows a job: prints what its calls print, shows its progress, collects results, raises errors."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Generator, Iterator
from typing import Any

from burla import serialize
from burla.client.job import ClientJob
from burla.client.signals import interruptible
from burla.display.progress import Progress
from burla.display.terminal import PlainView, TerminalView
from burla.errors import JobCancelled
from burla.protocol import Ended, Event, Failure, JobState, Notice, Output, Results

TICK_S = 0.1  # how often a status line is looked at

View = TerminalView | PlainView


class Follower:
    """One job being followed."""

    def __init__(self, job: ClientJob, view: View, progress: Progress):
        self._job = job
        self._view = view
        self._progress = progress
        self.error: BaseException | None = None  # what the job failed with; known when `results` is over

    def results(self) -> Iterator[tuple[Results, list[Any]]]:
        """Yield slices of results as they come, up to the end of the job; `error` says how that was.

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
            for event in batch.events:
                if isinstance(event, Results):
                    with interruptible():
                        values = self._job.values(event)
                    yield event, values
                else:
                    self._note(event)
            self._view.update(self._progress, time.monotonic())

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

    def _note(self, event: Event) -> None:
        match event:
            case Failure(_, payload) if self.error is None:
                self.error = serialize.load_exception(payload)
            case Notice(text):
                self._view.say(text, always=True)
            case Ended(state, error) if self.error is None and state is not JobState.DONE:
                self.error = JobCancelled("the job was stopped") if error is None else pickle.loads(error)


def collect(job: ClientJob, view: View, progress: Progress) -> list[Any]:
    """Return all results in the order of the inputs. On an error, those that are there are on its `burla_results`."""
    parts: list[tuple[int, list[Any]]] = []
    stop = True
    try:
        follower = Follower(job, view, progress)
        for part, values in follower.results():
            parts.append((part.start, values))
        if follower.error is not None:
            raise follower.error
        stop = False
    except BaseException as error:
        finished = {index: value for start, values in parts for index, value in enumerate(values, start)}
        vars(error)["burla_results"] = finished  # not setattr: a frozen dataclass can be an exception
        raise
    finally:
        _close(job, view, stop)
    parts.sort(key=lambda part: part[0])
    return list(itertools.chain.from_iterable(values for _, values in parts))


def stream(job: ClientJob, view: View, progress: Progress) -> Generator[Any, None, None]:
    """Return a generator of the results in the order in which their calls end; closing it stops the job.

    An error is raised after all results that came before it, so that its `burla_results` is empty.
    """
    generator = _stream(job, view, progress)
    next(generator)  # up to the first yield, so that closing a generator that nobody has asked yet stops the job too
    return generator


def _stream(job: ClientJob, view: View, progress: Progress) -> Generator[Any, None, None]:
    stop = True
    try:
        yield
        follower = Follower(job, view, progress)
        for _, values in follower.results():
            view.hide()
            yield from values
        if follower.error is not None:
            raise follower.error
        stop = False
    except Exception as error:
        vars(error)["burla_results"] = {}
        raise
    finally:
        _close(job, view, stop)


def _close(job: ClientJob, view: View, stop: bool) -> None:
    view.close()
    try:
        if stop:
            job.stop()
    finally:
        job.forget()
