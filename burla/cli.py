"""The command `burla`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from burla import cli_jobs
from burla.errors import BurlaError, ClusterLost, ClusterStartFailed, UnknownJob

EXIT_CODES = """\
exit codes:
  0    done
  1    failed; also: the job whose results were asked for has failed
  2    wrong usage
  3    there is no cluster, or it has no such job
  130  interrupted; a job that was waited for goes on
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code, as `EXIT_CODES` says."""
    parser = argparse.ArgumentParser(
        prog="burla",
        description="Run Python functions on many machines.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    cluster = groups.add_parser("cluster", help="the local cluster: is it up, what does it do, end it")
    actions = cluster.add_subparsers(title="commands", required=True, metavar="COMMAND")
    status = actions.add_parser("status", help="show nodes, jobs, and when it ends by itself (exit code 3: not up)")
    status.set_defaults(run=_status)
    stop = actions.add_parser("stop", help="end it, and the jobs that run on it; detached ones go on at its next start")
    stop.set_defaults(run=_stop)
    cli_jobs.add(groups)
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen)
    except BrokenPipeError:  # as by `| head`; what is buffered must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("burla: interrupted", file=sys.stderr)
        return 130
    except (BurlaError, OSError) as error:
        print(f"burla: {error}", file=sys.stderr)
        if getattr(chosen, "json", False) and not getattr(chosen, "json_begun", False):
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        return 3 if isinstance(error, (UnknownJob, ClusterStartFailed, ClusterLost)) else 1


def _status(_: argparse.Namespace) -> int:
    from burla.client.connection import Connection, LocalTarget
    from burla.client.current import describe
    from burla.clusters import local
    from burla.protocol import ClusterStatus, GetStatus

    ready = local.find()
    if ready is None:
        print("The local cluster is not up. The next call starts it.")
        return 3
    if ready.source != local.source_key():
        print(f"A local cluster of another version of burla or Python is up (pid {ready.pid}).")
        return 0
    connection = Connection(LocalTarget())
    try:
        status: ClusterStatus = connection.ask(GetStatus())
    finally:
        connection.close()
    print(f"The local cluster is up (pid {ready.pid}): {describe(ready)}.")
    for node in status.nodes:
        print(f"  node {node.name}: {node.cpus} CPUs, {node.ram_bytes / 1e9:.1f} GB RAM")
    for job in status.jobs:
        shot = job.snapshot
        print(
            f"  job {job.id} {job.function_name}: {shot.state.value}, {shot.done:,}/{shot.total:,} done, "
            f"{shot.running} running, {job.age_s:.0f} s"
        )
    if not status.jobs:
        print(f"  no jobs; idle for {status.idle_for_s:.0f} s")
    return 0


def _stop(_: argparse.Namespace) -> int:
    from burla.clusters import local

    if not local.is_up(local.folder()):
        print("The local cluster is not up.")
        return 3
    ready = local.wait(None)  # it may just be starting, or ending
    later = local.stop(ready, only_if_idle=False) if ready is not None else []
    print("The local cluster has ended.")
    if later:
        print(f"When it is next started, these detached jobs go on: {', '.join(later)} (burla jobs starts it).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
