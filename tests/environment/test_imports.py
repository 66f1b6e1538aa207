"""Which modules a function needs."""

from __future__ import annotations

import colorsys
import fractions
import functools
from pathlib import Path

import numpy
import pandas
import pytest

from burla.environment.imports import imported_by, imports_of_file

FRAME = pandas.DataFrame({"x": [1]})


class Holder:
    def __init__(self) -> None:
        self.part = fractions.Fraction(1, 2)

    def call(self) -> float:
        return colorsys.rgb_to_hls(0, 0, 0)[0]


def imports_inside(x: int) -> int:
    def deeper() -> None:
        from xml.etree import ElementTree  # noqa: F401

    import wave  # noqa: F401

    deeper()
    return x


def refers(x: int) -> object:
    return FRAME, numpy.array([x])


def in_closure():
    part = fractions.Fraction(1, 2)
    return lambda x: part * x


@pytest.fixture(autouse=True)
def functions_go_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a script or notebook do."""
    import cloudpickle

    by_value = {__name__: None}
    monkeypatch.setattr(cloudpickle, "list_registry_pickle_by_value", lambda: set(by_value))


@pytest.mark.parametrize(
    ("function", "modules"),
    [
        (imports_inside, {"wave", "xml.etree"}),
        (refers, {"numpy", "pandas"}),
        (in_closure(), {"fractions"}),
        (Holder().call, {"colorsys", "fractions"}),
        (functools.partial(imports_inside, FRAME), {"wave", "pandas"}),
        (functools.lru_cache(refers), {"numpy"}),
        (numpy.linalg.norm, {"numpy"}),
        (pandas.DataFrame.sum, {"pandas"}),
    ],
)
def test_a_function_needs_what_it_imports_and_what_it_holds(function: object, modules: set[str]):
    found = imported_by(function)
    assert modules <= found | {name.partition(".")[0] for name in found}
    if function is imports_inside:
        assert "numpy" not in found, "what only stands beside it is not needed"


def test_a_large_list_in_a_closure_is_not_looked_at_to_its_end():
    numbers = list(range(10_000_000))
    assert imported_by(lambda: numbers) == set()


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import a.b, c", "", {"a.b", "c"}),
        ("from a import b\ndef f():\n    import d", "", {"a", "a.b", "d"}),
        ("from . import b\nfrom .c import d", "pkg", {"pkg", "pkg.b", "pkg.c", "pkg.c.d"}),
        ("from ..c import d", "pkg.sub", {"pkg.c", "pkg.c.d"}),
        ("from a import *", "", {"a"}),
        ("import (", "", set()),
    ],
)
def test_the_imports_of_a_file_are_read_wherever_they_stand(
    tmp_path: Path, source: str, package: str, expected: set[str]
):
    (tmp_path / "module.py").write_text(source)
    assert imports_of_file(tmp_path / "module.py", package) == expected


def test_a_file_that_changed_is_read_again(tmp_path: Path):
    file = tmp_path / "module.py"
    file.write_text("import a")
    assert imports_of_file(file, "") == {"a"}
    file.write_text("import bcd")
    assert imports_of_file(file, "") == {"bcd"}
    file.unlink()
    assert imports_of_file(file, "") == set()
