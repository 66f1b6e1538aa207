"""The commands `burla jobs` and `burla job`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burla.errors import BurlaError

if TYPE_CHECKING:
    from burla.job import Job
    from burla.protocol import JobInfo

STATES = ("receiving", "waiting", "running", "stopping", "done", "failed", "cancelled")
STARTS = "A local cluster that has ended is started again for it."


def add(groups: Any) -> None:
    """Add the commands to a parser's subparsers."""
    listing = _command(groups, "jobs", "list jobs, newest first", _jobs)
    listing.add_argument("--status", nargs="+", choices=STATES, metavar="S", help=f"only these: {', '.join(STATES)}")
    listing.add_argument("--limit", type=_positive, metavar="N", help="at most so many")
    job = groups.add_parser("job", help="one job: show it, its output, results, errors; cancel, retry, delete it")
    actions = job.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text, run in (
        ("show", "show how it stands", _show),
        ("logs", "print what its calls printed", _logs),
        (
            "results",
            "print its results, or write them to a file; waits for its end, and Ctrl-C leaves it alone",
            _results,
        ),
        ("errors", "show its failures, by type and line", _errors),
        ("cancel", "stop it; what it has brought stays", _cancel),
        ("retry", "begin another job that runs its inputs without a result, and has the results of the others", _retry),
        ("delete", "delete it, and all that is kept of it", _delete),
    ):
        action = _command(actions, name, text, run)
        action.add_argument("id", metavar="ID", help="the job's id, or the beginning of it")
        if name == "logs":
            action.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended")
            action.add_argument("--input", type=int, metavar="N", help="only of the call of this input, from 0 on")
            action.add_argument("--stream", choices=("stdout", "stderr"), help="only of this stream")
        if name == "results":
            action.add_argument(
                "-o", "--output", type=Path, metavar="FILE", help="write to a file, all of it or nothing"
            )
            action.add_argument(
                "--format",
                choices=("pickle", "jsonl"),
                help='of the file: a pickle of the list, or lines of JSON, {"index": 0, "result": 1}, as calls ended '
                "(default: jsonl if the name ends so, else pickle)",
            )


def _command(groups: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser = groups.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {STARTS}")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _jobs(chosen: argparse.Namespace) -> int:
    from burla import lookup
    from burla.display import job as display
    from burla.protocol import JobState, ListJobs

    states = tuple(JobState(name) for name in chosen.status or ())
    listed = lookup.listed(ListJobs(states, chosen.limit), _say_on_stderr).listed
    if chosen.json:
        _print_json(
            {
                "jobs": [_facts(info) for info in listed.jobs],
                "keep_s": listed.keep_s,
                "used_bytes": listed.used_bytes,
                "limit_bytes": listed.limit_bytes,
                "remarks": list(listed.remarks),
                "copies": listed.copies,
            }
        )
    else:
        print(display.table(listed, time.time()))
    return 0


def _show(chosen: argparse.Namespace) -> int:
    from burla.display import job as display

    info, _ = _find(chosen.id)
    if chosen.json:
        _print_json(_facts(info))
    else:
        print(display.sheet(info, time.time()))
    return 0


def _logs(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    lines = job.logs(chosen.input, chosen.stream, chosen.follow)
    if not chosen.json:
        for line in lines:
            print(_printable(line.text), flush=chosen.follow)
        return 0
    chosen.json_begun = True
    print(f'{{"job": {json.dumps(info.id)}, "lines": [', end="")
    error = None
    try:
        for number, line in enumerate(lines):
            facts = {"input_index": line.input_index, "stream": line.stream, "text": _printable(line.text)}
            print(",\n" if number else "\n", json.dumps(facts), sep="", end="", flush=chosen.follow)
    except BurlaError as failed:
        error = failed
        raise
    finally:
        end = "" if error is None else f', "error": {json.dumps(_described(error))}'
        print(f"]{end}}}")
    return 0


def _results(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    try:
        if chosen.output is not None:
            count = _write(job, chosen.output, chosen.format)
            done = {"job": info.id, "results": count, "file": str(chosen.output)}
            _say(chosen, done, f"{count:,} results are in {chosen.output}")
        elif chosen.json:
            results = job.results()
            for index, result in enumerate(results):
                _as_json(index, result)
            _print_json({"job": info.id, "results": results})
        else:
            for result in job.results():
                print(_printable(repr(result)))
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except BurlaError as error:
        if not hasattr(error, "burla_input_index"):
            raise
        return _failed(chosen, job, error)
    except Exception as error:
        if not hasattr(error, "burla_job"):
            raise
        return _failed(chosen, job, error)
    return 0


def _failed(chosen: argparse.Namespace, job: Job, error: BaseException) -> int:
    """The job has no results because of a failure of its own."""
    index = getattr(error, "burla_input_index", None)
    where = "" if index is None else f" at input {index}"
    print(f"burla: job {job.id} has failed{where}: {type(error).__name__}: {error}", file=sys.stderr)
    print(
        f"burla: {job.progress}. See: burla job errors {job.id}. "
        f"Run again what has no result: burla job retry {job.id}",
        file=sys.stderr,
    )
    if chosen.json:
        _print_json({"job": job.id, "error": _described(error) | {"input_index": index}})
    return 1


def _write(job: Job, path: Path, wanted: str | None) -> int:
    """Write results to a file that appears only when it is whole; return how many they are."""
    as_lines = wanted == "jsonl" or (wanted is None and path.suffix == ".jsonl")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            count = _write_lines(job, file) if as_lines else _write_pickle(job, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return count


def _write_lines(job: Job, file: Any) -> int:
    count = 0
    for index, result in job.iter_results():
        file.write(f'{{"index": {index}, "result": {_as_json(index, result)}}}\n'.encode())
        count += 1
    return count


def _write_pickle(job: Job, file: Any) -> int:
    from burla import serialize

    results = job.results()
    file.write(serialize.dump_value(results))
    return len(results)


def _as_json(index: int, result: Any) -> str:
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BurlaError(
            f"the result of input {index}, a {type(result).__name__}, cannot be JSON: {error}. Without --json and "
            "--format jsonl there is a pickle (--output FILE), or their repr."
        ) from error


def _errors(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    groups = job.errors()
    if chosen.json:
        facts = [
            {
                "type": one.type_name,
                "line": one.line,
                "message": one.message,
                "count": one.count,
                "inputs": list(one.inputs),
                "traceback": one.traceback,
            }
            for one in groups
        ]
        _print_json({"job": info.id, "errors": facts})
        return 0
    if not groups:
        print("No errors.")
    for number, one in enumerate(groups):
        inputs = ", ".join(map(str, one.inputs)) + (", …" if one.count > len(one.inputs) else "")
        where = f" at {one.line}" if one.line else ""
        of = f"{one.count:,} × " if one.count else ""
        print("\n" * bool(number) + _printable(f"{of}{one.type_name}{where}: {one.message}"))
        if one.count:
            print(f"inputs {inputs}")
        if one.traceback:
            print(_printable(one.traceback.rstrip()))
    return 0


def _cancel(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    job.cancel()
    _say(chosen, {"job": info.id, "status": job.status}, f"job {info.id}: {job.status}")
    return 0


def _retry(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    new = job.retry_failed()
    done = {"job": new.id, "retried": info.id, "status": new.status}
    _say(chosen, done, f"job {new.id} runs what job {info.id} has no result of: {new.progress}")
    return 0


def _delete(chosen: argparse.Namespace) -> int:
    info, job = _find(chosen.id)
    job.delete()
    _say(chosen, {"job": info.id, "deleted": True}, f"job {info.id} is deleted")
    return 0


def _say_on_stderr(text: str) -> None:
    print(f"burla: {text}", file=sys.stderr)


def _find(job_id: str) -> tuple[JobInfo, Job]:
    from burla import lookup

    return lookup.find(job_id, _say_on_stderr)


def _facts(info: JobInfo) -> dict[str, Any]:
    from burla.job_parts import JobProgress

    progress = JobProgress.of(info.snapshot)
    return {
        "id": info.id,
        "function": info.function_name,
        "status": info.snapshot.state.value,
        "done": progress.done,
        "failed": progress.failed,
        "running": progress.running,
        "total": progress.total,
        "nodes": progress.nodes,
        "rate_per_s": progress.rate_per_s,
        "eta_s": progress.eta_s,
        "owner": info.owner,
        "detached": info.detached,
        "on_error": info.on_error,
        "resumed": info.resumed,
        "created_at_s": info.created_at_s,
        "ended_at_s": info.ended_at_s,
        "kept_until_s": info.kept_until_s,
        "size_bytes": info.size_bytes,
        "node_s": info.snapshot.node_s,
        "cost_usd": info.snapshot.usd,
        "remark": info.snapshot.remark,
    }


def _described(error: BaseException) -> dict[str, Any]:
    return {"type": type(error).__name__, "message": str(error)}


def _say(chosen: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    if chosen.json:
        _print_json(facts)
    else:
        print(text)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _printable(text: str) -> str:
    """Return text that stdout can take: of bytes that are no UTF-8, what they stand for."""
    encoding = sys.stdout.encoding or "utf-8"
    return (
        text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode(encoding, "replace").decode(encoding)
    )
