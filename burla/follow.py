"""Runs a job that this process has begun to its end: collects results, raises errors."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any

from burla.client import running
from burla.client.job import ClientJob
from burla.display.progress import Progress
from burla.display.view import View
from burla.follower import Follower, results, whereabouts
from burla.job import Job


def collect(job: ClientJob, view: View, progress: Progress) -> list[Any]:
    """Return all results in the order of the inputs. On an error, those that are there are on its `burla_results`."""
    __tracebackhide__ = True
    parts: list[tuple[int, list[Any]]] = []
    follower = Follower(job, view, progress)
    failed: BaseException | None = None
    try:
        for part, values in results(follower, job):
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
    __tracebackhide__ = True
    follower = Follower(job, view, progress)
    failed: BaseException | None = None
    try:
        yield
        for _, values in results(follower, job):
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
    view.close(error, kept=error is not None or job.detached)
    running.remove(job)
    if error is None:
        job.forget()
    elif not job.detached:
        job.stop()
    elif not over and not isinstance(error, GeneratorExit):
        view.say(f"burla: job {job.id}: {whereabouts(job.id, job.connection)}", always=True)
