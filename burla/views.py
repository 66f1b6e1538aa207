"""Where a job of this process shows: in its notebook, on its terminal, or on its standard streams alone."""

from __future__ import annotations

import sys

from burla import protocol
from burla.display.terminal import PlainView, TerminalView, supported
from burla.display.view import View


def make_view(spinner: bool) -> View:
    """Return the view for a job that starts now. `spinner`: whether it may show more than what calls print."""
    if not spinner:
        return PlainView()
    if in_kernel():
        from burla_jupyter.view import NotebookView

        return NotebookView()
    return TerminalView(sys.stderr) if supported() else PlainView()


def in_kernel() -> bool:
    """Whether this process is a Jupyter kernel, and not a call of a job."""
    ipython = sys.modules.get("IPython")
    if ipython is None or protocol.nested is not None:
        return False
    return getattr(ipython.get_ipython(), "kernel", None) is not None
