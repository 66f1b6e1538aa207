"""Makes the environment of a function on a node: once for all jobs that need the same, kept in a folder by its hash.

An image wins: what it brings stays as it is, and only what is missing is added.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from burla.environment.installed import closure, installed
from burla.environment.installer import Installer, Outcome, find_uv
from burla.environment.model import Distribution, Environment, normalized
from burla.errors import EnvironmentFailed
from burla.protocol import Blob

log = logging.getLogger(__name__)

KEEP_S = 30 * 86_400.0  # an environment that nobody has used for so long is deleted
FETCHED = "parts"  # in the folder of environments: modules and wheels, as they came from the head
AGAIN_S = 600.0  # what could not be reached is tried again after so long
LOOK_S = 0.1  # at the lock of an environment that another process builds
SAID_LINES = 12  # of what the installer wrote, an error tells the last ones
OURS = ("burla-dask", "dask", "distributed", "cloudpickle", "psutil", "uv")  # what a node has for itself
FOREIGN = "the index of the node has another project of this name and version"
UNFIT = ("has no wheels with a matching", "is not a supported wheel")  # uv, pip: of a wheel for another platform
NOT_FOUND = ("No solution found", "No matching distribution", "Could not find a version")  # uv, pip, pip

Fetch = Callable[[Blob], Awaitable[bytes]]


@dataclass(frozen=True)
class Prepared:
    """An environment. `absent`: what could not be installed, and why; `differing`: versions that the image has."""

    folder: Path
    absent: Mapping[str, str]
    differing: Mapping[str, str]
    complete: bool  # else what is absent is tried again another time

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")


class Preparer:
    """See the module. `cache`: the folder of all environments; `image`: the one that this node runs, if any.

    An environment is a folder, and counts once a file that names it has been renamed to `<hash>.json`.
    """

    def __init__(self, cache: Path, image: str | None):
        self._cache = cache
        self._image = image

    def ready(self, environment: Environment, variables: Mapping[str, str]) -> Prepared | None:
        """Return an environment that is there already; it counts as used now."""
        report = self._report(environment, variables)
        try:
            facts = json.loads(report.read_text())
            age_s = time.time() - report.stat().st_mtime
            folder = self._cache / facts["folder"]
            os.utime(folder)
        except FileNotFoundError:
            return None
        if facts["complete"]:
            os.utime(report)
        elif age_s > AGAIN_S:
            return None
        return Prepared(folder, facts["absent"], facts["differing"], facts["complete"])

    async def prepare(self, environment: Environment, variables: Mapping[str, str], fetch: Fetch) -> Prepared:
        """Return an environment, made now if need be. Raises EnvironmentFailed, and what `fetch` raises."""
        report = self._report(environment, variables)
        self._cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        async with _locked(report.with_suffix(".lock")):
            found = self.ready(environment, variables)
            if found is not None:
                return found
            self.sweep(time.time())
            folder = self._cache / f"{report.stem}-{secrets.token_hex(4)}"
            build = _Build(environment, folder, Installer(find_uv(), variables, self._cache), fetch, self._image)
            try:
                made = await build.run()
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            facts = {"folder": folder.name, "absent": made.absent, "differing": made.differing}
            part = report.with_suffix(".part")
            part.write_text(json.dumps(facts | {"complete": made.complete}))
            part.rename(report)
            return made

    def _report(self, environment: Environment, variables: Mapping[str, str]) -> Path:
        wanted = [(one.name, one.version, one.url, one.content and one.content.id) for one in environment.distributions]
        facts = [sys.version, sys.base_prefix, self._image, wanted, environment.extras, sorted(variables.items())]
        return self._cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"

    def sweep(self, now_s: float) -> None:
        """Delete what nobody has used for long."""
        parts = self._cache / FETCHED
        for path in (*self._cache.iterdir(), *parts.glob("*")):
            try:
                old = now_s - path.stat().st_mtime > KEEP_S
            except FileNotFoundError:  # of another node, which has it complete now
                continue
            if old and path.suffix != ".lock" and path != parts:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


class _Build:
    """One environment being made."""

    def __init__(self, environment: Environment, folder: Path, installer: Installer, fetch: Fetch, image: str | None):
        self._environment = environment
        self._folder = folder
        self._installer = installer
        self._fetch = fetch
        self._image = image
        self._python = str(folder / "bin" / "python")
        self._absent: dict[str, str] = {}
        self._complete = True  # what is absent will be so at the next try

    async def run(self) -> Prepared:
        made = await self._installer.make(self._folder)
        if not made.ok:
            raise _failed("an environment for the function cannot be made on the node", made)
        present = self._use_image() if self._image is not None else {}
        differing = {
            one.name: present[normalized(one.name)]
            for one in self._environment.distributions
            if present.get(normalized(one.name), one.version) != one.version
        }
        wanted = [one for one in self._environment.distributions if normalized(one.name) not in present]
        await self._install_files([one for one in wanted if one.content is not None])
        await self._install_urls([one for one in wanted if one.content is None and one.url is not None])
        await self._install_pins([one for one in wanted if one.content is None and one.url is None])
        await self._install_extras(present)
        return Prepared(self._folder, self._absent, differing, self._complete)

    def _use_image(self) -> dict[str, str]:
        """Have what this process can import be importable there, too; return the distributions that stay as they are.

        What our own processes need is no part of the image: the function's versions of that come first.
        """
        places = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        lines = [f"import site; site.addsitedir({place!r})\n" for place in places]
        (self._packages / "burla_image.pth").write_text("".join(lines))
        found = installed()
        ours = closure(OURS, found)
        wanted = {normalized(one.name): one.version for one in self._environment.distributions}
        return {
            name: one.version
            for name, one in found.items()
            if name not in ours or wanted.get(name, one.version) == one.version
        }

    @property
    def _packages(self) -> Path:
        return next(self._folder.glob("lib/python*/site-packages"))

    async def _install_files(self, wanted: Sequence[Distribution]) -> None:
        """Install wheels that came with the job: no index is asked for them."""
        wheels = self._folder / "wheels"
        wheels.mkdir()
        for one in wanted:
            assert one.content is not None and one.file_name is not None
            path = wheels / Path(one.file_name).name
            path.write_bytes(await self._fetch(one.content))
            done = await self._installer.install(self._python, [str(path)], "--no-deps", "--no-index")
            if not done.ok:
                self._absent[one.name] = _last_lines(done.text)
                self._complete &= any(words in done.text for words in UNFIT)

    async def _install_urls(self, wanted: Sequence[Distribution]) -> None:
        for one in wanted:
            what = [f"{one.name} @ {one.url}"]
            done = await self._installer.install(self._python, what, "--no-deps")
            if not done.ok:
                self._absent[one.name] = _last_lines(done.text)
                self._complete = False

    async def _install_pins(self, wanted: Sequence[Distribution]) -> None:
        """Install what the node's index has; what it lacks is found by halves, so that it holds up nothing else."""
        pins = {f"{one.name}=={one.version}": one for one in wanted}
        options = ["--no-deps", "--only-binary", ":all:"]
        if not pins or (await self._installer.install(self._python, [*pins], *options, "--offline")).ok:
            await self._check_projects(wanted)  # the cache of the installer may hold what somebody else put there
            return
        done = await self._installer.install(self._python, [*pins], *options)
        if not done.ok:
            if not any(words in done.text for words in NOT_FOUND):  # no network, say: what is at hand is used
                log.warning("installing: %s", _last_lines(done.text))
                self._complete = False
                options.append("--offline")
            there = await self._installable([*pins], options)
            if not self._complete:
                self._absent |= dict.fromkeys(self._absent, _last_lines(done.text))
            done = await self._installer.install(self._python, there, *options) if there else Outcome(True, "")
            if not done.ok:
                raise _failed("packages that the function needs cannot be installed on the node", done)
        await self._check_projects([one for one in wanted if one.name not in self._absent])

    async def _installable(self, pins: list[str], options: Sequence[str]) -> list[str]:
        """Return the pins that can be installed; the others become absent."""
        done = await self._installer.install(self._python, pins, *options, "--dry-run")
        if done.ok:
            return pins
        if len(pins) == 1:
            self._absent[pins[0].partition("==")[0]] = _last_lines(done.text)
            return []
        middle = len(pins) // 2
        return [
            *await self._installable(pins[:middle], options),
            *await self._installable(pins[middle:], options),
        ]

    async def _check_projects(self, wanted: Sequence[Distribution]) -> None:
        """Remove what has the right name and version, and is another project: an index may hold anybody's."""
        records = {normalized(path.name.split("-")[0]): path / "RECORD" for path in self._packages.glob("*.dist-info")}
        foreign = [one for one in wanted if not _is_same(one, records.get(normalized(one.name)))]
        for one in foreign:
            self._absent[one.name] = FOREIGN
        if foreign:
            await self._installer.uninstall(self._python, [one.name for one in foreign])

    async def _install_extras(self, present: Mapping[str, str]) -> None:
        """Install what the user has named, and what that requires, beside all that is there."""
        extras = list(self._environment.extras)
        if not extras:
            return
        files = self._folder / "pins.txt", self._folder / "present.txt"
        pins = [f"{one.name}=={one.version}" for one in self._environment.distributions if one.content is None]
        files[0].write_text("\n".join(pin for pin in pins if normalized(pin.partition("==")[0]) not in present))
        files[1].write_text("\n".join(f"{name}; sys_platform == 'never'" for name in present))  # never required
        options = ["--constraint", str(files[0])]
        if self._installer.uv is not None:  # pip sees by itself what an image has
            options += ["--override", str(files[1])]
        if (await self._installer.install(self._python, extras, *options, "--offline")).ok:
            return
        done = await self._installer.install(self._python, extras, *options)
        if not done.ok:
            raise _failed(f"packages={extras!r} cannot be installed on the node", done)


def _is_same(one: Distribution, record: Path | None) -> bool:
    """Whether what was installed has most of the marks of what the client has."""
    if record is None or not record.exists() or not one.marks:
        return True
    lines = (line.rsplit(",", 2) for line in record.read_text().splitlines())
    hashes = {line[1].partition("=")[2][: len(one.marks[0])] for line in lines if len(line) == 3}
    return 2 * len(hashes.intersection(one.marks)) >= len(one.marks)


def _failed(what: str, done: Outcome) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"{what}. The installer said:\n{_last_lines(done.text)}\n"
        "Check that the node can reach a package index and has room on its disk, or install the packages there."
    )


def _last_lines(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith("Using Python")]
    return "\n".join(lines[-SAID_LINES:])


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOOK_S)
        yield
    finally:
        os.close(fd)
