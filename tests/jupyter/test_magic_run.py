"""`%%burla` without a loop: the cell runs once on the cluster, as if it ran in the notebook."""

from __future__ import annotations

import re

import pytest

from tests.conftest import Ledger
from tests.jupyter.conftest import Kernel


@pytest.fixture(autouse=True, scope="module")
def notebook(kernel: Kernel) -> None:
    """Names that cells use."""
    kernel.run("import burla, os, time\nhere = os.getpid()\nnumber = 4")


def test_it_runs_elsewhere_prints_here_and_shows_its_last_value(kernel: Kernel):
    output = kernel.run(
        "%%burla\nimport sys\nprint('out')\nprint('err', file=sys.stderr)\nos.getpid() != here, number + 1"
    )
    assert (output.text, output.stdout, output.stderr) == ("(True, 5)", "out\n", "err\n")


def test_the_value_shows_as_richly_as_if_it_were_from_here(kernel: Kernel):
    kernel.run("class Rich:\n    def _repr_html_(self): return '<b>rich</b>'")
    output = kernel.run("%%burla\nRich()")
    assert output.value is not None and output.value["text/html"] == "<b>rich</b>" and output.displays == []
    assert kernel.run("type(_) is Rich").text == "True"


@pytest.mark.parametrize("cell", ["y = 1", "7;", "None", "if number: 8"])
def test_without_a_last_value_nothing_is_shown(kernel: Kernel, cell: str):
    assert kernel.run(f"%%burla\n{cell}").value is None


def test_names_that_it_assigns_are_assigned_here(kernel: Kernel):
    output = kernel.run(
        "%%burla\nimport math as m\na = b = [1]\nfor i, _j in enumerate('xy'): pass\nwith open(os.devnull) as w: pass\n"
        "number += 1\ndef area(r): return m.floor(3.9) * r * number\nclass Shape:\n    def area(self): return area(2)\n"
        "c: int = 3\n[d := 9 for _ in 'a']"
    )
    assert output.error == "" and output.text == "[9]"
    assert kernel.run("m.__name__, a, b is a, i, _j, number, c, d").text == "('math', [1], True, 1, 'y', 5, 3, 9)"
    assert kernel.run("area(2), Shape().area(), area.__globals__ is globals()").text == "(30, 30, True)"
    kernel.run("number = 4")
    assert kernel.run("area(2), Shape().area()").text == "(24, 24)"


def test_objects_that_it_uses_and_changes_come_back_changed(kernel: Kernel):
    kernel.run(
        "class Model:\n    def __init__(self): self.weights = {}\n    def fit(self, xs): self.weights['n'] = len(xs)\n"
        "model = Model()\nall_models = [model]\nlst = [1]\nalias = lst\nconf = {'a': {1}}\nunchanged = [1, 2]\n"
        "import numpy as np\narray = np.zeros(3)\ndef remember(x): conf['a'].add(x)\nidentity = id(unchanged)"
    )
    output = kernel.run("%%burla\nmodel.fit(unchanged)\nlst.append(2)\narray[1] = 5\nremember(3)\nsame = unchanged")
    assert output.error == "" and output.stderr == ""
    assert kernel.run("model.weights, all_models[0] is model, lst, alias is lst, conf, array.tolist()").text == (
        "({'n': 2}, True, [1, 2], True, {'a': {1, 3}}, [0.0, 5.0, 0.0])"
    )
    assert kernel.run("same is unchanged, id(unchanged) == identity").text == "(True, True)"


def test_whatever_refers_to_a_changed_object_sees_the_change(kernel: Kernel):
    pytest.importorskip("sklearn")
    kernel.run(
        "import abc, collections\nimport numpy as np\nimport pandas as pd\n"
        "from sklearn.linear_model import LinearRegression\n"
        "class Job(abc.ABC):\n    def go(self): self.done = True\n"
        "class Fussy:\n    def __getstate__(self): return dict(vars(self))\n"
        "    def __setstate__(self, state):\n        if os.getpid() == here: raise ValueError('not here')\n"
        "        vars(self).update(state)\n"
        "model, X, df, job = LinearRegression(), np.arange(4.0).reshape(-1, 1), pd.DataFrame({'a': [1]}), Job()\n"
        "turned, counts, fussy = np.zeros(2), collections.Counter(), Fussy()\n"
        "fussy.state = 1\nothers = [model, X, df, job, turned, counts, fussy]"
    )
    output = kernel.run(
        "%%burla\nmodel.fit(X, [0, 2, 4, 6])\nX[0] = 9\ndf['b'] = 2\njob.go()\ncounts['x'] += 1\nfussy.state = 2\n"
        "turned.shape = 2, 1"
    )
    assert output.error == "" and output.stderr == "burla: fussy did not come back. ValueError: not here\n"
    seen = "model.coef_.round(), X[0], dict(df.loc[0]), df.flags.allows_duplicate_labels, job.done, counts"
    seen = kernel.run(f"[model, X, df, job, _array, counts, _fussy] = others\n{seen}").text
    assert seen.replace("np.int64", "").replace("\n", "") == (
        "(array([2.]), array([9.]), {'a': (1), 'b': (2)}, True, True, Counter({'x': 1}))"
    )
    assert kernel.run("turned.shape, others[4].shape, fussy.state, others[6].state").text == "((2, 1), (2,), 1, 1)"


def test_what_refers_to_itself_and_to_others_does_so_here(kernel: Kernel):
    kernel.run(
        "class Tree:\n    parent = None\n    def __init__(self): self.children = []\n"
        "    def add(self):\n        child = Tree()\n        child.parent = self\n        self.children.append(child)\n"
        "tree, loop, owners = Tree(), [], {}\nall_trees = [tree]"
    )
    output = kernel.run(
        "%%burla\ntree.add()\nchild = tree.children[0]\n"
        "loop.append(loop)\nowners['tree'] = tree\nround = {0: loop}\ntree"
    )
    assert output.error == "" and output.stderr == ""
    assert kernel.run(
        "all_trees[0] is tree is _, child is tree.children[0], child.parent is tree, loop[0] is loop, "
        "owners['tree'] is tree, round[0] is loop"
    ).text == repr((True,) * 6)
    kernel.run("%%burla -o tree\ntree.add()")
    assert (
        kernel.run("all_trees[0] is tree, [one.parent is tree for one in tree.children]").text == "(True, [True, True])"
    )


def test_what_cannot_be_loaded_here_is_named(kernel: Kernel):
    kernel.run("class Picky:\n    def __setstate__(self, state): os.kill(here, 0) if os.getpid() != here else 1 / 0")
    output = kernel.run("%%burla\npicky = Picky()\npicky.a = other = 1")
    assert output.error == "ZeroDivisionError"
    assert "the cell ran, but what it left cannot be loaded here: picky, other. " in output.traceback


@pytest.mark.parametrize("last", ["1 / 0", "await asyncio.sleep(0)\n1 / 0"])
def test_a_cell_that_fails_leaves_what_it_did_before(kernel: Kernel, last: str):
    kernel.run("import asyncio\nseen, keeps = [1], 1\nclass Fussy:\n    pass")
    output = kernel.run(
        f"%%burla\nreached = 5\nseen.append(2)\ndel keeps\ndef later(): return reached\n{last}\nmissed = 6"
    )
    assert output.error == "ZeroDivisionError" and output.stderr == ""
    assert "burla_left" not in output.traceback
    there = "reached, seen, later(), 'keeps' in globals(), 'missed' in globals()"
    assert kernel.run(there).text == "(5, [1, 2], 5, False, False)"


def test_what_is_too_large_to_come_back_from_a_cell_that_failed_is_named(kernel: Kernel):
    output = kernel.run("%%burla\nhuge = bytes(20_000_000)\n1 / 0")
    assert output.error == "ZeroDivisionError"
    assert "too large to come back from a cell that failed: huge" in output.traceback
    assert kernel.run("'huge' in globals()").text == "False"


def test_names_that_it_deletes_are_deleted_here(kernel: Kernel):
    kernel.run("gone = 1\nstays = 2")
    kernel.run("%%burla\ndel gone\nstays")
    assert kernel.run("'gone' in globals(), stays").text == "(False, 2)"


def test_o_limits_what_comes_back(kernel: Kernel):
    kernel.run("lst = [1]\nalias = lst\nb = c = None")
    output = kernel.run("%%burla -o b,lst,nowhere\na2 = 1\nb = 2\nc = 3\nlst.append(b)\nb")
    assert output.text == "2" and "nowhere did not come back" in output.stderr
    assert kernel.run("b, c, lst, alias is lst, 'a2' in globals()").text == "(2, None, [1, 2], True, False)"


def test_what_cannot_come_back_is_named(kernel: Kernel):
    output = kernel.run("%%burla\nimport threading\nlock = threading.Lock()\ngen = (x for x in [])\ngood = 1\nlock")
    assert "burla: lock did not come back. TypeError: cannot pickle" in output.stderr
    assert "burla: gen did not come back." in output.stderr and "the last value cannot come here" in output.stderr
    assert "lock object" in output.displays[0]["text/plain"] and output.value is None
    assert kernel.run("good, 'lock' in globals()").text == "(1, False)"


def test_changes_of_classes_and_functions_are_said_to_stay_there(kernel: Kernel):
    kernel.run("class Counter:\n    n = 0")
    output = kernel.run("%%burla\nCounter.n += 1\nCounter.n")
    assert output.text == "1" and "changes to Counter stay on the node" in output.stderr
    assert kernel.run("Counter.n").text == "0"


def test_what_is_too_large_to_compare_is_named(kernel: Kernel):
    kernel.run("grows = [b'']")
    output = kernel.run("%%burla\ngrows[0] = bytes(100_000_001)")
    assert "grows: too large to see whether the cell changed it (over 100 MB)" in output.stderr
    assert kernel.run("len(grows[0])").text == "0"
    assert kernel.run("%%burla -o grows\ngrows[0] = bytes(100_000_001)").stderr == ""
    assert kernel.run("len(grows[0])\ngrows = 0").error == ""


def test_it_can_await(kernel: Kernel):
    output = kernel.run(
        "%%burla\nimport asyncio\nasync def f(x):\n    await asyncio.sleep(0.01)\n    return x\nz = await f(3)\n"
        "async def g():\n    yield z\nasync for k in g(): pass\n[v async for v in g()]"
    )
    assert output.error == "" and output.text == "[3]" and kernel.run("z, k").text == "(3, 3)"


def test_an_error_shows_the_lines_of_the_cell_and_no_input(kernel: Kernel):
    output = kernel.run("%%burla\nq = 1\n\ndef f():\n    raise KeyError('why')\n\nf()")
    assert (
        output.error == "KeyError" and "-> 7 f()" in output.traceback and "-> 5     raise KeyError" in output.traceback
    )
    assert "input" not in output.traceback and "remote.py" not in output.traceback
    assert kernel.run("'q' in globals()").text == "True"


def test_names_in_strings_can_be_shipped(kernel: Kernel):
    assert "%%burla --ship number" in kernel.run("%%burla\neval('number + 1')").traceback
    assert kernel.run("%%burla --ship number\neval('number + 1')").text == "5"


def test_pandas_queries_name_what_they_miss(kernel: Kernel):
    pytest.importorskip("pandas")
    kernel.run("import pandas as pd\ndf = pd.DataFrame({'a': [1, 5]})\nlimit = 3")
    output = kernel.run("%%burla\ndf.query('a > @limit')")
    assert "%%burla --ship limit" in output.traceback
    output = kernel.run("%%burla --ship limit\ndf.query('a > @limit')")
    assert output.value is not None and "<table" in output.value["text/html"]


def test_commands_and_displays(kernel: Kernel):
    output = kernel.run("%%burla\nfiles = !echo one; echo two\n!exit 3\nfor f in files:\n    !echo f={f}\ndisplay(f)")
    assert output.stdout == "f=one\nf=two\n" and [one["text/plain"] for one in output.displays] == ["'two'"]
    assert kernel.run("files, files.s, _exit_code").text == "(['one', 'two'], 'one two', 0)"
    logged = kernel.run("%burla logs " + kernel.run("print(burla.attach().id)").stdout)
    assert [one["text/plain"] for one in logged.displays] == ["'two'"] and logged.stdout == "f=one\nf=two\n"


def test_figures(kernel: Kernel):
    pytest.importorskip("matplotlib")
    output = kernel.run(
        "%%burla\nimport matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1, 2])\nplt.title('t');"
    )
    assert ["image/png" in one for one in output.displays] == [True] and output.stderr == ""
    assert kernel.run("type(fig).__name__, fig.axes[0] is ax").text == "('Figure', True)"


def test_it_can_stand_in_other_magics_and_make_calls_of_its_own(kernel: Kernel):
    kernel.run(
        "%%capture captured\n%%burla\nimport burla\nprint('inside')\nburla.remote_parallel_map(abs, [-1, number])"
    )
    assert kernel.run("captured.stdout, captured.outputs[-1].data['text/plain']").text == "('inside\\n', '[1, 4]')"


def test_local_runs_it_here(kernel: Kernel):
    output = kernel.run(
        "%%burla --local\nmine = os.getpid() == here\nimport asyncio\nawait asyncio.sleep(0)\nmine, number"
    )
    assert output.text == "(True, 4)" and kernel.run("mine").text == "True"
    assert kernel.run("%%burla --local\n1 / 0").traceback.count("magic.py") == 0
    assert kernel.run("[name for name in globals() if '_burla' in name]").text == "[]"


def test_a_dry_run_shows_the_same_in_plain_python(kernel: Kernel):
    shown = kernel.run("%%burla --dry-run --func-ram 2\nsquare = number ** 2\nsquare + 1").stdout
    assert re.search(r"travel +5 bytes: number 5 bytes\nResources +func_ram=2\n", shown)
    program = shown.partition("As plain Python:")[2]
    kernel.run(
        f"exec('import burla\\n' + __import__('textwrap').dedent({program.replace('func_ram=2', 'func_ram=1')!r}))"
    )
    assert kernel.run("square, value").text == "(16, 17)"


def test_a_detached_cell_gives_its_job(kernel: Kernel, ledger: Ledger):
    wait = f"while not os.path.exists({str(ledger.path)!r}): time.sleep(0.05)"
    cell = f"%%burla --detach -o job\n{wait}\ndone = number\ndone"
    assert kernel.run(cell).error == ""
    assert kernel.run("job.status in ('waiting', 'running')").text == "True"
    ledger.path.touch()
    assert kernel.run("job.results()[0]").text == "<outcome of a cell: assigned done, and has a value>"
    assert kernel.run("'done' in globals()").text == "False"
    assert kernel.run("%burla results").text == "4" and kernel.run("done").text == "4"


def test_a_function_of_the_cell_brings_nothing_old_with_it(kernel: Kernel):
    kernel.run("factor = 2")
    kernel.run("%%burla --detach -o job\ndef times(x): return factor * x")
    kernel.run("job.wait()\nfactor = 10\n%burla results")
    assert kernel.run("times(3), factor").text == "(30, 10)"


def test_an_interrupt_ends_it(kernel: Kernel):
    output = kernel.run(
        "%%burla\nprint('begun')\ntime.sleep(60)",
        during=lambda message: kernel.interrupt() if message["content"].get("text") == "begun\n" else None,
        timeout_s=20,
    )
    assert output.error == "KeyboardInterrupt" and len(output.traceback.splitlines()) < 10


def test_the_options_are_completed(kernel: Kernel):
    for text, offered in [("%%burla --func-g", ["--func-gpu"]), ("%%burla --func-gpu H", ["H100", "H100_80G", "H200"])]:
        reply = kernel.client.complete(text, len(text), reply=True, timeout=10)
        assert [one for one in reply["content"]["matches"] if one in offered] == offered
