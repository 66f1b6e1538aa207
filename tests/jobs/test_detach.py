"""`detach=True`: as always, but the job goes on without its process; and jobs of this process as `Job`."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator

import pytest

import burla
from burla import remote_parallel_map
from tests.conftest import Ledger, Scripts, wait_until
from tests.jobs.conftest import Gate

SAFE = re.compile(
    r"burla: job (\w+) is safe: it goes on until this machine stops, and continues when the cluster is next started\. "
    r"To come back: burla\.attach\('(\w+)'\)\n"
)
GOES_ON = re.compile(
    r"burla: job (\w+): it goes on until this machine stops, and continues when the cluster is next started\. "
    r"To come back: burla\.attach\('(\w+)'\)\n"
)
CANCELLED = "burla: the job was cancelled, because not all of its inputs had arrived at the cluster\n"


def ids() -> set[str]:
    return {job.id for job in burla.jobs()}


@pytest.mark.parametrize("generator", [False, True])
def test_a_detached_call_behaves_as_always_and_says_when_it_is_safe(generator: bool, capfd: pytest.CaptureFixture[str]):
    def call(x: int) -> int:
        print("call", x)
        return x * 2

    results = remote_parallel_map(call, range(20), detach=True, generator=generator)
    assert sorted(results) == [x * 2 for x in range(20)]
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == sorted(f"call {x}" for x in range(20))
    told = SAFE.fullmatch(err)
    assert told is not None, err
    assert told[1] == told[2]
    job = burla.attach(told[1])
    assert job.status == "done" and job.results() == [x * 2 for x in range(20)]


def test_an_attached_job_that_was_done_is_forgotten_and_one_that_failed_is_not():
    before = ids()
    assert remote_parallel_map(lambda x: x, range(3)) == [0, 1, 2]
    assert list(remote_parallel_map(lambda x: x, range(3), generator=True))
    wait_until(lambda: ids() == before, what="the end of what nobody wants")

    with pytest.raises(ZeroDivisionError) as caught:
        remote_parallel_map(lambda x: 1 // x, [1, 0])
    assert ids() - before == {caught.value.burla_job.id}


def test_an_interrupt_before_it_is_safe_cancels_the_job_and_says_why(scripts: Scripts):
    before = ids()
    script = scripts.start(
        """
        import burla, time

        def inputs():
            for i in range(5000):
                yield i.to_bytes(2, "big") * 500
            print("half", flush=True)
            time.sleep(60)

        try:
            burla.remote_parallel_map(len, inputs(), detach=True)
        except KeyboardInterrupt as error:
            print(error.__notes__)
        """
    )
    assert script.stdout.readline() == "half\n"
    wait_until(lambda: len(ids() - before) == 1, what="the job that receives inputs")
    script.send_signal(signal.SIGINT)
    out, err = script.communicate(timeout=30)
    assert out == f"{[CANCELLED.strip()]}\n" and err == CANCELLED
    wait_until(lambda: ids() == before, what="the end of the job")


def test_an_error_before_it_is_safe_cancels_the_job_and_says_why(capfd: pytest.CaptureFixture[str]):
    before = ids()

    def inputs() -> Iterator[bytes]:
        for i in range(3000):
            yield i.to_bytes(2, "big") * 500
        raise LookupError("no more")

    for begin in (lambda: remote_parallel_map(len, inputs(), detach=True), lambda: burla.submit(len, inputs())):
        with pytest.raises(LookupError, match="no more") as caught:
            begin()
        assert caught.value.__notes__ == [CANCELLED.strip()]
    assert capfd.readouterr().err == ""
    wait_until(lambda: ids() == before, what="the end of the jobs")


WAITING = """
import os, sys, time
import burla

def call(x, gate=sys.argv[1], ledger=sys.argv[2]):
    fd = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{x}\\n".encode())
    os.close(fd)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return x
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupt_leaves_a_detached_job_alone_and_says_where_it_goes_on(
    name: str, scripts: Scripts, gate: Gate, ledger: Ledger
):
    script = scripts.start(
        WAITING
        + """
try:
    burla.remote_parallel_map(call, range(4), detach=True)
except KeyboardInterrupt as error:
    print("KeyboardInterrupt", error.burla_job.id, error.burla_results)
""",
        str(gate.path),
        str(ledger.path),
    )
    wait_until(lambda: len(ledger.entries()) == 2, 30, "two calls")
    script.send_signal(getattr(signal, name))
    out, err = script.communicate(timeout=30)
    told = re.fullmatch(SAFE.pattern + GOES_ON.pattern, err)
    assert told is not None, err
    assert len(set(told.groups())) == 1
    assert out == f"KeyboardInterrupt {told[1]} {{}}\n"
    job = burla.attach(told[1])
    assert job.status == "running"
    wait_until(lambda: job.progress.running == 2, what="two running calls")
    gate.open()
    assert job.results(timeout_s=30) == [0, 1, 2, 3]
    assert sorted(ledger.entries()) == ["0", "1", "2", "3"]


def test_closing_its_generator_leaves_a_detached_job_alone_quietly(gate: Gate, capfd: pytest.CaptureFixture[str]):
    results = remote_parallel_map(gate.guarding(lambda x: x == 1), range(3), detach=True, generator=True)
    assert next(results) in (0, 2)
    told = SAFE.fullmatch(capfd.readouterr().err)
    assert told is not None
    results.close()
    assert capfd.readouterr().err == ""
    job = burla.attach(told[1])
    assert job.status == "running"
    gate.open()
    assert job.results(timeout_s=30) == [0, 1, 2]


# jobs of this process -------------------------------------------------------------------------------------------------


def test_the_job_of_an_error_can_be_read_and_retried(ledger: Ledger):
    write = ledger.writer()

    def make(fixed: bool):
        def call(x: int) -> int:
            write(x)
            if x == 2 and not fixed:
                raise ValueError("two")
            return x * 10

        return call

    with pytest.raises(ValueError, match="two") as caught:
        remote_parallel_map(make(False), range(4), max_parallelism=1)
    job = caught.value.burla_job
    assert isinstance(job, burla.Job) and job.status == "failed"
    assert [(one.type_name, one.inputs) for one in job.errors()] == [("ValueError", (2,))]
    done = caught.value.burla_results
    assert done == {0: 0, 1: 10}
    retried = job.retry_failed(make(True))
    assert retried.results() == [0, 10, 20, 30] and retried.id != job.id
    assert sorted(ledger.entries()) == ["0", "1", "2", "2", "3"]


def test_an_interrupted_attached_job_is_cancelled_and_can_be_retried(gate: Gate, ledger: Ledger, scripts: Scripts):
    script = scripts.start(
        WAITING
        + """
import threading

def tell():
    while burla.current_job() is None:
        time.sleep(0.01)
    print("running", flush=True)

threading.Thread(target=tell).start()
try:
    burla.remote_parallel_map(call, range(4))
except KeyboardInterrupt as error:
    print(error.burla_job.id, error.burla_job.status)
""",
        str(gate.path),
        str(ledger.path),
    )
    assert script.stdout.readline() == "running\n"
    script.send_signal(signal.SIGINT)
    out, err = script.communicate(timeout=30)
    assert err == ""
    job_id, status = out.split()
    assert status == "cancelled"
    gate.open()
    assert burla.attach(job_id).retry_failed().results(timeout_s=30) == [0, 1, 2, 3]


def test_a_running_job_is_detached_from_another_thread(scripts: Scripts, gate: Gate, ledger: Ledger):
    script = scripts.start(
        WAITING
        + """
import signal, threading

def detach():
    while burla.current_job() is None:
        time.sleep(0.01)
    job = burla.current_job()
    job.detach()
    print(job.id, flush=True)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=detach).start()
try:
    burla.remote_parallel_map(call, range(4))
except KeyboardInterrupt:
    print("KeyboardInterrupt", burla.current_job(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""",
        str(gate.path),
        str(ledger.path),
    )
    out, err = script.communicate(timeout=30)
    job_id, interrupted = out.splitlines()
    assert interrupted == "KeyboardInterrupt None" and GOES_ON.fullmatch(err), err
    gate.open()
    assert burla.attach(job_id).results(timeout_s=30) == [0, 1, 2, 3]


def test_the_current_job_is_the_one_of_this_thread_else_the_newest(gate: Gate):
    assert burla.current_job() is None
    mine = remote_parallel_map(gate.guarding(lambda x: True), range(2), generator=True)
    here = burla.current_job()
    assert here is not None and here.status in ("waiting", "running")
    began, seen = threading.Event(), []

    def other() -> None:
        theirs = remote_parallel_map(gate.guarding(lambda x: True), range(2), generator=True)
        seen.append(burla.current_job())
        began.set()
        assert sorted(theirs) == [0, 1]

    thread = threading.Thread(target=other)
    thread.start()
    assert began.wait(30)
    assert seen[0].id != here.id
    again = burla.current_job()
    assert again is not None and again.id == here.id, "of this thread, though it is the older one"
    third: list[str] = []
    watcher = threading.Thread(target=lambda: third.append(burla.current_job().id))  # type: ignore[union-attr]
    watcher.start()
    watcher.join()
    assert third == [seen[0].id]
    gate.open()
    assert sorted(mine) == [0, 1]
    thread.join(30)
    assert burla.current_job() is None


def test_a_forked_process_has_no_current_job(gate: Gate):
    results = remote_parallel_map(gate.guarding(lambda x: True), range(2), generator=True)
    assert burla.current_job() is not None
    pid = os.fork()
    if pid == 0:
        os._exit(0 if burla.current_job() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    gate.open()
    assert sorted(results) == [0, 1]
