"""`burla jobs` and `burla job`: what they print, write and return."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import burla
from burla.client import current
from burla.protocol import GetStatus
from tests.conftest import Home, Scripts, cluster_processes, end_cluster, wait_until
from tests.jobs.conftest import Gate


def run(*arguments: str | Path, **environ: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "burla.cli", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | environ, cwd="/"
    )
    return done.returncode, done.stdout, done.stderr


def run_json(*arguments: str | Path) -> Any:
    """Return the document; there must be one only."""
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def broken_job(on_error: str = "continue") -> burla.Job:
    def call(x: int) -> int:
        print("call", x)
        if x % 4 == 1:
            raise ValueError(f"bad {x}")
        return x * 10

    job = burla.submit(call, range(8), on_error=on_error)  # type: ignore[arg-type]
    job.wait()
    return job


def test_jobs_lists_newest_first_by_status_up_to_a_limit():
    done = burla.submit(lambda x: x, range(3))
    done.wait()
    failed = broken_job()
    code, out, err = run("jobs")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split()[:3] == ["id", "function", "status"]
    assert lines[1].split()[:5] == [failed.id, "call", "failed", "6/8", "2"]
    assert lines[2].split()[:4] == [done.id, "<lambda>", "done", "3/3"]
    assert "Jobs are kept for 7 days after their end, at most 50 GB in all" in lines[-1]
    _, only, note = run("jobs", "--limit", "1")[1].splitlines()
    assert only.startswith(failed.id) and note.startswith("Jobs are kept")
    listed = run_json("jobs", "--status", "failed", "cancelled", "--limit", "1")
    assert set(listed) == {"jobs", "keep_s", "used_bytes", "limit_bytes", "remarks", "copies"}
    (one,) = listed["jobs"]
    assert (one["id"], one["status"], one["done"], one["failed"], one["total"]) == (failed.id, "failed", 6, 2, 8)
    assert one["kept_until_s"] == pytest.approx(one["ended_at_s"] + listed["keep_s"])


def test_show_tells_all_of_one_job_by_the_beginning_of_its_id():
    job = broken_job()
    code, out, err = run("job", "show", job.id[:9])
    facts = dict(re.split(r": +", line, maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert (facts["job"], facts["function"], facts["status"], facts["done"]) == (job.id, "call", "failed", "6/8")
    assert facts["detached"] == "yes" and facts["on error"] == "continue"
    shown = run_json("job", "show", job.id)
    assert (shown["id"], shown["detached"], shown["on_error"], shown["resumed"]) == (job.id, True, "continue", None)
    assert (shown["cost_usd"], shown["node_s"] >= 0) == (None, True), "nobody knows what this machine costs"


def test_logs_print_what_calls_printed():
    job = broken_job()
    code, out, err = run("job", "logs", job.id)
    assert (code, err) == (0, "") and sorted(out.splitlines()) == [f"call {x}" for x in range(8)]
    assert run("job", "logs", job.id, "--input", "3", "--stream", "stdout") == (0, "call 3\n", "")
    assert run("job", "logs", job.id, "--stream", "stderr") == (0, "", "")
    document = run_json("job", "logs", job.id)
    assert document["job"] == job.id
    assert {(line["input_index"], line["stream"], line["text"]) for line in document["lines"]} == {
        (x, "stdout", f"call {x}") for x in range(8)
    }
    assert run_json("job", "logs", job.id, "--input", "99") == {"job": job.id, "lines": []}


def test_logs_follow_a_job_to_its_end_and_ctrl_c_leaves_it_alone(gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> None:
        print("before", x, flush=True)
        wait()
        print("after", x)

    job = burla.submit(call, range(2))
    command = [sys.executable, "-m", "burla.cli", "job", "logs", "-f", job.id]
    readers = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    for reader in readers:
        assert {reader.stdout.readline() for _ in range(2)} == {"before 0\n", "before 1\n"}  # type: ignore[union-attr]
    readers[0].send_signal(signal.SIGINT)
    assert readers[0].communicate(timeout=30)[1] == "burla: interrupted\n" and readers[0].returncode == 130
    assert job.status == "running"
    gate.open()
    out, err = readers[1].communicate(timeout=30)
    assert sorted(out.splitlines()) == ["after 0", "after 1"] and (err, readers[1].returncode) == ("", 0)


def test_results_are_printed_or_written(tmp_path: Path):
    job = burla.submit(lambda x: (x, "é"), range(3))
    lines = "(0, 'é')\n(1, 'é')\n(2, 'é')\n"
    assert run("job", "results", job.id) == (0, lines, "")
    assert run_json("job", "results", job.id) == {"job": job.id, "results": [[0, "é"], [1, "é"], [2, "é"]]}

    file = tmp_path / "results.pickle"
    assert run("job", "results", job.id, "--output", file) == (0, f"3 results are in {file}\n", "")
    assert pickle.loads(file.read_bytes()) == [(0, "é"), (1, "é"), (2, "é")]
    for name, options in (("a.jsonl", []), ("b.txt", ["--format", "jsonl"])):
        file = tmp_path / name
        document = run_json("job", "results", job.id, "-o", file, *options)
        assert document == {"job": job.id, "results": 3, "file": str(file)}
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["index"])
        assert rows == [{"index": x, "result": [x, "é"]} for x in range(3)]
    assert len(list(tmp_path.iterdir())) == 3, "nothing else is left there"


def test_results_wait_for_the_end_of_a_job(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: True), range(2))
    command = [sys.executable, "-m", "burla.cli", "job", "results", job.id]
    readers = [subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    connection = current.connection(print)
    wait_until(lambda: connection.ask(GetStatus()).clients == 3, 30, "two clients more")
    readers[0].send_signal(signal.SIGINT)
    assert readers[0].communicate(timeout=30) == ("", "burla: interrupted\n") and readers[0].returncode == 130
    gate.open()
    assert readers[1].communicate(timeout=30) == ("0\n1\n", "") and readers[1].returncode == 0


def test_results_that_json_cannot_hold_are_named_and_no_file_appears(tmp_path: Path):
    job = burla.submit(lambda x: {x} if x == 2 else float("nan") if x == 4 else x, range(5), max_parallelism=1)
    file = tmp_path / "results.jsonl"
    file.write_text("of before")
    for options in ((), ("-o", file)):
        code, out, err = run("job", "results", job.id, *options, *(() if options else ("--json",)))
        assert code == 1 and err.startswith("burla: the result of input 2, a set, cannot be JSON: ")
        assert not out or json.loads(out)["error"]["type"] == "BurlaError"
    assert file.read_text() == "of before" and list(tmp_path.iterdir()) == [file]
    nan = burla.submit(lambda x: float("nan"), [0])
    assert "the result of input 0, a float, cannot be JSON" in run("job", "results", nan.id, "--json")[2]


def test_results_of_a_failed_job_are_an_error_that_names_the_input(tmp_path: Path):
    job = broken_job(on_error="raise")
    code, out, err = run("job", "results", job.id, "-o", tmp_path / "out")
    assert (code, out) == (1, "") and not list(tmp_path.iterdir())
    assert re.match(rf"burla: job {job.id} has failed at input [15]: ValueError: bad [15]\n", err)
    assert f"burla job errors {job.id}" in err
    code, out, _ = run("job", "results", job.id, "--json")
    failure = json.loads(out)
    assert code == 1 and failure["error"]["type"] == "ValueError" and failure["error"]["input_index"] in (1, 5)


def test_results_of_a_class_that_is_unknown_here_say_so(scripts: Scripts, tmp_path: Path):
    (tmp_path / "beside.py").write_text("class Thing:\n    def __init__(self, x): self.x = x\n")
    done = scripts.run(
        "import beside, burla; job = burla.submit(beside.Thing, range(2)); job.wait(); print(job.id, job.status)"
    )
    job_id, status = done.stdout.split()
    assert status == "done", done.stderr
    code, out, err = run("job", "results", job_id)
    assert (code, out) == (1, "") and "cannot be loaded here" in err and "No module named 'beside'" in err
    assert err.count("\n") == 1
    code, out, err = run("job", "results", job_id, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert (code, err) == (0, "") and out.count("beside.Thing object") == 2


def test_errors_are_shown_by_type_and_line():
    job = broken_job()
    code, out, err = run("job", "errors", job.id)
    first, inputs, *trace = out.splitlines()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"2 × ValueError at test_job_cli\.py:\d+: bad [15]", first)
    assert inputs in ("inputs 1, 5", "inputs 5, 1") and trace[0].startswith("Traceback")
    (group,) = run_json("job", "errors", job.id)["errors"]
    assert (group["type"], group["count"], sorted(group["inputs"])) == ("ValueError", 2, [1, 5])
    fine = burla.submit(lambda x: x, [1])
    fine.wait()
    assert run("job", "errors", fine.id) == (0, "No errors.\n", "")


def test_cancel_retry_and_delete(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x == 1), range(3))
    wait_until(lambda: job.progress.done == 2, what="two results")
    assert run("job", "delete", job.id)[0] == 1
    assert run("job", "cancel", job.id) == (0, f"job {job.id}: cancelled\n", "")
    assert run_json("job", "cancel", job.id) == {"job": job.id, "status": "cancelled"}
    gate.open()
    retried = run_json("job", "retry", job.id)
    assert retried["retried"] == job.id and retried["job"] != job.id
    assert burla.attach(retried["job"]).results(timeout_s=30) == [0, 1, 2]
    code, out, err = run("job", "retry", job.id)
    assert (code, err) == (0, "") and re.match(rf"job \w+ runs what job {job.id} has no result of: ", out)
    assert run("job", "delete", job.id) == (0, f"job {job.id} is deleted\n", "")
    assert run("job", "show", job.id)[0] == 3
    assert run_json("job", "delete", retried["job"]) == {"job": retried["job"], "deleted": True}


@pytest.mark.parametrize("command", ["show", "logs", "results", "errors", "cancel", "retry", "delete"])
def test_no_such_job_is_exit_code_3(command: str):
    code, out, err = run("job", command, "no-such-job")
    assert (code, out) == (3, "") and err.startswith("burla: the cluster has no job 'no-such-job'")
    code, out, _ = run("job", command, "no-such-job", "--json")
    assert code == 3 and json.loads(out)["error"]["type"] == "UnknownJob"


@pytest.mark.parametrize(
    "arguments",
    [["job"], ["job", "show"], ["job", "fly", "x"], ["jobs", "--status", "ready"], ["jobs", "--limit", "0"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("usage: burla")


def test_a_reader_that_goes_away_makes_no_noise():
    job = burla.submit(lambda x: "x" * 1000, range(2000))
    job.wait()
    command = f"{sys.executable} -m burla.cli job results {job.id} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (repr("x" * 1000) + "\n", "")


def test_a_local_cluster_that_ended_is_started_again_and_that_is_said(own_home: Home):
    job = burla.submit(lambda x: x, range(3))
    job.wait()
    end_cluster(own_home.environ)
    assert not cluster_processes(own_home.environ)
    code, out, err = run("jobs")
    assert code == 0 and out.splitlines()[1].split()[0] == job.id
    assert re.fullmatch(r"burla: started a local cluster: 2 CPUs, ends after 5 min idle\n", err)


def test_the_help_tells_of_exit_codes():
    code, out, _ = run("--help")
    assert code == 0
    for line in ("0    done", "1    failed", "2    wrong usage", "3    there is no cluster", "130  interrupted"):
        assert line in out
    assert "waits for its end, and Ctrl-C leaves it alone" in " ".join(run("job", "results", "--help")[1].split())
