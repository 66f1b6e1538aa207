"""What is pickled here is loaded by a real child process wherever the two sides could differ."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla import errors, protocol, serialize, serialize_inputs

ROOT = Path(__file__).parent.parent

# what a child does with a function and blocks, as a program of its own, in a file, so that its frames can be stripped
CHILD = """
import pickle, sys
from burla import serialize

request = pickle.load(sys.stdin.buffer)
function = serialize.load_function(request["function"])
answers = []
for block in request["blocks"]:
    packer = serialize.ResultPacker(block.first)
    for index, item in enumerate(serialize.load_block(block.payload), block.first):
        value = serialize.load_value(item) if block.each else item
        try:
            packer.add(function(value))
        except BaseException as error:
            answers.append(serialize.dump_exception(error, index, (__file__,)))
    answers.append(packer.pack())
sys.stdout.buffer.write(pickle.dumps(answers))
"""

# what a script starts with: map_in_child(function, inputs) -> list of results, loaded exceptions last
CLIENT = """
import pickle, subprocess, sys
from burla import serialize, serialize_inputs

def map_in_child(function, inputs):
    request = {"function": serialize.dump_function(function), "blocks": list(serialize_inputs.pack_inputs(inputs))}
    command = [sys.executable, "child.py"]
    child = subprocess.run(command, input=pickle.dumps(request), stdout=subprocess.PIPE, check=True)
    results, raised = [], []
    for answer in pickle.loads(child.stdout):
        if isinstance(answer, bytes):
            raised.append(serialize.load_exception(answer))
        else:
            results += serialize.load_results(*answer)
    return results + raised
"""


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[[str], Any]:
    """Run a script as `python file.py`, with `map_in_child` at hand; what it gives to `tell` comes back."""

    def run(source: str) -> Any:
        (tmp_path / "child.py").write_text(CHILD)
        tell = "\ndef tell(value):\n    import json\n    open('told.json', 'w').write(json.dumps(value))\n"
        (tmp_path / "script.py").write_text(CLIENT + tell + source)
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "told.json").read_text())

    return run


def payload_bytes(block: protocol.Block) -> int:
    assert isinstance(block.payload, bytes)
    return len(block.payload)


def values_of(blocks: Iterable[protocol.Block]) -> list[Any]:
    values: list[Any] = []
    for block in blocks:
        assert isinstance(block.payload, bytes)
        assert block.first == len(values)
        items = serialize.load_block(block.payload)
        assert len(items) == block.count
        values += [serialize.load_value(item) for item in items] if block.each else items
    return values


# functions ------------------------------------------------------------------------------------------------------------


class Doubler:
    def __init__(self) -> None:
        self.lock: Any = None

    def __call__(self, x: int) -> int:
        return 2 * x

    def double(self, x: int) -> int:
        return 2 * x


@functools.cache
def importable_cached(x: int) -> int:
    return 2 * x


def closure_over(value: Any) -> Callable[..., Any]:
    def inner(x: Any = None) -> Any:
        return value

    return inner


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 * x,
        functools.partial(lambda y, x: y * x, 2),
        Doubler(),
        Doubler().double,
        (2).__mul__,
        importable_cached,
    ],
)
def test_any_callable_returns_the_same_after_the_journey(function: Callable[[int], int]):
    assert serialize.load_function(serialize.dump_function(function))(21) == 42


def test_functions_of_a_script_run_in_a_child(run_script: Callable[[str], Any]):
    told = run_script("""
import functools
calls = []

@functools.lru_cache(maxsize=7, typed=True)
def fib(n):
    calls.append(n)
    return n if n < 2 else fib(n - 1) + fib(n - 2)
fib.label = "kept"

class Model:
    @functools.cache
    def double(self, x):
        calls.append(x)
        return 2 * x
model = Model()

def local():
    @functools.cache
    def inner(x):
        return x + 1
    return inner

def look(n):
    return fib(n), len(calls), fib.label, fib.cache_parameters(), fib.__name__, fib.cache_info().currsize

tell([map_in_child(fib, [30, 30]), map_in_child(look, [30]), map_in_child(model.double, [4, 4]),
      map_in_child(local(), [1]), map_in_child(lambda x: [model.double(x), len(calls)], [5, 5])])
""")
    fib, look, method, local, cached = told
    assert fib == [832040, 832040]
    assert look == [[832040, 31, "kept", {"maxsize": 7, "typed": True}, "fib", 7]]
    assert (method, local) == ([8, 8], [2])
    assert cached == [[10, 1], [10, 1]]


def test_an_importable_cache_goes_by_reference():
    assert serialize.load_function(serialize.dump_function(importable_cached)) is importable_cached


def test_a_cache_of_a_module_registered_by_value_goes_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "by_value_module.py").write_text("import functools\n@functools.cache\ndef f(x):\n    return x + 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import by_value_module  # pyright: ignore[reportMissingImports]

    cloudpickle.register_pickle_by_value(by_value_module)
    try:
        data = serialize.dump_function(by_value_module.f)
    finally:
        cloudpickle.unregister_pickle_by_value(by_value_module)
        del sys.modules["by_value_module"]
    monkeypatch.undo()
    assert serialize.load_function(data)(1) == 2


class Nameless:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (closure_over, "closure_over"),
        (lambda: 0, "<lambda>"),
        (functools.partial(functools.partial(closure_over), 1), "closure_over"),
        (Nameless(), "Nameless"),
        (functools.partial(Nameless()), "Nameless"),
        (len, "len"),
        (Doubler().double, "double"),
        (Doubler, "Doubler"),
        (importable_cached, "importable_cached"),
    ],
)
def test_every_callable_has_a_name(function: Callable[..., Any], name: str):
    assert serialize.function_name(function) == name


# in a module of their own that is not importable, so that they go by value like those of a notebook
CULPRITS = """
import functools, itertools, threading
LOCK = threading.Lock()
CONFIG = {"a": LOCK}
def uses_global(x): return LOCK
def uses_nested(x): return CONFIG
def helper(x): return LOCK
def uses_helper(x): return helper(x)
def inner_scope(x): return [LOCK for _ in x]
def make(conn):
    def f(x): return conn
    return f
def with_default(x, y=LOCK): return x
def with_keyword_default(x, *, y=LOCK): return x
def plain(x): return x
def with_attribute(x): return x
with_attribute.lock = LOCK
class Service:
    def __init__(self): self.lock = LOCK
    def call(self, x): return x
    def __call__(self, x): return x
class Slotted:
    __slots__ = ("lock",)
    def __init__(self): self.lock = LOCK
    def call(self, x): return x
class Table:
    SHARED = LOCK
    def call(self, x): return x
@functools.cache
def cached(x): return LOCK
HIDDEN = itertools.repeat(LOCK)
def uses_hidden(x): return HIDDEN
DEEP = {"k": [0, (1, Service())]}
def uses_deep(x): return DEEP
"""


@pytest.fixture(scope="module")
def culprits() -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(CULPRITS, space)
    return space


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("uses_global", "global 'LOCK' used by uses_global"),
        ("uses_nested", "item ['a'] of global 'CONFIG' used by uses_nested"),
        ("uses_helper", "global 'LOCK' used by helper (global 'helper' used by uses_helper)"),
        ("inner_scope", "global 'LOCK' used by inner_scope"),
        ("make(LOCK)", "closure variable 'conn' of f"),
        ("with_default", "with_default.__defaults__[0]"),
        ("with_keyword_default", "with_keyword_default.__kwdefaults__['y']"),
        ("with_attribute", "attribute '.lock' of with_attribute"),
        ("Service().call", "attribute '.lock' of argument 'self'"),
        ("Slotted().call", "attribute '.lock' of argument 'self'"),
        ("Service()", "attribute '.lock' of the Service object"),
        ("Table().call", "attribute '.SHARED' of class Table"),
        ("functools.partial(plain, LOCK)", "argument [0] of partial(plain)"),
        ("functools.partial(plain, x=LOCK)", "argument 'x' of partial(plain)"),
        ("functools.partial(uses_global)", "global 'LOCK' used by uses_global"),
        ("cached", "global 'LOCK' used by cached"),
        ("uses_deep", "attribute '.lock' of item [1] of item [1] of item ['k'] of global 'DEEP' used by uses_deep"),
    ],
)
def test_what_makes_a_function_unpicklable_is_named(culprits: dict[str, Any], expression: str, path: str):
    function = eval(expression, culprits)
    with pytest.raises(errors.FunctionNotPicklable) as raised:
        serialize.dump_function(function)
    assert raised.value.path == path
    assert raised.value.culprit_type == "_thread.lock"
    message = str(raised.value)
    assert path in message
    assert serialize.function_name(function) in message
    assert "<unlocked _thread.lock object" in message
    assert "Create it inside the function" in message
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_culprit_that_only_reduce_shows_is_named(culprits: dict[str, Any]):
    with pytest.raises(errors.FunctionNotPicklable) as raised:
        serialize.dump_function(culprits["uses_hidden"])
    assert raised.value.culprit_type == "_thread.lock"
    assert raised.value.path == "item [0] of part of global 'HIDDEN' used by uses_hidden"


def test_a_culprit_with_hostile_attributes_and_repr_is_still_named():
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no")

        def __repr__(self) -> str:
            raise RuntimeError("no")

        def __reduce_ex__(self, protocol: Any) -> Any:
            raise RuntimeError("not me")

    with pytest.raises(errors.FunctionNotPicklable) as raised:
        serialize.dump_function(closure_over([Hostile()]))
    assert raised.value.path == "item [0] of closure variable 'value' of inner"
    assert "RuntimeError: not me" in str(raised.value)


def test_hostile_attributes_on_the_way_do_not_hide_the_culprit():
    class Hostile:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("no")

        def __reduce__(self) -> Any:
            return int, ()

    with pytest.raises(errors.FunctionNotPicklable) as raised:
        serialize.dump_function(closure_over([Hostile(), [threading.Lock()]]))
    assert raised.value.path == "item [0] of item [1] of closure variable 'value' of inner"


def test_nesting_too_deep_is_told_as_such():
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.InputNotPicklable, match=r"input 0, of type list, .*recursion") as raised:
        list(serialize_inputs.pack_inputs([deep]))
    assert (raised.value.path, raised.value.culprit_type) == ("the input", "list")


def test_a_function_that_is_too_big_names_the_largest_it_captures():
    big, small, tiny = b"b" * 3_000_000, list(range(200_000)), "t" * 50_000

    def f(x: Any, y: str = tiny) -> Any:
        return big, small, np

    with pytest.raises(errors.FunctionTooBig) as raised:
        serialize.dump_function(f, 1_000_000)
    error = raised.value
    assert [path for path, _ in error.largest] == [
        "closure variable 'big' of f",
        "closure variable 'small' of f",
        "f.__defaults__[0]",
    ]
    assert [size // 10_000 for _, size in error.largest] == [300, pytest.approx(70, abs=20), 5]
    assert error.limit_bytes == 1_000_000
    assert error.size_bytes == len(serialize.dump_function(f)) > 3_000_000
    for fact in ("function f is 3.", "limit of 1.0 MB", "closure variable 'big' of f: 3.0 MB", "inside the function"):
        assert fact in str(error)


def test_what_a_captured_function_captures_counts_as_captured():
    table = b"x" * 500_000
    helper = closure_over(table)

    def f(x: Any) -> Any:
        return helper(x)

    with pytest.raises(errors.FunctionTooBig) as raised:
        serialize.dump_function(f, 1000)
    assert raised.value.largest[0][0] == "closure variable 'value' of inner (closure variable 'helper' of f)"


def test_what_a_captured_partial_or_method_holds_counts_as_captured():
    big, bigger = b"x" * 5000, b"x" * 6000
    doubler = Doubler()
    doubler.lock = bigger
    functions = (functools.partial(len, big), doubler.double)
    found = []
    for function in (*functions, *map(closure_over, functions)):
        with pytest.raises(errors.FunctionTooBig) as raised:
            serialize.dump_function(function, 1000)
        found.append(raised.value.largest[0][0])
    assert found == [
        "argument [0] of partial(len)",
        "attribute '.lock' of argument 'self'",
        "argument [0] of closure variable 'value' of inner",
        "attribute '.lock' of argument 'self' of closure variable 'value' of inner",
    ]


def test_a_function_of_exactly_the_limit_is_sent():
    size = len(serialize.dump_function(closure_over(b"x" * 1000)))
    assert serialize.dump_function(closure_over(b"x" * 1000), size)
    with pytest.raises(errors.FunctionTooBig):
        serialize.dump_function(closure_over(b"x" * 1000), size - 1)


def test_too_big_still_reports_an_object_with_a_part_that_is_not_sent():
    class Service:
        def __init__(self) -> None:
            self.lock, self.table = threading.Lock(), b"x" * 10_000

        def __getstate__(self) -> dict[str, Any]:
            return {"table": self.table}

        def __call__(self, x: Any) -> Any: ...

    with pytest.raises(errors.FunctionTooBig) as raised:
        serialize.dump_function(Service(), 5000)
    assert raised.value.largest[0][0] == "attribute '.table' of the Service object"


# arguments ------------------------------------------------------------------------------------------------------------


def test_a_tuple_that_does_not_fit_is_explained():
    def f(a: int, b: str = "x" * 1000, *, c: int = 3) -> None: ...

    error = serialize.argument_mismatch(f, (1, 2, 3), 5)
    assert isinstance(error, errors.ArgumentMismatch)
    assert error.index == 5
    for fact in ("input 5", "3 values", "f(a, b=..., *, c=...)", "too many positional arguments", "(your_tuple,)"):
        assert fact in str(error)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda a, b: 0, (1, 2)),
        (lambda *a: 0, (1, 2, 3)),
        (lambda a: 0, ((1, 2),)),
        (lambda a, b: 0, [1]),
        (lambda a, b: 0, 1),
        (dict.update, (1, 2, 3)),
        (type("Unknown", (), {"__call__": len, "__signature__": 3})(), (1, 2, 3)),
    ],
)
def test_no_mismatch_where_it_fits_or_nothing_is_known(function: Callable[..., Any], value: Any):
    assert serialize.argument_mismatch(function, value, 0) is None


# inputs ---------------------------------------------------------------------------------------------------------------


class Point:
    def __init__(self, x: int):
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


ATOMS = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.text(), st.binary(), st.booleans(), st.none(), st.complex_numbers(
        allow_nan=False
    )
)  # fmt: skip
VALUES = st.one_of(ATOMS, st.tuples(ATOMS, ATOMS), st.tuples(st.tuples(ATOMS)), st.lists(ATOMS, max_size=3))


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=40), st.sampled_from([1, 7, 4096]), st.sampled_from([100, 1000, 64_000]))
def test_inputs_come_back_equal_and_in_order_from_any_iterable(values: list[Any], inputs: int, size: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "BLOCK_INPUTS", inputs)
        patch.setattr(protocol, "BLOCK_BYTES", size)
        for make in (list, tuple, iter):
            blocks = list(serialize_inputs.pack_inputs(make(values)))
            got = values_of(blocks)
            assert got == values
            assert [type(value) for value in got] == [type(value) for value in values]
            assert all(block.count <= inputs for block in blocks)
            assert all(payload_bytes(block) <= 1.5 * size + 100 for block in blocks if block.count > 1)


@pytest.mark.parametrize(
    ("inputs", "each"),
    [
        ([], None),
        (range(10_000), False),
        (range(5, -5000, -3), False),
        ([(i, str(i)) for i in range(10_000)], False),
        ((f"{i}" * 50 for i in range(10_000)), False),
        (zip(range(5000), "ab" * 2500, strict=True), False),
        (dict.fromkeys(range(5000)).keys(), False),
        ([{"a": i} for i in range(5000)], True),
        ([((1, 2), 3)] * 10, True),
        (np.arange(5000), True),
        (pd.Series(["a", "b"]), False),
        ([True, None, 1j, b"x", "é" * 10], False),
    ],
)
def test_plain_values_share_a_pickle_and_others_have_their_own(inputs: Iterable[Any], each: bool | None):
    expected = list(inputs) if not isinstance(inputs, (Iterator, zip)) else None
    blocks = list(serialize_inputs.pack_inputs(inputs))
    got = values_of(blocks)
    if expected is not None:
        assert got == expected
    assert {block.each for block in blocks} == ({each} if each is not None else set())


def test_subclasses_of_plain_types_keep_their_type():
    class Text(str):
        pass

    assert [type(value) for value in values_of(serialize_inputs.pack_inputs([Text("a"), "b"]))] == [Text, str]


def test_one_odd_input_among_many_plain_ones_does_not_slow_down_all_blocks():
    blocks = list(serialize_inputs.pack_inputs(iter([*range(10_000), {}, *range(10_000)])))
    assert [block.each for block in blocks].count(True) == 1
    assert values_of(blocks)[10_000] == {}


def test_a_reused_buffer_gives_the_value_it_had_when_it_was_yielded():
    def frames() -> Iterator[Any]:
        buffer = bytearray(1)
        for i in range(5):
            buffer[0] = i
            yield i if i == 2 else buffer

    assert [v if isinstance(v, int) else v[0] for v in values_of(serialize_inputs.pack_inputs(frames()))] == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_inputs_are_taken_no_earlier_than_their_block_is_asked_for():
    taken: list[int] = []

    def inputs() -> Iterator[int]:
        for i in range(100_000):
            taken.append(i)
            yield i

    blocks = serialize_inputs.pack_inputs(inputs())
    next(blocks)
    assert len(taken) <= protocol.BLOCK_INPUTS + 1


@pytest.mark.parametrize("make", [list, iter])
@pytest.mark.parametrize("big", ["x" * 100_000, b"x" * 100_000, ["x" * 100_000], "é" * 40_000, ("x" * 100_000,)])
def test_a_value_over_the_block_size_is_a_block_of_its_own(make: Callable[[Any], Any], big: Any):
    blocks = list(serialize_inputs.pack_inputs(make([1, 2, big, 3, big, big])))
    assert [block.count for block in blocks] == [2, 1, 1, 1, 1]
    assert values_of(blocks) == [1, 2, big, 3, big, big]


@pytest.mark.parametrize("make", [list, iter])
def test_long_strings_make_small_blocks(make: Callable[[Any], Any]):
    blocks = list(serialize_inputs.pack_inputs(make([f"{i:05}" * 2000 for i in range(300)])))
    assert max(payload_bytes(block) for block in blocks) <= protocol.BLOCK_BYTES
    assert len(blocks) <= 60


@pytest.mark.parametrize("make", [list, iter])
@pytest.mark.parametrize(
    "big", [b"x" * 2000, ["x" * 2000], ("x" * 2000, 1), 1 << 16_000], ids=lambda big: type(big).__name__
)
def test_an_input_over_the_limit_is_named(make: Callable[[Any], Any], big: Any):
    size = len(pickle.dumps(big, 5))
    assert len(values_of(serialize_inputs.pack_inputs(make([1, big]), size))) == 2
    with pytest.raises(errors.InputTooBig) as raised:
        list(serialize_inputs.pack_inputs(make([1, 2, 3, big, 5]), size - 1))
    assert (raised.value.index, raised.value.size_bytes, raised.value.limit_bytes) == (3, size, size - 1)
    assert "input 3" in str(raised.value)


@pytest.mark.parametrize("make", [list, iter])
def test_an_unpicklable_input_is_named(make: Callable[[Any], Any]):
    with pytest.raises(errors.InputNotPicklable) as raised:
        list(serialize_inputs.pack_inputs(make([*range(5000), {"a": [threading.Lock()]}])))
    error = raised.value
    assert (error.index, error.culprit_type) == (5000, "_thread.lock")
    assert error.path == "item [0] of item ['a'] of the input"
    assert "input 5000, of type dict" in str(error)
    assert "Nothing has run" in str(error)


def test_an_error_of_the_users_generator_is_not_taken_for_a_pickling_error():
    def inputs() -> Iterator[Any]:
        yield {}
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$") as raised:
        list(serialize_inputs.pack_inputs(inputs()))
    assert type(raised.value) is TypeError


def test_classes_of_a_script_arrive_and_return_as_themselves(run_script: Callable[[str], Any]):
    told = run_script("""
import dataclasses, enum
SETTING = "before"

@dataclasses.dataclass
class Point:
    x: int
    seen = 0
    def setting(self):
        return SETTING

class Color(enum.Enum):
    RED = 1

def move(point):
    Point.seen += 1
    point.x += 1
    point.seen_there = Point.seen
    return point

method = Point.setting
results = map_in_child(move, [Point(1), Point(2), Point(3)])
SETTING = "after"
colors = map_in_child(lambda color: (color, color is Color.RED), [Color.RED])
tell([[type(p) is Point for p in results], [p.x for p in results], [p.seen_there for p in results], Point.seen,
      Point.setting is method, results[0].setting(), colors[0][0] is Color.RED, colors[0][1]])
""")
    is_point, xs, seen_there, seen_here, same_method, setting, red_here, red_there = told
    assert is_point == [True] * 3
    assert xs == [2, 3, 4]
    assert seen_there == [1, 2, 3], "an input must not reset the class of the child"
    assert (seen_here, same_method, setting) == (0, True, "after"), "a result must not replace the caller's class"
    assert (red_here, red_there) == (True, True)


def test_classes_that_a_child_makes_can_be_used_here(run_script: Callable[[str], Any]):
    told = run_script("""
def make(x):
    class Made:
        def __init__(self, x): self.x = x
        def double(self): return 2 * self.x
    return Made(x)

tell([made.double() for made in map_in_child(make, [1, 2])])
""")
    assert told == [2, 4]


def test_a_changed_class_is_sent_anew_with_the_next_inputs(run_script: Callable[[str], Any]):
    told = run_script("""
class Model:
    factor = 2

def look(model):
    return model.factor

first = map_in_child(look, [Model()])
Model.factor = 3
tell([first, map_in_child(look, [Model()])])
""")
    assert told == [[2], [3]]


def test_plain_values_of_a_list_are_not_walked_one_by_one():
    for values in (range(100_000), list(range(100_000)), [str(i) for i in range(100_000)]):
        calls = 0

        def count(frame: Any, event: str, arg: Any) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        try:
            blocks = list(serialize_inputs.pack_inputs(values))
        finally:
            sys.setprofile(None)
        assert calls < 20 * len(blocks) < 2000


def test_instances_of_a_scripts_class_share_its_definition():
    pickled: list[str] = []

    class Told:
        def __reduce__(self) -> Any:
            pickled.append("class")
            return int, ()

    space: dict[str, Any] = {"__name__": "__main__", "told": Told()}
    exec("class Big:\n    attribute = told\n", space)
    blocks = list(serialize_inputs.pack_inputs([space["Big"]() for _ in range(300)]))
    assert pickled == ["class"]
    assert {type(value) for value in values_of(blocks)} == {space["Big"]}


# results --------------------------------------------------------------------------------------------------------------


def test_plain_results_share_a_pickle():
    packer = serialize.ResultPacker()
    for value in (1, "a", None, b"x"):
        packer.add(value)
    each, payload = packer.pack()
    assert not each
    assert serialize.load_results(each, payload) == [1, "a", None, b"x"]
    assert serialize.load_results(*packer.pack()) == []


def test_a_result_that_is_changed_later_comes_back_as_it_was_returned():
    packer, state = serialize.ResultPacker(), {"n": 0}
    packer.add("first")
    for n in range(3):
        state["n"] = n
        packer.add(state)
    packer.add("last")
    each, payload = packer.pack()
    assert each
    assert serialize.load_results(each, payload) == ["first", {"n": 0}, {"n": 1}, {"n": 2}, "last"]


def test_the_size_of_results_is_about_that_of_their_payload():
    packer = serialize.ResultPacker()
    for value in ("x" * 10_000, b"y" * 10_000, [0] * 10_000):
        before = packer.size_bytes
        packer.add(value)
        assert packer.size_bytes - before == pytest.approx(len(pickle.dumps(value)), rel=0.01)
    assert packer.size_bytes == pytest.approx(len(packer.pack()[1]), rel=0.01)


@pytest.mark.parametrize(
    ("result", "hint"),
    [
        ((i for i in range(3)), "list(...)"),
        (threading.Lock(), "locks stay"),
        ({"file": open(os.devnull, "w")}, "return what was read"),
        (types.SimpleNamespace(frame=sys._getframe()), "plain data"),
    ],
)
def test_a_result_that_cannot_come_back_is_named(result: Any, hint: str):
    packer = serialize.ResultPacker(first=40)
    packer.add(1)
    packer.add([2])
    with pytest.raises(errors.ResultNotPicklable) as raised:
        packer.add(result)
    name = type(result).__name__
    assert raised.value.index == 42
    assert raised.value.type_name.endswith(name)
    assert "input 42" in str(raised.value)
    assert hint in str(raised.value)
    assert serialize.load_results(*packer.pack()) == [1, [2]]


def test_a_value_of_main_goes_by_value_even_where_plain_pickle_would_refer_to_it(monkeypatch: pytest.MonkeyPatch):
    class Local:
        pass

    Local.__module__, Local.__qualname__ = "__main__", "Local"
    monkeypatch.setattr(sys.modules["__main__"], "Local", Local, raising=False)
    assert b"Local" in pickle.dumps(Local())  # plain pickle trusts that the other side has it
    data = serialize.dump_value(Local())
    code = "import pickle, sys; print(type(pickle.load(sys.stdin.buffer)).__name__)"
    child = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, cwd=ROOT, check=True)
    assert child.stdout.split() == [b"Local"]


# exceptions -----------------------------------------------------------------------------------------------------------


class OtherArity(Exception):
    def __init__(self, a: int, b: int):
        super().__init__(f"{a} and {b}")
        self.a, self.b = a, b


class Transforms(Exception):
    def __init__(self, code: int):
        super().__init__(f"code {code}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, reason: str):
        super().__init__()
        self.reason = reason


class OwnNew(Exception):
    def __new__(cls, a: int, b: int) -> OwnNew:
        return super().__new__(cls)

    def __init__(self, a: int, b: int):
        super().__init__("own")
        self.a, self.b = a, b


class Slotted(Exception):
    __slots__ = ("hidden",)

    def __init__(self, hidden: int):
        super().__init__(hidden)
        self.hidden = hidden + 1


class FileMissing(FileNotFoundError):
    def __init__(self, path: str):
        super().__init__(2, "no such thing", path)
        self.path = path


class Frozen(Exception):
    def __init__(self, a: int):
        super().__init__(a)
        self.__dict__["a"] = a

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class OwnReduce(Exception):
    def __init__(self, a: int, b: int):
        super().__init__(a + b)
        self.a, self.b = a, b

    def __reduce__(self) -> Any:
        return OwnReduce, (self.a, self.b)


class Locked(Exception):
    def __init__(self, a: int):
        super().__init__(a)
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        return Locked, self.args


class OwnState(Exception):
    def __init__(self, a: int, b: int):
        super().__init__("state")
        self.a, self.b = a, b

    def __getstate__(self) -> Any:
        return (self.a, self.b)

    def __setstate__(self, state: Any) -> None:  # type: ignore[override]
        self.a, self.b = state


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")

    __repr__ = __str__


class Exits(Exception):
    def __init__(self, *args: Any):
        if args != (1, 2):
            raise SystemExit(3)
        super().__init__("made of two")


def journey(error: BaseException, index: int = 7, strip_files: tuple[str, ...] = ()) -> BaseException:
    return serialize.load_exception(serialize.dump_exception(error, index, strip_files))


def raised_by(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001
        return error
    raise AssertionError("nothing was raised")


def facts(error: BaseException) -> dict[str, Any]:
    ours = ("burla_input_index", "__notes__")
    return {name: value for name, value in vars(error).items() if name not in ours}


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (ValueError("a", 1), ()),
        (KeyError("k"), ()),
        (FileNotFoundError(2, "no", "here"), ("errno", "strerror", "filename")),
        (OSError(18, "no", "a", None, "b"), ("errno", "filename", "filename2")),
        (BlockingIOError(11, "later", 5), ("errno", "characters_written")),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ("encoding", "object", "start", "end", "reason")),
        (ImportError("m", name="n", path="p"), ("name", "path")),
        (AttributeError("m", name="n", obj=3), ("name",)),
        (NameError("m", name="n"), ("name",)),
        (StopIteration(3), ("value",)),
        (SyntaxError("m", ("f", 1, 2, "t", 1, 3)), ("filename", "lineno", "text", "end_offset")),
        (raised_by(lambda: json.loads("{")), ("pos", "doc", "lineno")),
        (subprocess.CalledProcessError(3, ["x"], "out"), ("returncode", "cmd", "output")),
        (OtherArity(1, 2), ("a", "b")),
        (Transforms(5), ("code",)),
        (KeywordOnly(reason="r"), ("reason",)),
        (OwnNew(1, 2), ("a", "b")),
        (Slotted(1), ("hidden",)),
        (FileMissing("p"), ("path", "filename", "errno")),
        (Frozen(3), ("a",)),
        (OwnReduce(1, 2), ("a", "b")),
        (OwnState(1, 2), ("a", "b")),
        (errors.WorkerCrashed.of(3, 11, None, 3), ("index", "signal")),
        (Exits(1, 2), ()),
        (TimeoutError("t"), ()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_exception_arrives_as_it_was(error: Exception, names: tuple[str, ...]):
    got = journey(error)
    assert type(got) is type(error)
    assert got.args == error.args
    assert [getattr(got, name) for name in names] == [getattr(error, name) for name in names]
    assert facts(got) == facts(error)
    assert str(got) == str(error)
    assert got.burla_input_index == 7  # type: ignore[attr-defined]
    assert got.__notes__ == ["burla: raised by the call of input 7"]
    assert "burla_input_index" not in vars(error)


def test_an_exception_that_cannot_be_written_as_text_arrives():
    got = journey(Hostile("a"))
    assert type(got) is Hostile
    assert got.args == ("a",)


def test_a_class_that_knows_how_to_be_pickled_is_asked():
    got = journey(Locked(1))
    assert isinstance(got, Locked)
    assert got.lock.acquire(blocking=False)
    assert got.__notes__ == ["burla: raised by the call of input 7"]


def test_notes_arrive_and_the_note_of_the_input_is_added_once():
    error = ValueError("a")
    error.add_note("mine")
    got = journey(journey(error))
    assert got.__notes__ == ["mine", "burla: raised by the call of input 7"]
    assert journey(got, index=8).__notes__[-1] == "burla: raised by the call of input 8"


def test_causes_and_contexts_arrive():
    def fail() -> None:
        try:
            try:
                raise KeyError("root")
            except KeyError:
                raise Transforms(1)  # noqa: B904
        except Transforms as error:
            raise ValueError("top") from error

    got = journey(raised_by(fail))
    cause = got.__cause__
    assert isinstance(cause, Transforms)
    assert (cause.args, cause.__suppress_context__) == (("code 1",), False)
    assert got.__context__ is cause
    assert got.__suppress_context__
    assert isinstance(cause.__context__, KeyError)
    assert not hasattr(cause, "__notes__")
    assert journey(raised_by(lambda: fail_from_none())).__suppress_context__


def fail_from_none() -> None:
    try:
        raise KeyError("hidden")
    except KeyError:
        raise ValueError("alone") from None


def test_cycles_arrive():
    one, two = ValueError("one"), OtherArity(1, 2)
    one.__cause__, two.__context__ = two, one
    one.partner, two.partner = two, one  # type: ignore[attr-defined]
    got = journey(one)
    cause = got.__cause__
    assert cause is not None
    assert cause.__context__ is got
    assert got.partner is cause  # type: ignore[attr-defined]
    assert cause.partner is got  # type: ignore[attr-defined]


def test_an_exception_that_contains_itself_is_described():
    error = ValueError()
    error.args = (error,)
    assert isinstance(journey(error), (ValueError, errors.RemoteError))


def test_an_awkward_exception_inside_another_arrives():
    error = ValueError("outer", [OtherArity(1, 2)])
    inner = journey(error).args[1][0]
    assert (type(inner), inner.args, inner.a) == (OtherArity, ("1 and 2",), 1)


def test_members_of_groups_arrive():
    group = ExceptionGroup("g", [OtherArity(1, 2), ExceptionGroup("h", [KeyError("k")])])
    group.extra = 5  # type: ignore[attr-defined]
    got = journey(group)
    assert isinstance(got, ExceptionGroup)
    assert (got.message, got.extra) == ("g", 5)  # type: ignore[attr-defined]
    first, second = got.exceptions
    assert (type(first), first.args, first.b) == (OtherArity, ("1 and 2",), 2)  # type: ignore[attr-defined]
    assert isinstance(second, ExceptionGroup)
    assert second.exceptions[0].args == ("k",)


def test_parts_that_cannot_be_sent_are_noted():
    error = ValueError("a", threading.Lock())
    error.lock, error.fine = threading.Lock(), 3  # type: ignore[attr-defined]
    got = journey(error)
    assert type(got) is ValueError
    assert got.args[0] == "a"
    assert got.args[1].startswith("<unlocked _thread.lock")
    assert got.fine == 3  # type: ignore[attr-defined]
    assert not hasattr(got, "lock")
    assert any("args[1] (_thread.lock)" in note for note in got.__notes__)
    assert any("attribute 'lock' (_thread.lock)" in note for note in got.__notes__)


def test_parts_that_pickle_but_do_not_load_are_noted():
    class LoadsBadly:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    error = ValueError("a")
    error.bad = LoadsBadly()  # type: ignore[attr-defined]
    got = journey(error)
    assert type(got) is ValueError
    assert any("attribute 'bad'" in note for note in got.__notes__)


def test_a_class_that_cannot_be_sent_becomes_a_remote_error():
    class Bound(Exception):
        lock = threading.Lock()

    def fail_here() -> None:
        raise Bound("what happened")

    got = journey(raised_by(fail_here))
    assert isinstance(got, errors.RemoteError)
    assert got.type_name.endswith("Bound")
    assert "fail_here" in got.traceback
    for fact in ("input 7", "Bound: what happened", "cannot pickle '_thread.lock'", "fail_here"):
        assert fact in str(got)
    assert got.burla_input_index == 7  # type: ignore[attr-defined]
    assert "fail_here" in "".join(traceback.format_exception(got))


def test_a_class_that_is_missing_here_becomes_a_remote_error(run_script: Callable[[str], Any], tmp_path: Path):
    told = run_script("""
def fail(x):
    import sys, types
    module = types.ModuleType("only_there")
    sys.modules["only_there"] = module
    exec("class Missing(Exception): pass", module.__dict__)
    try:
        raise module.Missing("gone")
    except module.Missing as error:
        raise (ValueError("top") if x else error) from (error if x else None)

alone, caused = map_in_child(fail, [0, 1])
tell([type(alone).__name__, alone.type_name, str(alone), type(caused).__name__, type(caused.__cause__).__name__])
""")
    assert told[:2] == ["RemoteError", "only_there.Missing"]
    assert "only_there.Missing: gone" in told[2]
    assert "No module named 'only_there'" in told[2]
    assert told[3:] == ["ValueError", "RemoteError"]


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps(3), pickle.dumps((1, [])), pickle.dumps((1, [2]))])
def test_loading_never_raises(data: bytes):
    assert isinstance(serialize.load_exception(data), errors.RemoteError)


@pytest.mark.parametrize(
    ("error", "name", "code"),
    [
        (SystemExit(3), "SystemExit", 3),
        (SystemExit(), "SystemExit", None),
        (SystemExit([1]), "SystemExit", "[1]"),
        (KeyboardInterrupt(), "KeyboardInterrupt", None),
        (GeneratorExit(), "GeneratorExit", None),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError", None),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), "BaseExceptionGroup", None),
    ],
)
def test_what_would_end_the_program_becomes_an_ordinary_error(error: BaseException, name: str, code: Any):
    error.__cause__ = KeyboardInterrupt()
    got = journey(raised_by(lambda: (_ for _ in ()).throw(error)) if name != "GeneratorExit" else error)
    assert isinstance(got, errors.CallExited)
    assert (got.type_name, got.code, got.burla_input_index) == (name, code, 7)
    assert "input 7" in str(got)
    assert name in str(got)
    assert got.__cause__ is None
    assert got.__context__ is None


def test_frames_of_remote_code_are_shown_and_leading_ones_stripped(tmp_path: Path):
    (tmp_path / "runner.py").write_text("def run(f):\n    return f(run)\n")
    (tmp_path / "user.py").write_text(
        "def f(run):\n    try:\n        1 / 0  # the cause\n    except ZeroDivisionError as error:\n"
        "        raise ValueError('top') from error  # the top\n\ndef g(run):\n    return run(f)  # through a runner\n"
    )
    spaces: list[dict[str, Any]] = []
    for name in ("runner.py", "user.py"):
        spaces.append({"__name__": name})
        exec(compile((tmp_path / name).read_text(), str(tmp_path / name), "exec"), spaces[-1])
    runner = str(tmp_path / "runner.py")
    error = raised_by(lambda: spaces[0]["run"](lambda run: spaces[1]["g"](run)))
    got = journey(error, strip_files=(__file__, runner))
    assert got.__cause__ is not None
    frames = [(Path(f.filename).name, f.name, f.lineno) for f in traceback.extract_tb(got.__traceback__)]
    assert frames == [("user.py", "g", 8), ("runner.py", "run", 2), ("user.py", "f", 5)]
    last = got.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None
    assert (last.tb_frame.f_lineno, last.tb_frame.f_code.co_firstlineno) == (5, 1), "a notebook shows it by these"
    text = "".join(traceback.format_exception(got))
    assert "# the top" in text
    assert "# the cause" in text
    assert "^" not in text
    caught = journey(
        raised_by(lambda: spaces[0]["run"](lambda run: spaces[1]["f"](run))), strip_files=(__file__, runner)
    )
    assert [f.name for f in traceback.extract_tb(caught.__traceback__)] == ["f"]


def test_a_cause_raised_by_the_machinery_is_stripped_too():
    def fail() -> None:
        raise ValueError("a") from raised_by(lambda: 1 / 0)

    cause = journey(raised_by(fail), strip_files=(__file__,)).__cause__
    assert cause is not None
    assert cause.__traceback__ is None


def test_a_very_deep_traceback_arrives():
    def down(n: int) -> int:
        return down(n + 1)

    got = journey(raised_by(lambda: down(0)))
    assert isinstance(got, RecursionError)
    assert len(traceback.extract_tb(got.__traceback__)) > 500


def test_a_scripts_own_exception_is_caught_by_its_class(run_script: Callable[[str], Any]):
    told = run_script("""
class MyError(Exception):
    raised = 0
    def __init__(self, a, b):
        super().__init__(f"{a}-{b}")
        self.a = a

class Wrapper(Exception):
    pass

def fail(x):
    MyError.raised += 1
    try:
        raise MyError(x, MyError.raised)
    except MyError as error:
        raise Wrapper("w") from error

caught = []
for error in map_in_child(fail, [1, 2]):
    try:
        raise error
    except Wrapper as wrapper:
        import traceback
        lines = [f.line for f in traceback.extract_tb(wrapper.__traceback__)]
        caught.append([isinstance(wrapper.__cause__, MyError), str(wrapper.__cause__), wrapper.__cause__.a,
                       wrapper.burla_input_index, lines])
tell([caught, MyError.raised])
""")
    frames = ["raise error", 'raise Wrapper("w") from error']
    assert told == [[[True, "1-1", 1, 0, frames], [True, "2-2", 2, 1, frames]], 0]


# weight ---------------------------------------------------------------------------------------------------------------


def test_a_child_does_not_import_what_only_errors_need():
    names = (
        "tblib",
        "distributed",
        "numpy",
        "burla.serialize_report",
        "burla.serialize_errors",
        "burla.serialize_rebuild",
    )
    code = f"import sys, burla.serialize; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
