"""Local code: modules that no distribution brought, found where they are, packed as they stand now."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import sysconfig
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from burla.environment.imports import imports_of_file
from burla.errors import EnvironmentFailed
from burla.protocol import Blob

LIMIT_BYTES = 200_000_000  # of one folder's modules
UNASKED_BYTES, UNASKED_FILES = 10_000_000, 1000  # of modules that nothing imports by name; beyond, none of them goes
KEPT = 16  # packed folders are kept, for jobs that send the same again
SKIPPED_FOLDERS = ("__pycache__", "node_modules")
OURS = ("burla", "burla_jupyter")
_EPOCH = (1980, 1, 1, 0, 0, 0)

_packed: OrderedDict[tuple[object, ...], tuple[Blob, bytes]] = OrderedDict()


@dataclass
class Found:
    """`units`: by folder, the names in it that have to travel. `others`: top-level modules that are not local."""

    units: dict[Path, set[str]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)


def find(names: Iterable[str]) -> Found:
    """Return the local modules among `names` (dotted), and those that they import, by way of other local ones too."""
    found = Found()
    waiting, seen = list(names), set[str]()
    while waiting:
        top = waiting.pop().partition(".")[0]
        if top in seen or top in OURS or top in sys.stdlib_module_names:
            continue
        seen.add(top)
        paths = locate(top)
        if not paths:
            found.others.add(top)
        for path in paths:
            found.units.setdefault(path.parent, set()).add(path.name)
            for file, package in _python_files(path):
                waiting += imports_of_file(file, package)
    return found


def locate(top: str) -> list[Path]:
    """Return the files or folders of a top-level module if it is local: in no distribution, not of Python itself."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):  # made by hand, or by a finder that fails
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations
    paths = [Path(place) for place in places] if places is not None else [Path(spec.origin or "")]
    return [path for path in paths if path.is_absolute() and path.exists() and not is_installed(path)]


def is_installed(path: Path) -> bool:
    """Whether a path is of Python itself, or in a folder that distributions are installed into."""
    text = str(path)
    return any(text == place or text.startswith(place + os.sep) for place in _installed_places())


def _installed_places() -> list[str]:
    paths = sysconfig.get_paths()
    places = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*places, *(entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages")))]


def roots() -> list[Path]:
    """Return the folders of `sys.path` that modules are imported from without being installed, in order."""
    paths = [Path(os.path.abspath(entry)) for entry in sys.path if isinstance(entry, str)]
    return [path for path in dict.fromkeys(paths) if path.is_dir() and not is_installed(path)]


def add_unasked(found: Found) -> None:
    """Add what stands beside it in the folders of `sys.path`, if that is little: it may be imported by name."""
    for root in roots():
        if root in (Path.home(), Path(root.anchor)):
            continue
        asked = found.units.get(root, set())
        units = {name for name in _importable(root) if name not in asked and name.partition(".")[0] not in OURS}
        size = count = 0
        for name in units:
            for file in files_of(root / name):
                size, count = size + file.stat().st_size, count + 1
                if size > UNASKED_BYTES or count > UNASKED_FILES:
                    break
        if units and size <= UNASKED_BYTES and count <= UNASKED_FILES:
            found.units.setdefault(root, set()).update(units)


def _importable(root: Path) -> Iterator[str]:
    with os.scandir(root) as entries:
        for entry in entries:
            module = entry.name.endswith(".py") and entry.name[:-3].isidentifier() and entry.is_file()
            package = entry.name.isidentifier() and os.path.isfile(os.path.join(entry.path, "__init__.py"))
            if module or package:
                yield entry.name


def files_of(path: Path) -> Iterator[Path]:
    """Yield a file, or those of a folder in a fixed order, without what Python or others have put there."""
    if path.is_file():
        yield path
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or (folder != str(path) and "pyvenv.cfg" in files):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith(".") and one not in SKIPPED_FOLDERS)
        for name in sorted(files):
            file = Path(folder, name)
            if not name.endswith(".pyc") and file.is_file():
                yield file


def _python_files(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the Python files of a module, each with the name of the package that it is in."""
    for file in files_of(path):
        if file.suffix == ".py":
            yield file, ".".join(file.relative_to(path.parent).parent.parts)


def pack(root: Path, units: Iterable[str]) -> tuple[Blob, bytes]:
    """Return modules of a folder as a zip file, named by its content. Raises EnvironmentFailed: too large."""
    files = [file for name in sorted(units) for file in files_of(root / name)]
    state = (root, *((file, (stat := file.stat()).st_mtime_ns, stat.st_size, stat.st_ino) for file in files))
    if state in _packed:
        _packed.move_to_end(state)
        return _packed[state]
    size_bytes = sum(file.stat().st_size for file in files)
    if size_bytes > LIMIT_BYTES:
        raise EnvironmentFailed(
            f"the modules {', '.join(sorted(units))} in {root} hold {size_bytes / 1e6:,.0f} MB, and at most "
            f"{LIMIT_BYTES / 1e6:,.0f} MB are sent. Move data out of the packages, or pass it as inputs."
        )
    data = _zip({str(file.relative_to(root)): file for file in files})
    _packed[state] = packed = described(data), data
    while len(_packed) > KEPT:
        _packed.popitem(last=False)
    return packed


def _zip(files: dict[str, Path]) -> bytes:
    """Equal files make an equal zip file: it is known by its hash."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (path.stat().st_mode & 0o777) << 16
            archive.writestr(info, path.read_bytes())
    return packed.getvalue()


def described(data: bytes) -> Blob:
    """Return what names a content: its hash."""
    return Blob(hashlib.sha256(data).hexdigest(), len(data), zlib.crc32(data))
