"""`max_minutes` and `max_cost_usd`: a job that comes to one is stopped, and keeps what it has."""

from __future__ import annotations

import psutil
import pytest

import burla
from burla.client import current
from tests.conftest import Ledger, wait_until


def test_a_job_at_its_limit_of_time_is_stopped_with_no_client_there_and_keeps_its_results(ledger: Ledger):
    write = ledger.writer()

    def call(x: int) -> int:
        import os
        import time

        if x > 2:
            write(os.getpid())
            time.sleep(600)
        return x * x

    job_id = burla.submit(call, range(20), max_minutes=0.05).id
    wait_until(lambda: len(ledger.entries()) == 2, 30, "two calls that hang")
    current.forget()
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in ledger.entries()), 30, "the end of its calls")
    job = burla.attach(job_id)
    with pytest.raises(burla.LimitReached, match=r"max_minutes=0.05, and it has run for 0.0\d") as caught:
        job.results()
    assert caught.value.limit == "max_minutes" and isinstance(caught.value, burla.JobCancelled)
    assert caught.value.burla_results == {0: 0, 1: 1, 2: 4}
    assert job.status == "cancelled" and len(ledger.entries()) == 2
    assert job.retry_failed(lambda x: -x).results() == [0, 1, 4, *range(-3, -20, -1)]


def test_a_job_that_ends_before_its_limit_is_as_any_other():
    assert burla.submit(lambda x: x + 1, range(3), max_minutes=60).results() == [1, 2, 3]


def test_a_limit_in_money_is_refused_where_nothing_has_a_price():
    with pytest.raises(burla.NoCompatibleNodes, match=r"max_cost_usd=5: no node .* Give max_minutes= instead"):
        burla.submit(lambda x: x, [1], max_cost_usd=5)


@pytest.mark.parametrize("name", ["max_minutes", "max_cost_usd"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (0, burla.InvalidValue),
        (-1.5, burla.InvalidValue),
        (float("inf"), burla.InvalidValue),
        (float("nan"), burla.InvalidValue),
        ("5", burla.InvalidType),
        (True, burla.InvalidType),
    ],
)
def test_a_limit_is_a_number_above_0(name: str, value: object, error: type[Exception]):
    with pytest.raises(error, match=f"{name}=.*: it must be a number above 0"):
        burla.submit(abs, [1], **{name: value})  # type: ignore[arg-type]
