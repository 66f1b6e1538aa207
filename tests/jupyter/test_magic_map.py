"""`%%burla for x in xs` in a real kernel, on a real cluster."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from tests.conftest import Ledger
from tests.jupyter.conftest import Kernel


@pytest.fixture(autouse=True, scope="module")
def notebook(kernel: Kernel) -> None:
    """Names that cells use."""
    kernel.run("import os, time\nxs = list(range(5))\nlimit = 3\ndef scale(x): return limit * x")


# results -----------------------------------------------------------------------------------------------------------


def test_results_go_in_order_into_the_variable_after_o(kernel: Kernel):
    output = kernel.run("%%burla -o squares for x in xs if x != 2\nprint('call', x)\nx ** 2")
    assert output.value is None and output.error == "" and output.stderr == ""
    assert sorted(output.stdout.splitlines()) == ["call 0", "call 1", "call 3", "call 4"]
    assert kernel.run("squares").text == "[0, 1, 9, 16]"


def test_names_of_the_loop_and_of_the_body_do_not_appear_in_the_notebook(kernel: Kernel):
    kernel.run("%%burla -o pairs for a_1, (b_1, *_) in [(1, (2, 3))] if (c_1 := a_1)\nd_1 = b_1\na_1, b_1, c_1, d_1")
    assert kernel.run("pairs, [name for name in globals() if name.endswith('_1')]").text == "([(1, 2, 1, 2)], [])"


def test_without_o_the_results_are_shown_in_short_and_read_when_asked_for(kernel: Kernel):
    output = kernel.run("%%burla for x in range(100)\n'r' * x")
    lines = output.text.splitlines()
    assert re.fullmatch(r"100 results of job [0-9a-f]+", lines[0])
    assert lines[1:6] == ["  [0] ''", "  [1] 'r'", "  [2] 'rr'", "  [3] 'rrr'", "  [4] 'rrrr'"]
    assert "95 more" in lines[6] and len(lines) == 7
    assert output.value is not None and "<table>" in output.value["text/html"]
    kernel.run("kept = _")
    assert kernel.run("len(kept), kept[3], kept[-1] == 'r' * 99, kept[1:3]").text == "(100, 'rrr', True, ['r', 'rr'])"
    assert kernel.run("list(kept) == ['r' * n for n in range(100)], [*map(len, kept)] == [*range(100)]").text == (
        "(True, True)"
    )
    assert kernel.run("kept[100]").error == "IndexError"
    kernel.run("job = kept.job\njob.delete()")
    assert kernel.run("kept[3]").error == "UnknownJob"
    assert "UnknownJob" in kernel.run("type(kept)(job)").text


def test_arrays_and_ugly_values_show_in_short(kernel: Kernel):
    kernel.run("import numpy as np\nclass Ugly:\n    def __repr__(self): raise ValueError('ugly')")
    shown = kernel.run(
        "%%burla for x in [0, 1, 2]\n[np.zeros((3, 4)), Ugly(), 'x' * 1000 + '\\n'][x]"
    ).text.splitlines()
    assert shown[1] == "  [0] ndarray of 3 × 4" and "Ugly" in shown[2] and len(shown[3]) < 120 and len(shown) == 5


def test_results_without_a_name_are_not_kept_in_the_kernel(kernel: Kernel):
    pid = int(kernel.run("os.getpid()").text)
    before = psutil.Process(pid).memory_info().rss
    assert "40 results" in kernel.run("%%burla for x in range(40)\nbytes(8_000_000)").text
    assert psutil.Process(pid).memory_info().rss - before < 120_000_000
    assert kernel.run("sum(map(len, _))").text == "320000000"
    assert psutil.Process(pid).memory_info().rss - before < 120_000_000


@pytest.mark.slow
def test_200_results_of_8_mb_fill_neither_the_kernel_nor_the_saved_notebook(tmp_path: Path):
    sources = [
        "%load_ext burla_jupyter\nimport psutil\nbefore = psutil.Process().memory_info().rss",
        "%%burla for x in range(200)\nprint(x)\nbytes([x]) * 8_000_000",
        "psutil.Process().memory_info().rss - before, len(Out[2]), Out[2][199][-1]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    grown_bytes, count, last = eval(notebook.cells[2].outputs[0].data["text/plain"])
    assert grown_bytes < 200_000_000 and (count, last) == (200, 199)
    nbformat.write(notebook, tmp_path / "saved.ipynb")
    assert (tmp_path / "saved.ipynb").stat().st_size < 1_000_000


def test_a_semicolon_at_the_end_shows_nothing(kernel: Kernel):
    assert kernel.run("%%burla for x in xs\nx;").value is None


def test_a_loop_over_nothing_gives_nothing(kernel: Kernel):
    assert kernel.run("%%burla -o none for x in []\nx").error == ""
    assert kernel.run("none").text == "[]"
    assert "0 results" in kernel.run("%%burla for x in []\nx").text


@pytest.mark.parametrize(
    ("line", "body", "expected"),
    [
        ("for x in xs", "return x if x else None\n", "[None, 1, 2, 3, 4]"),
        ("for x in xs", "y = x", "[None, None, None, None, None]"),
        ("for t in [(1, 2), [3]]", "t", "[(1, 2), [3]]"),
        ("for k, v in {'a': 1}.items()", "k * v", "['a']"),
        ("for a in [1, 2] for b in range(a)", "a, b", "[(1, 0), (2, 0), (2, 1)]"),
        ("for x in (n * limit for n in xs)", "x", "[0, 3, 6, 9, 12]"),
        ("for f in [scale, len]", "f('a')", "['aaa', 1]"),
        ("for x in xs", "import asyncio\nawait asyncio.sleep(0.01)\nx", "[0, 1, 2, 3, 4]"),
        ("for x in [2]", "def fact(n): return n and n * fact(n - 1) or 1\nfact(x)", "[2]"),
        ("for x in [7]", "class A:\n    b = x\n    def c(self): return x\nA.b, A().c()", "[(7, 7)]"),
        ("for s in ['a for b', '{x} $x']", "s", "['a for b', '{x} $x']"),
        ("for x in [1]", "__name__, [y for y in [x]], (lambda: x)()", "[('__main__', [1], 1)]"),
        ("for x in [1]", "from __future__ import annotations\nx", "[1]"),
        ("for x in [1]", "s = '''\n  %pip in a string\n'''\ns", r"['\n  %pip in a string\n']"),
    ],
)
def test_cells_of_many_shapes(kernel: Kernel, line: str, body: str, expected: str):
    output = kernel.run(f"%%burla -o got {line}\n{body}")
    assert output.error == "" and kernel.run("got").text == expected


# what travels ------------------------------------------------------------------------------------------------------


def test_only_what_the_cell_needs_travels(kernel: Kernel):
    kernel.run("import threading\nlock = threading.Lock()\nunused = bytes(500_000_000)\ndef other(): return lock")
    output = kernel.run("%%burla -o got for x in xs\nunused = scale(x)\nlock = unused + 1\nlock")
    assert output.error == "" and output.stderr == ""
    assert kernel.run("got, len(unused)").text == "([1, 4, 7, 10, 13], 500000000)"
    assert "Names that travel   " in (shown := kernel.run("%%burla --dry-run for x in xs\nscale(x)").stdout)
    assert re.search(r"travel +\d+ bytes: scale \d+ bytes\n", shown)
    kernel.run("del unused")


def test_what_cannot_be_pickled_is_named_before_anything_runs(kernel: Kernel, ledger: Ledger):
    output = kernel.run(f"%%burla for x in xs\nopen({str(ledger.path)!r}, 'a').write('ran')\nlock.acquire()")
    assert (
        output.error == "FunctionNotPicklable" and "'lock'" in output.traceback and "magic.py" not in output.traceback
    )
    assert ledger.entries() == []


def test_the_size_of_what_travels_is_said_when_it_is_large(kernel: Kernel):
    kernel.run("table = bytes(12_000_000)")
    assert "12.0 MB travel with the cell: table 12.0 MB" in kernel.run("%%burla for x in [1]\nlen(table)").stderr
    assert kernel.run("del table").error == ""


def test_names_in_strings_travel_when_asked_for_and_are_pointed_out_if_not(kernel: Kernel):
    output = kernel.run("%%burla for x in xs\neval('limit + x')")
    assert output.error == "NameError" and "%%burla --ship limit" in output.traceback
    assert "limit + 4" not in output.traceback
    assert kernel.run("%%burla -o got --ship limit,scale for x in xs\neval('limit + scale(x)')").error == ""
    assert kernel.run("got").text == "[3, 6, 9, 12, 15]"
    assert "--ship" not in kernel.run("%%burla for x in xs\nnowhere").traceback


def test_edited_functions_classes_and_modules_travel_in_their_newest_form(kernel: Kernel, tmp_path: Path):
    kernel.run(f"import sys, importlib\nsys.path.insert(0, {str(tmp_path)!r})")
    for number in (1, 22):
        kernel.run(f"def f(): return {number}\nclass C:\n    def m(self): return {number}")
        kernel.run(f"open({str(tmp_path)!r} + '/edited.py', 'w').write('def g(): return {number}')")
        kernel.run("import edited\nimportlib.reload(edited)")
        kernel.run("%%burla -o got for x in [0]\nf(), C().m(), edited.g()")
        assert kernel.run("got").text == f"[({number}, {number}, {number})]"


def test_classes_of_the_notebook_come_back_as_themselves(kernel: Kernel):
    kernel.run("class Point:\n    made = 0\n    def __init__(self, x): self.x = x; Point.made += 1")
    kernel.run("%%burla -o points for x in xs\nPoint(x)")
    assert kernel.run("[type(p) is Point and p.x for p in points], Point.made").text == "([0, 1, 2, 3, 4], 0)"


# copies ------------------------------------------------------------------------------------------------------------


def test_each_call_has_its_own_copy_of_what_the_body_changes(kernel: Kernel):
    kernel.run("total = 100\nlst = []\nconf = {'a': [1]}\ndef look(): return len(lst)")
    output = kernel.run(
        "%%burla -o got for x in range(20)\ntotal += x\nlst.append(x)\nconf['a'].append(x)\ntotal, lst, conf, look()"
    )
    assert "burla: each call has its own copy of conf, lst, total" in output.stderr
    assert kernel.run("got == [(100 + x, [x], {'a': [1, x]}, 1) for x in range(20)]").text == "True"
    assert kernel.run("total, lst, conf").text == "(100, [], {'a': [1]})"


def test_other_names_of_what_the_body_changes_are_of_the_same_copy(kernel: Kernel):
    kernel.run("rows = [[1], [2]]\nalias = rows\nscores = {}")
    output = kernel.run(
        "%%burla -o got for x in range(20)\nfor row in rows: row.append(x)\nmine = scores\nmine[x] = 1\n"
        "alias is rows, rows, len(scores)"
    )
    assert "its own copy of rows, scores" in output.stderr
    assert kernel.run("got == [(True, [[1, x], [2, x]], 1) for x in range(20)]").text == "True"
    output = kernel.run("%%burla --local for x in [3]\nfor row in rows: row.append(x)\nalias is rows, rows")
    assert output.text == "(True, [[1, 3], [2, 3]])" and kernel.run("alias is rows, rows").text == "(True, [[1], [2]])"


def test_what_functions_of_the_notebook_change_is_said(kernel: Kernel):
    kernel.run("seen = []\ndef remember(x): seen.append(x)\ndef work(x):\n    remember(x)\n    return x")
    output = kernel.run("%%burla -o got for x in xs\nwork(x)")
    assert "calls change seen (in remember): later calls in the same process see it, the notebook" in output.stderr
    assert kernel.run("%%burla -o got for x in xs\nscale(x)").stderr == ""
    assert kernel.run("%%burla\nwork(1);").stderr == "" and kernel.run("seen").text == "[1]"


def test_a_name_that_is_deleted_or_redefined_is_there_again_in_the_next_call(kernel: Kernel):
    kernel.run("%%burla -o got for x in range(20)\nbefore = scale(1)\nif x % 2: del total\nscale = None\nbefore")
    assert kernel.run("got == [3] * 20").text == "True"


def test_names_that_the_body_assigns_first_are_its_own(kernel: Kernel):
    output = kernel.run("%%burla -o got for x in xs\nlst = [x]\nlst.append(limit)\nlst")
    assert output.stderr == "" and kernel.run("got[1]").text == "[1, 3]"


def test_a_body_that_can_only_give_none_is_pointed_out(kernel: Kernel):
    assert "burla: every call gives None" in kernel.run("%%burla for x in xs\nfor i in range(x): pass").stderr


# on the node -------------------------------------------------------------------------------------------------------


def test_commands_run_on_the_node(kernel: Kernel, tmp_path: Path):
    kernel.run(f"folder = {str(tmp_path)!r}")
    output = kernel.run(
        "%%burla -o got for x in [1, 2]\n!echo out {x} $limit && echo err >&2\n!touch {folder}/made-$x\n"
        "y = !ls {folder}\n_exit_code, y.n, len(y) > 0"
    )
    assert output.error == "" and sorted(output.stdout.split()) == ["1", "2", "3", "3", "out", "out"]
    assert output.stderr == "err\nerr\n"
    assert "made-1" in kernel.run("got[0]").text and sorted(os.listdir(str(tmp_path))) == ["made-1", "made-2"]


def test_displays_come_back_with_their_input_and_in_their_place(kernel: Kernel):
    kernel.run("class Rich:\n    def _repr_html_(self): return '<b>rich</b>'\n    def __repr__(self): return 'plain'")
    output = kernel.run("%%burla for x in [0, 1]\nprint('before', x)\ndisplay(Rich(), {'x': x})\nprint('after', x)\nx")
    texts = [one["text/plain"] for one in output.displays]
    assert sorted(texts) == sorted(
        ["input 0:", "plain", "input 0:", "{'x': 0}", "input 1:", "plain", "input 1:", "{'x': 1}"]
    )
    assert {one.get("text/html") for one in output.displays if one["text/plain"] == "plain"} == {"<b>rich</b>"}
    assert sorted(output.stdout.splitlines()) == ["after 0", "after 1", "before 0", "before 1"]


def test_the_displays_of_a_call_are_limited_and_counted(kernel: Kernel):
    output = kernel.run("%%burla -o got for x in [0]\nfor i in range(60): display(i)\nx")
    assert sum(one["text/plain"].isdigit() for one in output.displays) == 50
    assert "10 more displays were left out" in output.stderr


def test_display_imported_from_ipython_works_too(kernel: Kernel):
    kernel.run("from IPython.display import display, HTML\ndef helper(x): display(HTML(f'<i>{x}</i>'))")
    output = kernel.run(
        "%%burla -o got for x in [5]\nfrom IPython.display import display as show\nhelper(x)\nshow(x)\ndisplay(x + 1)"
    )
    assert [one.get("text/html", one["text/plain"]) for one in output.displays] == ["<i>5</i>", "5", "6"]
    kernel.run("del display")


def test_whatever_ipython_can_show_is_shown(kernel: Kernel):
    kernel.run(
        "from unittest.mock import Mock\n"
        "class Whole:\n    def _repr_mimebundle_(self, include, exclude): return {'text/html': '<b>whole</b>'}\n"
        "class Odd:\n    def _repr_mimebundle_(self, **_): return {'image/png': b'123', 'text/x-odd': {1, }}\n"
        "class Itself:\n    def _ipython_display_(self): display('itself')\n"
        "class Fails:\n    def _repr_html_(self): 1 / 0\n    def __repr__(self): return 'fails'"
    )
    output = kernel.run(
        "%%burla -o got for x in [5]\nhandle = display(Whole(), display_id=True)\nhandle.update(Itself())\n"
        "display(Whole, Mock(name='some'), Fails(), Odd())\nx"
    )
    shown = [one.get("text/html", one["text/plain"]) for one in output.displays if one["text/plain"] != "input 0:"]
    assert shown[:3] == ["<b>whole</b>", "'itself'", "<class '__main__.Whole'>"] and output.error == ""
    assert shown[3].startswith("<Mock name='some'") and shown[4] == "fails"
    assert output.displays[-1]["image/png"].strip() == "MTIz" and output.displays[-1]["text/x-odd"] == "{1}"
    assert output.stderr == "burla: Fails._repr_html_() raised ZeroDivisionError: division by zero\n"


def test_a_library_that_displays_through_ipython_is_shown(kernel: Kernel, tmp_path: Path):
    (tmp_path / "shows.py").write_text("def show(x):\n    from IPython.display import display\n    display(x, x + 1)")
    kernel.run(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})")
    output = kernel.run("%%burla -o got for x in [5]\nimport shows\nshows.show(x)\nx")
    assert [one["text/plain"] for one in output.displays] == ["5", "6"] and output.stdout == ""


def test_open_figures_come_back_and_are_closed(kernel: Kernel):
    pytest.importorskip("matplotlib")
    kernel.run("import matplotlib.pyplot as plt")
    body = "plt.plot([x, 1])\nplt.show()\nplt.figure()\nplt.plot([1, x])\nlen(plt.get_fignums())"
    output = kernel.run(f"%%burla -o got for x in [0, 1]\n{body}")
    assert output.stderr == "" and sum("image/png" in one for one in output.displays) == 4
    assert kernel.run("got, plt.get_fignums()").text == "([1, 1], [])"


def test_input_says_that_calls_have_no_keyboard(kernel: Kernel):
    output = kernel.run("%%burla for x in xs\ninput('name? ')")
    assert output.error == "RuntimeError" and "no keyboard" in output.traceback and "node.py" not in output.traceback


# failures ----------------------------------------------------------------------------------------------------------


def test_an_error_shows_the_lines_of_the_cell_and_the_input(kernel: Kernel):
    output = kernel.run("%%burla for x, name in [(1, 'one'), (0, 'none')]\nprint('printed once')\n\ny = 1 / x\ny")
    assert output.error == "ZeroDivisionError" and re.search(r"-> 4 y = 1 / x\n", output.traceback)
    assert "burla: raised by the call of input 1: x = 0, name = 'none'" in output.traceback
    assert output.traceback.count("ZeroDivisionError") == 2 and "printed" not in output.traceback.split("-> 4")[1]
    for machinery in ("magic.py", "follow", "remote.py", "interactiveshell", "run_cell_magic"):
        assert machinery not in output.traceback
    assert len(output.traceback.splitlines()) < 15


def test_failure_groups_begin_in_the_cell(kernel: Kernel):
    kernel.run("%%burla for x in [0]\n1 / x")
    (group,) = eval(kernel.run("import sys\n[g.traceback for g in sys.last_value.burla_job.errors()]").text)
    assert "1 / x" in group.splitlines()[2] and "remote.py" not in group and "node.py" not in group


def test_an_error_shows_functions_of_other_cells_and_causes(kernel: Kernel):
    kernel.run("def parse(x):\n    return int(x)")
    output = kernel.run(
        "%%burla for x in ['a']\ntry:\n    parse(x)\nexcept ValueError as e:\n    raise KeyError(x) from e"
    )
    assert output.error == "KeyError" and "-> 2     return int(x)" in output.traceback
    assert "-> 5     raise KeyError(x) from e" in output.traceback and "direct cause" in output.traceback


def test_finished_results_are_on_the_exception(kernel: Kernel):
    kernel.run("%%burla for x in range(6)\nif x == 5:\n    time.sleep(0.5)\n    1 / 0\nx * 10")
    kernel.run("import sys\nerror = sys.last_value")
    assert (
        kernel.run(
            "error.burla_results[1], len(error.burla_results), dict(error.burla_results) == "
            "{x: 10 * x for x in range(5)}, 5 in error.burla_results"
        ).text
        == "(10, 5, True, False)"
    )
    assert kernel.run("error.burla_input_index, error.burla_job.status").text == "(5, 'failed')"
    assert kernel.run("from burla_jupyter import magic\nmagic.last.values, magic.last.index").text == "((5,), 5)"


def test_an_error_in_the_loop_shows_its_line_and_nothing_runs(kernel: Kernel, ledger: Ledger):
    kernel.run("def bad(x):\n    return 1 // (2 - x)")
    output = kernel.run(f"%%burla for x in xs if bad(x)\nopen({str(ledger.path)!r}, 'a').write('ran')")
    assert output.error == "ZeroDivisionError" and "-> 1 # %%burla for x in xs if bad(x)" in output.traceback
    assert "-> 2     return 1 // (2 - x)" in output.traceback and "magic.py" not in output.traceback
    assert ledger.entries() == []


def test_an_input_that_cannot_be_sent_is_named_and_nothing_runs(kernel: Kernel, ledger: Ledger):
    output = kernel.run(f"%%burla for f in [len, (n for n in xs)]\nopen({str(ledger.path)!r}, 'a').write('ran')")
    assert output.error == "InputNotPicklable" and "input 1" in output.traceback and ledger.entries() == []
    assert "raised by the call" not in output.traceback


def test_a_crash_names_its_input(kernel: Kernel):
    output = kernel.run("%%burla for x in [0, 1]\nif x: os._exit(3)\nx")
    assert output.error == "WorkerCrashed" and "input 1: x = 1" in output.traceback


def test_an_interrupt_stops_the_calls_and_keeps_what_had_finished(kernel: Kernel, ledger: Ledger):
    path = str(ledger.path)
    begun = time.monotonic()

    def interrupt(message: dict[str, object]) -> None:
        if message["msg_type"] == "stream" and "second" in str(message["content"]):
            kernel.interrupt()

    cell = (
        f"%%burla for x in range(10)\nif x == 1: print('second')\nfor i in range(x * 600):\n    time.sleep(0.1)\n"
        f"    open({path!r}, 'a').write(str(x))\nx"
    )
    output = kernel.run(cell, during=interrupt)
    assert output.error == "KeyboardInterrupt" and "was stopped" in output.traceback
    assert len(output.traceback.splitlines()) < 10 and time.monotonic() - begun < 20
    written = len("".join(ledger.entries()))
    assert kernel.run("time.sleep(0.5)\nsys.last_value.burla_job.status, dict(sys.last_value.burla_results)").text == (
        "('cancelled', {0: 0})"
    )
    assert len("".join(ledger.entries())) == written


# options -----------------------------------------------------------------------------------------------------------


def test_values_of_options_are_expanded_and_the_loop_is_not(kernel: Kernel):
    kernel.run("cpus = 1\nname = 'got'")
    output = kernel.run("%%burla -o {name} --func-cpu $cpus --max-parallelism {cpus + 1} for s in ['{cpus} $cpus']\ns")
    assert output.error == "" and kernel.run("got").text == "['{cpus} $cpus']"


def test_local_runs_the_first_input_here(kernel: Kernel):
    assert (
        kernel.run(
            "%%burla --local for x in [7, 1 / limit]\ntotal += x\ntotal, os.getpid() == pid",
        ).error
        == "NameError"
    )
    kernel.run("pid = os.getpid()")
    output = kernel.run("%%burla --local for x in [7, 1]\ntotal += x\nlst.append(x)\ntotal, lst, os.getpid() == pid")
    assert output.text == "(107, [7], True)" and kernel.run("total, lst").text == "(100, [])"
    assert kernel.run("%%burla --local -o got for x in [7, 1]\nimport asyncio\nawait asyncio.sleep(0)\nx").error == ""
    assert kernel.run("got").text == "[7]"
    failed = kernel.run("%%burla --local for x in [0]\n1 / x")
    assert "-> 2 1 / x" in failed.traceback and "local.py" not in failed.traceback
    assert kernel.run("%%burla --local for x in []\nx").value is None


def test_a_dry_run_tells_how_the_cluster_would_grow(kernel: Kernel):
    """Here it cannot; elements are counted where that evaluates nothing."""
    kernel.run("few = [1, 2, 3]\ndef boom():\n    raise ValueError")
    shown = kernel.run("%%burla --dry-run --grow for x in few\nx").stdout
    assert "Growth              this cluster cannot grow: only one in a cloud" in shown
    for header in ("x in boom()", "x in few if boom()", "x in few for y in few"):
        shown = kernel.run(f"%%burla --dry-run --grow for {header}\nx").stdout
        assert "Growth              as much as its elements need, which are not counted" in shown
    assert "Growth" not in kernel.run("%%burla --dry-run for x in few\nx").stdout


def test_a_dry_run_shows_what_would_run_and_runs_nothing(kernel: Kernel, ledger: Ledger):
    cell = (
        f"%%burla --dry-run -o got --func-cpu 2 for a, b in zip(xs, xs)\nopen({str(ledger.path)!r}, 'a')\nscale(a) + b"
    )
    shown = kernel.run(cell).stdout
    assert re.search(r"Resources +func_cpu=2\nCluster +The local cluster is up", shown)
    program = shown.partition("As plain Python:")[2]
    assert "def cell(a, b):" in program and "return scale(a) + b" in program
    assert "got = burla.remote_parallel_map(cell, [(a, b) for a, b in zip(xs, xs)], func_cpu=2)" in program
    assert ledger.entries() == []
    kernel.run(
        f"exec('import burla\\n' + __import__('textwrap').dedent({program.replace('func_cpu=2', 'func_cpu=1')!r}))"
    )
    assert kernel.run("got").text == "[0, 4, 8, 12, 16]" and not ledger.path.read_text()


def test_a_detached_cell_returns_at_once_with_its_job(kernel: Kernel, ledger: Ledger):
    cell = (
        f"%%burla --detach -o job for x in [1, 2]\nwhile not os.path.exists({str(ledger.path)!r}): time.sleep(0.05)\nx"
    )
    output = kernel.run(cell)
    assert output.error == "" and re.search(r'burla\.attach\("[0-9a-f]+"\)', output.stderr)
    assert kernel.run("type(job).__name__, job.status in ('waiting', 'running')").text == "('Job', True)"
    ledger.path.touch()
    assert kernel.run("job.results()").text == "[1, 2]"
    assert kernel.run("%%burla --detach for x in [1, 2]\nx").text.startswith("<burla job")
    assert kernel.run("_.results()").text == "[1, 2]"


def test_without_a_spinner_displays_are_text(kernel: Kernel):
    output = kernel.run("%%burla --no-spinner -o got for x in [1]\ndisplay(Rich())\nx")
    assert output.stdout == "plain\n" and output.displays == []


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("%%burla --func-cpus 2 for x in xs\nx", "Did you mean --func-cpu?"),
        ("%%burla for x in xs\n%pip install it\nx", "line 2: %pip"),
        ("%%burla for x in xs\nyield x", "line 2: a cell cannot `yield`"),
        ("%%burla for x in xs:\nx", "without a colon"),
        ("%%burla xs\nx", "'xs' is no option"),
        ("%%burla for x in xs --detach\nx", "--detach: options stand before the `for`"),
        ("%%burla\nreturn 1", "line 2: without a `for`"),
    ],
)
def test_a_cell_that_cannot_be_meant_so_says_what_to_do(kernel: Kernel, cell: str, says: str):
    output = kernel.run(cell)
    assert output.stderr.startswith("UsageError: %%burla: ") and says in output.stderr and output.traceback == ""


def test_a_syntax_error_shows_the_line_of_the_cell_alone(kernel: Kernel):
    for cell, line in [
        ("%%burla for x in xs\ny = 1\nx = = 2", "x = = 2"),
        ("%%burla for x in 1 2\nx", "%%burla for x in 1 2"),
    ]:
        output = kernel.run(cell)
        lines = output.traceback.strip().splitlines()
        assert lines[1].strip() == line and lines[-1].startswith("SyntaxError") and len(lines) == 4
