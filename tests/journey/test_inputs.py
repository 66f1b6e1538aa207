"""What may be passed, how it becomes arguments, and that each input runs exactly once."""

from __future__ import annotations

import collections
import hashlib
import io
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from burla import ArgumentMismatch, InputNotPicklable, InputTooBig, remote_parallel_map
from tests.conftest import Home, Ledger, Scripts, cluster_processes

Pair = collections.namedtuple("Pair", "a b")


class NoLength:
    """Has a `len` that raises, as tqdm does around a generator."""

    def __iter__(self) -> Iterator[int]:
        return iter((1, 2, 3))

    def __len__(self) -> int:
        raise TypeError("unknown")


class BySubscript:
    """Iterable by the old way alone."""

    def __getitem__(self, i: int) -> int:
        return (4, 5, 6)[i]


ITERABLES: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, "a", None, 2.5],
    "tuple": lambda: (1, 2, 3),
    "range": lambda: range(5, 50, 5),
    "generator": lambda: (x * x for x in range(10)),
    "iterator": lambda: iter([1, 2]),
    "map": lambda: map(str, range(3)),
    "numpy array": lambda: np.arange(5),
    "numpy rows": lambda: np.arange(6.0).reshape(3, 2),
    "pandas Series": lambda: pd.Series([1.5, None, 3.0], index=["a", "b", "c"]),
    "pandas dates": lambda: pd.Series(pd.date_range("2024-01-01", periods=3)),
    "dict": lambda: {"a": 1, "b": 2},
    "dict keys": lambda: {"a": 1, "b": 2}.keys(),
    "dict values": lambda: {"a": [1], "b": {2: 3}}.values(),
    "set": lambda: {1, 2, 3},
    "string": lambda: "añ☃",
    "bytes": lambda: b"abc",
    "deque": lambda: collections.deque([1, 2]),
    "file": lambda: io.StringIO("one\ntwo\n"),
    "no length": NoLength,
    "by subscript": BySubscript,
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_any_iterable_gives_a_call_for_each_element(kind: str):
    def describe(x: Any) -> tuple[str, str, int]:
        import os

        return type(x).__name__, repr(x), os.getpid()

    results = remote_parallel_map(describe, ITERABLES[kind]())
    assert [(name, shown) for name, shown, _ in results] == [(type(x).__name__, repr(x)) for x in ITERABLES[kind]()]
    assert all(pid != psutil.Process().pid for _, _, pid in results)


def test_a_tuple_is_unpacked_into_arguments():
    def show(*args: Any, last: Any = None) -> tuple[tuple[Any, ...], Any]:
        return args, last

    inputs = [(1, "a"), (), ((1, 2),), (None,), ([1, 2], {"last": 3})]
    assert remote_parallel_map(show, inputs) == [(one, None) for one in inputs]


def test_tuples_of_a_zip_and_of_dict_items_are_unpacked_and_defaults_hold():
    def power(base: int, exponent: int, plus: int = 1) -> int:
        return base**exponent + plus

    assert remote_parallel_map(power, zip([2, 3], [4, 2], strict=True)) == [17, 10]
    assert remote_parallel_map(power, {5: 2}.items()) == [26]
    assert remote_parallel_map(power, [(1, 1, 5), (2, 2)]) == [6, 5]


def test_nothing_but_a_tuple_is_unpacked():
    class Kind(tuple):
        pass

    def show(x: Any) -> tuple[str, Any]:
        return type(x).__name__, x

    for one in ([1, 2], {"x": 1}, "ab", None, {1, 2}, b"ab", Pair(1, 2), Kind((1, 2)), frozenset({1}), range(2)):
        assert remote_parallel_map(show, [one]) == [(type(one).__name__, one)]
    array = remote_parallel_map(show, [np.arange(2)])[0][1]
    assert array.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("one", "facts"),
    [((1, 2, 3), ("3 values", "too many")), ((1,), ("1 value", "'b'")), ((), ("0 values", "'a'"))],
)
def test_a_tuple_that_does_not_fit_says_so_and_how_to_pass_it_whole(one: tuple[Any, ...], facts: tuple[str, ...]):
    def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ArgumentMismatch) as caught:
        remote_parallel_map(add, [(1, 2), one])
    message = str(caught.value)
    assert "input 1" in message and "add(a, b)" in message and "(your_tuple,)" in message
    assert all(fact in message for fact in facts)
    assert caught.value.index == 1 and caught.value.burla_input_index == 1
    assert isinstance(caught.value, TypeError)
    assert remote_parallel_map(sum, [((1, 2),)]) == [3]  # the way that the message shows


def test_only_a_mismatch_of_the_tuple_is_called_one():
    def add(a: int, b: int) -> int:
        return a + b

    def calls_wrongly(a: int, b: int) -> int:
        return add(a)  # type: ignore[call-arg]

    for function, one in ((calls_wrongly, (1, 2)), (add, Pair(1, 2)), (lambda a, b, c: a, Pair(1, 2)), (add, (1, "b"))):
        with pytest.raises(TypeError) as caught:
            remote_parallel_map(function, [one])
        assert type(caught.value) is TypeError


EMPTY = [
    list,
    tuple,
    dict,
    set,
    str,
    lambda: iter(()),
    lambda: (x for x in ()),
    lambda: range(0),
    lambda: np.array([]),
    lambda: pd.Series([], dtype=float),
]


@pytest.mark.parametrize("make", EMPTY)
def test_no_inputs_give_an_empty_list_at_once_with_no_cluster_started(
    own_home: Home, make: Callable[[], Iterable[Any]]
):
    lock = threading.Lock()
    assert remote_parallel_map(lambda x: (x, lock), make()) == []
    assert list(remote_parallel_map(print, make(), generator=True)) == []
    assert cluster_processes(own_home.environ) == []
    assert list(own_home.path.iterdir()) == []


# exactly once ---------------------------------------------------------------------------------------------------------


def test_equal_inputs_all_run(ledger: Ledger):
    write = ledger.writer()

    def work(x: int) -> int:
        write(x)
        return x

    assert remote_parallel_map(work, [7] * 300 + [8] * 5) == [7] * 300 + [8] * 5
    assert sorted(ledger.entries()) == ["7"] * 300 + ["8"] * 5
    remote_parallel_map(work, [7] * 10)
    assert len(ledger.entries()) == 315  # and again in the next job


def test_every_input_runs_exactly_once_whatever_its_call_takes(ledger: Ledger):
    """Long calls among quick ones: what waits behind them is taken back and runs elsewhere, and not twice."""
    write = ledger.writer()

    def work(x: int) -> int:
        import time

        write(x)
        time.sleep(0.12 if x % 101 == 0 else 0.004 if x % 10 == 0 else 0)
        return x

    assert remote_parallel_map(work, range(3000)) == list(range(3000))
    assert sorted(map(int, ledger.entries())) == list(range(3000))


def test_extra_inputs_run_as_slots_free_up(ledger: Ledger):
    """One call among many quick ones holds its slot until all others have run in the one that is left."""
    write, path = ledger.writer(), str(ledger.path)

    def work(x: int) -> int:
        import pathlib
        import time

        until = time.monotonic() + 30
        while x == 1500 and pathlib.Path(path).read_text().count("\n") < 2999:
            assert time.monotonic() < until, "others wait behind this call"
            time.sleep(0.02)
        write(x)
        return x

    assert remote_parallel_map(work, range(3000)) == list(range(3000))
    assert ledger.entries()[-1] == "1500"


# consumed and pickled before anything runs ----------------------------------------------------------------------------


def blobs(count: int) -> Iterator[bytes]:
    """Yield values of which 200 are a message of their own, so that the head has them before the last is made."""
    return (bytes([i % 256]) * 20_000 for i in range(count))


def slowly(inputs: list[Any]) -> Iterator[Any]:
    """Yield the inputs, and give calls time to run, if they could, before the last but 401."""
    for i, one in enumerate(inputs):
        if i == len(inputs) - 401:
            remote_parallel_map(abs, [-1])
        yield one


def test_inputs_are_consumed_wholly_before_the_first_call(ledger: Ledger):
    """Also when they are more than one message, and another job runs before the last is sent."""
    write = ledger.writer()

    def inputs() -> Iterator[bytes]:
        yield from blobs(250)
        remote_parallel_map(abs, [-1])
        yield from blobs(50)
        write("consumed")

    def work(data: bytes) -> int:
        write("call")
        return len(data)

    assert remote_parallel_map(work, inputs()) == [20_000] * 300
    assert ledger.entries() == ["consumed"] + ["call"] * 300


def culprit() -> Any:
    return {"where": [sqlite3.connect(":memory:")]}


@pytest.mark.parametrize("before", [3, 400])
@pytest.mark.parametrize("make", [list, iter, slowly])
def test_an_input_that_cannot_be_pickled_is_named_and_nothing_has_run(
    ledger: Ledger, before: int, make: Callable[[list[Any]], Iterable[Any]]
):
    write = ledger.writer()

    def work(x: Any) -> None:
        write("call")

    with pytest.raises(InputNotPicklable) as caught:
        remote_parallel_map(work, make([*blobs(before), culprit(), *blobs(400)]))
    assert caught.value.index == before and f"input {before}," in str(caught.value)
    assert "['where']" in caught.value.path and "sqlite3.Connection" in str(caught.value)
    assert remote_parallel_map(abs, [-1]) == [1]  # by now the first job would have run what it had
    assert ledger.entries() == []


@pytest.mark.parametrize("before", [0, 400])
def test_an_error_of_the_users_generator_is_raised_as_it_is_and_nothing_has_run(ledger: Ledger, before: int):
    write = ledger.writer()

    def inputs() -> Iterator[bytes]:
        yield from blobs(before)
        remote_parallel_map(abs, [-1])
        raise LookupError("no more pages")

    def work(x: bytes) -> None:
        write("call")

    with pytest.raises(LookupError, match="no more pages"):
        remote_parallel_map(work, inputs())
    assert ledger.entries() == []


@pytest.mark.parametrize("make", [list, iter])
def test_an_input_over_200_mb_is_named_and_nothing_has_run(ledger: Ledger, make: Callable[[list[Any]], Iterable[Any]]):
    write = ledger.writer()

    def work(x: bytes) -> None:
        write("call")

    with pytest.raises(InputTooBig) as caught:
        remote_parallel_map(work, make([b"small", b"small", bytes(201_000_000)]))
    error = caught.value
    assert error.index == 2 and error.limit_bytes == 200_000_000 and error.size_bytes > 201_000_000
    assert "input 2" in str(error) and "201.0 MB" in str(error) and "200.0 MB" in str(error)
    assert remote_parallel_map(abs, [-1]) == [1]
    assert ledger.entries() == []


@pytest.mark.slow
def test_an_input_just_under_200_mb_runs():
    assert remote_parallel_map(len, [bytes(199_000_000)]) == [199_000_000]


def test_a_buffer_that_is_used_again_gives_each_call_the_value_of_its_turn():
    def inputs() -> Iterator[Any]:
        array, row, numbers = np.zeros(1000), {"i": 0}, [0]
        for i in range(200):
            array[:] = i
            row["i"] = i
            numbers[0] = i
            yield (array, row, numbers)

    def work(array: Any, row: dict[str, int], numbers: list[int]) -> tuple[float, int, int]:
        return float(array.sum()) / 1000, row["i"], numbers[0]

    assert remote_parallel_map(work, inputs()) == [(i, i, i) for i in range(200)]


def test_what_a_call_does_to_its_input_stays_there():
    shared = [1]

    def work(x: list[int]) -> list[int]:
        x.append(2)
        return x

    assert remote_parallel_map(work, [shared] * 3, max_parallelism=1) == [[1, 2]] * 3
    assert shared == [1]


# large ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [1, 5, 20])
def test_large_values_arrive_and_return_whole(megabytes: int):
    def turn(data: bytes) -> tuple[str, bytes]:
        import hashlib

        return hashlib.sha1(data).hexdigest(), data[::-1]

    generator = np.random.default_rng(megabytes)
    inputs = [generator.bytes(megabytes * 1_000_000 + i) for i in range(3)]
    results = remote_parallel_map(turn, inputs)
    assert [digest for digest, _ in results] == [hashlib.sha1(data).hexdigest() for data in inputs]
    assert all(back == data[::-1] for data, (_, back) in zip(inputs, results, strict=True))


def test_large_and_small_values_mix():
    sizes = [10, 2_000_000, 0, 70_000, 5_000_000, 1, 64_000, 999_999, 1_000_001] * 3
    inputs = [np.full(size, i % 256, dtype=np.uint8) for i, size in enumerate(sizes)]
    for i, (sent, back) in enumerate(zip(inputs, remote_parallel_map(lambda x: x, inputs), strict=True)):
        assert np.array_equal(sent, back), i


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_inputs_do_not_pile_up_in_memory(own_home: Home, scripts: Scripts):
    """150 MB of inputs pass: neither this side nor the cluster holds them."""
    done = scripts.run(
        """
        import resource
        from burla import remote_parallel_map

        assert remote_parallel_map(len, [b"1"]) == [1]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        inputs = (bytes([i % 256]) * 250_000 for i in range(600))
        assert remote_parallel_map(len, inputs) == [250_000] * 600
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
        """,
        timeout_s=90,
    )
    assert done.stderr == ""
    assert float(done.stdout) < 60
    assert peak_mb(own_home, "head") < 180 and peak_mb(own_home, "node") < 150  # 60 of each are what they import


def peak_mb(home: Home, kind: str) -> float:
    status = open(f"/proc/{home.processes()[kind].pid}/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000
