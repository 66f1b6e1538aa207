"""`%burla` in a real kernel."""

from __future__ import annotations

import pytest

from tests.jupyter.conftest import Kernel


@pytest.fixture(autouse=True, scope="module")
def notebook(kernel: Kernel) -> None:
    """A job that has ended, and one that failed."""
    kernel.run("import burla, sys\ndone = burla.submit(abs, [-1, -2])\ndone.wait()")
    kernel.run("failed = burla.submit(lambda x: 1 / x, [0])\nfailed.wait()")


def test_jobs_and_the_cluster_are_shown(kernel: Kernel):
    jobs = kernel.run("%burla jobs --limit 2")
    assert "failed" in jobs.text.splitlines()[1] and "2/2" in jobs.text.splitlines()[2]
    assert jobs.value is not None and "<table>" in jobs.value["text/html"]
    assert kernel.run("%burla jobs --status failed --limit 1").text.splitlines()[1].split()[2] == "failed"
    for line in ("status", "cluster status"):
        assert "The local cluster is up" in kernel.run(f"%burla {line}").text
    kernel.run("%burla use tcp://127.0.0.1:1")
    assert kernel.run("%burla use local").error == ""


def test_results_go_where_they_are_asked_for(kernel: Kernel):
    assert kernel.run("%burla results {done.id} -o got").error == "" and kernel.run("got").text == "[1, 2]"
    assert "2 results of job" in kernel.run("%burla results {done.id}").text


def test_a_job_is_cancelled(kernel: Kernel):
    kernel.run("import time\njob = burla.submit(time.sleep, [60])")
    assert "cancelled" in kernel.run("%burla cancel {job.id}").text


def test_the_failure_of_a_call_is_raised_without_what_read_it(kernel: Kernel):
    output = kernel.run("%burla results {failed.id}")
    assert output.error == "ZeroDivisionError" and "raised by the call of input 0" in output.traceback
    for machinery in ("line.py", "magic.py", "job.py", "job_reader.py"):
        assert machinery not in output.traceback


def test_packages_and_variables_are_set_shown_and_taken_back(kernel: Kernel):
    assert kernel.run("%burla env").stdout == "nothing is set\n"
    assert kernel.run("%burla env BT_MINE='a b' BT_OTHER=c").stdout == "variable BT_MINE\nvariable BT_OTHER\n"
    assert kernel.run("%burla env + polars>=1 pillow").stdout.startswith("package polars>=1\npackage pillow\nvariable")
    kernel.run("import os\ngot = burla.remote_parallel_map(lambda x: os.environ['BT_MINE'], [0])")
    assert kernel.run("got").text == "['a b']"
    assert kernel.run("%burla env - BT_MINE pillow").stdout == "package polars>=1\nvariable BT_OTHER\n"
    for wrong in ("BT_MINE", "- unknown", "+", "=x"):
        assert "give NAME=value" in kernel.run(f"%burla env {wrong}").stderr
    assert kernel.run("%burla env - polars>=1 BT_OTHER").stdout == "nothing is set\n"


def test_a_failed_job_is_shown_without_a_traceback(kernel: Kernel):
    output = kernel.run("%burla attach {failed.id} -o again")
    assert output.error == "" and "is failed: input 0: ZeroDivisionError: division by zero" in output.stderr
    assert kernel.run("again.id == failed.id").text == "True"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "required: COMMAND"),
        ("-o a for x in xs", "begins with two: %%burla for x in xs"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("results zzz", "the cluster has no job 'zzz'"),
        ("cancel zzz", "the cluster has no job 'zzz'"),
        ("attach 'a", "No closing quotation"),
        ("debug", "the last error of this notebook is not of a call"),
    ],
)
def test_a_mistake_is_one_line(kernel: Kernel, line: str, says: str):
    output = kernel.run(f"%burla {line}")
    assert output.stderr.startswith("UsageError: %burla") and says in output.stderr and output.traceback == ""


def test_a_cell_that_could_not_be_sent_is_not_run_here_to_debug_it(kernel: Kernel):
    kernel.run("import threading\nlock = threading.Lock()")
    assert kernel.run("%%burla\nran = lock").error == "FunctionNotPicklable"
    assert "no call of cell" in kernel.run("%burla debug").stderr and kernel.run("'ran' in globals()").text == "False"
