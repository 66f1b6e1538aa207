"""The distributions that are installed here: which module is whose, what each needs, where it came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from burla.environment.model import normalized

OUR_NAME = "burla-dask"
MARKS, MARK_CHARACTERS = 8, 12  # of files by which the same project is known again elsewhere

_known: tuple[tuple[object, ...], dict[str, Installed]] = ((), {})


@dataclass(frozen=True)
class Installed:
    """One distribution. Its parts are read when they are asked for."""

    name: str
    dist: importlib.metadata.Distribution

    @property
    def version(self) -> str:
        return self.dist.version

    @cached_property
    def record(self) -> list[tuple[str, str]]:
        """Its files and their hashes, as pip wrote them down; none if it was installed otherwise."""
        lines = (line.rsplit(",", 2) for line in (self.dist.read_text("RECORD") or "").splitlines())
        return [(parts[0].strip('"'), parts[1]) for parts in lines if len(parts) == 3]

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """What it is imported as."""
        names = {_module_of(path) for path, _ in self.record}
        names.update((self.dist.read_text("top_level.txt") or "").split())
        return tuple(sorted(name for name in names if name.isidentifier()))

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Beginnings of the hashes of a few of its files, which are the same wherever it is installed."""
        return marks_of(self.record)

    @cached_property
    def origin(self) -> Mapping[str, object]:
        """Its `direct_url.json`; empty if it came from an index, as far as is known."""
        try:
            origin = json.loads(self.dist.read_text("direct_url.json") or "{}")
        except ValueError:
            return {}
        return origin if isinstance(origin, dict) else {}

    @property
    def is_requested(self) -> bool:
        """Whether somebody has asked for it by name, as far as is known: uv says so of everything."""
        by = (self.dist.read_text("INSTALLER") or "").strip()
        return by == "pip" and self.dist.read_text("REQUESTED") is not None

    @property
    def info_folder(self) -> str | None:
        """The name of the folder that describes it."""
        return next((path.partition("/")[0] for path, _ in self.record if path.endswith(".dist-info/METADATA")), None)

    @property
    def is_editable(self) -> bool:
        about = self.origin.get("dir_info")
        return isinstance(about, dict) and bool(about.get("editable"))

    @cached_property
    def requires(self) -> tuple[Requirement, ...]:
        found = []
        for text in self.dist.requires or ():
            try:
                found.append(Requirement(text))
            except InvalidRequirement:
                continue  # of a time before the format was fixed
        return tuple(found)

    def needs(self, extras: Iterable[str]) -> list[tuple[str, frozenset[str]]]:
        """Return what it requires here with these extras, and which extras of that."""
        chosen = ["", *extras]
        return [
            (normalized(one.name), frozenset(one.extras))
            for one in self.requires
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in chosen)
        ]


def marks_of(record: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the marks of a distribution with these files and hashes."""
    hashes = {
        text.partition("=")[2][:MARK_CHARACTERS]
        for path, text in record
        if text and not path.startswith("..") and ".dist-info/" not in path
    }
    return tuple(sorted(hashes - {_EMPTY_FILE})[:MARKS])


_EMPTY_FILE = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"[:MARK_CHARACTERS]


def _module_of(path: str) -> str:
    top, _, below = path.partition("/")
    return top if below else top.partition(".")[0] if top.endswith((".py", ".so", ".pyd")) else ""


def installed() -> dict[str, Installed]:
    """Return all distributions but ours, by normalized name; of two, the one that is imported."""
    global _known
    state = tuple((entry, _mtime_ns(entry)) for entry in sys.path if isinstance(entry, str))
    if state != _known[0]:
        found: dict[str, Installed] = {}
        for dist in importlib.metadata.distributions():
            name = dist.metadata["Name"] if dist.metadata else None
            if name and normalized(name) != OUR_NAME:
                found.setdefault(normalized(name), Installed(name, dist))
        _known = state, found
    return dict(_known[1])


def _mtime_ns(entry: str) -> int:
    try:
        return os.stat(entry or ".").st_mtime_ns
    except OSError:
        return 0


def closure(names: Iterable[str], among: Mapping[str, Installed]) -> set[str]:
    """Return distributions and all that they require, as far as it is installed."""
    waiting = [(name, frozenset[str]()) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        one = waiting.pop()
        if one not in seen and one[0] in among:
            seen.add(one)
            waiting += among[one[0]].needs(one[1])
    return {name for name, _ in seen}


def wanted_by_user(among: Mapping[str, Installed]) -> set[str]:
    """Return the distributions without those that are only here because burla requires them."""
    try:
        ours = importlib.metadata.distribution(OUR_NAME)
    except importlib.metadata.PackageNotFoundError:
        return set(among)
    brought = closure((name for name, _ in Installed(OUR_NAME, ours).needs(())), among)
    roots = {name for name, one in among.items() if name not in brought or one.is_requested}
    return closure(roots, among)


def providers(modules: Iterable[str], among: Mapping[str, Installed]) -> set[str]:
    """Return the distributions that bring these top-level modules."""
    wanted = set(modules)
    return {name for name, one in among.items() if not wanted.isdisjoint(one.modules)}


def location(one: Installed) -> Path:
    """Return the folder that a distribution is installed into."""
    return Path(str(one.dist.locate_file("")))
