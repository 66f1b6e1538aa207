"""The jobs of a cluster, as `burla.jobs()` returns them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import overload

from burla.display import job as display
from burla.job import Job
from burla.protocol import JobList


class Jobs(Sequence[Job]):
    """Jobs, newest first, as they were when they were listed; shows as a table.

    `keep_s`, `limit_bytes`: for how long, and how much in all, the cluster keeps of jobs that have ended. `remarks`:
    what there is to know of its store, such as damage that was found.
    """

    def __init__(self, jobs: list[Job], listed: JobList):
        self.keep_s = listed.keep_s
        self.limit_bytes = listed.limit_bytes
        self.remarks = listed.remarks
        self.listed = listed
        self._jobs = jobs

    @overload
    def __getitem__(self, index: int) -> Job: ...
    @overload
    def __getitem__(self, index: slice) -> list[Job]: ...
    def __getitem__(self, index: int | slice) -> Job | list[Job]:
        return self._jobs[index]

    def __len__(self) -> int:
        return len(self._jobs)

    def __repr__(self) -> str:
        return display.table(self.listed, time.time())

    def _repr_html_(self) -> str:
        return display.html_table(self.listed, time.time())
