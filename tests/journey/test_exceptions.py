"""What a call raises is raised here, promptly, and says where it came from."""

from __future__ import annotations

import dataclasses
import inspect
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burla import CallExited, RemoteError, ResultNotPicklable, remote_parallel_map
from tests.conftest import Ledger, Scripts

PROMPTLY_S = 5


def raised(function: Callable[..., Any], inputs: Any = (0,), **options: Any) -> Any:
    try:
        remote_parallel_map(function, inputs, **options)
    except BaseException as error:  # noqa: BLE001
        return error
    pytest.fail("nothing was raised")


# the same exception ---------------------------------------------------------------------------------------------------


def test_an_exception_has_the_type_the_arguments_the_attributes_the_cause_and_the_notes_it_was_raised_with():
    class Rejected(ValueError):
        pass

    def check(x: int) -> int:
        if x == 3:
            try:
                return {}["missing"]
            except KeyError as missing:
                rejected = Rejected("too much", x)
                rejected.limit = {"GB": 4}
                rejected.add_note("ask for less")
                raise rejected from missing
        return x

    error = raised(check, range(5))
    assert type(error) is Rejected
    assert error.args == ("too much", 3)
    assert error.limit == {"GB": 4}
    assert type(error.__cause__) is KeyError and error.__cause__.args == ("missing",)
    assert error.__notes__ == ["ask for less", "burla: raised by the call of input 3"]
    assert error.burla_input_index == 3


def test_an_exception_of_a_coroutine_is_raised():
    async def fail(x: int) -> None:
        import asyncio

        await asyncio.sleep(0)
        raise LookupError(x)

    error = raised(fail, [7])
    assert type(error) is LookupError and error.args == (7,)


def test_classes_with_an_awkward_init_arrive():
    class Keywords(Exception):
        def __init__(self, message: str, *, code: int):
            super().__init__(f"{message} ({code})")
            self.code = code

    class TwoForOne(Exception):
        def __init__(self, one: int, two: int):
            super().__init__(one + two)
            self.one, self.two = one, two

    class Calculates(Exception):
        def __init__(self, number: int):
            super().__init__(f"half is {number / 2}")  # cannot be made from its own args
            self.number = number

    def fail(kind: str) -> None:
        raise {"k": lambda: Keywords("no", code=4), "t": lambda: TwoForOne(1, 2), "c": lambda: Calculates(3)}[kind]()

    keywords, two_for_one, calculates = (raised(fail, [kind]) for kind in "ktc")
    assert (type(keywords), keywords.args, keywords.code) == (Keywords, ("no (4)",), 4)
    assert (type(two_for_one), two_for_one.args, two_for_one.one, two_for_one.two) == (TwoForOne, (3,), 1, 2)
    assert (type(calculates), calculates.args, calculates.number) == (Calculates, ("half is 1.5",), 3)


def test_an_exception_that_refuses_new_attributes_arrives():
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        code: int

    def fail(x: int) -> int:
        if x == 2:
            raise Frozen(5)
        return x

    error = raised(fail, range(3), max_parallelism=1)
    assert type(error) is Frozen and error.code == 5
    assert (error.burla_input_index, error.burla_results) == (2, {0: 0, 1: 1})


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_exceptions_that_mean_something_to_generators_arrive(kind: type[Exception]):
    def fail(x: int) -> None:
        raise kind("at the end")

    error = raised(fail)
    assert type(error) is kind and error.args == ("at the end",)
    assert error.burla_input_index == 0


def test_an_exception_that_holds_a_lock_arrives_with_all_else_that_it_holds():
    class Busy(Exception):
        pass

    def fail(x: int) -> None:
        import threading

        busy = Busy("busy", threading.Lock())
        busy.lock, busy.tries = threading.Lock(), 3
        raise busy

    error = raised(fail)
    assert type(error) is Busy
    assert error.args[0] == "busy" and "lock" in error.args[1]
    assert error.tries == 3 and not hasattr(error, "lock")
    assert any("'lock'" in note and "could not be sent" in note for note in error.__notes__)


def test_an_exception_of_a_class_that_exists_only_there_is_described(tmp_path: Path):
    (tmp_path / "only_there.py").write_text("class Special(Exception):\n    pass\n")

    def fail(folder: str) -> None:
        import sys

        sys.path.insert(0, folder)
        import only_there  # pyright: ignore[reportMissingImports]

        raise only_there.Special("of this kind")

    error = raised(fail, [str(tmp_path)])
    assert isinstance(error, RemoteError)
    assert error.type_name == "only_there.Special"
    assert "only_there.Special: of this kind" in str(error)
    assert "in fail" in error.traceback and "raise only_there.Special" in error.traceback
    assert error.burla_input_index == 0


def test_an_exception_of_a_class_that_cannot_be_sent_is_described():
    def fail(x: int) -> None:
        import threading

        class Special(Exception):
            lock = threading.Lock()

        raise Special("of this kind")

    error = raised(fail)
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith("Special") and "of this kind" in str(error)
    assert "in fail" in error.traceback


def test_an_exception_group_arrives_with_its_members():
    def fail(x: int) -> None:
        raise ExceptionGroup("two", [ValueError(1), ExceptionGroup("inner", [KeyError("k")])])

    error = raised(fail)
    assert isinstance(error, ExceptionGroup) and error.message == "two"
    assert repr(error.exceptions) == "(ValueError(1), ExceptionGroup('inner', [KeyError('k')]))"
    assert error.burla_input_index == 0


@pytest.mark.parametrize(
    ("statement", "type_name", "code"),
    [
        ("raise SystemExit(3)", "SystemExit", 3),
        ("import sys; sys.exit('enough')", "SystemExit", "enough"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", None),
        ("raise GeneratorExit", "GeneratorExit", None),
        ("import asyncio; raise asyncio.CancelledError('x')", "asyncio.exceptions.CancelledError", None),
        ("raise BaseExceptionGroup('both', [SystemExit(1), ValueError(2)])", "BaseExceptionGroup", None),
    ],
)
def test_what_would_end_a_program_ends_the_call_with_an_ordinary_error(statement: str, type_name: str, code: Any):
    def leave(x: int) -> int:
        if x == 1:
            exec(statement)
        return x

    error = raised(leave, [0, 1], max_parallelism=1)
    assert isinstance(error, CallExited)
    assert (error.type_name, error.code, error.burla_input_index) == (type_name, code, 1)
    assert error.burla_results == {0: 0}
    assert "input 1" in str(error) and type_name in str(error)
    assert remote_parallel_map(abs, [-1]) == [1]


def test_a_result_that_cannot_be_pickled_is_named_with_its_input():
    def lock(x: int) -> Any:
        import threading

        return {"number": x, "lock": threading.Lock()} if x == 2 else x

    error = raised(lock, range(4), max_parallelism=1)
    assert isinstance(error, ResultNotPicklable) and isinstance(error, TypeError)
    assert error.index == error.burla_input_index == 2
    assert "input 2" in str(error) and "_thread.lock" in str(error)
    assert error.burla_results == {0: 0, 1: 1}


# where it came from ---------------------------------------------------------------------------------------------------


def test_the_traceback_ends_with_the_frames_of_the_call():
    def outer(x: int) -> None:
        inner(x)

    def inner(x: int) -> None:
        raise ValueError(x)

    error = raised(outer, [5])
    frames = traceback.extract_tb(error.__traceback__)
    _, first = inspect.getsourcelines(outer)
    assert [(frame.filename, frame.name, frame.line) for frame in frames[-2:]] == [
        (__file__, "outer", "inner(x)"),
        (__file__, "inner", "raise ValueError(x)"),
    ]
    assert frames[-2].lineno == first + 1
    assert not any(frame.filename.endswith("child.py") for frame in frames)


def test_a_script_that_does_not_catch_it_shows_the_failing_line(scripts: Scripts):
    done = scripts.run(
        """\
        from burla import remote_parallel_map


        def halve(x):
            return invert(x) / 2


        def invert(x):
            return 1 / x


        print("before")
        remote_parallel_map(halve, [4, 2, 0])
        print("after")
        """,
        name="halves.py",
    )
    assert (done.returncode, done.stdout) == (1, "before\n")
    text = re.sub(r"^ *[\^~]+\n", "", done.stderr, flags=re.MULTILINE)
    path = scripts.folder / "halves.py"
    assert text.startswith("Traceback (most recent call last):\n")
    assert f'File "{path}", line 13, in <module>\n    remote_parallel_map(halve, [4, 2, 0])\n' in text
    assert text.endswith(
        f'  File "{path}", line 5, in halve\n    return invert(x) / 2\n'
        f'  File "{path}", line 9, in invert\n    return 1 / x\n'
        "ZeroDivisionError: division by zero\nburla: raised by the call of input 2\n"
    )


# what was finished ----------------------------------------------------------------------------------------------------


def test_results_that_were_finished_are_on_the_exception():
    def fail_at_3(x: int) -> str:
        if x == 3:
            raise ValueError(x)
        return f"result {x}"

    error = raised(fail_at_3, range(10), max_parallelism=1)
    assert error.burla_results == {0: "result 0", 1: "result 1", 2: "result 2"}
    assert raised(fail_at_3, [3]).burla_results == {}


def test_a_generator_yields_what_was_finished_and_then_raises():
    def fail_at_3(x: int) -> int:
        if x == 3:
            raise ValueError(x)
        return x

    results = remote_parallel_map(fail_at_3, range(10), max_parallelism=1, generator=True)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3") as caught:
        next(results)
    assert caught.value.burla_input_index == 3
    assert list(results) == []


# promptly -------------------------------------------------------------------------------------------------------------


def test_the_first_failure_stops_the_other_calls_and_starts_no_more(ledger: Ledger):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> None:
        import time
        from pathlib import Path

        write(f"start {x}")
        if x == 0:
            while "start 1" not in Path(entries).read_text():
                time.sleep(0.01)
            write("fail")
            raise ValueError("first")
        try:
            for _ in range(6000):
                write("runs")
                time.sleep(0.01)
        finally:
            write(f"cleaned up {x}")

    error = raised(call, range(50))
    at_the_raise = ledger.entries()
    assert error.args == ("first",) and error.burla_results == {}
    assert {entry for entry in at_the_raise if entry.startswith("start")} == {"start 0", "start 1"}
    assert at_the_raise[-1] == "cleaned up 1"
    time.sleep(0.3)
    assert ledger.entries() == at_the_raise


def test_a_call_that_does_not_let_itself_be_interrupted_is_ended(ledger: Ledger):
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> None:
        import time
        from pathlib import Path

        if x == 0:
            while not Path(entries).exists():
                time.sleep(0.01)
            write(f"fail {time.time()}")
            raise ValueError("first")
        while True:
            try:
                while True:
                    write("runs")
                    time.sleep(0.01)
            except BaseException:  # noqa: BLE001
                write("stubborn")

    error = raised(call, [0, 1])
    at_the_raise, now = ledger.entries(), time.time()
    (failed,) = (float(entry.split()[1]) for entry in at_the_raise if entry.startswith("fail"))
    assert error.args == ("first",)
    assert "stubborn" in at_the_raise
    assert now - failed < PROMPTLY_S
    time.sleep(0.3)
    assert ledger.entries() == at_the_raise
