"""Environment variables of jobs, at rest: not readable, because what users put into `env_vars` are often passwords.

A detached job needs them after its head was killed. So they are in the store, which may be copied and kept, encrypted
by a key that is not: a file (0600) beside the keys of the cluster. A head that loses its store with its process, as on
a borrowed scheduler, keeps them in its memory alone.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from burla.errors import StoreDamaged
from burla.protocol import Variables

KEY_FILE = "variables.key"


class Vault:
    """See the module. `folder`: the cluster's, not the store's; None: the store ends with this process."""

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else folder / KEY_FILE
        self._held: dict[str, Variables] = {}

    def seal(self, variables: Variables) -> str | None:
        """Return variables so that they can be written down; None if there are none."""
        if not variables.values:
            return None
        if self._path is None:
            self._held[token := secrets.token_hex(16)] = variables
            return token
        from cryptography.fernet import Fernet  # 60 ms, and most jobs have none

        return Fernet(_key(self._path)).encrypt(json.dumps(dict(variables.values)).encode()).decode()

    def open(self, sealed: str | None) -> Variables:
        """Return what was sealed. Raises StoreDamaged if its key is gone."""
        if sealed is None:
            return Variables()
        if self._path is None:
            if sealed not in self._held:
                raise StoreDamaged("the environment variables of the job were lost with its head. Submit it again.")
            return self._held[sealed]
        from cryptography.fernet import Fernet, InvalidToken

        try:
            return Variables(json.loads(Fernet(_key(self._path)).decrypt(sealed.encode())))
        except InvalidToken:
            raise StoreDamaged(
                f"the environment variables of the job cannot be read: {self._path} is not the key that they were "
                "written with. Submit the job again.",
                path=str(self._path),
            ) from None


def _key(path: Path) -> bytes:
    from cryptography.fernet import Fernet

    try:
        return path.read_bytes()
    except FileNotFoundError:
        new = path.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        return path.read_bytes()
