"""Names of container images: several spellings of one name are the same image."""

from __future__ import annotations

DOCKER_HUB = ("docker.io/", "index.docker.io/")


def normalise(name: str) -> str:
    """Return the shortest spelling with a tag: "docker.io/library/python" is "python:latest"; a digest beats a tag."""
    name = name.strip()
    for host in DOCKER_HUB:
        name = name.removeprefix(host)
    path, at, digest = name.partition("@")
    folder, slash, last = path.rpartition("/")
    repository, _, tag = last.partition(":")
    folder = "" if folder == "library" else folder + slash
    return f"{folder}{repository}@{digest}" if at else f"{folder}{repository}:{tag or 'latest'}"
