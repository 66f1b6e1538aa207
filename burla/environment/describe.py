"""Describes what a function needs of this machine, for nodes that do not share its disk."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from burla.environment import installed, sources, wheels
from burla.environment.imports import imported_by
from burla.environment.installed import Installed
from burla.environment.model import Distribution, Environment, Source, normalized
from burla.errors import InvalidValue
from burla.protocol import Blob, python_tag

log = logging.getLogger(__name__)

KEPT = 16  # wheels that were made are kept, for the next jobs

_wheels: OrderedDict[tuple[object, ...], tuple[str, bytes] | None] = OrderedDict()


@dataclass(frozen=True)
class Described:
    """An environment, and what it refers to, by id."""

    environment: Environment
    contents: Mapping[str, bytes]


def describe(function: Callable[..., Any], packages: Iterable[str] = ()) -> Described:
    """Return what a function needs: local code as it stands now, all that is installed here, and `packages`.

    Raises InvalidValue for packages that cannot be understood, EnvironmentFailed if local code is too large.
    """
    contents: dict[str, bytes] = {}
    among = installed.installed()
    extras, named = _named(packages, contents)
    found = sources.find([*imported_by(function), *_editable_modules(among)])
    needed = installed.closure(installed.providers(found.others, among), among)
    sources.add_unasked(found)
    replaced = {normalized(one.name) for one in named} | {normalized(Requirement(text).name) for text in extras}
    wanted = (installed.wanted_by_user(among) | needed) - replaced
    distributions = [_distribution(among[name], name in needed, contents) for name in sorted(wanted)]
    environment = Environment(
        python=python_tag(),
        cwd=os.getcwd(),
        sources=tuple(_pack(found, among, contents)),
        distributions=(*(one for one in distributions if one is not None), *named),
        extras=tuple(extras),
    )
    return Described(environment, contents)


def _editable_modules(among: Mapping[str, Installed]) -> list[str]:
    """Return what editable installations are imported as: their record has no files, but finders know them."""
    names: list[str] = []
    for one in among.values():
        if one.is_editable:
            path = wheels.local_file(one)
            guesses = {*one.modules, normalized(one.name).replace("-", "_")}
            if path is not None:
                guesses.update(_tops(path), _tops(path / "src"))
            names += [name for name in guesses if not name.startswith("__editable__")]
    return names


def _tops(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return [
        one.stem
        for one in folder.iterdir()
        if one.stem.isidentifier() and (one / "__init__.py").is_file() and any(sources.locate(one.stem))
    ]


def _pack(found: sources.Found, among: Mapping[str, Installed], contents: dict[str, bytes]) -> Iterable[Source]:
    units = dict(found.units)
    for one in among.values():
        if one.is_editable and one.info_folder is not None:  # the code may ask for its own version or entry points
            units.setdefault(installed.location(one), set()).add(one.info_folder)
    known = [root for root in sources.roots() if root in units]
    for root in [*known, *sorted(set(units) - set(known))]:
        blob, data = sources.pack(root, units[root])
        contents[blob.id] = data
        yield Source(blob, str(root))


def _distribution(one: Installed, needed: bool, contents: dict[str, bytes]) -> Distribution | None:
    """Return how a distribution is to be had elsewhere; None: it is local code."""
    if one.is_editable:
        return None
    facts = {"name": one.name, "version": one.version, "needed": needed, "modules": one.modules, "marks": one.marks}
    if wheels.local_file(one) is None:
        return Distribution(**facts, url=wheels.remote_url(one))
    made = _wheel(one)
    if made is None:
        log.warning("%s was installed from a file that is gone, and what is installed is not complete", one.name)
        return None
    file_name, data = made
    blob = sources.described(data)
    contents[blob.id] = data
    return Distribution(**facts, file_name=file_name, content=blob)


def _wheel(one: Installed) -> tuple[str, bytes] | None:
    state = (one.name, str(installed.location(one)), str(one.origin), hash(tuple(one.record)))
    if state not in _wheels:
        _wheels[state] = wheels.wheel_of(one)
        while len(_wheels) > KEPT:
            _wheels.popitem(last=False)
    return _wheels[state]


def _named(packages: Iterable[str], contents: dict[str, bytes]) -> tuple[list[str], list[Distribution]]:
    """Return what the user has named: requirements, and wheels of this machine."""
    extras: list[str] = []
    named: list[Distribution] = []
    for text in packages:
        if text.endswith(".whl"):
            named.append(_named_wheel(Path(text).expanduser(), contents))
            continue
        try:
            Requirement(text)
        except InvalidRequirement as error:
            raise InvalidValue(
                f"packages: {text!r} is neither a requirement, such as 'polars>=1', nor a wheel file: {error}"
            ) from None
        extras.append(text)
    return extras, named


def _named_wheel(path: Path, contents: dict[str, bytes]) -> Distribution:
    if not path.is_file() or not wheels.is_wheel_name(path.name):
        raise InvalidValue(f"packages: {str(path)!r} is no wheel file that exists here.")
    data = path.read_bytes()
    blob: Blob = sources.described(data)
    contents[blob.id] = data
    name, version = path.name.split("-")[:2]
    return Distribution(name, version, needed=True, file_name=path.name, content=blob)
