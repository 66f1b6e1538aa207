"""A cluster in a cloud as one encrypted file, for another machine. Who has it and the passphrase runs code there."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from burla.clusters import record, registry
from burla.clusters.record import CloudCluster
from burla.clusters.security import CA, CERT, KEY, create_keys, private_folder
from burla.errors import ClusterBusy, InvalidValue

FORMAT = "burla-cluster-1"
SHORTEST = 8
# what OWASP gives for scrypt: 128 MB and about 0.3 s a guess
_COST = {"n": 2**17, "r": 8, "p": 1}
_MOST_BYTES = 1_000_000


def seal(cluster: CloudCluster, passphrase: str) -> bytes:
    """Return the encrypted file. Raises InvalidValue: the passphrase is too short."""
    if len(passphrase) < SHORTEST:
        raise InvalidValue(f"the passphrase has {len(passphrase)} characters: it must have at least {SHORTEST}.")
    if not cluster.address:
        raise ClusterBusy(f"{cluster.name!r} is not up yet: it can be exported when it is.")
    salt = os.urandom(16)
    keys = {name: pem.decode() for name, pem in cluster.keys().items()}
    inside = json.dumps({"cluster": asdict(cluster), "keys": keys}).encode()
    token = _fernet(passphrase, salt).encrypt(inside)
    return json.dumps({"format": FORMAT, "salt": base64.b64encode(salt).decode(), "token": token.decode()}).encode()


def unseal(data: bytes, passphrase: str) -> tuple[CloudCluster, dict[str, bytes]]:
    """Return a cluster and its keys. Raises InvalidValue: no such file, a changed one, or another passphrase."""
    from cryptography.fernet import InvalidToken

    try:
        outside = json.loads(data)
        if outside["format"] != FORMAT:
            raise InvalidValue(f"the file is of the format {outside['format']!r}: this burla reads {FORMAT}.")
        salt, token = base64.b64decode(outside["salt"]), outside["token"].encode()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(f"the file is not one of burla cluster export: {error!r}.") from error
    try:
        inside: dict[str, Any] = json.loads(_fernet(passphrase, salt).decrypt(token))
    except InvalidToken:
        raise InvalidValue("the passphrase is wrong, or the file was changed.") from None
    known = inside["cluster"]
    keys = {name: inside["keys"][name].encode() for name in (CA, CERT, KEY)}
    cluster = CloudCluster(**known | {"admitted": tuple(known["admitted"])})
    registry.check_name(cluster.name)
    return cluster, keys


def read(path: Path) -> bytes:
    """Return what a file holds. Raises InvalidValue if it is too large to be one of ours."""
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidValue(f"{path} is not a file of burla cluster export: it is too large.")
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    """Write a new file that only this user can read. Raises FileExistsError."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def keep(cluster: CloudCluster, keys: Mapping[str, bytes]) -> None:
    """Have the cluster under its name here. Raises ClusterBusy if that is another cluster's."""
    with record.changing(cluster.name):
        known = record.find(cluster.name)
        taken = any(one.name == cluster.name for one in registry.entries())
        if (known is None and taken) or (known is not None and known.id != cluster.id):
            raise ClusterBusy(f"{cluster.name!r} is the name of another cluster here: delete that first.")
        create_keys(private_folder(cluster.folder), keys)
        record.write(cluster)
        registry.save(cluster.entry())


def _fernet(passphrase: str, salt: bytes) -> Any:
    from cryptography.fernet import Fernet
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    derived = Scrypt(salt=salt, length=32, **_COST).derive(passphrase.encode())
    return Fernet(base64.urlsafe_b64encode(derived))
