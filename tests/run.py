"""Check everything: `python3 tests/run.py [--fast] [arguments for pytest]`.

Makes `.venv-test` beside the sources, installs the checkout into it with what the tests need, then runs ruff, pyright
and pytest. Needs Python 3.11 or newer with pip. A later run keeps the environment while pyproject.toml stays the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-test"
BIN = VENV / "bin"
PYTHON = BIN / "python"
STAMP = VENV / "installed"
FAST = "not slow and not browser and not faults"


def main() -> int:
    parser = argparse.ArgumentParser(description="Check everything.", epilog="Other arguments go to pytest.")
    parser.add_argument("--fast", action="store_true", help=f'only the tests that are "{FAST}"')
    options, pytest_args = parser.parse_known_args()
    began = time.monotonic()

    if not installed() and not (step("environment", *make_environment()) and step("install", *install())):
        return 1
    STAMP.write_text(fingerprint())
    if not options.fast:
        bring_chromium()

    selection = ["-m", FAST] if options.fast else []
    failed = [
        name
        for name, command in {
            "format": [BIN / "ruff", "format", "--check", "."],
            "lint": [BIN / "ruff", "check", "."],
            "types": [BIN / "pyright", "--pythonpath", PYTHON],
            "tests": [BIN / "pytest", *selection, *pytest_args],
        }.items()
        if not step(name, *command)
    ]
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'all is well'}, after {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def step(name: str, *command: str | Path) -> bool:
    print(f"\n── {name}", flush=True)
    began = time.monotonic()
    ok = run(*command).returncode == 0
    print(f"── {name}: {'ok' if ok else 'FAILED'}, {time.monotonic() - began:.1f} s", flush=True)
    return ok


def run(*command: str | Path, quiet: bool = False) -> subprocess.CompletedProcess[bytes]:
    environ = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(VENV),
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # it would ask for a newer pyright than pyproject.toml does
    }
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environ, check=False, capture_output=quiet)


def fingerprint() -> str:
    """Return what the environment depends on: this Python, the dependencies, and where the checkout is."""
    parts = (sys.version.encode(), os.fsencode(ROOT), (ROOT / "pyproject.toml").read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def installed() -> bool:
    return STAMP.exists() and STAMP.read_text() == fingerprint()


def make_environment() -> list[str]:
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    if importlib.util.find_spec("ensurepip"):
        return command
    if importlib.util.find_spec("pip"):
        return [*command, "--without-pip"]  # Debian splits ensurepip off; the pip of this Python installs as well
    sys.exit(
        f"{sys.executable} has neither ensurepip nor pip, so no environment for the tests can be made. "
        "On Debian and Ubuntu: apt-get install python3-venv; then run this again."
    )


def install() -> list[str]:
    has_pip = importlib.util.find_spec("ensurepip") is not None
    pip = [str(PYTHON), "-m", "pip"] if has_pip else [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    return [*pip, "install", "--quiet", "--editable", ".[test]"]


def bring_chromium() -> None:
    """Install Chromium where that needs nobody's consent: as root on Debian, when there are tests for it."""
    if shutil.which("chromium") or run(BIN / "pytest", "--collect-only", "-q", "-m", "browser", quiet=True).returncode:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        step("package list", "apt-get", "-qq", "update")
        step("chromium", "apt-get", "-qq", "install", "--yes", "--no-install-recommends", "chromium")
    else:
        print("\nThe browser tests need the command chromium: install it, or they fail; --fast leaves them out.")


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036  whoever runs this may well have an older Python
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
    sys.exit(main())
