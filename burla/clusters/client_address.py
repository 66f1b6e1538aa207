"""Which address the machines of a cluster see this one at."""

from __future__ import annotations

import ipaddress
import os
import urllib.request

from burla.errors import CloudError, InvalidValue

VARIABLE = "BURLA_CLIENT_CIDR"
_URL = "https://checkip.amazonaws.com"  # run by a cloud that the user trusts with more than this
_ANSWER_S = 10.0


def client_cidr() -> str:
    """Return who may connect, in CIDR notation: `BURLA_CLIENT_CIDR`, else this machine's public address alone.

    Raises InvalidValue; CloudError if it cannot be found out.
    """
    if text := os.environ.get(VARIABLE):
        return check(VARIABLE, text)
    try:
        with urllib.request.urlopen(_URL, timeout=_ANSWER_S) as answer:
            return f"{ipaddress.ip_address(answer.read().decode().strip())}/32"
    except (OSError, ValueError) as error:
        step = "finding out this machine's public address"
        text = f"{step}: {_URL} does not say it ({error}). Set {VARIABLE}, as 198.51.100.7/32. Nothing was changed."
        raise CloudError(text, step=step, told=str(error), left=[]) from error


def check(name: str, text: str) -> str:
    """Return addresses in CIDR notation. Raises InvalidValue, which says whose value it is."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as error:
        raise InvalidValue(f"{name}={text!r}: {error}; it must be like 198.51.100.7/32.") from error
