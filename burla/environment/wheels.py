"""Distributions that travel as files: the wheel that one was installed from, or one made of what is installed."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import urllib.parse
import zipfile
from email.parser import Parser
from pathlib import Path
from urllib.request import url2pathname

from burla.environment.installed import Installed, location

_OF_THIS_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def wheel_of(one: Installed) -> tuple[str, bytes] | None:
    """Return file name and content of a wheel of a distribution; None: what is installed cannot be made one."""
    file = local_file(one)
    if file is not None and file.suffix == ".whl" and file.is_file():
        data = file.read_bytes()
        if _is_same(one, data):
            return file.name, data
    return rebuilt(one)


def local_file(one: Installed) -> Path | None:
    """Return the file or folder that a distribution was installed from, if that was one of this machine."""
    url = urllib.parse.urlsplit(str(one.origin.get("url", "")))
    return Path(url2pathname(url.path)) if url.scheme == "file" else None


def remote_url(one: Installed) -> str | None:
    """Return the URL that a distribution was installed from, with its commit or hash, if it was one."""
    url = str(one.origin.get("url", ""))
    if not url or url.startswith("file:"):
        return None
    fragments = [f"subdirectory={folder}"] if (folder := one.origin.get("subdirectory")) else []
    version, archive = one.origin.get("vcs_info"), one.origin.get("archive_info")
    if isinstance(version, dict):
        url = f"{version.get('vcs')}+{url}@{version.get('commit_id')}"
    elif isinstance(archive, dict) and isinstance(hashes := archive.get("hashes"), dict):
        fragments += [f"{kind}={value}" for kind, value in hashes.items() if kind == "sha256"]
    return f"{url}#{'&'.join(fragments)}" if fragments else url


def _is_same(one: Installed, wheel: bytes) -> bool:
    """Whether a wheel is still the one that was installed: it may have been built anew since."""
    about = one.origin.get("archive_info")
    hashes = about.get("hashes") if isinstance(about, dict) else None
    if isinstance(hashes, dict) and "sha256" in hashes:
        return hashes["sha256"] == hashlib.sha256(wheel).hexdigest()
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            listed = set(archive.read(record).decode().splitlines())
    except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError):
        return False
    return all(any(line.startswith(f"{path},{digest},") for line in listed) for path, digest in _code(one))


def _code(one: Installed) -> list[tuple[str, str]]:
    return [(path, digest) for path, digest in one.record if path.endswith(".py") and digest]


def rebuilt(one: Installed) -> tuple[str, bytes] | None:
    """Return a wheel of the files that a distribution has put into its folder; None without a record of them."""
    folder = location(one)
    paths = [path for path, _ in one.record if not path.startswith("..") and not os.path.isabs(path)]
    metadata = next((path for path in paths if path.endswith(".dist-info/METADATA")), None)
    if metadata is None:
        return None
    info = metadata.partition("/")[0]
    dropped = {f"{info}/{name}" for name in _OF_THIS_INSTALLATION}
    packed, record = io.BytesIO(), list[str]()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(paths):
            if path in dropped or path.endswith(".pyc"):
                continue
            try:
                data = (folder / path).read_bytes()
            except OSError:
                return None
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{path},sha256={digest},{len(data)}")
            _add(archive, path, data)
        _add(archive, f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,", ""]).encode())
    return f"{info.removesuffix('.dist-info')}-{_tags(one)}.whl", packed.getvalue()


def _tags(one: Installed) -> str:
    """Return the tags of a wheel in the form of its file name."""
    tags = [tag.split("-") for tag in Parser().parsestr(one.dist.read_text("WHEEL") or "").get_all("Tag", [])]
    tags = [tag for tag in tags if len(tag) == 3] or [["py3", "none", "any"]]
    return "-".join(".".join(dict.fromkeys(tag[part] for tag in tags)) for part in range(3))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(info, data)


def is_wheel_name(name: str) -> bool:
    """Whether a file is called as wheels are."""
    return re.fullmatch(r"[^-]+-[^-]+(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl", name) is not None
