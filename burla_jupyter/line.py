"""`%burla`: jobs and clusters from a cell."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

import burla
from burla_jupyter import debug, inband, running
from burla_jupyter.failure import Failed
from burla_jupyter.outcome import Outcome
from burla_jupyter.results import Results

EXAMPLES = """
examples:
  %burla jobs                  all jobs, newest first
  %burla attach                the newest job, live; also after a restart of the kernel
  %burla results 1f3a -o x     its results, into the variable x
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"%burla: {message}\n{self.format_usage()}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _HelpShown


class _HelpShown(Exception):
    """--help has printed."""


def run(shell: InteractiveShell, line: str, last: Failed | None) -> Any:
    """Carry out a line; return what the cell shows. `last`: what `debug` is about.

    Raises UsageError for whatever is wrong, except the failure of a call.
    """
    __tracebackhide__ = True
    if "for" in line.split():
        raise UsageError("%burla: a cell that runs for every element begins with two: %%burla for x in xs")
    try:
        chosen = _parser().parse_args(shlex.split(line))
    except ValueError as error:  # an open quote
        raise UsageError(f"%burla: {error}") from None
    except _HelpShown:
        return None
    try:
        return chosen.run(shell, chosen) if chosen.run is not None else debug.debug(shell, last)
    except (burla.BurlaError, OSError) as error:
        if hasattr(error, "burla_input_index"):
            raise
        raise UsageError(f"%burla: {error}") from None


def _parser() -> _Parser:
    parser = _Parser(
        prog="%burla",
        description="Jobs and clusters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, run: Callable[..., Any] | None, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        return one

    command("status", _status, "the cluster in use: nodes, jobs, when it ends")
    jobs = command("jobs", _jobs, "jobs, newest first")
    jobs.add_argument("--status", help="only those that are done, failed, cancelled, running, waiting, ...")
    jobs.add_argument("--limit", type=int, help="at most so many")
    attach = command("attach", _attach, "show a job live, from its first event on (no ID: the newest)")
    attach.add_argument("id", nargs="?", metavar="ID", help="a job's id, or its beginning")
    attach.add_argument("-o", "--out", metavar="NAME", help="the variable that the Job goes to")
    logs = command("logs", _logs, "print what the calls of a job have printed")
    logs.add_argument("id", metavar="ID")
    logs.add_argument("--input", type=int, metavar="INDEX", help="only of this input")
    logs.add_argument("--stream", choices=("stdout", "stderr"), help="only this stream")
    cancel = command("cancel", _cancel, "stop a job; what it has brought stays")
    cancel.add_argument("id", metavar="ID")
    results = command("results", _results, "the results of a job, once it has ended")
    results.add_argument("id", nargs="?", metavar="ID", help="(none: the newest job)")
    results.add_argument("-o", "--out", metavar="NAME", help="the variable that they go to")
    use = command("use", _use, "choose the cluster of this notebook (no CLUSTER: show it)")
    use.add_argument("cluster", nargs="?", metavar="CLUSTER", help="a name, the address of a Dask scheduler, or: local")
    for option in ("--tls-ca-file", "--tls-client-cert", "--tls-client-key"):
        use.add_argument(option, metavar="FILE", help="a PEM file, for an address tls://… (none: your Dask config)")
    command("clusters", _clusters, "the clusters that you know, whether they are up, which is in use")
    env = command("env", _env, "what calls get besides: NAME=value, + package, - NAME or package (none: show it)")
    env.add_argument("change", nargs=argparse.REMAINDER, metavar="CHANGE")
    cluster = command("cluster", _cluster, "the cluster in use; `stop` ends the local one")
    cluster.add_argument("action", choices=("status", "stop"))
    command("debug", None, "run the input that failed last here, in the debugger")
    return parser


def _status(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    return burla.cluster_status()


def _jobs(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    return burla.jobs(chosen.status, chosen.limit)


def _attach(shell: InteractiveShell, chosen: argparse.Namespace) -> None:
    job = burla.attach(chosen.id)
    if chosen.out:
        shell.push({chosen.out: job})
    try:
        job.follow()
    except Exception as error:  # noqa: BLE001 - of the job, whose view shows it whole; it is no mistake of this cell
        index = getattr(error, "burla_input_index", None)
        of = "" if index is None else f"input {index}: "
        print(f"job {job.id} is {job.status}: {of}{type(error).__name__}: {error}", file=sys.stderr)


def _logs(shell: InteractiveShell, chosen: argparse.Namespace) -> None:
    for line in burla.attach(chosen.id).logs(chosen.input, chosen.stream):
        if inband.BEGIN not in line.text:
            print(line, file=sys.stdout if line.stream == "stdout" else sys.stderr)
            continue
        for part in inband.split(line.text):
            if isinstance(part, str):
                print(part)
            else:
                display(part[0], raw=True, metadata=part[1])


def _cancel(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    job = burla.attach(chosen.id)
    job.cancel()
    return job


def _results(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    __tracebackhide__ = True
    job = burla.attach(chosen.id)
    once = job.result(0) if job.progress.total == 1 else None
    if isinstance(once, Outcome):  # of a cell without a loop: what it assigned comes back only now
        value = running.bring(shell, once)
    elif chosen.out:
        value = job.results()
    else:
        return Results(job)
    if not chosen.out:
        return value
    shell.push({chosen.out: value})
    return None


def _use(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    files = {name: value for name, value in vars(chosen).items() if name.startswith("tls_") and value is not None}
    if chosen.cluster is not None:
        burla.use(chosen.cluster, **files)
    return burla.clusters() if chosen.cluster is None else None


def _clusters(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    return burla.clusters()


def _env(shell: InteractiveShell, chosen: argparse.Namespace) -> None:
    before = burla.configure()
    packages, variables = list(before.packages), dict(before.env_vars.values)
    match chosen.change:
        case []:
            pass
        case ["+", *names] if names:
            packages += [name for name in names if name not in packages]
        case ["-", *names] if names and all(name in variables or name in packages for name in names):
            packages = [name for name in packages if name not in names]
            variables = {name: value for name, value in variables.items() if name not in names}
        case [*settings] if all("=" in one.strip("=") for one in settings):
            variables |= dict(one.split("=", 1) for one in settings)
        case _:
            raise UsageError("%burla env: give NAME=value, + package, or - and what to take back")
    print(burla.configure(packages=packages, env_vars=variables))


def _cluster(shell: InteractiveShell, chosen: argparse.Namespace) -> Any:
    if chosen.action == "status":
        return burla.cluster_status()
    later = burla.stop_cluster()
    print("The local cluster was not up." if later is None else "The local cluster has ended.")
    if later:
        print(f"When it is next started, these detached jobs go on: {', '.join(later)} (%burla jobs starts it).")
    return None
