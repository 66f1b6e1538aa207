"""Follows a job on a view: what its calls print, how far it is, its failures; and passes its results on."""

from __future__ import annotations

import itertools
import operator
import time
from collections.abc import Iterator
from typing import Any, Protocol

from burla import outputs
from burla.client.connection import Connection, DaskTarget
from burla.client.outcome import Outcome
from burla.client.signals import interruptible
from burla.clusters import catalog, record
from burla.clusters.record import CloudCluster
from burla.display.progress import Progress, usd_text
from burla.display.view import Text, View
from burla.errors import StoreDamaged
from burla.protocol import Event, Events, Notice, Results

TICK_S = 0.1  # how often a view that ticks is updated


class Source(Protocol):
    """A job that can be followed: its id, and its journal from the beginning, with None about every `tick_s`."""

    @property
    def id(self) -> str: ...
    def events(self, tick_s: float | None) -> Iterator[Events | None]: ...


class Follower:
    """One job being followed. `outcome.error` says how it went, once its last event was seen."""

    def __init__(self, source: Source, view: View, progress: Progress):
        self._source = source
        self._view = view
        self._progress = progress
        self._remark: str | None = None  # what was said last
        self.outcome = Outcome(source.id)

    def events(self) -> Iterator[Event]:
        """Yield the journal up to the end of the job, all that is to be seen of it being shown."""
        batches = self._source.events(TICK_S if self._view.ticks else None)
        while True:
            with interruptible():
                batch = self._next_batch(batches)
                if batch is None:
                    break
                self._progress.apply(batch.snapshot, time.monotonic())
                self._progress.note(batch.events)
                self._view.write(_texts(batch.events))
                self._tell_remark()
            for event in batch.events:
                self.outcome.note(event)
                if isinstance(event, Notice):
                    self._view.say(event.text, always=True)
                yield event
            self._view.update(self._progress, time.monotonic())

    def _next_batch(self, batches: Iterator[Events | None]) -> Events | None:
        for batch in batches:
            if batch is not None:
                return batch
            self._view.update(self._progress, time.monotonic())
        return None

    def _tell_remark(self) -> None:
        """Say what holds the job up, once."""
        remark = self._progress.remark
        if remark is not None and remark != self._remark:
            self._view.say(f"burla: {remark}", always=True)
        elif remark is None and self._remark is not None:
            self._view.say("burla: the job goes on", always=True)
        self._remark = remark


class WithResults(Source, Protocol):
    """A source that has the results of its job as well."""

    total: int

    def values(self, results: Results) -> list[Any]: ...


def results(follower: Follower, source: WithResults) -> Iterator[tuple[Results, list[Any]]]:
    """Yield slices of results as they come, up to the end of the job; `follower.outcome.error` says how that was.

    It is not raised here, because no generator can raise a StopIteration.
    """
    for event in follower.events():
        if not isinstance(event, Results):
            continue
        try:
            with interruptible():
                values = source.values(event)
        except StoreDamaged:
            follower.outcome.lose(event.start, event.stop)
            continue
        follower.outcome.results += len(values)
        yield event, values
    follower.outcome.check(source.total)


def assurance(job_id: str, connection: Connection) -> str:
    """Return in words that a job is detached now, and what that is worth."""
    target = connection.target
    short = isinstance(target, DaskTarget) and target.scheduler_here() is not None
    return f"job {job_id} is {'detached' if short else 'safe'}: {whereabouts(job_id, connection)}"


def whereabouts(job_id: str, connection: Connection) -> str:
    """Return in words where a detached job goes on, and how to come back to it."""
    target = connection.target
    cluster = record.at(target.address) if isinstance(target, DaskTarget) else None
    if cluster is not None:
        where = f"it goes on on the cluster {cluster.name} without this process; {_results_of(cluster)}"
    elif connection.welcome.ends_with_machine:
        where = "it goes on until this machine stops, and continues when the cluster is next started"
    elif isinstance(target, DaskTarget) and target.scheduler_here() is not None:
        where = f"it goes on until this process ends, in which the scheduler {target.address} runs"
    elif isinstance(target, DaskTarget):
        where = (
            f"it goes on on the cluster {target.address} without this process, for as long as its scheduler lives, "
            "which holds it"
        )
    else:
        where = "it goes on without this process"
    return f"{where}. To come back: burla.attach({job_id!r})"


def _results_of(cluster: CloudCluster) -> str:
    """Return in words where the results of a detached job stay, and what that costs."""
    if cluster.store:
        return f"its results are copied to {cluster.copies}, and can be read there when the machines have ended"
    if not cluster.keep_results_s:
        return f"its results end with the head, {cluster.idle_s / 60:g} min after the last job"
    kind = catalog.find(cluster.cloud, cluster.head_machine)
    price = "price unknown" if kind is None else f"{usd_text(kind.usd_per_hour)} an hour"
    return (
        f"its results stay on the head ({cluster.head_machine}, {price}) until they are read, at most "
        f"{cluster.keep_results_s / 3600:g} h after its end"
    )


def _texts(events: tuple[Event, ...]) -> list[Text]:
    written = itertools.chain.from_iterable(map(outputs.unpack, events))
    return [
        Text(index, stream, b"".join([one.data for one in texts]).decode("utf-8", "surrogateescape"))
        for (index, stream), texts in itertools.groupby(written, operator.attrgetter("index", "stream"))
    ]
