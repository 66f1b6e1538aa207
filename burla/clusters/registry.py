"""Clusters with a name, and the one that `burla use` has chosen: small files under BURLA_HOME."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burla import config
from burla.clusters.security import private_folder
from burla.errors import InvalidValue, UnknownCluster

if TYPE_CHECKING:
    from distributed import Security

LOCAL = "local"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FILE = "cluster.json"  # in the folder of the cluster
_KEPT = "use.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a Dask scheduler is, and the files that open it; what is not given comes from the user's Dask config.

    `kind`: who runs it. Written as JSON.
    """

    address: str
    name: str = ""
    kind: str = "dask"
    tls_ca_file: str = ""
    tls_client_cert: str = ""
    tls_client_key: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.address})" if self.name else self.address

    def security(self) -> Security:
        """Return what Dask needs to connect. Raises InvalidValue if a file is missing."""
        from distributed import Security

        files = {name: value for name, value in asdict(self).items() if name.startswith("tls_") and value}
        for name, path in files.items():
            if not os.path.isfile(path):
                raise InvalidValue(f"{name}={path!r}: there is no such file.")
        return Security(require_encryption=True, **files) if files else Security()


def entry(address: str, tls_ca_file: Any, tls_client_cert: Any, tls_client_key: Any, name: str = "") -> Entry:
    """Return an entry, with the paths made absolute."""

    def path(value: Any) -> str:
        return os.path.abspath(os.path.expanduser(value)) if value else ""

    return Entry(
        address,
        name,
        tls_ca_file=path(tls_ca_file),
        tls_client_cert=path(tls_client_cert),
        tls_client_key=path(tls_client_key),
    )


def is_address(text: str) -> bool:
    """Whether it is meant as an address: a name has no colon."""
    return ":" in text


def find(text: str) -> Entry | None:
    """Return what a name or an address stands for; None: the local cluster. Raises UnknownCluster."""
    if text == LOCAL:
        return None
    if is_address(text):
        return Entry(text)
    known = _read(folder(text) / _FILE) if _NAME.fullmatch(text) else None
    if known is None:
        names = ", ".join([LOCAL, *(one.name for one in entries())])
        raise UnknownCluster(f"there is no cluster {text!r}; known are: {names}. An address has a port: host:8786.")
    return replace(known, name=text)


def entries() -> list[Entry]:
    """Return the clusters that have a name, in alphabetical order."""
    found = []
    for path in sorted((config.home() / "clusters").glob(f"*/{_FILE}")):
        known = _read(path)
        if known is not None:
            found.append(replace(known, name=path.parent.name))
    return found


def save(one: Entry) -> None:
    """Keep a cluster under its name; another one of that name is replaced. Raises InvalidValue, UnsafeFiles."""
    check_name(one.name)
    write_private(private_folder(folder(one.name)) / _FILE, asdict(one))


def check_name(name: str) -> None:
    """Raise InvalidValue unless a cluster may have this name."""
    if not _NAME.fullmatch(name) or name == LOCAL or name.startswith(f"{LOCAL}-"):
        raise InvalidValue(f"name={name!r}: it must be of letters, digits, '.', '_' and '-', and not local.")


def keep(one: Entry | None) -> None:
    """Have every process of this user use a cluster that says nothing else; None: the local one."""
    path = config.home() / _KEPT
    if one is None:
        path.unlink(missing_ok=True)
    else:
        write_private(path, asdict(one))


def unkeep(name: str) -> None:
    """Have nobody use a cluster any more that is going to be deleted."""
    known = _read(config.home() / _KEPT)
    if known is not None and known.name == name:
        keep(None)


def kept() -> Entry | None:
    """Return the cluster that `keep` was told of, as it is known now. Raises UnknownCluster."""
    known = _read(config.home() / _KEPT)
    return known if known is None or not known.name else find(known.name)


def kept_file() -> Path:
    """Return where `keep` writes."""
    return config.home() / _KEPT


def folder(name: str) -> Path:
    """Return the folder of a name."""
    return config.home() / "clusters" / name


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InvalidValue(f"{path} cannot be read: {error}. To begin anew: rm {path}") from error


def write_private(path: Path, content: dict[str, Any]) -> None:
    """Keep something as JSON for this user alone, all of it or what was there before."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=1)
    new.rename(path)
