"""`Job.follow`: a job shown here although another call, or another process, began it; and attached jobs of `submit`."""

from __future__ import annotations

import os
import signal

import pytest

import burla
from burla import views
from burla.display.progress import Progress
from tests.conftest import Ledger, Scripts, wait_until
from tests.jobs.conftest import Gate


def test_following_shows_a_job_from_its_first_line_to_its_end(capfd: pytest.CaptureFixture[str], gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> int:
        print("call", x)
        if x == 3:
            wait()
        return x

    job = burla.submit(call, range(4))
    wait_until(lambda: job.progress.done == 3, what="the first calls")
    gate.open()
    job.follow()
    assert sorted(capfd.readouterr().out.splitlines()) == [f"call {x}" for x in range(4)]
    assert job.status == "done"
    job.follow()
    assert len(capfd.readouterr().out.splitlines()) == 4, "as often as one likes"


def test_following_raises_the_first_failure_with_its_input_and_the_job():
    job = burla.submit(lambda x: 1 // x, [1, 0])
    with pytest.raises(ZeroDivisionError) as caught:
        job.follow()
    assert caught.value.burla_input_index == 1 and caught.value.burla_job is job


def test_following_from_a_thread_returns_at_once_and_raises_nothing(capfd: pytest.CaptureFixture[str], gate: Gate):
    wait = gate.waiter()

    def call(x: int) -> int:
        print("before", flush=True)
        wait()
        print("after", flush=True)
        return 1 // x

    job = burla.submit(call, [0])
    job.follow(wait=False)
    seen: list[str] = []

    def lines() -> list[str]:
        seen.extend(capfd.readouterr().out.splitlines())
        return seen

    wait_until(lambda: lines() == ["before"], what="the first line")
    gate.open()
    wait_until(lambda: lines() == ["before", "after"], what="the last line")
    assert "Traceback" not in capfd.readouterr().err


class Watcher:
    """A view that ticks, and keeps when it was updated, and with which phase."""

    ticks = True

    def __init__(self) -> None:
        self.updates: list[tuple[float, str]] = []

    def update(self, progress: Progress, now_s: float) -> None:
        self.updates.append((now_s, progress.phase))

    def ignore(self, *_: object, **__: object) -> None:
        pass

    begin = write = say = hide = close = ignore


def test_a_view_knows_the_job_from_the_start_and_is_updated_while_nothing_happens(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    job = burla.submit(gate.guarding(lambda x: True), [0])
    wait_until(lambda: job.progress.running == 1, what="the call")
    watcher = Watcher()
    monkeypatch.setattr(views, "make_view", lambda spinner: watcher)
    job.follow(wait=False)
    wait_until(lambda: len(watcher.updates) > 20, what="updates")
    gate.open()
    job.wait()
    assert {phase for _, phase in watcher.updates[:20]} == {"running"}
    assert watcher.updates[19][0] - watcher.updates[0][0] < 4


FOLLOWER = """
import burla, os, sys, time

def call(x):
    with open(LEDGER, "a") as file:
        file.write(f"{os.getpid()}\\n")
    print("begun")
    time.sleep(300)

LEDGER = sys.argv[1]
job = burla.submit(call, range(2), detach=sys.argv[2] == "detached")
print(job.id, flush=True)
job.follow()
"""


@pytest.mark.parametrize("kind", ["attached", "detached"])
def test_an_interrupt_while_following_stops_a_job_that_is_not_detached(scripts: Scripts, ledger: Ledger, kind: str):
    script = scripts.start(FOLLOWER, str(ledger.path), kind)
    assert script.stdout is not None
    job = burla.attach(script.stdout.readline().strip())
    assert [script.stdout.readline() for _ in range(2)] == ["begun\n"] * 2  # so it follows
    script.send_signal(signal.SIGINT)
    _, err = script.communicate(timeout=20)
    if kind == "detached":
        status = job.status
        job.cancel()  # before anything can fail: it would be in the way of other tests
        assert f"burla.attach('{job.id}')" in err and status == "running"
    assert "KeyboardInterrupt" in err
    assert job.status == "cancelled"
    for pid in map(int, ledger.entries()):
        wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"), what="the end of the calls")


def test_an_attached_job_ends_with_its_process_and_keeps_what_it_has_brought(scripts: Scripts, gate: Gate):
    script = scripts.start(
        """
        import burla, os, sys, time
        gate = sys.argv[1]
        def call(x):
            while x and not os.path.exists(gate):
                time.sleep(0.05)
            return x
        job = burla.submit(call, [0, 1], detach=False)
        print(job.id, flush=True)
        time.sleep(300)
        """,
        str(gate.path),
    )
    assert script.stdout is not None
    job = burla.attach(script.stdout.readline().strip())
    wait_until(lambda: job.progress.done == 1, what="the first result")
    script.kill()
    wait_until(lambda: job.status == "cancelled", 30, "the end of the job")
    with pytest.raises(burla.JobCancelled) as caught:
        job.results()
    assert caught.value.burla_results == {0: 0}


def test_calls_that_take_long_are_named_the_longest_first(gate: Gate):
    job = burla.submit(gate.guarding(lambda x: x in (1, 3)), range(6))
    wait_until(lambda: len(job._reader.look().slowest) == 2, 20, "what takes long")
    slowest = job._reader.look().slowest
    assert {index for index, _ in slowest} == {1, 3}
    assert slowest[0][1] >= slowest[1][1] > 1.0
    gate.open()
    job.wait(20)
    assert job._reader.look().slowest == ()


def test_calls_that_are_begun_again_are_counted(ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import os

        write(x)
        if x == 2:
            os.kill(os.getpid(), 9)
        return x

    job = burla.submit(call, range(4), on_error="continue")
    job.wait(30)
    assert job._reader.look().retries == 2
    assert ledger.entries().count("2") == 3


def test_the_parts_of_a_function_are_the_globals_that_travel_with_it():
    data, lock = bytes(1_000_000), 3
    assert burla.function_parts(lambda: (data, lock)).keys() == {"data", "lock"}
    assert burla.function_parts(lambda: data)["data"] > 1_000_000
    assert burla.function_parts(len) == {}


def test_a_part_that_cannot_travel_is_named():
    import threading

    lock = threading.Lock()
    with pytest.raises(burla.FunctionNotPicklable, match="lock"):
        burla.function_parts(lambda: lock)
