"""Finds jobs: on the cluster in use, and where it copies results to, among the copies that earlier heads have left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from burla import begin
from burla.client import current
from burla.errors import StoreUnreachable, UnknownJob
from burla.job import Job
from burla.job_list import Jobs
from burla.protocol import JobInfo, JobList, ListJobs


def find(job_id: str | None, say: Callable[[str], None]) -> tuple[JobInfo, Job]:
    """Return a job by the beginning of its id; None: the newest of this user. Raises UnknownJob, ClusterLost."""
    connection = current.to_read(None, say)
    try:
        info = begin.told(connection, job_id)
    except UnknownJob:
        copies = current.copies_of(connection.target)
        if copies is None:
            raise
        connection = copies
        info = begin.told(connection, job_id)
    return info, Job.told(connection, info)


def listed(message: ListJobs, say: Callable[[str], None]) -> Jobs:
    """Return jobs, newest first. Raises ClusterLost."""
    connection = current.to_read(None, say)
    here: JobList = connection.run(connection.ask_again(message))
    jobs = [Job.told(connection, info) for info in here.jobs]
    copies = current.copies_of(connection.target)
    if copies is None:
        return Jobs(jobs, here)
    try:
        there: JobList = copies.run(copies.ask_again(message))
    except StoreUnreachable as error:
        return Jobs(jobs, replace(here, remarks=(*here.remarks, str(error))))
    known = {info.id for info in here.jobs}
    older = [info for info in there.jobs if info.id not in known][: _room(message.limit, len(jobs))]
    note = (f"{len(older)} of these are copies at {there.copies}.",) if older else ()
    both = replace(here, jobs=(*here.jobs, *older), remarks=here.remarks + there.remarks + note)
    return Jobs([*jobs, *(Job.told(copies, info) for info in older)], both)


def _room(limit: int | None, taken: int) -> int | None:
    return None if limit is None else max(0, limit - taken)
