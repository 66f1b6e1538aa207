"""A call that ends its process: tried again alone, then blamed; the calls beside it are neither harmed nor blamed."""

from __future__ import annotations

import signal

import pytest

from burla import WorkerCrashed, remote_parallel_map
from tests.conftest import Ledger

EXECUTIONS = 3  # the first, and two retries


@pytest.mark.parametrize(
    ("statement", "signal_number", "exit_code", "told"),
    [
        ("import ctypes; ctypes.string_at(0)", signal.SIGSEGV, None, "SIGSEGV"),
        ("import os; os.abort()", signal.SIGABRT, None, "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL, None, "SIGKILL"),
        ("import os; os._exit(7)", None, 7, "exited with code 7"),
        ("import os; os._exit(0)", None, 0, "exited with code 0"),
    ],
)
def test_a_call_that_always_ends_its_process_runs_three_times_and_is_named(
    statement: str, signal_number: int | None, exit_code: int | None, told: str, ledger: Ledger
):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import time
        from pathlib import Path

        write(f"ran {x}")
        if x == 3:
            while len({line for line in Path(entries).read_text().splitlines() if line.startswith("ran")}) < 8:
                time.sleep(0.01)
            time.sleep(0.3)  # until the results of the others have left their child
            exec(statement)
        return x * x

    with pytest.raises(WorkerCrashed) as caught:
        remote_parallel_map(call, range(8))
    error = caught.value
    assert (error.index, error.burla_input_index) == (3, 3)
    assert (error.signal, error.exit_code, error.attempts) == (signal_number, exit_code, EXECUTIONS)
    assert "input 3" in str(error) and told in str(error)
    assert error.burla_results == {x: x * x for x in range(8) if x != 3}
    assert ledger.entries().count("ran 3") == EXECUTIONS


def test_a_crash_that_happens_once_is_tried_again_and_nobody_notices(ledger: Ledger, capfd: pytest.CaptureFixture[str]):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import os
        from pathlib import Path

        write(f"ran {x}")
        if x == 5 and Path(entries).read_text().splitlines().count("ran 5") == 1:
            os._exit(1)
        return x * x

    assert remote_parallel_map(call, range(10)) == [x * x for x in range(10)]
    assert ledger.entries().count("ran 5") == 2
    assert capfd.readouterr() == ("", "")


def test_a_call_that_crashes_twice_has_its_third_chance(ledger: Ledger):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import os
        import signal
        from pathlib import Path

        write("ran")
        if Path(entries).read_text().count("ran") < 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert remote_parallel_map(call, [1]) == [1]
    assert ledger.entries() == ["ran"] * EXECUTIONS


def test_crashes_of_many_calls_do_not_add_up(ledger: Ledger):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import os
        from pathlib import Path

        write(f"ran {x}")
        if Path(entries).read_text().splitlines().count(f"ran {x}") == 1:
            os._exit(1)
        return x

    assert remote_parallel_map(call, range(12)) == list(range(12))


def test_a_result_that_a_call_returned_before_another_crashed_in_its_process_is_not_lost(ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import os

        write(f"ran {x}")
        if x == 6:
            os._exit(1)
        return x

    results = remote_parallel_map(call, range(7), max_parallelism=1, generator=True)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(WorkerCrashed) as caught:
        next(results)
    assert caught.value.index == 6


def test_what_a_call_printed_before_it_crashed_is_shown(capfd: pytest.CaptureFixture[str]):
    def call(x: int) -> None:
        import ctypes

        print("last words")
        ctypes.string_at(0)

    with pytest.raises(WorkerCrashed):
        remote_parallel_map(call, [0])
    assert capfd.readouterr().out == "last words\n" * EXECUTIONS


def test_a_function_that_crashes_its_process_when_it_is_loaded_is_an_error():
    class Poison:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("import os; os._exit(9)",)

    poison = Poison()

    def call(x: int) -> object:
        return poison

    with pytest.raises(WorkerCrashed) as caught:
        remote_parallel_map(call, [0, 1])
    assert caught.value.exit_code == 9


def test_the_next_job_finds_the_cluster_well():
    def crash(x: int) -> None:
        import os

        os._exit(1)

    with pytest.raises(WorkerCrashed):
        remote_parallel_map(crash, range(4))
    assert remote_parallel_map(abs, range(-20, 0)) == list(range(20, 0, -1))
