from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_the_benchmark_runs_and_tells_medians_and_versions(tmp_path: Path):
    """On tiny workloads; what it measures is for people to read, and not for tests."""
    where = tmp_path / "figures.json"
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--rounds", "1", "--scale", "0.005"]
    ran = subprocess.run([*command, "--json", str(where)], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
    rows = [line for line in ran.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and all(row.count("|") == 6 for row in rows)
    figures = json.loads(where.read_text())
    assert {"burla-dask", "dask", "distributed", "python"} <= figures["versions"].keys()
    assert figures["samples"].keys() == {"noop", "one", "sleep", "cold start"}
    for by_name in figures["samples"].values():
        assert {name: len(values) for name, values in by_name.items()} == {"burla": 1, "dask": 1, "multiprocessing": 1}
