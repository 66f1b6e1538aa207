"""`%%burla` in IPython on a terminal or in a pipe: the same in text."""

from __future__ import annotations

import subprocess
import sys

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
