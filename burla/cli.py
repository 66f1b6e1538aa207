"""The command `burla`."""

from __future__ import annotations

import argparse
import json
import os
import sys

from burla import cli_cluster, cli_clusters, cli_jobs
from burla.errors import BurlaError, ClusterLost, ClusterStartFailed, UnknownCluster, UnknownJob

EXIT_CODES = """\
exit codes:
  0    done
  1    failed; also: the job whose results were asked for has failed
  2    wrong usage
  3    there is no cluster, or it has no such job
  4    burla cluster gc has found something, and was not told to delete it
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
    cli_cluster.add(groups)
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


if __name__ == "__main__":
    sys.exit(main())
