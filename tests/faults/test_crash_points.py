"""The head is killed at every named moment around commits, renames, deletions and replies, and nobody notices."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import burla
from burla.head.crashpoints import VARIABLE
from tests.conftest import Home, Ledger, cluster_processes, process_kind, wait_until

HEAD = Path(burla.__file__).parent / "head"
OPENING = {"store.in_replace"}  # is reached when a damaged store is opened: see tests/head/test_store_crashes.py
FOUND = {name for path in HEAD.glob("*.py") for name in re.findall(r'reach\("([^"]+)"\)', path.read_text())}


@pytest.mark.parametrize("time", [1, 4])
@pytest.mark.parametrize("point", sorted(FOUND - OPENING))
def test_a_head_killed_at_a_crash_point_costs_nothing(
    own_home: Home,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    point: str,
    time: int,
):
    """Attached and detached, with values in rows, in files and as blobs; in each, every line and result comes once."""
    token = tmp_path / "token"
    monkeypatch.setenv(VARIABLE, f"{point}:{time}:{token}")
    write = ledger.writer()

    def call(index: int, value: bytes) -> bytes:
        import time

        write(index)
        print("call", index)
        time.sleep(0.02)
        return value[::-1]

    sizes = [10, 100_000, 1_500_000]
    inputs = [(index, bytes([index]) * sizes[index % 3] + b"end") for index in range(30)]
    expected = [value[::-1] for _, value in inputs]

    assert burla.remote_parallel_map(call, inputs) == expected
    printed = capfd.readouterr().out.splitlines()
    job = burla.submit(call, inputs)
    assert job.results(timeout_s=60) == expected
    assert Counter(map(str, job.logs())) == Counter(printed) == Counter(f"call {index}" for index in range(30))
    retried = job.retry_failed()
    assert retried.results(timeout_s=60) == expected
    for old in (job, retried, *(burla.submit(abs, [-1]) for _ in range(3))):
        old.wait()
        old.delete()
    assert token.exists(), "the head came to this point"
    assert Counter(ledger.entries()) == Counter({str(index): 2 for index in range(30)}), "no call ran again"
    assert [job.id for job in burla.jobs()] == []
    wait_until(lambda: "head" in map(process_kind, cluster_processes(own_home.environ)), 10, "the head that came back")
