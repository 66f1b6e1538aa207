from __future__ import annotations

import pytest

from burla import remote_parallel_map
from tests.conftest import Ledger


def test_a_result_is_here_while_a_later_call_of_the_same_process_still_runs(ledger: Ledger):
    """Quick calls, then a long one behind them in one process: their results must not wait for it."""
    write, entries = ledger.writer(), str(ledger.path)

    def call(x: int) -> int:
        import time
        from pathlib import Path

        if x == 0:
            while not Path(entries).exists():
                time.sleep(0.01)
            time.sleep(1)
            raise ValueError(x)
        if x == 290:
            write("the long one runs")
            time.sleep(60)
        return x

    with pytest.raises(ValueError, match="0") as caught:
        remote_parallel_map(call, range(400))
    assert caught.value.burla_results == {x: x for x in range(1, 290)}
