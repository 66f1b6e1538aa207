"""What the user has set for the calls of this process: packages and environment variables that cannot be found out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from burla.errors import InvalidType, InvalidValue
from burla.protocol import Variables

_packages: tuple[str, ...] = ()
_variables = Variables()


def configure(*, packages: Iterable[str] | None = None, env_vars: Mapping[str, str] | None = None) -> None:
    """Set what calls of this process get from now on; None: as it is, empty: none.

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
    global _packages, _variables
    chosen = _packages if packages is None else checked_packages(packages)
    _variables = _variables if env_vars is None else checked_variables(env_vars)
    _packages = chosen


def packages() -> tuple[str, ...]:
    """Return the packages that are set."""
    return _packages


def variables() -> Variables:
    """Return the environment variables that are set."""
    return _variables


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
