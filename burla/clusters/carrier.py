"""Brings our package to a Dask scheduler and its workers, on which nothing of ours has to be installed.

The two plugins travel pickled by value, this whole module with them: it imports only what every Dask installation has.
Each brings the package as an archive, makes it importable in its process, and hands over to the real plugin in there.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

HEAD_NAME = "burla-head"
NODE_NAME = "burla-node"
_PACKAGES = ("burla", "burla_jupyter")
_CARRIED = "_carried_key"  # set on the module `burla` of a package that was brought


class HeadCarrier(SchedulerPlugin):
    """Makes a scheduler a head; of several that arrive at once, the first does it. Leaves nothing of itself."""

    name = HEAD_NAME

    def __init__(self, key: str, version: str, archive: bytes, node: bytes):
        self._key = key
        self._version = version
        self._archive = archive
        self._node = node  # the pickled NodeCarrier

    async def start(self, scheduler: Any) -> None:
        """Take the scheduler over. Raises RuntimeError if its process runs another burla of its own."""
        scheduler.plugins[HEAD_NAME] = self  # now: Dask has just looked whether there is one
        try:
            provide(self._key, self._version, self._archive)
            guest = importlib.import_module("burla.head.guest")
            plugin = guest.GuestPlugin(self._key, self._version, self._node)
            await plugin.start(scheduler)
        except BaseException:
            scheduler.plugins.pop(HEAD_NAME, None)
            raise
        scheduler.plugins[HEAD_NAME] = plugin


class NodeCarrier(WorkerPlugin):
    """Makes a worker a node, for as long as it lives or until another plugin takes this one's place."""

    name = NODE_NAME

    def __init__(self, key: str, version: str, archive: bytes):
        self._key = key
        self._version = version
        self._archive = archive
        self._plugin: Any = None

    async def setup(self, worker: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Begin to serve. Raises RuntimeError if the process runs another burla of its own."""
        provide(self._key, self._version, self._archive)
        self._plugin = importlib.import_module("burla.node.plugin").NodePlugin()
        await self._plugin.setup(worker)

    async def teardown(self, worker: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """End the node and its calls."""
        if self._plugin is not None:
            await self._plugin.teardown(worker)


def provide(key: str, version: str, archive: bytes) -> None:
    """Make this package the one that `import burla` means here. Raises RuntimeError if the process runs another."""
    loaded = sys.modules.get("burla")
    if loaded is not None:
        carried = getattr(loaded, _CARRIED, None)
        if key == (carried or importlib.import_module("burla.clusters.package").package().key):
            return
        if carried is None:
            raise RuntimeError(
                f"a process of the cluster runs burla {loaded.__version__} of its own, from {loaded.__file__}, and "
                f"cannot be given {version} in its place. Install the same version on both sides"
            )
        _forget(Path(loaded.__file__ or "").parent.parent)
    sys.path.insert(0, str(_unpack(key, archive)))
    importlib.invalidate_caches()
    setattr(importlib.import_module("burla"), _CARRIED, key)


def _forget(folder: Path) -> None:
    """Have nothing of a package that was brought before be importable, or imported, any more."""
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
        del sys.modules[name]


def _unpack(key: str, archive: bytes) -> Path:
    """Return a folder of this user's with the package in it, whole: others may unpack the same at the same time."""
    folder = Path(tempfile.gettempdir()) / f"burla-{key}-{os.geteuid()}"
    with zipfile.ZipFile(io.BytesIO(archive)) as package:
        if _is_own(folder) and all((folder / name).is_file() for name in package.namelist()):
            return folder
        made = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))  # with mode 0700
        package.extractall(made)
    try:
        made.rename(folder)
    except OSError:  # somebody was faster; or what is there is not whole, or is not ours
        if not _is_own(folder):
            return made
        shutil.copytree(made, folder, dirs_exist_ok=True)
        shutil.rmtree(made)
    return folder


def _is_own(folder: Path) -> bool:
    """Whether it is a folder that nobody else can write to: what is in it is run."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
