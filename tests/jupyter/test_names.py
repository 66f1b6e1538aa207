"""Which names a cell needs from the notebook, and which it changes there."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burla_jupyter.names import names_of


def read(source: str, *bound: str) -> set[str]:
    return {*names_of(ast.parse(textwrap.dedent(source)).body, bound).read}


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        ("a + b.c[d]", "a b d"),
        ("a = 1\na", ""),
        ("a = a", "a"),
        ("a += 1", "a"),
        ("a: int = 1\na", "int"),
        ("a: b", "b"),
        ("x = y = z\nx + y", "z"),
        ("a, (b, *c) = d\na + b + c", "d"),
        ("a[b] = c", "a b c"),
        ("a.b = 1", "a"),
        ("del a", "a"),
        ("a = 1\ndel a\na", "a"),
        ("f'{a} {b!r:{c}}'", "a b c"),
        ("print(x := 1, x)", "print"),
        ("import os.path as p, sys.x\np, sys", ""),
        ("from m import a as b\nb + a", "a"),
        ("from m import *\na", "a"),
        ("assert a, b", "a b"),
        ("if a: b = 1\nb", "a b"),
        ("if a: b = 1\nelse: b = 2\nb", "a"),
        ("if a: b = 1\nelse: raise c\nb", "a c"),
        ("b = 1 if a else c", "a c"),
        ("a and (b := 1)\nb", "a b"),
        ("a or b", "a b"),
        ("for i in a: i\nelse: b = 1\ni + b", "a b i"),
        ("for i in a:\n  b = 1\n  b", "a"),
        ("for i in a:\n  b\n  b = 1", "a b"),
        ("while a:\n  a = b\n", "a b"),
        ("while a:\n  break\n  b", "a"),
        ("try: a = f()\nexcept E as e: e\na", "f E a"),
        ("try: a = f()\nexcept E: a = 1\na", "f E"),
        ("try: a = f()\nexcept E: raise\nelse: b = 2\na + b", "f E"),
        ("try: a\nexcept E as e: pass\ne", "a E e"),
        ("try: a = 1\nfinally: b = a\nb", "a"),
        ("try: f()\nexcept* E as e: e", "f E"),
        ("with a as b, c(b): d = 1\nb + d", "a c"),
        ("with a: raise b\nc", "a b c"),
        ("match a:\n  case [b, *c]: b + c\n  case {'k': d, **e}: d + e\n  case K(f): f\n  case _: g\nb", "a K g b"),
        ("match a:\n  case 1: b = 1\n  case c: b = c\nb", "a"),
        ("match a:\n  case 1: b = 1\nb", "a b"),
        ("match a:\n  case m.X if b: pass", "a m b"),
        ("[i for i in a if i > b]", "a b"),
        ("[i + j for i in a for j in i]", "a"),
        ("[i for i in i]", "i"),
        ("{k: v for k, v in a}", "a"),
        ("sum(i for i in a)\ni", "sum a i"),
        ("[b := i for i in a]\nb", "a b"),
        ("[[j for j in i] for i in a]", "a"),
        ("lambda a, *b, c=d, **e: a + b + c + e + f", "d f"),
        ("def f(a, b=c, *, d: e = g) -> h: return a + b + d + i", "c e g h i"),
        ("def f(): return f()\nf()", ""),
        ("def f(): return g()\ndef g(): return 1\nf()", "g"),
        ("def f():\n  a = 1\n  return a", ""),
        ("def f():\n  if b: a = 1\n  return a", "b"),
        ("def f():\n  global a\n  a = 1\n  return b", "b"),
        ("def f():\n  global a\n  a += 1", "a"),
        ("def f():\n  a = 1\n  def g():\n    nonlocal a\n    a += b\n  return g", "b"),
        ("def f():\n  import a\n  a\n  for b in c: b\n  with d as e: e", "c d"),
        ("def f():\n  def g(): return h\n  h = 1\n  return g", ""),
        ("@a(b)\ndef f(): pass", "a b"),
        ("async def f():\n  async with a as b: await b\n  async for c in d: c", "a d"),
        ("@a\nclass A(B, metaclass=M):\n  x = y\n  def f(self): return x + z", "a B M y x z"),
        ("class A:\n  x = 1\n  y = x", ""),
        ("class A:\n  def f(self): return A()", "A"),
        ("x = 1\nclass A:\n  def f(self): return x", ""),
        ("await a", "a"),
        ("global a\na = 1\na", ""),
        ("return a\nb", "a"),
    ],
)
def test_names_that_may_be_read_before_they_are_assigned(source: str, needed: str):
    assert read(source) == set(needed.split())


def test_the_names_of_a_loop_are_not_needed():
    assert read("x + y\ndef f(): return x", "x") == {"y"}


def test_a_name_that_only_a_nested_function_reads_is_not_read_at_once():
    names = names_of(ast.parse("def f(): return a + b\na = 1\nb\n[c for _ in d]").body)
    assert {*names.read} == {"a", "b", "c", "d"} and names.at_once == {"b", "c", "d"}


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("a.append(1)", "a"),
        ("a[0] = 1", "a"),
        ("a.b.c = 1", "a"),
        ("a.b[0].update({})", "a"),
        ("a += 1", "a"),
        ("a[0] += 1", "a"),
        ("del a[0]", "a"),
        ("del a.b", "a"),
        ("for a[0] in b: pass", "a"),
        ("with b as a.c: pass", "a"),
        ("x, a[0] = b", "a"),
        ("a.fit(b).score(c)", "a"),
        ("[a.add(i) for i in b]", "a"),
        ("def f(): a.add(1)", "a"),
        ("def f():\n  global a\n  a = 1", "a"),
        ("class A:\n  a.add(1)", "a"),
        ("if b: a = []\na.append(1)", "a"),
        ("a.upper() + a[0] + a.b", ""),
        ("a = []\na.append(1)\na[0] = 2", ""),
        ("f(a).append(1)", ""),
        ("def f(a): a.add(1)", ""),
        ("def f():\n  a = []\n  a.append(1)", ""),
        ("[a.add(1) for a in b]", "b"),
        ("b = a\nb.append(1)", "a"),
        ("b = a\nb[0] = 1\nc = b\nb = []\nc.x = b.x = 1", "a"),
        ("b = a\nb = []\nb.append(1)", ""),
        ("b = a\nb += 1", ""),
        ("b = a[0]\nb.add(1)", ""),
        ("for b, (c, *_) in a: c.d.add(1)", "a"),
        ("for b[c] in a: c.add(1)", "b c"),
        ("a = []\nfor b in a: b.add(1)", ""),
        ("def f():\n  a = 1\n  def g():\n    nonlocal a\n    a = 2", ""),
        ("[].append(1)", ""),
    ],
)
def test_names_whose_old_value_may_be_changed(source: str, changed: str):
    assert {*names_of(ast.parse(source).body).changed} == set(changed.split())


def test_a_name_stands_with_the_line_of_its_first_use():
    names = names_of(ast.parse("\na\nb = a\nb.append(c)\nc.append(b)").body)
    assert names.read == {"a": 2, "c": 4} and names.changed == {"a": 4, "c": 5} and names.assigned == {"b": 3}


# Whatever code does, a name that it reads from the notebook is among those that were found.

NAMES = st.sampled_from("abcd")
VALUES = NAMES | st.just("1")
SIMPLE = st.one_of(
    st.builds("{} = {}".format, NAMES, VALUES),
    st.builds("{} += {}".format, NAMES, VALUES),
    st.builds("{} = [{} for {} in range(2)]".format, NAMES, VALUES, NAMES),
    st.builds("({} := {}) > 1 and ({} := {})".format, NAMES, VALUES, NAMES, VALUES),
    st.builds("{} = {} if {} else {}".format, NAMES, VALUES, VALUES, VALUES),
    st.builds("del {}".format, NAMES),
    st.just("raise ValueError"),
    st.just("pass"),
)


def _indent(block: list[str]) -> str:
    return textwrap.indent("\n".join(block), "  ")


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    block = st.lists(inner, min_size=1, max_size=3).map(_indent)
    loop = st.lists(inner | st.sampled_from(["break", "continue"]), min_size=1, max_size=3).map(_indent)
    return st.one_of(
        st.builds("if {} != 1:\n{}\nelse:\n{}".format, VALUES, block, block),
        st.builds("for {} in range(2):\n{}\nelse:\n{}".format, NAMES, loop, block),
        st.builds("while step():\n{}".format, loop),
        st.builds(
            "try:\n{}\nexcept ValueError as {}:\n{}\nelse:\n{}\nfinally:\n{}".format, block, NAMES, block, block, block
        ),
        st.builds("with suppress(ValueError) as {}:\n{}".format, NAMES, block),
        st.builds(
            "match {}:\n  case 1:\n{}\n  case {}:\n{}".format, VALUES, block.map(_indent1), NAMES, block.map(_indent1)
        ),
        st.builds("class K:\n{}".format, block),
    )


def _indent1(block: str) -> str:
    return textwrap.indent(block, "  ")


class Notebook(MutableMapping[str, Any]):
    """Names as a cell sees them: what it has not assigned comes from the notebook, and is noted."""

    def __init__(self) -> None:
        self.own: dict[str, Any] = {}
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self.own and name in "abcd":
            self.read.add(name)
            return 5
        return self.own[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.own[name] = value

    def __delitem__(self, name: str) -> None:
        if name not in self.own:
            self.read.add(name)
        self.own.pop(name, None)

    def __iter__(self) -> Any:
        return iter(self.own)

    def __len__(self) -> int:
        return len(self.own)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.recursive(SIMPLE, _compound, max_leaves=8), min_size=1, max_size=4).map("\n".join))
def test_what_code_reads_from_the_notebook_was_found(source: str):
    notebook = Notebook()
    steps = iter(range(4))
    here = {"suppress": suppress, "step": lambda: next(steps, 3) < 3}
    with suppress(ValueError, TypeError, NameError):
        exec(source, here, notebook)
    assert notebook.read <= names_of(ast.parse(source).body).read.keys()
