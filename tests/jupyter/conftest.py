"""A Jupyter kernel whose cells run one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

WIDGET = "application/vnd.jupyter.widget-view+json"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Output:
    """What came of a cell: text by stream, displays and the value by MIME type, the traceback without colours."""

    stdout: str = ""
    stderr: str = ""
    displays: list[dict[str, Any]] = field(default_factory=list)
    value: dict[str, Any] | None = None
    error: str = ""
    traceback: str = ""

    @property
    def text(self) -> str:
        """The value as plain text."""
        assert self.value is not None, self
        return self.value["text/plain"]


class Kernel:
    """Runs cells in a kernel of its own process."""

    def __init__(self) -> None:
        self.manager, self.client = start_new_kernel(kernel_name="python3")

    def run(self, cell: str, during: Callable[[dict[str, Any]], None] | None = None, timeout_s: float = 60) -> Output:
        """Return what a cell puts out. `during` is given each message, as it comes."""
        output = Output()

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    setattr(output, content["name"], getattr(output, content["name"]) + content["text"])
                case "display_data" if WIDGET not in content["data"]:  # the view of a job that takes long
                    output.displays.append(content["data"])
                case "execute_result":
                    output.value = content["data"]
                case "error":
                    output.error = content["ename"]
                    output.traceback = COLOURS.sub("", "\n".join(content["traceback"]))
            if during is not None:
                during(message)

        self.client.execute_interactive(cell, output_hook=take, timeout=timeout_s)
        return output

    def interrupt(self) -> None:
        """Press ■."""
        self.manager.interrupt_kernel()

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A kernel with the extension, for all tests of a module."""
    started = Kernel()
    started.run("%load_ext burla_jupyter")
    yield started
    started.close()
