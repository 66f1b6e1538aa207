"""Gates: files that calls wait for, so that a test decides when they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

GATE_S = 60


class Gate:
    """Calls wait at it until it is opened, at the end of the test in any case."""

    def __init__(self, path: Path):
        self.path = path

    def open(self) -> None:
        self.path.touch()

    def waiter(self) -> Callable[[], None]:
        """Return a function with which calls wait."""
        path, limit_s = str(self.path), GATE_S

        def wait() -> None:
            import os
            import time

            until = time.monotonic() + limit_s
            while not os.path.exists(path):
                assert time.monotonic() < until, "nobody opened the gate"
                time.sleep(0.01)

        return wait

    def guarding(self, waits: Callable[[Any], bool]) -> Callable[[Any], Any]:
        """Return a function for calls that returns its input, after the gate is open if `waits` of it."""
        wait = self.waiter()

        def call(x: Any) -> Any:
            if waits(x):
                wait()
            return x

        return call


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()
