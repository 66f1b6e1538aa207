"""The acceptance tests of the main job, on clusters of every kind that somebody else could run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["plain", "tls", "threads", "processes"])
def test_the_journey_passes_there(kind: str):
    command = [sys.executable, "-m", "pytest", "-q", "tests/journey", "--on", kind, "-m", "not slow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout
