"""How a job went, folded from the events of its journal."""

from __future__ import annotations

import pickle

from burla import serialize
from burla.environment import hints
from burla.errors import JobCancelled, StoreDamaged
from burla.protocol import Ended, Event, Failure, JobState, Lost
from burla.ranges import Ranges

NAMED_RANGES = 10  # an error names so many stretches of inputs, and counts the others


class Outcome:
    """What a job failed with, and what of its results is lost. `over`: its last event was seen."""

    def __init__(self, job_id: str):
        self.over = False
        self.results = 0  # so many were read
        self._job_id = job_id
        self._failure: BaseException | None = None
        self._done = False
        self._lost = Ranges()

    def note(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case Failure(_, payload) if self._failure is None:
                self._failure = serialize.load_exception(payload)
                hints.add(self._failure)
            case Lost(start, stop):
                self.lose(start, stop)
            case Ended(state, error):
                self.over = True
                self._done = state is JobState.DONE
                if self._failure is None and state is not JobState.DONE and error is not None:
                    self._failure = pickle.loads(error)
                elif self._failure is None and state is JobState.CANCELLED:
                    self._failure = JobCancelled(f"job {self._job_id} was stopped")

    def check(self, total: int) -> None:
        """A job was read to its end: if it is done, all results must have come, whatever the store says."""
        if self._done and self._failure is None and not self._lost and self.results != total:
            self._failure = StoreDamaged(
                f"job {self._job_id}: {total - self.results:,} of its {total:,} results are missing in the store. "
                "burla_results of this error has the others; job.retry_failed() computes these again.",
                job=self._job_id,
            )

    def lose(self, start: int, stop: int) -> None:
        """Note that the outcome of these calls cannot be read any more."""
        self._lost.add(start, stop)

    @property
    def error(self) -> BaseException | None:
        """What reading all results of the job is to end with; None: it has them all."""
        if self._failure is not None or not self._lost:
            return self._failure
        lost = tuple(self._lost)
        named = ", ".join(str(a) if b == a + 1 else f"{a} to {b - 1}" for a, b in lost[:NAMED_RANGES])
        more = f" and {len(lost) - NAMED_RANGES} more stretches" if len(lost) > NAMED_RANGES else ""
        return StoreDamaged(
            f"job {self._job_id}: what was stored of inputs {named}{more} cannot be read any more. Results of others "
            "are not concerned (burla_results of this error, or iter_results()); job.retry_failed() computes these "
            "again.",
            job=self._job_id,
            lost=lost,
        )
