"""The public functions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Literal, TypeVar, overload

from burla import begin, follow, lookup, options, serialize, views
from burla.client import choice, running
from burla.client.signals import interruptible
from burla.display.progress import Progress
from burla.display.terminal import PlainView
from burla.errors import InvalidType
from burla.follower import assurance
from burla.job import Job
from burla.job_list import Jobs
from burla.protocol import ListJobs

_R = TypeVar("_R")


@overload
def remote_parallel_map(
    function_: Callable[..., _R],
    inputs: Iterable[Any],
    func_cpu: int = 1,
    func_ram: int | Literal["dynamic"] = "dynamic",
    func_gpu: str | None = None,
    image: str | None = None,
    grow: bool = False,
    max_parallelism: int | None = None,
    detach: bool = False,
    generator: Literal[False] = False,
    spinner: bool = True,
) -> list[_R]: ...
@overload
def remote_parallel_map(
    function_: Callable[..., _R],
    inputs: Iterable[Any],
    func_cpu: int = 1,
    func_ram: int | Literal["dynamic"] = "dynamic",
    func_gpu: str | None = None,
    image: str | None = None,
    grow: bool = False,
    max_parallelism: int | None = None,
    detach: bool = False,
    *,
    generator: Literal[True],
    spinner: bool = True,
) -> Generator[_R, None, None]: ...
def remote_parallel_map(
    function_: Callable[..., Any],
    inputs: Iterable[Any],
    func_cpu: int = 1,
    func_ram: int | Literal["dynamic"] = "dynamic",
    func_gpu: str | None = None,
    image: str | None = None,
    grow: bool = False,
    max_parallelism: int | None = None,
    detach: bool = False,
    generator: bool = False,
    spinner: bool = True,
) -> list[Any] | Generator[Any, None, None]:
    """Run a function on every input, on a cluster, as if it ran here.

    What the calls print appears here while they run. The first exception stops the job and is raised here; it carries
    `burla_input_index`, `burla_results`: what was finished, by input index, and `burla_job`: the `Job`.

    Parameters
    ----------
    function_
        Any callable that cloudpickle can carry, under 100 MB.
    inputs
        One element for each call. A tuple is unpacked into arguments; to pass a tuple as one argument, wrap it: `(t,)`.
    func_cpu
        CPUs reserved for each call.
    func_ram
        GB (10⁹ bytes) reserved for each call, or "dynamic": as many calls at once as the CPUs allow.
    func_gpu
        The GPU that each call has for itself: "A100" (= "A100_40G"), "A100_80G", "H100" (= "H100_80G"), "H200",
        "B200", "L4", "T4", "V100", or "any".
    image
        The container image that a node has to run for calls to run there.
    grow
        Boot what the job needs and its cluster lacks, if that is one in a cloud (see `growth_plan`); the job starts on
        what is there. What was booted ends after an idle minute.
    max_parallelism
        The most calls that run at once.
    detach
        Let the job outlive this process: a line on stderr says when it is safe to stop, and how to come back.
    generator
        Return a generator that yields each result as soon as its call is done, in that order. Closing it stops the
        job, unless that is detached.
    spinner
        Show a status line, on a terminal.

    Returns
    -------
    list or generator
        The results, in the order of the inputs.

    Raises
    ------
    BurlaError
        Of `burla.errors`, each of which says what to do; besides what the calls raise.
    """
    __tracebackhide__ = True  # a traceback in a notebook shows the user's frames
    wanted = options.check(
        function_, inputs, func_cpu, func_ram, func_gpu, image, grow, max_parallelism, detach, generator, spinner
    )
    with interruptible():
        something = options.iterate(inputs)
        if something is None:
            return (result for result in ()) if wanted.generator else []
        view = views.make_view(wanted.spinner)
        progress = Progress(serialize.function_name(function_), None, time.monotonic())

        def sent(inputs: int) -> None:
            progress.uploaded(inputs)
            view.update(progress, time.monotonic())

        try:
            job = begin.begin(function_, something, wanted, view.say, sent=sent)
            progress.begun(job.id, job.total)
            view.begin(Job.of(job), wanted.detach)
            view.update(progress, time.monotonic())
            if wanted.detach:
                view.say(f"burla: {assurance(job.id, job.connection)}", always=True)
        except BaseException as error:
            view.close(error, kept=False)
            raise
        read = follow.stream if wanted.generator else follow.collect
        return read(job, view, progress)


def submit(
    function_: Callable[..., Any],
    inputs: Iterable[Any],
    *,
    func_cpu: int = 1,
    func_ram: int | Literal["dynamic"] = "dynamic",
    func_gpu: str | None = None,
    image: str | None = None,
    grow: bool = False,
    max_parallelism: int | None = None,
    detach: bool = True,
    on_error: Literal["raise", "continue"] = "raise",
    resume: str | Job | None = None,
    packages: Iterable[str] = (),
    env_vars: Mapping[str, str] = options.NO_VARIABLES,
    max_cost_usd: float | None = None,
    max_minutes: float | None = None,
) -> Job:
    """Start a job in the background: return when its inputs are in the cluster's store.

    Parameters
    ----------
    function_, inputs, func_cpu, func_ram, func_gpu, image, grow, max_parallelism
        As for `remote_parallel_map`.
    detach
        The job outlives this process. With False it ends with it; what it has brought by then stays.
    on_error
        "raise": the first failure stops the job. "continue": a failure is the outcome of its call alone.
    resume
        The id of an ended job, or the job: results of inputs that are the same there (at the same position, equal in
        content) are taken over, the others run.
    packages, env_vars
        As for `configure`, for this job alone, besides those.
    max_cost_usd
        Stop the job when the nodes that it uses have cost so much, all of each counted, by the prices of the catalogue;
        refused where no node has one.
    max_minutes
        Stop the job when it has had nodes for so long. In both cases its results are kept, and whoever reads them to
        the end gets LimitReached; retry_failed() goes on.

    Raises
    ------
    BurlaError
        Of `burla.errors`, such as UnknownJob and JobUnfinished for `resume`; nothing has run then.
    """
    wanted = options.check(
        function_, inputs, func_cpu, func_ram, func_gpu, image, grow, max_parallelism, detach, False, False, on_error,
        packages, env_vars, max_cost_usd, max_minutes,
    )  # fmt: skip
    if resume is not None and not isinstance(resume, (str, Job)):
        raise InvalidType(f"resume={resume!r}: it must be the id of a job, a Job, or None.")
    with interruptible():
        something = options.iterate(inputs)
        old = resume.id if isinstance(resume, Job) else resume
        job = begin.begin(function_, () if something is None else something, wanted, PlainView().say, old)
        running.remove(job)
    return Job.of(job)


def attach(job_id: str | None = None) -> Job:
    """Return a job of the cluster in use by its id, or the beginning of it; None: the newest of this user.

    A local cluster that has ended is started again. Raises UnknownJob.
    """
    if job_id is not None and not isinstance(job_id, str):
        raise InvalidType(f"job_id={job_id!r}: it must be the id of a job, or None.")
    return lookup.find(job_id, PlainView().say)[1]


def jobs(status: str | Iterable[str] | None = None, limit: int | None = None) -> Jobs:
    """Return the jobs of the cluster in use, newest first, as a sequence that shows as a table.

    `status`: only jobs in this state, or one of these; see `Job` for the states. Raises InvalidValue.
    """
    names = [status] if isinstance(status, str) else list(status or ())
    states = tuple(options.state(name) for name in names)
    most = None if limit is None else options.count("limit", limit, "None, or an integer of at least 1: jobs")
    return lookup.listed(ListJobs(states, most), PlainView().say)


def current_job() -> Job | None:
    """Return the job that `remote_parallel_map` runs now: this thread's, else this process's newest one, else None."""
    job = running.newest()
    return None if job is None else Job.of(job)


def use(
    cluster: Any,
    *,
    tls_ca_file: str | os.PathLike[str] | None = None,
    tls_client_cert: str | os.PathLike[str] | None = None,
    tls_client_key: str | os.PathLike[str] | None = None,
) -> choice.Use:
    """Send calls of this process to another cluster: from now on, or as a context manager, within its block.

    Nothing but Dask has to be installed there: burla goes there by itself, and replaces another version that is idle.
    In a call it changes nothing: a call's own calls run on its cluster.

    Parameters
    ----------
    cluster
        The name of a cluster (see `burla.clusters`), the address of a Dask scheduler, a `distributed.Client`, a Dask
        cluster object, or "local". None: what the variable BURLA_CLUSTER, else the command `burla use`, says.
    tls_ca_file, tls_client_cert, tls_client_key
        Paths of PEM files, for an address that begins with tls://; without them, those of your Dask configuration.

    Raises
    ------
    InvalidType, InvalidValue
        For anything else, and for a Client or cluster that is closed.
    UnknownCluster
        If no cluster has this name.
    OSError, ClusterLost
        If nobody answers there; ClusterLost of a cluster in a cloud, which may have ended.
    ClusterBusy
        If another version of burla is in use there.
    ClusterError
        If burla cannot run there, for the reason that it names.
    """
    return choice.use(cluster, tls_ca_file, tls_client_cert, tls_client_key)
