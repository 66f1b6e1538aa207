"""The result of a call: a list in the order of the inputs, or a generator in the order in which calls end."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from burla import remote_parallel_map
from tests.conftest import Home, Ledger, Scripts, wait_until


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that calls wait for; made at the end in any case."""
    path = tmp_path / "gate"
    yield path
    path.touch()


def make_waiting(gate: Path, waits: Callable[[int], bool]) -> Callable[[int], int]:
    """Return a function for calls: some of them wait for the gate."""
    path = str(gate)

    def work(x: int) -> int:
        import os
        import time

        until = time.monotonic() + 20
        while waits(x) and not os.path.exists(path):
            assert time.monotonic() < until, "nobody opened the gate"
            time.sleep(0.005)
        return x

    return work


# lists ----------------------------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_inputs():
    def late_first(x: int) -> int:
        import time

        time.sleep(0.2 if x == 0 else 0)
        return x * 2

    assert remote_parallel_map(late_first, range(20)) == [x * 2 for x in range(20)]


def test_a_quarter_of_a_million_results_are_in_order():
    assert remote_parallel_map(lambda x: -x, range(250_000)) == [-x for x in range(250_000)]


def test_results_of_all_kinds_and_sizes_are_in_order():
    def make(i: int) -> Any:
        import numpy as np

        kinds = [None, i, "é" * i, b"x" * (i * 50_000), {"i": [i]}, np.arange(i), {i, -i}, (i, i), [None] * i]
        return kinds[i % len(kinds)]

    for back, there in zip(remote_parallel_map(make, range(60)), map(make, range(60)), strict=True):
        assert type(back) is type(there)
        assert np.array_equal(back, there) if isinstance(there, np.ndarray) else back == there


def test_the_result_is_a_list_of_its_own():
    results = remote_parallel_map(lambda x: [], range(3))
    assert type(results) is list and results == [[], [], []]
    results[0].append(1)
    assert results == [[1], [], []]


# generators: when -----------------------------------------------------------------------------------------------------


def test_a_generator_yields_each_result_as_soon_as_its_call_is_done(gate: Path):
    """In the order in which calls end: the first input's waits until the others are here."""
    results = remote_parallel_map(make_waiting(gate, lambda x: x == 0), range(10), generator=True)
    assert isinstance(results, types.GeneratorType)
    assert sorted(next(results) for _ in range(9)) == list(range(1, 10))
    gate.touch()
    assert list(results) == [0]


def test_a_long_call_holds_up_no_result_of_those_before_it(gate: Path):
    """Quick calls run many at a time, and a long one may be among them."""
    results = remote_parallel_map(make_waiting(gate, lambda x: x == 1500), range(3000), generator=True)
    assert sorted(next(results) for _ in range(2999)) == [x for x in range(3000) if x != 1500]
    gate.touch()
    assert list(results) == [1500]


def test_output_is_not_cut_and_subprocesses_live_when_a_long_call_is_noticed(
    gate: Path, capfd: pytest.CaptureFixture[str]
):
    """It is then that its child is asked for the results before it."""
    path = str(gate)

    def work(x: int) -> int:
        import os
        import subprocess
        import time

        if x == 1500:
            print("half a ", end="", flush=True)
            until = time.monotonic() + 20
            subprocess.run(f"while ! test -e {path}; do sleep 0.02; done", shell=True, check=True, timeout=20)
            while not os.path.exists(path):
                assert time.monotonic() < until
            print("line")
        return x

    results = remote_parallel_map(work, range(3000), generator=True)
    assert len({next(results) for _ in range(2999)} - {1500}) == 2999
    assert capfd.readouterr().out == ""
    gate.touch()
    assert list(results) == [1500]
    assert capfd.readouterr().out == "half a line\n"


def test_calls_whose_results_came_early_do_not_run_again_when_the_long_one_crashes(gate: Path, ledger: Ledger):
    write, path = ledger.writer(), str(gate)

    def work(x: int) -> int:
        import os
        import time

        write(x)
        if x == 1500:
            while not os.path.exists(path):
                time.sleep(0.01)
            if not os.path.exists(path + " crashed"):
                open(path + " crashed", "w").close()
                os._exit(1)
        return x

    results = remote_parallel_map(work, range(3000), generator=True)
    got = [next(results) for _ in range(2999)]
    gate.touch()
    assert sorted([*got, *results]) == list(range(3000))
    assert sorted(map(int, ledger.entries())) == sorted([*range(3000), 1500])


def test_a_call_after_each_other_is_yielded_one_by_one(gate: Path):
    """The next call, in the same slot, goes on only when the result before it is here."""
    folder = str(gate.parent)

    def work(x: int) -> int:
        import os
        import time

        until = time.monotonic() + 20
        while x and not os.path.exists(f"{folder}/got {x - 1}"):
            assert time.monotonic() < until, f"result {x - 1} did not come while call {x} runs"
            time.sleep(0.005)
        return x

    got = []
    for x in remote_parallel_map(work, range(8), max_parallelism=1, generator=True):
        got.append(x)
        (gate.parent / f"got {x}").touch()
    assert got == list(range(8))


def test_the_job_starts_at_the_call_not_at_the_first_next(ledger: Ledger):
    write = ledger.writer()

    def work(x: int) -> int:
        write(x)
        return x

    results = remote_parallel_map(work, range(200), generator=True)
    wait_until(lambda: len(ledger.entries()) == 200, what="all calls, with nobody asking for results,")
    assert sorted(results) == list(range(200))


def test_a_generator_gives_every_result_once():
    assert sorted(remote_parallel_map(lambda x: x, range(20_000), generator=True)) == list(range(20_000))


def test_results_come_before_the_exception_that_ends_the_job(gate: Path):
    path = str(gate)

    def work(x: int) -> int:
        import os
        import time

        while x == 5 and not os.path.exists(path):
            time.sleep(0.005)
        if x == 5:
            raise LookupError("five")
        return x

    results = remote_parallel_map(work, range(6), generator=True)
    got = [next(results) for _ in range(5)]
    gate.touch()
    with pytest.raises(LookupError, match="five") as caught:
        next(results)
    assert sorted(got) == [0, 1, 2, 3, 4]
    assert caught.value.burla_input_index == 5  # type: ignore[attr-defined]
    assert list(results) == []


def test_results_of_quick_calls_come_before_the_exception_of_the_next():
    def work(x: int) -> int:
        if x == 900:
            raise LookupError("nine hundred")
        return x

    results = remote_parallel_map(work, range(1000), max_parallelism=1, generator=True)
    got: list[int] = []
    with pytest.raises(LookupError):
        got.extend(results)
    assert got[:900] == list(range(900)) and 900 not in got


def test_an_exception_does_not_wait_for_a_long_call_after_it(gate: Path):
    waiting = make_waiting(gate, lambda x: x > 1500)

    def work(x: int) -> int:
        if x == 1500:
            raise LookupError("1500")
        return waiting(x)

    began = time.monotonic()
    with pytest.raises(LookupError):
        remote_parallel_map(work, range(3000), max_parallelism=1)
    assert time.monotonic() - began < 15  # the long call gives up after 20


def test_two_generators_at_once_do_not_mix():
    first = remote_parallel_map(lambda x: x, range(50), generator=True)
    second = remote_parallel_map(lambda x: -x, range(1, 51), generator=True)
    pairs = list(zip(first, second, strict=True))
    assert sorted(a for a, _ in pairs) == list(range(50))
    assert sorted(-b for _, b in pairs) == list(range(1, 51))


def test_a_generator_may_be_read_in_another_thread():
    results = remote_parallel_map(lambda x: x, range(100), generator=True)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(results))
    thread.start()
    thread.join(60)
    assert sorted(got) == list(range(100))


# generators: closed early ---------------------------------------------------------------------------------------------


def leave_by_close(results: Iterator[int]) -> None:
    next(results)
    results.close()  # type: ignore[attr-defined]


def leave_before_the_first(results: Iterator[int]) -> None:
    results.close()  # type: ignore[attr-defined]


def leave_by_break(results: Iterator[int]) -> None:
    for _ in results:
        break


def leave_by_an_exception(results: Iterator[int]) -> None:
    def read() -> None:
        for _ in results:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()


@pytest.mark.parametrize("leave", [leave_by_close, leave_before_the_first, leave_by_break, leave_by_an_exception])
def test_a_generator_that_is_closed_or_dropped_stops_the_job(ledger: Ledger, leave: Callable[[Iterator[int]], None]):
    write = ledger.writer()

    def work(x: int) -> int:
        import os
        import time

        write(f"{os.getpid()} {x}")
        time.sleep(0.02)
        return x

    results = remote_parallel_map(work, range(100_000), generator=True)
    wait_until(lambda: len(ledger.entries()) > 3, what="calls")
    leave(results)
    del results
    gc.collect()
    entries = ledger.entries()
    pids = {int(entry.split()[0]) for entry in entries}
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the end of the children")
    assert remote_parallel_map(abs, [-1]) == [1]
    assert ledger.entries() == entries


def test_no_call_runs_any_more_when_close_returns(ledger: Ledger):
    write = ledger.writer()

    def work(x: int) -> None:
        import time

        try:
            write("begun")
            time.sleep(60)
        finally:
            write("ended")  # as by Ctrl-C: clean-up runs

    results = remote_parallel_map(work, range(10), generator=True)
    wait_until(lambda: ledger.entries() == ["begun"] * 2, what="two calls")
    results.close()
    assert ledger.entries() == ["begun"] * 2 + ["ended"] * 2


def test_a_generator_read_to_its_end_is_just_over():
    results = remote_parallel_map(abs, [-1], generator=True)
    assert list(results) == [1]
    results.close()
    assert list(results) == []


# generators: memory ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_slow_consumer_does_not_fill_memory(own_home: Home, scripts: Scripts):
    """All calls are done, with 80 MB of results and 80 MB of output, before the second result is asked for."""
    process = scripts.start(
        """
        import os, resource, sys
        from burla import remote_parallel_map

        folder = sys.path[0]

        def work(x):
            print("x" * 100_000)
            fd = os.open(folder + "/ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, b".")
            os.close(fd)
            return bytes([x % 256]) * 100_000

        def grown_mb():
            return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        results = remote_parallel_map(work, range(800), generator=True)
        next(results)
        input()
        waiting = grown_mb()
        count = 1 + sum(len(one) == 100_000 for one in results)
        print(count, waiting, grown_mb(), file=sys.stderr)
        """,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    ledger = scripts.folder / "ledger"
    wait_until(lambda: ledger.exists() and ledger.stat().st_size == 800, 60, "all calls")
    peaks = {name: peak_mb(own_home.processes()[name].pid) for name in ("head", "node")}
    _, err = process.communicate("go\n", timeout=60)
    count, waiting, at_the_end = map(float, err.split())
    assert count == 800
    assert waiting < 60 and at_the_end < 80
    assert peaks["head"] < 140 and peaks["node"] < 120  # 60 of each are what they import


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000
