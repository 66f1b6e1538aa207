from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = "one,noop-1k,print-1k,skewed,in,script"


def test_the_benchmark_runs_and_tells_medians_and_versions(tmp_path: Path):
    """On tiny workloads; what it measures is for people to read, and not for tests."""
    where = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.benchmarks.run", "--rounds", "1", "--scale", "0.02", "--only", WORKLOADS]
    ran = subprocess.run([*command, "--json", str(where)], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 9 and all(row.count("|") == 7 for row in rows)
    figures = json.loads(where.read_text())
    assert {"burla-dask", "dask", "distributed", "joblib", "python"} <= figures["versions"].keys()
    assert figures["samples"].keys() == set(WORKLOADS.split(","))
    assert {"burla", "burla over TLS", "dask", "joblib"} <= figures["samples"]["one"].keys()
