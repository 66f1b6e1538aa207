"""Our own source as one archive, for clusters on which nothing of ours is installed."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from burla import __version__

_HERE = Path(__file__).resolve().parents[2]
_PACKAGES = ("burla", "burla_jupyter")


@dataclass(frozen=True, slots=True)
class Package:
    """`key`: a hash of the source; `archive`: a zip of it."""

    key: str
    archive: bytes

    @property
    def version(self) -> str:
        return f"{__version__} ({self.key})"


@functools.cache
def package() -> Package:
    """Return the source of the burla that this process runs, as it was when this was first asked."""
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for name in _PACKAGES for path in (_HERE / name).rglob("*.py")):
            name, data = path.relative_to(_HERE).as_posix(), path.read_bytes()
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
            archive.writestr(name, data)
    return Package(digest.hexdigest()[:16], buffer.getvalue())
