"""What a cell says before anything runs: its loop, its body, what it needs, and what is wrong with it."""

from __future__ import annotations

import asyncio
import inspect
import math
import types
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager

from burla_jupyter.cell import MAGIC, Body, Header, parse_body, parse_header, split
from burla_jupyter.errors import Refused
from burla_jupyter.node import Lines
from burla_jupyter.outcome import VALUE


def header(line: str) -> Header:
    column = split(line)
    assert column is not None
    return parse_header(line, column, "here.py")


def inputs(line: str, **notebook: Any) -> list[tuple[Any, ...]]:
    return list(eval(header(line).code, notebook)())


def body(cell: str, line: str | None = "for x in xs", **notebook: Any) -> Body:
    loop = None if line is None else header(line)
    return parse_body(cell, loop, notebook, "here.py", TransformerManager().transform_cell)


def call(cell: str, *values: Any, line: str = "for x in xs", **notebook: Any) -> Any:
    return types.FunctionType(body(cell, line, **notebook).code, notebook)(*values)


def run(cell: str, **notebook: Any) -> dict[str, Any]:
    """Return the names after a cell without a loop ran."""
    code = body(cell, None, **notebook).code
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, notebook))
    else:
        exec(code, notebook)
    return notebook


# the line ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("for x in xs", ""),
        ("  for x in xs", "  "),
        ("-o out for x in xs", "-o out "),
        ("-o out\tfor\tx in xs", "-o out\t"),
        ("--image 'a for b' for x in xs", "--image 'a for b' "),
        ('--image "a \\" for b" for x in xs', '--image "a \\" for b" '),
        ('--image="a for b" for x in "for"', '--image="a for b" '),
        ("--image it's for x in xs", "--image it's "),
        ("-o for_ for x in xs", "-o for_ "),
        ("-o out for", "-o out "),
    ],
)
def test_the_first_word_for_ends_the_options(line: str, options: str):
    column = split(line)
    assert column is not None and line[: column - 3] == options


@pytest.mark.parametrize("line", ["", "-o out", "--image 'x for y'", "-o fork", "--ship a,for_b"])
def test_a_line_without_the_word_for_has_no_loop(line: str):
    assert split(line) is None


@given(st.text(st.sampled_from("ab'\"\\ for="), max_size=30))
def test_splitting_loses_nothing(text: str):
    column = split(text)
    assert column is None or text[column - 3 : column] == "for"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("for x in range(3)", [(0,), (1,), (2,)]),
        ("for x in range(9) if x % 2 if x > 5", [(7,)]),
        ("for a, k in zip('ab', [1, 2])", [("a", 1), ("b", 2)]),
        ("for (a, (b, *c)), d in [((1, (2, 3, 4)), 5)]", [(1, 2, [3, 4], 5)]),
        ("for a in [1, 2] for b in range(a)", [(1, 0), (2, 0), (2, 1)]),
        ("for a in [[1], [2]] for a in a", [(1,), (2,)]),
        ("for t in [(1, 2)]", [((1, 2),)]),
        ("for x in [1, 2] if (y := 10 * x) > 10", [(2, 20)]),
        ("for _ in 'ab'", [("a",), ("b",)]),
        ("for x in [1] # a comment", [(1,)]),
        ("for x in {'for': 1}", [("for",)]),
        ("for s in [f'{d}/$HOME/{{x}}' for d in ('a',)]", [("a/$HOME/{x}",)]),
        ("for f in [lambda: [i for i in range(2)]] if f()", None),
    ],
)
def test_a_loop_gives_the_values_of_its_names(line: str, expected: list[tuple[Any, ...]] | None):
    found = inputs(line)
    assert len(found) == 1 if expected is None else found == expected


def test_a_loop_sees_the_notebook_and_leaves_nothing_there():
    notebook: dict[str, Any] = {"dirs": ["a", "b"], "keep": lambda path: path != "b/1", "__builtins__": __builtins__}
    names = {*notebook}
    loop = header("for p in [f'{d}/{i}' for d in dirs for i in (0, 1)] if (q := keep(p))")
    assert list(eval(loop.code, notebook)()) == [("a/0", True), ("a/1", True), ("b/0", True)]
    assert {*notebook} == names


def test_a_loop_is_evaluated_element_by_element():
    seen: list[int] = []
    generator = eval(header("for x in range(9) if not seen.append(x)").code, {"seen": seen})()
    assert next(generator) == (0,) and seen == [0]


def test_an_error_in_a_loop_stands_at_its_column_in_the_line():
    line = "-o out for x in [1] if nowhere"
    with pytest.raises(NameError) as caught:
        inputs(line)
    last = caught.tb
    while last.tb_next is not None:
        last = last.tb_next
    positions = list(last.tb_frame.f_code.co_positions())[last.tb_lasti // 2]
    assert positions[0] == 1 and (MAGIC + line)[positions[2] : positions[3]] == "nowhere"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("for", "comes a loop"),
        ("for x", "no `in`"),
        ("for x in xs:", "without a colon"),
        ("for x in [1,", "in the first line of the cell"),
        ("for x in f(a", "in the first line of the cell"),
        ("for x in \\", "in the first line of the cell"),
        ("for x in xs] + [1", "is not a loop"),
        ("for d[0] in xs", "binds no name"),
        ("for x in await xs", "`await`"),
        ("for x in [1] async for y in ys", "`await`"),
    ],
)
def test_a_line_that_cannot_be_meant_so_is_explained(line: str, says: str):
    with pytest.raises(Refused, match=r"^[^\n]+$") as caught:
        header(line)
    assert says in str(caught.value)


def test_a_syntax_error_in_a_loop_shows_the_line_of_the_cell():
    with pytest.raises(SyntaxError) as caught:
        header("-o a for x in xs if")
    assert caught.value.text == "%%burla -o a for x in xs if\n" and caught.value.lineno == 1
    with pytest.raises(SyntaxError) as caught:
        header("-o a for x in 1 2")
    assert caught.value.offset is not None and (caught.value.text or "")[: caught.value.offset] in (
        "%%burla -o a for x in 1",
        "%%burla -o a for x in 1 2",
    )


# the body of a map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("x + 1", 6),
        ("x + 1\n\n# the end", 6),
        ("y = x\ny * 2", 10),
        ("return x * 3", 15),
        ("if x > 3:\n    return 'big'\n'small'", "big"),
        ("for i in range(x): pass\ni", 4),
        ("y = x", None),
        ("'text'", "text"),
        ('"""text"""\nx', 5),
        ("def f(n): return 1 if n < 2 else n * f(n - 1)\nf(x)", 120),
        ("def f():\n    def g():\n        return x\n    return g\nf()()", 5),
        ("class A:\n    b = x\nA.b", 5),
        ("import math as m\nm.sqrt(x * x)", 5.0),
        ("from __future__ import annotations\ndef f(a: nowhere): pass\nf.__annotations__", {"a": "nowhere"}),
        ("[x * i for i in range(3) if i < x]", [0, 5, 10]),
        ("(lambda: x)()", 5),
        ("with __import__('contextlib').suppress(KeyError): {}[0]\nx", 5),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    x = str(e)\nx", "division by zero"),
        ("match x:\n    case 5: y = 'five'\ny", "five"),
        ("x += 1\nx", 6),
        ("del x", None),
        ("if (y := x): pass\ny", 5),
        ("\n\n   x\n", 5),
        (">>> y = x\n>>> y", 5),
        ("global there\nthere = x\nthere", 5),
        ("from __future__ import annotations", None),
        ("x;", 5),
    ],
)
def test_the_value_of_a_map_is_what_is_returned_or_the_last_expression(cell: str, value: Any):
    assert call(cell, 5) == value


def test_a_body_gets_every_name_of_the_loop():
    assert call("a, k", 1, 2, line="for a, k in xs") == (1, 2)


@pytest.mark.parametrize(
    "cell",
    [
        "import asyncio\nawait asyncio.sleep(0)\nx",
        "async def f(): return x\nawait f()",
        "async def f():\n    yield x\n[i async for i in f()][0]",
        "async def f():\n    yield x\nasync for i in f(): pass\ni",
    ],
)
def test_a_body_can_await(cell: str):
    assert asyncio.run(call(cell, 5)) == 5


def test_a_body_that_awaits_only_in_functions_is_an_ordinary_one():
    assert call("async def f(): await g()\nx", 5) == 5


def test_names_that_a_body_reads_are_needed_if_the_notebook_has_them():
    found = body("y = a + b\nc = 1\nc + x + len(y) + d.e", a=1, c=2, d=3, x=4, unused=5, y=6)
    assert found.read == ("a", "d") and found.changed == ()


def test_a_body_that_assigns_what_it_reads_works_on_a_copy_of_the_notebooks():
    found = body("total += x\ntotal", total=10)
    assert found.read == ("total",) and found.changed == ("total",)
    notebook = {"total": 10}
    assert call("total += x\ntotal", 5, **notebook) == 15


@pytest.mark.parametrize(
    ("cell", "changed"),
    [
        ("lst.append(x)", ("lst",)),
        ("d[x] = 1", ("d",)),
        ("del d[x]", ("d",)),
        ("obj.attribute = x", ("obj",)),
        ("if x: total = 1\ntotal", ("total",)),
        ("def f():\n    global total\n    total = x\nf()", ("total",)),
        ("global total\ntotal = x", ("total",)),
        ("total += x\nlst.append(x)", ("lst", "total")),
        ("lst = []\nlst.append(x)", ()),
        ("total = 1\ntotal += x", ()),
        ("lst = lst + [x]", ("lst",)),
        ("new.append(x)", ()),
        ("math.pi = 3", ()),
        ("x += 1", ()),
        ("x.append(1)", ()),
        ("def f(): return total\ntotal = 1\nf()", ()),
        ("Kind.attribute = x", ("Kind",)),
    ],
)
def test_a_body_that_changes_notebook_names_is_known(cell: str, changed: tuple[str, ...]):
    notebook = {"total": 0, "lst": [], "d": {}, "obj": object(), "math": math, "x": 1, "Kind": type("Kind", (), {})}
    assert body(cell, **notebook).changed == changed


@pytest.mark.parametrize(
    ("cell", "nothing"),
    [
        ("y = x", True),
        ("for i in x: print(i)", True),
        ("print(x)", True),
        ("display(x)", True),
        ("None", True),
        ("return", True),
        ("if x: return None", True),
        ("if x: x + 1", True),
        ("!ls", True),
        ("def f(): return 1", True),
        ("x", False),
        ("print(x) or x", False),
        ("if x: return x", False),
        ("y = !ls\ny", False),
        ("while x:\n    try:\n        return 1\n    finally: pass", False),
    ],
)
def test_a_body_that_can_only_give_none_is_known(cell: str, nothing: bool):
    assert body(cell).gives_none is nothing


# run mode ----------------------------------------------------------------------------------------------------------


def test_a_cell_without_a_loop_is_a_module():
    there = run("import math\ny = x + 1\ndef f(): return y\nclass A: pass\nf() + math.floor(0.5)", x=1)
    assert there[VALUE] == 2 and there["y"] == 2 and there["f"]() == 2 and there["A"].__name__ == "A"


def test_a_cell_without_a_last_expression_has_no_value():
    assert VALUE not in run("y = 1") and run("print")[VALUE] is print


@pytest.mark.parametrize("cell", ["import asyncio\nawait asyncio.sleep(0)\n7", "async def f(): return 7\nawait f()"])
def test_a_cell_without_a_loop_can_await(cell: str):
    assert run(cell)[VALUE] == 7


def test_a_cell_without_a_loop_needs_what_it_reads_and_changes_what_it_likes():
    found = body("a += 1\nb.append(a)\ndef f(): return c\nc = 1", None, a=1, b=[], c=2, d=3)
    assert found.read == ("a", "b", "c") and found.changed == ()


def test_changes_of_classes_and_functions_are_pointed_out():
    assert body("K.a = 1\nf.b = 2\nm.c = 3", None, K=type("K", (), {}), f=lambda: 0, m=math).changed == ("K", "f")


def test_names_of_the_interpreter_itself_stay_here():
    assert body("__spec__, __name__", None, __spec__=None, __name__="__main__").read == ("__name__",)


# positions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["for x in xs", None])
@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1 / 0", 2),
        ("\n\n1 / 0", 4),
        ("y = 1\n\n1 / 0\n\n", 4),
        ("y = '''\na\n'''\n1 / 0", 5),
        ("!true \\\n  a \\\n  b\n1 / 0", 5),
        ("y = !true \\\n  a\n\n1 / 0", 5),
        ("  y = 1\n  1 / 0", 3),
        ("if True:\n    !true \\\n      a\n    1 / 0", 5),
    ],
)
def test_lines_are_those_of_the_cell(cell: str, number: int, line: str | None):
    from burla_jupyter import node

    notebook: dict[str, Any] = {"get_ipython": node.get_ipython}
    code = body(cell, line, **notebook).code
    with pytest.raises(ZeroDivisionError) as caught:
        types.FunctionType(code, notebook)(*([5] if line else []))
    assert caught.traceback[-1].lineno == number - 1 and str(caught.traceback[-1].path).endswith("here.py")


@pytest.mark.parametrize("line", ["for x in xs", None])
def test_a_syntax_error_has_its_line_in_the_cell(line: str | None):
    for cell, number in [("y = 1\ny = = 2", 3), ("\n\nx y", 4), ("break", 2), ("y = 1\ncontinue", 3)]:
        with pytest.raises(SyntaxError) as caught:
            body(cell, line)
        assert (caught.value.filename, caught.value.lineno) == ("here.py", number)


# what is refused, and IPython's escapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "line", "says"),
    [
        ("yield x", "for x in xs", "line 2: a cell cannot `yield`"),
        ("y = 1\nfrom math import *", "for x in xs", r"line 3: .* cannot import \*"),
        ("y = 1\nyield from y", None, "line 3: a cell cannot `yield`"),
        ("y = 1\nreturn y", None, "line 3: without a `for`.*%%burla for x in xs"),
        ("if y:\n    return", None, "line 3"),
        ("# nothing", "for x in xs", "nothing to run"),
        ("\n\n", None, "nothing to run"),
        ("%pip install it", None, "line 2: %pip .*cell of its own"),
        ("y = 1\n%cd /tmp", "for x in xs", r"line 3: %cd .*os\.chdir"),
        ("if y:\n    %time f()", None, "line 3: %time"),
        ("y = %time f()", None, "line 2: %time"),
        ("%%time\ny = 1", None, "line 2: %%time"),
        ("%%bash\nls", "for x in xs", "line 2: %%bash"),
        ("y = 1\nx?", None, r"line 3: help by `\?`"),
        ("??x", None, r"line 2: help by `\?`"),
        ("get_ipython().run_line_magic('matplotlib', 'inline')", None, "line 2: %matplotlib"),
        ("get_ipython().magic('x')", None, "line 2: %x"),
    ],
)
def test_what_cannot_run_on_a_node_is_refused_by_its_line(cell: str, line: str | None, says: str):
    with pytest.raises(Refused, match=says):
        body(cell, line)


def test_yield_and_return_inside_of_functions_are_allowed():
    assert run("def f():\n    yield 1\n    return\nlist(f())")[VALUE] == [1]
    assert call("def f():\n    yield x\nlist(f())", 5) == [5]


class Shell:
    """Stands for IPython's, and says which command it was given."""

    def system(self, command: str) -> str:
        return command

    def getoutput(self, command: str) -> Lines:
        return Lines([command])


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("ls", "ls"),
        ("ls {path}", "ls p"),
        ("ls $path/$x", "ls p/5"),
        ("ls {path + 'q'}/{x:03d}", "ls pq/005"),
        ("ls {path!r}", "ls 'p'"),
        ("ls {len(path)} {[i for i in range(2)]}", "ls 1 [0, 1]"),
        ("echo $HOME {path}", "echo $HOME {path}"),
        ("echo ${HOME}", "echo ${HOME}"),
        ("awk '{print $1}' {path}", "awk '{print $1}' {path}"),
        ("echo $$path {{x}}", "echo $path {x}"),
        ("echo '$path' \"$path\"", "echo '$path' \"p\""),
        ("echo {", "echo {"),
    ],
)
def test_a_command_is_given_the_values_that_ipython_would_give_it(command: str, given: str):
    notebook = {"path": "p", "get_ipython": Shell}
    assert call(f"y = !{command}\ny[0]", 5, **notebook) == given


def test_names_in_a_command_are_needed():
    assert body("!ls {path} $other $unknown", None, path="p", other="o", third=3).read == ()
    assert body("!ls {path} $other", None, path="p", other="o", third=3).read == ("path", "other")


def test_a_commands_exit_code_is_where_ipython_puts_it():
    assert run("!false", get_ipython=Shell)["_exit_code"] == "false"


def test_a_command_sees_names_of_functions_around_it():
    assert call("def f(p):\n    y = !ls {p}\n    return y\nf('q')[0]", 5, get_ipython=Shell) == "ls q"
