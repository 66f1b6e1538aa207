"""The result of a call: a list in the order of the inputs, or a generator in the order in which calls end."""

from __future__ import annotations

import time

from burla import remote_parallel_map


def test_results_come_in_the_order_of_the_inputs():
    def late_first(x: int) -> int:
        import time

        time.sleep(0.2 if x == 0 else 0)
        return x * 2

    assert remote_parallel_map(late_first, range(20)) == [x * 2 for x in range(20)]


def test_a_generator_yields_in_the_order_of_completion():
    def late_first(x: int) -> int:
        import time

        time.sleep(1.0 if x == 0 else 0.05)
        return x

    results = remote_parallel_map(late_first, [0, 1, 2], generator=True)
    began = time.monotonic()
    assert sorted([next(results), next(results)]) == [1, 2]
    assert time.monotonic() - began < 0.9
    assert list(results) == [0]
