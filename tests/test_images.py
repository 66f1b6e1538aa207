"""Names of container images."""

from __future__ import annotations

import pytest

from burla import config
from burla.images import normalise

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("python", "python:latest"),
        ("python:3.11", "python:3.11"),
        ("library/python:3.11", "python:3.11"),
        ("docker.io/python:3.11", "python:3.11"),
        ("docker.io/library/python:3.11", "python:3.11"),
        ("index.docker.io/library/python:3.11", "python:3.11"),
        (" python:3.11\n", "python:3.11"),
        ("someone/tool", "someone/tool:latest"),
        ("docker.io/someone/tool:1", "someone/tool:1"),
        ("ghcr.io/someone/tool:1", "ghcr.io/someone/tool:1"),
        ("registry.example:5000/tool", "registry.example:5000/tool:latest"),
        ("ghcr.io/library/python:3.11", "ghcr.io/library/python:3.11"),
        (f"python@{DIGEST}", f"python@{DIGEST}"),
        (f"docker.io/library/python:3.11@{DIGEST}", f"python@{DIGEST}"),
    ],
)
def test_spellings_of_an_image_become_one(name: str, short: str):
    assert normalise(name) == short
    assert normalise(short) == short


@pytest.mark.parametrize(
    ("value", "image"), [(None, None), ("", None), (" ", None), ("docker.io/me/it", "me/it:latest")]
)
def test_a_machine_is_told_its_image_by_the_environment(
    value: str | None, image: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("BURLA_IMAGE", raising=False)
    if value is not None:
        monkeypatch.setenv("BURLA_IMAGE", value)
    assert config.image() == image
