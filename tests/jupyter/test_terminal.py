"""`%%burla` in IPython on a terminal or in a pipe: the same in text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journey.test_spinner import TerminalProgram, last_row

CELLS = r"""
%load_ext burla_jupyter
xs = [1, 2, 3]
get_ipython().run_cell("%%burla -o out for x in xs\nprint('call', x)\ndisplay({'a': x})\n2 * x")
print(out)
get_ipython().run_cell("%%burla\n!echo one\ny = 7\ny")
print("y is", y)
get_ipython().run_cell("%%burla for x in xs\nx")
get_ipython().run_cell("%%burla for x in xs\n\n1 / (x - 2)")
get_ipython().run_cell("%%burla --func-cp 1\n1")
"""


def test_cells_work_in_plain_text(tmp_path):
    (tmp_path / "cells.ipy").write_text(CELLS)
    command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "cells.ipy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.splitlines()
    assert sorted(lines[:6]) == ["call 1", "call 2", "call 3", "{'a': 1}", "{'a': 2}", "{'a': 3}"]
    assert lines[6:8] == ["[2, 4, 6]", "one"] and lines[8].endswith("7") and lines[9] == "y is 7"
    assert "3 results of job" in done.stdout and "  [2] 3" in lines
    assert "----> 3 1 / (x - 2)" in lines and "burla: raised by the call of input 1: x = 2" in lines
    assert "\x1b" not in done.stdout and "there is no option --func-cp" in done.stderr


LIVE = r"""
from pathlib import Path
from IPython import start_ipython

CELLS = [
    "%load_ext burla_jupyter\nimport time\nfrom pathlib import Path",
    "%%burla -o out for x in range(4)\nprint('call', x)\ndisplay({'a': x})\n"
    "while not Path(f'go{x}').exists(): time.sleep(0.02)\nx",
    "out",
]
Path("cells.ipy").write_text("\n".join(f"get_ipython().run_cell({cell!r})" for cell in CELLS))
start_ipython(["--no-banner", "--colors=NoColor", "cells.ipy"])
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[TerminalProgram]:
    started = TerminalProgram(tmp_path, LIVE)
    yield started
    started.close()


def test_on_a_terminal_a_status_line_stands_below_what_calls_print(program: TerminalProgram, tmp_path: Path):
    rows = program.wait_for(last_row(r"^ cell \d+ .* 0/4  2 running  \d:\d\d$"), "the status")
    assert {"call 0", "{'a': 0}", "call 1", "{'a': 1}"} <= {*rows}
    for x in range(4):
        (tmp_path / f"go{x}").touch()
    rows = program.finish()
    assert rows[-1].endswith("[0, 1, 2, 3]") and not any("running" in row for row in rows)
    assert sum(row.startswith("call ") for row in rows) == 4
