"""Where calls of a job run on this node: which Python, which folder, which modules.

A node that shares the client's disk runs them as the client would; another one in an environment that it makes for the
function, in a fresh folder that holds the client's local modules.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import os
import pickle
import secrets
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cloudpickle

import burla
from burla import config
from burla.environment import disk, model
from burla.environment.installer import clean_environ
from burla.environment.model import Environment
from burla.environment.prepare import FETCHED, Prepared, Preparer
from burla.errors import BurlaError, EnvironmentFailed, EnvironmentNeeded
from burla.node.children import Interpreter, Nursery
from burla.protocol import PARTS, Blob, CallContext, Inherited, JobSpec, Preparing, Variables

if TYPE_CHECKING:
    from burla.node.node import Node

log = logging.getLogger(__name__)

LINGER_S = 60.0  # a zygote that no job uses is kept for the next one so long
INSTALLER_VARIABLES = ("UV_", "PIP_")
NAMED = 10  # so many packages are named in a notice, others counted


@dataclass(frozen=True)
class Setting:
    """See the module. `folder`: to be deleted at the end. `absent`: modules that are missing, and why."""

    nursery: Nursery
    context: CallContext
    variables: Variables
    inherited: Inherited
    folder: Path | None = None
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def elsewhere(self) -> bool:
        return self.folder is not None


class Settings:
    """Those of the jobs of one node, and a zygote for each Python that they run in."""

    def __init__(self, node: Node):
        self._node = node
        self._preparer: Preparer | None = None
        self._modules: Path | None = None  # a folder that holds our package, and what it needs in a child
        self._nurseries: dict[str, tuple[Nursery, asyncio.Future[None]]] = {}  # by Python, with its start
        self._users: dict[str, int] = {}

    async def enter(self, spec: JobSpec, variables: Variables) -> Setting:
        """Return where calls of a job run. Raises EnvironmentNeeded, EnvironmentFailed."""
        origin, hidden = spec.origin, tuple(variables.values)
        inherited = Inherited(origin, spec.environment, spec.sealed, hidden)
        if origin is None and spec.environment is None:
            return Setting(self._node.nursery, spec.context, variables, inherited)
        if origin is not None and await asyncio.to_thread(disk.is_here, origin):
            nursery = self._node.nursery
            if os.path.dirname(os.path.abspath(origin.executable)) != os.path.dirname(sys.executable):
                nursery = await self._nursery_of(origin.executable)
            return Setting(nursery, spec.context, variables, inherited)
        if spec.environment is None:
            raise EnvironmentNeeded(
                "it does not share the disk of the client, and the job does not say what its function needs. "
                "Submit the job again"
            )
        inherited = Inherited(None, spec.environment, spec.sealed, hidden)
        return await self._elsewhere(spec, variables, inherited, model.loads(spec.environment))

    async def _elsewhere(
        self, spec: JobSpec, variables: Variables, inherited: Inherited, wanted: Environment
    ) -> Setting:
        prepared = await self._prepare(spec, variables, wanted)
        notices = _notices(prepared, wanted, self._node.offer.name)
        folder = Path(tempfile.mkdtemp(prefix=f"burla-{spec.id}-"))
        try:
            paths = {
                source.root: await self._unpack(source.content, folder / str(n))
                for n, source in enumerate(wanted.sources)
            }
            cwd = paths.get(wanted.cwd) or folder / "work"
            cwd.mkdir(exist_ok=True)
            await self._node.tell(Preparing(spec.id, False, notices))
            nursery = await self._nursery_of(prepared.python)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        environ = clean_environ()
        environ |= {
            "VIRTUAL_ENV": str(prepared.folder),
            "PATH": f"{prepared.folder / 'bin'}{os.pathsep}{environ.get('PATH', os.defpath)}",
        }
        absent = {
            module: f"{one.name} {one.version} could not be installed on this node: {prepared.absent[one.name]}"
            for one in wanted.distributions
            if one.name in prepared.absent
            for module in one.modules
        }
        context = CallContext(str(cwd), environ, tuple(map(str, paths.values())))
        return Setting(nursery, context, variables, inherited, folder, absent)

    async def _prepare(self, spec: JobSpec, variables: Variables, wanted: Environment) -> Prepared:
        if self._preparer is None:
            self._preparer = Preparer(self._cache, self._node.offer.image)
        chosen = {name: value for name, value in variables.values.items() if name.startswith(INSTALLER_VARIABLES)}
        prepared = self._preparer.ready(wanted, chosen)
        if prepared is None:
            await self._node.tell(Preparing(spec.id, True))
            prepared = await self._preparer.prepare(wanted, chosen, self._fetch)
        missing = {
            one.name: prepared.absent[one.name]
            for one in wanted.distributions
            if one.needed and one.name in prepared.absent
        }
        if missing:
            said = "\n".join(f"{name}: {why}" for name, why in missing.items())
            raise EnvironmentFailed(
                f"the function needs packages that could not be installed on node {self._node.offer.name}:\n{said}\n"
                "Use versions that have a wheel for it, or give a wheel: burla.configure(packages=['….whl']).",
                missing=missing,
            )
        return prepared

    @functools.cached_property
    def _cache(self) -> Path:
        """The folder of environments, kept for the next nodes here; where there is no home, it is this node's alone."""
        try:
            folder = config.home() / "environments"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            log.warning("environments are not kept: %s", error)
            folder = Path(tempfile.mkdtemp(prefix="burla-environments-"))
        return folder

    async def _fetch(self, blob: Blob) -> bytes:
        """Return the content of a shared blob: from the head the first time."""
        path = self._cache / FETCHED / blob.id
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            return await asyncio.to_thread(path.read_bytes)
        data = await self._node.fetch(PARTS, blob)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f"{blob.id}.{secrets.token_hex(4)}")  # another job may fetch it, too
        await asyncio.to_thread(part.write_bytes, data)
        part.rename(path)
        return data

    async def _unpack(self, content: Blob, folder: Path) -> Path:
        data = await self._fetch(content)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            await asyncio.to_thread(archive.extractall, folder)
        return folder

    # zygotes

    async def _nursery_of(self, python: str) -> Nursery:
        """Return the children of a Python, which has one user more from now on."""
        if python not in self._nurseries:
            interpreter = Interpreter(python, str(self._our_modules()), clean_environ())
            nursery = Nursery(self._node.offer.cpus, interpreter)
            nursery.niceness = self._node.nursery.niceness
            self._nurseries[python] = nursery, asyncio.ensure_future(nursery.start())
        nursery, starting = self._nurseries[python]
        self._users[python] = self._users.get(python, 0) + 1  # now: nobody may end it while it starts
        try:
            await asyncio.shield(starting)
        except OSError:
            self._nurseries.pop(python, None)
            self._users[python] -= 1
            raise
        except asyncio.CancelledError:
            self._release(python)
            raise
        return nursery

    def _our_modules(self) -> Path:
        """Return a folder with our package and what it needs in a child, and nothing else that is installed here."""
        if self._modules is None:
            self._modules = Path(tempfile.mkdtemp(prefix="burla-modules-"))
            ours = Path(str(burla.__file__)).resolve().parent
            for package in (ours, ours.with_name("burla_jupyter"), Path(cloudpickle.__file__).resolve().parent):
                (self._modules / package.name).symlink_to(package)
        return self._modules

    def leave(self, setting: Setting) -> None:
        """A job is over, and its children with it."""
        if setting.folder is not None:
            shutil.rmtree(setting.folder, ignore_errors=True)
        for python, (nursery, _) in self._nurseries.items():
            if nursery is setting.nursery:
                self._release(python)

    def _release(self, python: str) -> None:
        self._users[python] -= 1
        if not self._users[python]:
            asyncio.get_running_loop().call_later(LINGER_S, self._end_unused, python)

    def _end_unused(self, python: str) -> None:
        if not self._users.get(python) and python in self._nurseries:
            self._nurseries.pop(python)[0].close()

    def close(self) -> None:
        """End all zygotes, and their children with them."""
        for nursery, _ in self._nurseries.values():
            nursery.close()
        self._nurseries.clear()
        if self._modules is not None:
            shutil.rmtree(self._modules, ignore_errors=True)


def error_message(job: str, error: BurlaError) -> Preparing:
    """Return what the head is told when a job cannot run here."""
    return Preparing(job, False, error=pickle.dumps(error, 5))


def _notices(prepared: Prepared, wanted: Environment, node: str) -> tuple[str, ...]:
    by_name = {one.name: one for one in wanted.distributions}
    absent = [f"{name} {by_name[name].version}" for name in prepared.absent]
    differing = [
        f"{name} {version} (here {by_name[name].version})"
        for name, version in sorted(prepared.differing.items(), key=lambda one: not by_name[one[0]].needed)
    ]
    notices: list[str] = []
    if absent:
        why = "no wheel was found for them" if prepared.complete else "what is missing could not be fetched"
        notices.append(f"not installed on the nodes, because {why} there: {_listed(absent)}")
    if differing:
        notices.append(f"the image of the nodes has versions of its own, which are used: {_listed(differing)}")
    return tuple(notices)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
