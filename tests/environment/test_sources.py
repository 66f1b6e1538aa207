"""Local code: what of it travels, and when it counts as changed."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path

import pytest

from burla import EnvironmentFailed
from burla.environment import sources


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that is on `sys.path`."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def names_in(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.namelist()


def test_local_modules_are_followed_through_each_other_and_others_are_told(root: Path):
    (root / "bt_package").mkdir()
    (root / "bt_package" / "__init__.py").write_text("")
    (root / "bt_package" / "deep.py").write_text("import bt_third, yaml, json")
    (root / "bt_first.py").write_text("from bt_package import deep")
    (root / "bt_third.py").write_text("import burla, missing_one")
    (root / "bt_unrelated.py").write_text("import wave")
    found = sources.find(["bt_first.whatever"])
    assert found.units == {root: {"bt_first.py", "bt_package", "bt_third.py"}}
    assert found.others == {"yaml", "missing_one"}


def test_a_namespace_package_is_local_in_each_of_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("one", "two"):
        (tmp_path / name / "bt_space").mkdir(parents=True)
        (tmp_path / name / "bt_space" / f"{name}.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path / name)
    assert sources.find(["bt_space.one"]).units == {tmp_path / "one": {"bt_space"}, tmp_path / "two": {"bt_space"}}


def test_what_is_installed_is_not_local():
    assert sources.locate("numpy") == sources.locate("json") == sources.locate("sys") == []
    assert sources.is_installed(Path(os.__file__))


def test_modules_beside_go_too_if_they_are_few(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "bt_beside.py").write_text("")
    (root / "bt_folder").mkdir()
    (root / "bt_folder" / "data.bin").write_bytes(bytes(100))
    (root / "bt_package").mkdir()
    (root / "bt_package" / "__init__.py").write_text("")
    (root / "not-a-module.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(root)])
    sources.add_unasked(found := sources.Found())
    assert found.units == {root: {"bt_beside.py", "bt_package"}}
    (root / "bt_package" / "large.bin").write_bytes(bytes(sources.UNASKED_BYTES + 1))
    sources.add_unasked(found := sources.Found({root: {"bt_beside.py"}}))
    assert found.units == {root: {"bt_beside.py"}}, "no part of them, or none is missed by chance"


def test_nothing_unasked_is_taken_from_the_home_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "bt_beside.py").write_text("")
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setattr(sys, "path", [str(root)])
    sources.add_unasked(found := sources.Found())
    assert found.units == {}


def test_a_package_travels_with_its_data_without_what_others_put_there(root: Path):
    package = root / "bt_package"
    for path in ("__init__.py", "data.json", "__pycache__/old.pyc", ".git/config", "deep/mod.py", "old.pyc"):
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text("x")
    (package / ".venv" / "lib").mkdir(parents=True)
    (package / "venv").mkdir()
    (package / "venv" / "pyvenv.cfg").write_text("")
    (package / "loop").symlink_to(package, target_is_directory=True)
    _, data = sources.pack(root, ["bt_package"])
    assert names_in(data) == ["bt_package/__init__.py", "bt_package/data.json", "bt_package/deep/mod.py"]


def test_equal_files_have_one_name_and_an_edit_gives_them_another(root: Path, tmp_path: Path):
    (root / "bt_edited.py").write_text("old")
    other = tmp_path / "other"
    other.mkdir()
    (other / "bt_edited.py").write_text("old")
    (before, _), (copy, _) = sources.pack(root, ["bt_edited.py"]), sources.pack(other, ["bt_edited.py"])
    assert before == copy
    stat = (root / "bt_edited.py").stat()
    (root / "bt_edited.py").write_text("new")
    os.utime(root / "bt_edited.py", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    after, data = sources.pack(root, ["bt_edited.py"])
    assert after.id != before.id and after == sources.described(data)


def test_too_much_is_refused_by_name(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "bt_large.py").write_text("x" * 2000)
    monkeypatch.setattr(sources, "LIMIT_BYTES", 1000)
    with pytest.raises(EnvironmentFailed, match=r"bt_large\.py"):
        sources.pack(root, ["bt_large.py"])
