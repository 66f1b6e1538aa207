"""What a node reads of its memory, from real files of the kernel's shape and from this very process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from burla.node.memory import CgroupGauge, MachineGauge, Memory, find_gauge, tree_bytes


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def version_2(folder: Path, limit: str, used: int, inactive: int = 0, kills: int = 0) -> Path:
    return write(
        folder,
        memory__max=limit + "\n",
        memory__current=f"{used}\n",
        memory__stat=f"anon 5\ninactive_file {inactive}\n",
        memory__events=f"low 0\noom_kill {kills}\n",
    )


def version_1(folder: Path, limit: int, used: int, inactive: int = 0, kills: int = 0) -> Path:
    return write(
        folder,
        memory__limit_in_bytes=f"{limit}\n",
        memory__usage_in_bytes=f"{used}\n",
        memory__stat=f"inactive_file 7\ntotal_inactive_file {inactive}\n",
        memory__oom_control=f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    )


def test_the_cgroup_with_the_lowest_limit_counts_and_what_its_cache_could_give_back_is_not_used(tmp_path: Path):
    root = tmp_path / "cgroup"
    version_2(root / "a", "2000000", 1_500_000, inactive=300_000, kills=4)
    version_2(root / "a" / "b", "max", 900_000)
    (root / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "self").write_text("0::/a/b\n")
    gauge = find_gauge(root, tmp_path / "self")
    assert gauge == CgroupGauge(root / "a", 2)
    assert gauge.read() == Memory(1_200_000, 2_000_000, 4)


def test_version_1_is_read_alike(tmp_path: Path):
    root = tmp_path / "cgroup"
    version_1(root / "memory", 2**63 - 4096, 5_000_000)
    version_1(root / "memory" / "job", 2_000_000, 1_500_000, inactive=500_000, kills=1)
    (tmp_path / "self").write_text("5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n")
    gauge = find_gauge(root, tmp_path / "self")
    assert gauge == CgroupGauge(root / "memory" / "job", 1)
    assert gauge.read() == Memory(1_000_000, 2_000_000, 1)


def test_in_a_container_the_mount_itself_is_the_cgroup(tmp_path: Path):
    root = version_2(tmp_path / "cgroup", "3000000", 1_000_000)
    (root / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "self").write_text("0::/docker/0123\n")
    assert find_gauge(root, tmp_path / "self") == CgroupGauge(root, 2)


@pytest.mark.parametrize("limit", ["max", str(2**60)])
def test_without_a_limit_below_the_machines_it_is_the_machine(tmp_path: Path, limit: str):
    root = version_2(tmp_path / "cgroup", limit, 1_000_000)
    (root / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "self").write_text("0::/\n")
    assert isinstance(find_gauge(root, tmp_path / "self"), MachineGauge)
    assert isinstance(find_gauge(root, tmp_path / "none"), MachineGauge)
    memory = MachineGauge().read()
    assert memory.limit_bytes == psutil.virtual_memory().total and 0 < memory.used_bytes < memory.limit_bytes


def test_what_forked_processes_share_counts_once():
    program = (
        "import os, sys; x = bytearray(b'1') * 100_000_000; pids = [os.fork() for _ in range(3)]; "
        "print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    for _ in range(8):
        process.stdout.readline()
    assert 90_000_000 < tree_bytes(process.pid) < 160_000_000
    process.stdin.close()
    process.wait()


def test_the_memory_of_a_process_is_that_of_all_below_it():
    program = "import subprocess, sys; x = bytearray(b'1') * 50_000_000; "
    inner = "x = bytearray(b'1') * 80_000_000; print(flush=True); input()"
    outer = program + f"p = subprocess.Popen([sys.executable, '-c', {inner!r}]); p.wait()"
    process = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdout.readline()
    assert 130_000_000 < tree_bytes(process.pid) < 200_000_000
    process.stdin.close()
    process.wait()
    assert tree_bytes(process.pid) == 0
    assert tree_bytes(os.getpid()) > 1_000_000
