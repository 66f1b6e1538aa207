from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.drive import ROOT

pytestmark = pytest.mark.slow


def _run(module: str, where: Path, *options: str) -> tuple[list[str], Any]:
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *options, "--json", str(where)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines(), json.loads(where.read_text())


def test_nodes_that_are_stand_ins_run_calls_under_a_real_head(tmp_path: Path):
    """Each slot prints; how long that takes is for people to read."""
    lines, [row] = _run("nodes", tmp_path / "figures.json", "--nodes", "4", "--calls", "8")
    assert len(lines) == 3 and lines[2].count("|") == lines[0].count("|")
    assert (row["nodes"], row["calls"], row["ideal_s"]) == (4, 8, 2.0)
    assert row["calls_s"] > 2.0 and row["slots that printed"] >= 1


def test_the_cost_of_growth_is_told_for_each_size(tmp_path: Path):
    """A row for each number of nodes."""
    lines, told = _run("growth", tmp_path / "figures.json", "--nodes", "1,3", "--calls", "10,100")
    assert len(lines) == 4
    assert [(nodes, counts, len(row)) for nodes, counts, row in told] == [(1, [10, 100], 2), (3, [10, 100], 2)]
