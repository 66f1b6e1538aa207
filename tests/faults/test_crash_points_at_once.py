"""The head is killed at every named moment while jobs are begun, run, read, retried and deleted at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import burla
from burla.head.crashpoints import VARIABLE
from tests.conftest import Home, Ledger
from tests.faults.test_crash_points import FOUND, OPENING

COUNT = 20
SIZES = [10, 100_000, 1_500_000]  # in a row, in a file, as a blob
INPUTS = [(index, bytes([index]) * SIZES[index % 3] + b"end") for index in range(COUNT)]
EXPECTED = [value[::-1] for _, value in INPUTS]
JOB_S = 40


class AtOnce:
    """What users do with a cluster at the same time; each fails by itself."""

    def __init__(self, ledger: Ledger):
        self.write = ledger.writer()

    def reverse(self, name: str) -> Callable[[int, bytes], bytes]:
        write = self.write

        def call(index: int, value: bytes) -> bytes:
            import time

            write(f"{name} {index}")
            print(name, index)
            time.sleep(0.02)
            return value[::-1]

        return call

    def attached(self) -> None:
        assert burla.remote_parallel_map(self.reverse("attached"), INPUTS) == EXPECTED

    def generator(self) -> None:
        results = burla.remote_parallel_map(self.reverse("generator"), INPUTS, generator=True, detach=True)
        assert sorted(results) == sorted(EXPECTED)

    def nested(self) -> None:
        write = self.write

        def outer(x: int) -> int:
            from burla import remote_parallel_map

            def inner(y: int) -> object:
                import time

                write(f"inner {x} {y}")
                time.sleep(0.02)
                return bytes(1_200_000) if y == 3 else y

            return len(remote_parallel_map(inner, range(8)))

        assert burla.submit(outer, range(3)).results(timeout_s=JOB_S) == [8] * 3

    def begun_and_deleted(self) -> None:
        for number in range(6):
            job = burla.submit(lambda x, number=number: bytes([x]) * (1 + 100_000 * (number % 2)), range(2))
            job.wait(JOB_S)
            job.delete()
            assert job.id not in [listed.id for listed in burla.jobs()]

    def failed_and_retried(self) -> None:
        write = self.write

        def odd(x: int) -> int:
            write(f"odd {x}")
            if x % 3 == 0:
                raise ValueError(x)
            return x

        job = burla.submit(odd, range(COUNT), on_error="continue")
        job.wait(JOB_S)
        assert [group.count for group in job.errors()] == [-(-COUNT // 3)]
        again = job.retry_failed(lambda x: -x)
        again.wait(JOB_S)
        job.delete()
        assert again.results() == [x if x % 3 else -x for x in range(COUNT)]

    def followed_and_resumed(self) -> None:
        job = burla.submit(self.reverse("followed"), INPUTS)
        lines = Counter(map(str, job.logs(follow=True)))
        assert lines == Counter(f"followed {index}" for index in range(COUNT))
        assert burla.submit(self.reverse("followed"), INPUTS, resume=job).results(timeout_s=JOB_S) == EXPECTED


@pytest.mark.parametrize("time", [3, 7])
@pytest.mark.parametrize("point", sorted(FOUND - OPENING))
def test_jobs_at_once_do_not_notice_that_the_head_is_killed_at_a_crash_point(
    own_home: Home,
    monkeypatch: pytest.MonkeyPatch,
    ledger: Ledger,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    point: str,
    time: int,
):
    """Every result and every line comes once, and no call runs again: the node has outlived the head."""
    token = tmp_path / "token"
    monkeypatch.setenv(VARIABLE, f"{point}:{time}:{token}")
    users, failed = AtOnce(ledger), []

    def act(user: Callable[[], None]) -> None:
        try:
            user()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            failed.append((user.__name__, error))

    acts = (
        users.attached, users.generator, users.nested, users.begun_and_deleted, users.failed_and_retried,
        users.followed_and_resumed,
    )  # fmt: skip
    threads = [threading.Thread(target=act, args=(user,), name=user.__name__, daemon=True) for user in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * JOB_S)
        assert not thread.is_alive(), f"{thread.name} hangs; failed: {failed}"
    assert failed == []
    assert token.exists(), "the head came to this point"
    printed = Counter(capfd.readouterr().out.splitlines())
    assert printed == Counter(f"{name} {index}" for name in ("attached", "generator") for index in range(COUNT))
    assert [entry for entry, count in Counter(ledger.entries()).items() if count > 1] == [], "no call ran again"
