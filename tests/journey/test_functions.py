"""What may be called, what of it travels, and how often; what a function keeps stays warm."""

from __future__ import annotations

import functools
import math
import operator
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from burla import BurlaError, FunctionNotPicklable, FunctionTooBig, remote_parallel_map
from tests.conftest import Home, Ledger, Scripts, home, wait_until

SLOTS = 2


def make_callables() -> dict[str, Callable[[int], Any]]:
    offset = 10

    def closure(x: int) -> int:
        return x + offset

    def recursive(x: int) -> int:
        return x * recursive(x - 1) if x > 1 else 1

    def add(x: int, y: int) -> int:
        return x + y

    async def coroutine(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x + 4

    class Thing:
        def __init__(self, factor: int = 3):
            self.factor = factor

        def method(self, x: int) -> int:
            return x * self.factor

        @classmethod
        def of_class(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

        @staticmethod
        def static(x: int) -> int:
            return -x

        @functools.cached_property
        def cached(self) -> int:
            return self.factor + 1

        def cached_plus(self, x: int) -> int:
            return self.cached + x + vars(self)["cached"]

        def __call__(self, x: int) -> int:
            return x**self.factor

    class Later:
        async def __call__(self, x: int) -> int:
            return x + 5

    class Wrapping:
        """Says it has no `__name__`, as some compiled callables do."""

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

        def __call__(self, x: int) -> int:
            return x + 6

    @functools.lru_cache(maxsize=5)
    def cached(x: int) -> int:
        return x + 7

    @functools.wraps(closure)
    def decorated(*args: Any, **options: Any) -> int:
        return closure(*args, **options) + 1

    return {
        "lambda": lambda x: x + 1,
        "closure": closure,
        "recursive": recursive,
        "partial": functools.partial(add, 5),
        "partial of a keyword": functools.partial(add, y=5),
        "bound method": Thing(4).method,
        "cached property": Thing(6).cached_plus,
        "class method": Thing.of_class,
        "static method": Thing.static,
        "callable object": Thing(2),
        "without a name": Wrapping(),
        "builtin": abs,
        "builtin method": "{:03d}".format,
        "of a C module": math.sqrt,
        "operator": operator.methodcaller("bit_length"),
        "class": complex,
        "numpy ufunc": np.sqrt,
        "lru_cache": cached,
        "decorated": decorated,
        "coroutine": coroutine,
        "partial of a coroutine": functools.partial(coroutine),
        "asynchronous object": Later(),
    }


@pytest.mark.parametrize("kind", make_callables())
def test_any_callable_runs(kind: str):
    import asyncio
    import inspect

    function = make_callables()[kind]
    expected = [function(x) for x in range(4)]
    expected = [asyncio.run(one) if inspect.iscoroutine(one) else one for one in expected]
    assert remote_parallel_map(function, range(4)) == expected


def test_coroutines_of_a_child_share_a_loop():
    """What one call keeps open, such as a session, is usable in the next."""
    loops: dict[str, Any] = {}

    async def same(x: int) -> bool:
        import asyncio

        loop = asyncio.get_running_loop()
        return loops.setdefault("first", loop) is loop

    assert remote_parallel_map(same, range(50)) == [True] * 50


def test_functions_of_a_script_run_with_what_they_refer_to(scripts: Scripts):
    done = scripts.run(
        """
        import math as m
        from collections import namedtuple
        from dataclasses import dataclass
        from burla import remote_parallel_map

        FACTOR = 2
        Pair = namedtuple("Pair", "a b")

        @dataclass
        class Point:
            x: float

            def moved(self):
                return Point(self.x * FACTOR)

        def helper(x):
            return Point(m.floor(x)).moved()

        def work(x):
            return helper(x)

        first = remote_parallel_map(work, [1.5, 2.5])
        assert first == [Point(2), Point(4)] and type(first[0]) is Point, first
        FACTOR = 10
        assert remote_parallel_map(work, [1.5]) == [Point(10)]  # globals as of the call
        assert remote_parallel_map(Point(3).moved.__func__, [Point(4)]) == [Point(40)]
        assert remote_parallel_map(lambda pair: Pair(pair.b, pair.a), [Pair(1, 2)]) == [Pair(2, 1)]
        print("well")
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("well\n", "", 0)


@pytest.fixture
def project(tmp_path: Path) -> Callable[[int], None]:
    """Write a module and a package beside the script, in a version."""

    def write(version: int) -> None:
        package = tmp_path / "my_package"
        package.mkdir(exist_ok=True)
        pad = "#" * version  # Python itself takes a file of the same size and second for unchanged
        (tmp_path / "my_module.py").write_text(f"def work(x):\n    return 'module', {version}, x\n{pad}")
        (package / "__init__.py").write_text("from my_package.parts import work\n")
        (package / "parts.py").write_text(
            f"from . import deep\n\ndef work(x):\n    return 'package', {version}, deep.number, x\n{pad}"
        )
        (package / "deep.py").write_text(f"number = {version}\n{pad}")

    write(1)
    return write


USE_PROJECT = """
    import importlib, pathlib, sys
    import my_module, my_package, my_package.deep, my_package.parts
    from burla import remote_parallel_map

    def through_main(x):
        return my_module.work(x), my_package.work(x)

    def show():
        for function in (my_module.work, my_package.work, through_main):
            print(*remote_parallel_map(function, [7]))

    show()
"""


def shown(version: int) -> list[str]:
    module, package = f"('module', {version}, 7)", f"('package', {version}, {version}, 7)"
    return [module, package, f"({module}, {package})"]


def test_local_modules_are_those_of_now_in_each_process(scripts: Scripts, project: Callable[[int], None]):
    for version in (1, 2):
        project(version)
        done = scripts.run(USE_PROJECT)
        assert (done.stdout.splitlines(), done.stderr) == (shown(version), "")


def test_local_modules_edited_and_reloaded_between_two_calls_run_as_edited(
    scripts: Scripts, project: Callable[[int], None]
):
    process = scripts.start(
        USE_PROJECT
        + """
    sys.stdout.flush()
    input()
    for module in (my_module, my_package.deep, my_package.parts, my_package):
        importlib.reload(module)
    show()
        """,
        stdin=subprocess.PIPE,
    )
    assert process.stdout and process.stdin
    before = [process.stdout.readline().rstrip() for _ in range(3)]
    project(2)
    out, err = process.communicate("go\n", timeout=60)
    assert (before, out.splitlines(), err) == (shown(1), shown(2), "")


def test_local_modules_are_found_from_another_working_directory(scripts: Scripts, project: Callable[[int], None]):
    elsewhere = scripts.folder / "elsewhere"
    elsewhere.mkdir()
    done = scripts.run(USE_PROJECT, cwd=elsewhere)
    assert (done.stdout.splitlines(), done.stderr) == (shown(1), "")


# how often what travels -----------------------------------------------------------------------------------------------


def test_the_function_is_pickled_once_a_job_and_unpickled_once_a_child(ledger: Ledger):
    write = ledger.writer()

    class Work:
        def __getstate__(self) -> dict[str, Any]:
            write("pickled")
            return {"x": 1}

        def __setstate__(self, state: dict[str, Any]) -> None:
            import os

            write(f"unpickled {os.getpid()}")

        def __call__(self, x: int) -> int:
            import time

            time.sleep(0.001)
            return x

    assert remote_parallel_map(Work(), range(500)) == list(range(500))
    entries = ledger.entries()
    assert entries.count("pickled") == 1
    unpickled = [entry for entry in entries if entry != "pickled"]
    assert len(set(unpickled)) == len(unpickled) <= SLOTS


@pytest.mark.local
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes a process reads")
def test_the_function_is_sent_to_a_node_once(monkeypatch: pytest.MonkeyPatch):
    """Read from a TLS connection, which is counted: under so long a path there can be no Unix socket."""
    weight = np.random.default_rng(1).bytes(20_000_000)

    def work(x: int) -> int:
        import time

        time.sleep(0.001)
        return len(weight)

    with home(monkeypatch, prefix=f"burla-test-{'long' * 25}-") as path:
        assert remote_parallel_map(abs, [-1]) == [1]
        assert not list(path.rglob("*.sock"))
        node = Home(path, dict(os.environ)).processes()["node"]
        before = node.io_counters().read_chars  # pyright: ignore[reportAttributeAccessIssue]
        assert set(remote_parallel_map(work, range(500))) == {20_000_000}
        read = node.io_counters().read_chars - before  # pyright: ignore[reportAttributeAccessIssue]
    assert 20_000_000 <= read < 30_000_000


WARM = """
    import functools, os, sys, time
    from burla import remote_parallel_map

    def load_model(how):
        fd = os.open(sys.path[0] + "/loads", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{how} {os.getpid()}\\n".encode())
        os.close(fd)
        return 2

    def on_itself(x):
        if not hasattr(on_itself, "model"):
            on_itself.model = load_model("attribute")
        time.sleep(0.001)
        return x * on_itself.model

    MODELS = {}

    def in_dict(x):
        if "model" not in MODELS:
            MODELS["model"] = load_model("dict")
        time.sleep(0.001)
        return x * MODELS["model"]

    MODEL = None

    def in_global(x):
        global MODEL
        MODEL = MODEL or load_model("global")
        time.sleep(0.001)
        return x * MODEL

    @functools.lru_cache
    def model():
        return load_model("cached helper")

    def with_cached_helper(x):
        time.sleep(0.001)
        return x * model()

    @functools.lru_cache
    def cached(x):
        time.sleep(0.001)
        return x * load_model("cached function")

    class Predictor:
        model = None

        def predict(self, x):
            self.model = self.model or load_model("self")
            time.sleep(0.001)
            return x * self.model

    if __name__ == "__main__":
        import warm_module
        for function in (on_itself, in_dict, in_global, with_cached_helper, Predictor().predict, warm_module.in_dict):
            assert remote_parallel_map(function, range(500)) == [2 * x for x in range(500)], function
        assert remote_parallel_map(cached, [3] * 500) == [6] * 500
"""


def test_what_a_function_loads_is_loaded_once_a_slot_over_500_inputs(scripts: Scripts):
    module = WARM.split("if __name__")[0].replace('load_model("dict")', 'load_model("dict of a module")')
    (scripts.folder / "warm_module.py").write_text(textwrap.dedent(module))
    done = scripts.run(WARM)
    assert (done.returncode, done.stderr) == (0, "")
    loads = (scripts.folder / "loads").read_text().splitlines()
    assert len(loads) == len(set(loads))  # none twice in one process
    kinds = [load.rpartition(" ")[0] for load in loads]
    assert set(kinds) == {
        "attribute", "dict", "global", "cached helper", "cached function", "self", "dict of a module",
    }  # fmt: skip
    assert all(kinds.count(kind) <= SLOTS for kind in kinds)


def test_a_job_does_not_find_what_an_earlier_one_left():
    cache: dict[str, int] = {}

    def count(x: int) -> int:
        cache["calls"] = cache.get("calls", 0) + 1
        return cache["calls"]

    assert remote_parallel_map(count, range(5), max_parallelism=1) == [1, 2, 3, 4, 5]
    assert remote_parallel_map(count, range(5), max_parallelism=1) == [1, 2, 3, 4, 5]
    assert cache == {}


# what cannot be sent --------------------------------------------------------------------------------------------------


def test_a_function_just_under_the_limit_runs():
    weight = bytes(99_000_000)
    assert remote_parallel_map(lambda x: len(weight) + x, [1], max_parallelism=1) == [99_000_001]


def test_a_function_over_the_limit_names_itself_its_size_and_what_it_captures(ledger: Ledger):
    write = ledger.writer()
    weights, vocabulary, small = bytes(90_000_000), bytes(20_000_000), 5

    def predict(x: int) -> int:
        write(x)
        return len(weights) + len(vocabulary) + small

    with pytest.raises(FunctionTooBig) as caught:
        remote_parallel_map(predict, [1])
    error = caught.value
    message = str(error)
    assert "predict" in message and "110.0 MB" in message and "100.0 MB" in message
    assert message.index("'weights'") < message.index("'vocabulary'")
    assert "90.0 MB" in message and "20.0 MB" in message
    assert error.size_bytes > 110_000_000 and error.limit_bytes == 100_000_000
    assert isinstance(error, ValueError) and isinstance(error, BurlaError)
    assert ledger.entries() == []


def culprits() -> dict[str, tuple[Callable[[Any], Any], str, str]]:
    """Return a function, what its message says is to blame, and its type."""
    lock = threading.Lock()
    settings = {"sources": [1, (2, lock)]}
    by_default = types.FunctionType((lambda x: x).__code__, {}, "by_default", (lock,))

    class Reader:
        def __init__(self) -> None:
            self.database = sqlite3.connect(":memory:")

        def read(self, x: int) -> int:
            return x

    return {
        "closure": (lambda x: (x, lock), "closure variable 'lock'", "_thread.lock"),
        "deep": (lambda x: (x, settings), "item ['sources']", "_thread.lock"),
        "default": (by_default, "__defaults__[0]", "_thread.lock"),
        "partial": (functools.partial(print, lock), "argument [0]", "_thread.lock"),
        "method": (Reader().read, "attribute '.database'", "sqlite3.Connection"),
    }


@pytest.mark.parametrize("kind", culprits())
def test_a_function_that_cannot_be_pickled_names_the_culprit_and_where_it_hangs(kind: str):
    function, path, type_name = culprits()[kind]
    with pytest.raises(FunctionNotPicklable) as caught:
        remote_parallel_map(function, [1])
    message = str(caught.value)
    assert path in message and type_name in message
    assert path in caught.value.path


def test_a_call_works_after_one_that_could_not_be_sent():
    lock = threading.Lock()
    with pytest.raises(FunctionNotPicklable):
        remote_parallel_map(lambda x: (x, lock), [1])
    assert remote_parallel_map(lambda x: x, [1]) == [1]


def test_children_of_a_job_end_with_it(ledger: Ledger):
    write = ledger.writer()

    def work(x: int) -> int:
        import os

        write(os.getpid())
        return x

    remote_parallel_map(work, range(10))
    pids = {int(entry) for entry in ledger.entries()}
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the end of the children")
