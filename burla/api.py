"""The public functions."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Literal, TypeVar, overload

from burla import config, follow, options, serialize, serialize_inputs
from burla.client import current
from burla.client.job import ClientJob
from burla.client.signals import interruptible
from burla.display.progress import Progress
from burla.display.terminal import make_view
from burla.protocol import CallContext, JobSpec

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
    `burla_input_index`, and `burla_results`: what was finished, by input index.

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
        The GPU that each call has for itself: "A100" (= "A100_40G"), "A100_80G", "H100" (= "H100_80G").
    image
        The container image that calls run in.
    grow
        Boot more machines if the cluster can.
    max_parallelism
        The most calls that run at once.
    detach
        Let the job outlive this process. Not available yet.
    generator
        Return a generator that yields each result as soon as its call is done, in that order.
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
    wanted = options.check(
        function_, inputs, func_cpu, func_ram, func_gpu, image, grow, max_parallelism, detach, generator, spinner
    )
    with interruptible():
        something = options.iterate(inputs)
        if something is None:
            return (result for result in ()) if wanted.generator else []
        name = serialize.function_name(function_)
        pickled = serialize.dump_function(function_)
        current.begin()
        spec = JobSpec(
            id=secrets.token_hex(6),
            function_name=name,
            function=pickled,
            context=_context(),
            func_cpu=wanted.func_cpu,
            func_ram_bytes=wanted.func_ram_bytes,
            func_gpu=wanted.func_gpu,
            image=wanted.image,
            max_parallelism=wanted.max_parallelism,
            grow=wanted.grow,
            start_timeout_s=config.START_TIMEOUT_S,
        )
        view = make_view(wanted.spinner)
        try:
            job = ClientJob(current.connection(view.say), spec, lambda lost: current.instead_of(lost, view.say))
            job.submit(serialize_inputs.pack_inputs(something))
        except BaseException:
            view.close()
            raise
        progress = Progress(name, job.total, time.monotonic())
        read = follow.stream if wanted.generator else follow.collect
        return read(job, view, progress)


def use(cluster: Any) -> None:
    """Send this process's calls to a Dask scheduler that already runs.

    Parameters
    ----------
    cluster
        Its address, a `distributed.Client`, or None to go back to the local cluster. Scheduler and workers need burla
        installed, in the same version.

    Raises
    ------
    InvalidType
        For anything else.
    OSError
        If nobody answers there.
    """
    current.use(cluster)


def _context() -> CallContext:
    return CallContext(
        cwd=os.getcwd(),
        environ=dict(os.environ),
        sys_path=tuple(os.path.abspath(entry) if isinstance(entry, str) else str(entry) for entry in sys.path),
    )
