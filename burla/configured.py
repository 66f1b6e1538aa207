"""What the user has set for the calls of this process: packages and environment variables that cannot be found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from burla.errors import InvalidType, InvalidValue
from burla.protocol import Variables

_NO_VARIABLES = Variables()


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is set; shown without the values of variables."""

    packages: tuple[str, ...] = ()
    env_vars: Variables = _NO_VARIABLES

    def __str__(self) -> str:
        lines = [f"package {one}" for one in self.packages]
        return "\n".join([*lines, *(f"variable {name}" for name in self.env_vars.values)]) or "nothing is set"


_set = Configuration()


def configure(*, packages: Iterable[str] | None = None, env_vars: Mapping[str, str] | None = None) -> Configuration:
    """Set what calls of this process get from now on (None: as it is, empty: none); return all that is set.

    Parameters
    ----------
    packages
        Requirements, such as "polars>=1", or paths of wheel files: installed for the calls on nodes that do not share
        this machine's disk, besides what is installed here.
    env_vars
        Environment variables of the calls, on every node. Their values are not stored readably, logged or shown.

    Raises
    ------
    InvalidType, InvalidValue
        Nothing is changed then.
    """
    global _set
    _set = Configuration(
        _set.packages if packages is None else checked_packages(packages),
        _set.env_vars if env_vars is None else checked_variables(env_vars),
    )
    return _set


def checked_packages(value: Any) -> tuple[str, ...]:
    """Return packages as a tuple. Raises InvalidType."""
    allowed = "packages: give a list of requirements, such as ['polars>=1'], or of wheel files."
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidType(allowed)
    chosen = tuple(value)
    if not all(isinstance(one, str) and one.strip() for one in chosen):
        raise InvalidType(allowed)
    return chosen


def checked_variables(value: Any) -> Variables:
    """Return environment variables. Raises InvalidType, InvalidValue, which do not show values."""
    if not isinstance(value, Mapping):
        raise InvalidType("env_vars: give a dictionary of names and values, such as {'TOKEN': token}.")
    for name, text in value.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidType(f"env_vars: the name {name!r} or its value is no string.")
        if not name or "=" in name or "\0" in name + text:
            raise InvalidValue(f"env_vars: {name!r} is no name of an environment variable, or its value has a null.")
    return Variables(dict(value))
