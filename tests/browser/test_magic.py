"""`%%burla` cells as their user sees them."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenNotebook
from tests.browser.live import Gate, Panel, gated
from tests.conftest import Ledger, wait_until

CELLS = [
    "%load_ext burla_jupyter\nlimit = 3",
    "%%burla -o sizes for x in range(6) if x != limit\nprint('at', x)\nx * 10",
    "sizes, 'x' in globals()",
    "%%burla\nimport platform\nanswer = limit * 14\nprint('on the node')\nplatform.python_implementation(), answer",
    "answer, platform.__name__",
    "%%burla for x in range(3)\nx ** 2",
    "_[-1], list(_)",
]


@pytest.mark.parametrize("app", ["lab", "notebook"])
def test_a_map_and_a_cell_that_runs_once(open_notebook: OpenNotebook, app: str):
    notebook = open_notebook(*CELLS, app=app)
    assert notebook.run(0) == ""
    assert sorted(notebook.run(1).split("\n")) == sorted(f"at {x}" for x in (0, 1, 2, 4, 5))
    assert notebook.run(2) == "([0, 10, 20, 40, 50], False)"
    assert notebook.run(3).split("\n") == ["on the node", "('CPython', 42)"]
    assert notebook.run(4) == "(42, 'platform')"
    assert "3 results of job" in notebook.run(5)
    assert notebook.output(5).locator("td code").all_inner_texts() == ["0", "1", "4"]
    assert notebook.run(6) == "(4, [0, 1, 4])"


RICH = [
    "%load_ext burla_jupyter",
    "%%burla for i in range(3)\nfrom IPython.display import HTML\ndisplay(HTML(f'<b class=mine>{i * i}</b>'))\ni",
    "%%burla\nimport pandas as pd\npd.DataFrame({'a': [1, 2]})",
    "%%burla\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);",
    "%%burla -o got for path in ['a', 'b']\n!echo here is {path}\nlines = !seq 2\nlines",
    "got",
]


def test_what_calls_display_comes_back(open_notebook: OpenNotebook):
    notebook = open_notebook(*RICH)
    notebook.run(0)
    shown = notebook.run(1)
    assert sorted(notebook.output(1).locator("b.mine").all_inner_texts()) == ["0", "1", "4"]
    assert all(f"input {i}:\n{i * i}" in shown for i in range(3))
    notebook.run(2)
    assert notebook.output(2).locator("table.dataframe td").all_inner_texts() == ["1", "2"]
    notebook.run(3)
    width = "image => image.naturalWidth"
    notebook.until(lambda: notebook.output(3).locator("img").evaluate_all(f"all => all.map({width})"), 5, "the figure")
    assert notebook.output(3).locator("img").count() == 1
    assert sorted(notebook.run(4).split("\n")) == ["here is a", "here is b"]
    assert notebook.run(5) == "[['1', '2'], ['1', '2']]"


FAILING = [
    "%load_ext burla_jupyter",
    "%%burla for name, size in [('a', 2), ('b', 0)]\nprint('reading', name)\nshare = 1\nshare / size",
    "%%burla for x in range(2)\n%pip install x\nx",
    "%%burla -o x --func-cpus 2 for x in range(2)\nx",
    "%%burla for x in range(2)\nreturn x +",
]


def test_an_error_shows_the_line_of_the_cell_and_the_input(open_notebook: OpenNotebook):
    notebook = open_notebook(*FAILING)
    notebook.run(0)
    shown = notebook.run(1)
    error = notebook.output(1).locator("[data-mime-type='application/vnd.jupyter.stderr']").inner_text()
    assert "----> 4 share / size" in error
    assert "ZeroDivisionError: division by zero" in error
    assert "name = 'b', size = 0" in error
    assert "site-packages" not in error and "burla_jupyter" not in error and len(error.split("\n")) < 15
    assert shown.count("reading b") == 1, "what was printed is not printed again"
    assert "line 2" in notebook.run(2) and "%pip" in notebook.text(2)
    assert "--func-cpu" in notebook.run(3)
    assert "SyntaxError" in notebook.run(4) and "return x +" in notebook.text(4)


def test_a_detached_cell_returns_and_its_view_goes_on(open_notebook: OpenNotebook, ledger: Ledger, gate: Gate):
    """While other cells run, and what its calls print comes under it alone."""
    notebook = open_notebook(
        "%load_ext burla_jupyter\n" + gated(ledger, gate),
        "%%burla --detach -o job for x in range(20)\ncall(x)",
        "for i in range(30):\n    print('mine', i)\n    time.sleep(0.1)",
        "job.results()[:3], job.status",
    )
    notebook.run(0)
    notebook.run(1)
    panel = Panel(notebook, 1).wait()
    notebook.start(2)
    gate.open(7)
    notebook.until(lambda: panel.number("done") == "7/20", 10, "calls on the page")
    notebook.shot("live")
    panel.wait_button("Cancel")
    assert not panel.button("Detached").is_enabled()
    notebook.wait(2)
    assert notebook.text(2).split("\n") == [f"mine {i}" for i in range(30)]
    gate.open(20)
    wait_until(lambda: len(ledger.entries()) == 20, what="calls")
    notebook.output(1).locator(".burla-summary").wait_for(timeout=40_000)
    shown = notebook.text(1)
    assert "mine" not in shown and shown.count("begin") >= 20
    assert notebook.run(3) == "([0, 1, 2], 'done')"


def test_options_are_completed(open_notebook: OpenNotebook):
    notebook = open_notebook("%load_ext burla_jupyter", "")
    notebook.run(0)
    notebook.cell(1).locator(".cm-content").click()
    notebook.page.keyboard.type("%%burla --func")
    offered = notebook.page.locator(".jp-Completer-match")

    def asked() -> bool:
        notebook.page.keyboard.press("Tab")
        notebook.page.wait_for_timeout(
            1500
        )  # a front end gives up sooner than a kernel that completes for the first time
        return offered.count() > 0

    notebook.until(asked, 15, "a list of options")
    assert {"--func-cpu", "--func-ram", "--func-gpu"} <= set(offered.all_inner_texts())
