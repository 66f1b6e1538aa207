"""For which results an idle head stays, and until when. Time is passed in: of the wall clock, in seconds.

Without a bucket: those of detached jobs that nobody has read. With one: of all jobs that are not copied there yet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from burla.head.records import StoredJob
from burla.head.running import RunningJob

LEAST_TO_COPY_S = 3600.0  # a bucket that cannot be reached gets so long, also where results are not to be kept


class Keeping:
    """See the module. `url`: of the bucket, empty: there is none. `keep_s`: so long after its end, a job is let go."""

    def __init__(self, url: str, keep_s: float):
        self.url = url
        self.failure = ""  # why copying does not succeed now
        self._keep_s = max(keep_s, LEAST_TO_COPY_S) if url else keep_s
        self._ended: dict[str, float] = {}  # id → when
        self._settled: set[str] = set()

    def begin(self, stored: Iterable[StoredJob]) -> None:
        """Take up the jobs of before: who has read them is not known any more."""
        for one in stored:
            self._note(one.spec.id, one.status.ended_at_s, one.listed, one.status.detached)

    def look(self, jobs: Iterable[RunningJob], now_s: float) -> None:
        """Take up the jobs that have ended since."""
        for job in jobs:
            listed = job.spec.parent is None or job.detached
            if job.spec.id not in self._ended:
                self._note(job.spec.id, now_s if job.over.is_set() else None, listed, job.detached)

    def _note(self, job_id: str, ended_at_s: float | None, listed: bool, detached: bool) -> None:
        if ended_at_s is not None and job_id not in self._settled and (listed if self.url else detached):
            self._ended[job_id] = ended_at_s

    def settle(self, job_id: str) -> None:
        """Stay no more for a job: it was read, copied or deleted."""
        self._settled.add(job_id)
        self._ended.pop(job_id, None)

    @property
    def waiting(self) -> list[str]:
        """The ids of jobs that are not settled."""
        return list(self._ended)

    def _kept(self, now_s: float) -> list[float]:
        return [ended_at_s + self._keep_s for ended_at_s in self._ended.values() if ended_at_s + self._keep_s > now_s]

    def stays(self, now_s: float) -> bool:
        """Whether an idle head has to stay."""
        return bool(self._kept(now_s))

    def remarks(self, now_s: float) -> tuple[str, ...]:
        """Say for what it stays."""
        kept = self._kept(now_s)
        if not kept:
            return ()
        until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(kept)))
        jobs = f"{len(kept)} ended job{'s' if len(kept) != 1 else ''}"
        if self.url:
            why = f" ({self.failure}; it is tried again)" if self.failure else ""
            return (f"{jobs} not copied to {self.url} yet{why}: the head stays for that, at most until {until}",)
        return (f"{jobs} whose results nobody has read: the head stays for that, at most until {until}",)
