"""Random faults while a detached job runs: every input has exactly one outcome, and no finished call runs again."""

from __future__ import annotations

import collections
import os
import random
import statistics

import pytest

from tests.conftest import Home
from tests.faults.campaign import KINDS, SLOTS, Campaign, hits, summary

SEED = int(os.environ.get("BURLA_FAULTS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.timeout(2400)
def test_fifty_faults_cost_a_detached_job_nothing(own_home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BURLA_LOCAL_CPUS", str(SLOTS))
    report = Campaign(own_home.path, 50, SEED).run()
    print(*summary([report]), sep="\n")
    assert report.problems == []
    count = collections.Counter(fault.kind for fault in report.faults)
    assert all(count[kind] >= 5 for kind in KINDS), count
    assert hits(report.faults) >= 0.8
    assert report.begun - report.calls < 0.05 * report.calls
    heads = [fault.next_result_s for fault in report.faults if fault.next_result_s is not None]
    assert statistics.median(heads) < 10
