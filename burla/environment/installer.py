"""Makes virtual environments and installs into them, with uv where there is one, else with pip."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRIVATE = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "VIRTUAL_ENV", "DASK_")


@dataclass(frozen=True)
class Outcome:
    """What an installer did: whether it succeeded, and what it wrote."""

    ok: bool
    text: str


@dataclass(frozen=True)
class Installer:
    """Runs in `folder`. `uv`: the program; None: pip, of this Python. `variables`: the user's, such as UV_INDEX_URL."""

    uv: str | None
    variables: Mapping[str, str]
    folder: Path

    async def make(self, where: Path) -> Outcome:
        """Make a virtual environment of this Python."""
        if self.uv is not None:
            return await self._run([self.uv, "venv", "--quiet", "--python", sys.executable, str(where)])
        return await self._run([sys.executable, "-m", "venv", "--without-pip", str(where)])

    async def install(self, python: str, what: Sequence[str], *options: str) -> Outcome:
        """Install `what` into the environment of `python`."""
        if self.uv is not None:
            return await self._run([self.uv, "pip", "install", "--python", python, "--no-progress", *options, *what])
        if "--offline" in options:
            return Outcome(False, "pip does not say what it can do without a network")
        return await self._run([*self._pip(python), "install", "--no-input", "--progress-bar", "off", *options, *what])

    async def uninstall(self, python: str, names: Sequence[str]) -> Outcome:
        """Remove distributions again."""
        if self.uv is not None:
            return await self._run([self.uv, "pip", "uninstall", "--python", python, *names])
        return await self._run([*self._pip(python), "uninstall", "--yes", *names])

    def _pip(self, python: str) -> list[str]:
        return [sys.executable, "-m", "pip", "--python", python]

    async def _run(self, command: Sequence[str]) -> Outcome:
        environ = clean_environ() | {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
        if not os.access(os.path.expanduser("~"), os.W_OK):  # where uv would have its cache
            environ.setdefault("UV_CACHE_DIR", str(self.folder / "uv"))
        environ |= self.variables
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,  # where no project's settings are found
            env=environ,
        )
        try:
            written, _ = await process.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise
        text = written.decode(errors="replace")
        for value in self.variables.values():
            text = text.replace(value, "***") if value else text
        return Outcome(process.returncode == 0, text)


def clean_environ() -> dict[str, str]:
    """Return this process's environment without what is about its own Python, or Dask."""
    return {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}


def find_uv() -> str | None:
    """Return where uv is: beside this Python, if it was installed with us, else on the path."""
    return shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")
