"""The command `burla`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from burla import cli_clusters, cli_jobs
from burla.errors import BurlaError, ClusterLost, ClusterStartFailed, UnknownCluster, UnknownJob

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
    cli_clusters.add(groups)
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
        return 3 if isinstance(error, (UnknownJob, UnknownCluster, ClusterStartFailed, ClusterLost)) else 1


def _status(_: argparse.Namespace) -> int:
    from burla.cluster_state import cluster_status

    state = cluster_status()
    print(state)
    return 0 if state.up else 3


def _stop(_: argparse.Namespace) -> int:
    from burla.cluster_state import stop_cluster

    later = stop_cluster()
    if later is None:
        print("The local cluster is not up.")
        return 3
    print("The local cluster has ended.")
    if later:
        print(f"When it is next started, these detached jobs go on: {', '.join(later)} (burla jobs starts it).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
