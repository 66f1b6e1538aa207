"""All of it at once, with packages of the real registry: the first run fetches them, later ones need no registry."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.environment.conftest import cluster_elsewhere
from tests.environment.lab import Proxy, install, make_wheel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's"),
]


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.close()


def test_a_function_finds_all_it_needs_and_the_second_run_needs_no_registry(
    pythons: tuple[Path, Path], tmp_path: Path, proxy: Proxy
):
    wheels = tmp_path / "client" / "wheels"
    mine = make_wheel(wheels, "tabulate", {"tabulate.py": "WHO = 'mine'"}, version="0.9.0")  # so is one on the index
    make_wheel(wheels, "burla_test_rare", {"burla_test_rare.py": ""})
    with cluster_elsewhere(tmp_path, pythons, HTTPS_PROXY=proxy.url, UV_DEFAULT_INDEX="") as elsewhere:
        install(elsewhere.client, "pandas", "pyarrow", "humanize", "more-itertools", str(mine))
        install(elsewhere.client, "burla-test-rare", options=("--no-index", "--find-links", str(wheels)))
        (elsewhere.project / "package").mkdir()
        (elsewhere.project / "package" / "__init__.py").write_text("from .part import double")
        (elsewhere.project / "package" / "part.py").write_text("def double(x): return 2 * x")
        source = """
            import importlib
            from pathlib import Path
            import changing, humanize, package
            import pandas as pd

            def call(x):
                import tabulate
                more = importlib.import_module("more" + "_itertools")
                pd.DataFrame({"x": [x, package.double(x)]}).to_parquet("frame.parquet")
                back = pd.read_parquet("frame.parquet")["x"].tolist()
                chunks = list(more.chunked([1, 2, 3], 2))
                return back, changing.WORD, tabulate.WHO, humanize.intcomma(1000 * x), chunks

            Path(changing.__file__).write_text("WORD = 'old'")
            result = burla.remote_parallel_map(call, [1])
            Path(changing.__file__).write_text("WORD = 'new'")
            result += burla.remote_parallel_map(call, [2])
            """
        (elsewhere.project / "changing.py").write_text("")
        first = elsewhere.start(source)
        expected = [[[1, 2], "old", "mine", "1,000", [[1, 2], [3]]], [[2, 4], "new", "mine", "2,000", [[1, 2], [3]]]]
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout) == expected
        assert "not installed on the nodes, because no wheel was found for them there: burla_test_rare" in first.stderr
        assert proxy.connected
        proxy.close()
        assert elsewhere.run(source) == expected, "the environment that is there"
        install(elsewhere.client, str(make_wheel(wheels, "one_more", {"one_more.py": ""})))
        assert elsewhere.run(source) == expected, "another environment, of what the installer has in its cache"
