"""What a user installs: the wheel, built from this checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_has_every_source_file_of_both_packages_and_nothing_else(names: set[str]):
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("burla", "burla_jupyter")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert {"burla/py.typed", "burla_jupyter/py.typed"} <= sources


def test_the_wheel_has_the_license_and_the_command(wheel: Path, names: set[str]):
    (info,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    assert info == "burla_dask-0.1.0.dist-info"
    archive = zipfile.ZipFile(wheel)
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "burla = burla.cli:main" in archive.read(f"{info}/entry_points.txt").decode().splitlines()


def test_the_package_imports_from_an_unpacked_wheel(wheel: Path, tmp_path: Path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import burla.errors; print(burla.errors.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (str(tmp_path / "burla" / "errors.py"), "")
