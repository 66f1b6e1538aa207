from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_of_jobs_at_once_runs_and_tells_times_and_shares(tmp_path: Path):
    """For a short time; what it measures is for people to read, and not for tests."""
    where = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name("fairness.py")), "--rounds", "1", "--seconds", "3"]
    ran = subprocess.run([*command, "--json", str(where)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    assert [row.count("|") for row in rows] == [5] * 4 + [6] * 3
    figures = json.loads(where.read_text())
    assert [len(samples["beside"]) for samples in figures["small"].values()] == [1, 1]
    assert set(figures["packing"]["shares"]) == {"1", "2", "4"} and 0 < figures["packing"]["occupancy"] <= 1
