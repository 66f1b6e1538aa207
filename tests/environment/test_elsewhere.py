"""Calls on nodes that share nothing with their client: no disk, no network, no virtual environment, no home."""

from __future__ import annotations

import sys

import pytest

from tests.environment.conftest import Elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")]


def test_a_call_imports_modules_that_lie_beside_its_script(elsewhere: Elsewhere):
    found = elsewhere.run(
        """
        import helper

        def call(x):
            import later
            return [helper.double(x), later.WORD, os.path.exists(path), sys.prefix]

        path = __file__
        result = burla.remote_parallel_map(call, [1, 2])
        """,
        helper="def double(x): return 2 * x",
        later="from package_less import WORD",
        package_less="WORD = 'here'",
    )
    assert isinstance(found, list)
    assert [one[:3] for one in found] == [[2, "here", False], [4, "here", False]]
    assert str(elsewhere.machine.folder) in found[0][3], "an environment of the function's own, not the node's"
