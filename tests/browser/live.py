"""Cells whose calls a test holds in its hand, and the live view of a job as its user sees it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Locator

from tests.browser.lab import Notebook
from tests.conftest import Ledger

PANEL_S = 40  # the first job of a session starts the cluster as well


class Gate:
    """So many calls may end, whichever they are."""

    def __init__(self, path: Path):
        self.path = path
        self.open(0)

    def open(self, number: int) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(number))
        new.rename(self.path)


def gated(ledger: Ledger, gate: Gate) -> str:
    """Return source of a function `call` that prints, waits for the gate, and writes down that it ends."""
    return f"""
import fcntl, sys, time
from burla import remote_parallel_map, submit
def call(x):
    print("begin", x)
    print("careful", x, file=sys.stderr)
    while True:
        with open({str(ledger.path)!r}, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if len(file.readlines()) < int(open({str(gate.path)!r}).read()):
                file.write(f"{{x}}\\n")
                return x
        time.sleep(0.02)
"""


def ticking(ledger: Ledger) -> str:
    """Return source of a function `tick` that writes down the time until it is stopped."""
    return f"""
import time
from burla import remote_parallel_map, submit
def tick(x):
    while True:
        with open({str(ledger.path)!r}, "a") as file:
            file.write(f"{{time.time()}}\\n")
        time.sleep(0.05)
"""


def last_tick_s(ledger: Ledger) -> float:
    """Return when a ticking call wrote for the last time."""
    return max(float(entry) for entry in ledger.entries() if entry)


class Panel:
    """The live view in the output of a cell."""

    def __init__(self, notebook: Notebook, cell: int = 0):
        self.notebook = notebook
        self.root = notebook.output(cell).locator(".burla-panel")

    def wait(self) -> Panel:
        """Return when it is there."""
        self.root.wait_for(timeout=PANEL_S * 1000)
        return self

    def number(self, name: str) -> str:
        """Return what it says under a name."""
        return self.root.locator(f".burla-{name}").inner_text()

    def fold(self, name: str) -> None:
        """Fold or unfold a part."""
        self.root.locator(".burla-fold-head summary", has_text=name).first.click()

    def button(self, text: str) -> Locator:
        return self.root.locator("button", has_text=text)

    def wait_button(self, text: str) -> Locator:
        """Return a button when it can be pressed."""
        self.wait()
        button = self.button(text)
        self.notebook.until(lambda: button.count() == 1 and button.is_enabled(), 10, f"a button {text} that works")
        return button

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the log that are in sight, each with its input."""
        children = "rows => rows.map(row => [...row.children].map(child => child.innerText))"
        return [(index, text) for index, text in self.root.locator(".burla-log-row").evaluate_all(children)]
