"""matplotlib's backend in calls: figures go to the notebook. Imported by matplotlib, or when it is there."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
from matplotlib.figure import Figure

from burla_jupyter import node

__all__ = ["FigureCanvas", "png", "show"]


def show(*_: Any, **__: Any) -> None:
    """Display the open figures, and close them: pyplot.show()."""
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        if figure.axes or figure.lines:
            node.display(figure)
        pyplot.close(figure)


def png(figure: Figure) -> str:
    """Return a figure as base64 of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight")
    return base64.b64encode(file.getvalue()).decode()
