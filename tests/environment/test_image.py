"""On a node that runs an image, the image wins: what it brings stays, and only what is missing is added."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.environment.conftest import cluster_elsewhere
from tests.environment.lab import install, make_environment, make_wheel

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")]


def test_what_an_image_brings_stays_and_only_what_is_missing_is_added(pythons: tuple[Path, Path], tmp_path: Path):
    image = make_environment(tmp_path / "image")
    brought = make_wheel(tmp_path / "brought", "heavy", {"heavy.py": "BUILT = 'for the GPU'"}, version="1.0+gpu")
    install(image, str(brought))
    with cluster_elsewhere(tmp_path, (pythons[0], image), BURLA_IMAGE="acme/heavy:1") as elsewhere:
        folder = elsewhere.index.folder
        make_wheel(folder, "heavy", {"heavy.py": "BUILT = 'for a laptop'"}, version="2.0")
        make_wheel(folder, "light", {"light.py": "import heavy\nWORD = 'light'"}, requires=("heavy",))
        make_wheel(folder, "asked_for", {"asked_for.py": "import heavy\nWORD = 'named'"}, requires=("heavy>=2",))
        with elsewhere.installed("light"):
            elsewhere.index.asked.clear()
            done = elsewhere.start(
                """
                import light
                burla.configure(packages=["asked-for"])
                def call(x):
                    import asked_for, heavy
                    return heavy.BUILT, light.WORD, asked_for.WORD
                result = burla.remote_parallel_map(call, [0, 1])
                """
            )
    assert done.returncode == 0, done.stderr
    assert done.stdout == '[["for the GPU", "light", "named"], ["for the GPU", "light", "named"]]\n'
    notice = "the image of the nodes has versions of its own, which are used: heavy 1.0+gpu (here 2.0)"
    assert done.stderr.count(notice) == 1
    assert not any("/heavy" in path for path in elsewhere.index.asked), "it is not even looked at"
