"""What a node finds of GPUs, what they are called, and who has them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from burla import options
from burla.node.gpus import ELSEWHERE_S, GONE_S, GpuPool, allowed, gone, our_name
from burla.protocol import ANY_GPU, Gpu
from tests.nvml import Simulated, simulate

GIB = 2**30
T4, L4 = Gpu("GPU-t4", "T4", 16 * GIB), Gpu("GPU-l4", "L4", 24 * GIB)
PRODUCTS = [
    ("NVIDIA A100-SXM4-40GB", 40 * GIB, "A100_40G"),
    ("A100-PCIE-40GB", int(39.6 * GIB), "A100_40G"),
    ("NVIDIA A100 80GB PCIe", 80 * GIB, "A100_80G"),
    ("NVIDIA A100-SXM4-80GB", int(79.2 * GIB), "A100_80G"),
    ("NVIDIA A100-SXM-64GB", 64 * GIB, "A100_64G"),
    ("NVIDIA H100 80GB HBM3", int(79.6 * GIB), "H100_80G"),
    ("NVIDIA H100 PCIe", int(79.6 * GIB), "H100_80G"),
    ("NVIDIA H100 NVL", int(93.6 * GIB), "H100_94G"),
    ("NVIDIA H200", int(140.4 * GIB), "H200"),
    ("NVIDIA B200", int(179 * GIB), "B200"),
    ("NVIDIA GH200 480GB", 96 * GIB, "GH200_480GB"),
    ("NVIDIA GB200", 186 * GIB, "GB200"),
    ("NVIDIA L4", 23 * GIB, "L4"),
    ("NVIDIA L40S", 45 * GIB, "L40S"),
    ("Tesla T4", 15 * GIB, "T4"),
    ("NVIDIA T400 4GB", 4 * GIB, "T400_4GB"),
    ("Tesla V100-SXM2-16GB", 16 * GIB, "V100"),
    ("Tesla V100-PCIE-32GB", 32 * GIB, "V100"),
    ("NVIDIA A10G", 24 * GIB, "A10G"),
    ("NVIDIA GeForce RTX 4090", 24 * GIB, "RTX_4090"),
    ("Quadro RTX 6000", 24 * GIB, "RTX_6000"),
    ("NVIDIA", GIB, "GPU"),
]


@pytest.mark.parametrize(("product", "memory_bytes", "name"), PRODUCTS)
def test_a_product_has_our_name(product: str, memory_bytes: int, name: str):
    assert our_name(product, memory_bytes) == name


def test_every_name_that_calls_may_ask_for_is_one_of_a_product():
    assert {*options.GPUS.values()} - {ANY_GPU} <= {name for _, _, name in PRODUCTS}


def found(environ: dict[str, str]) -> tuple[list[tuple[str, str, int]], str]:
    """What a process in that environment finds: UUID, name and bytes of each, and what it logs."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from burla.node.gpus import find_gpus\n"
        "print([(gpu.uuid, gpu.name, gpu.memory_bytes) for gpu in find_gpus()])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ, capture_output=True, text=True, check=True
    )
    return eval(ran.stdout), ran.stderr


def simulated(folder: Path, gpus: Sequence[Simulated]) -> dict[str, str]:
    environ = simulate(folder, gpus)
    if environ is None:
        pytest.skip("there is no C compiler")
    return environ


def test_nvml_tells_of_gpus_and_those_that_are_split_or_lost_are_left_out(tmp_path: Path):
    environ = simulated(
        tmp_path,
        [
            Simulated("NVIDIA A100-SXM4-40GB", "GPU-a", 40 * GIB, mig=0),
            Simulated("NVIDIA A100-SXM4-40GB", "GPU-b", 40 * GIB, mig=1),
            Simulated("Tesla V100-SXM2-16GB", "GPU-c", 16 * GIB),
            Simulated("Tesla V100-SXM2-16GB", "GPU-d", 16 * GIB, lost=True),
        ],
    )
    gpus, logged = found(environ)
    assert gpus == [("GPU-a", "A100_40G", 40 * GIB), ("GPU-c", "V100", 16 * GIB)]
    assert "GPU 1 (NVIDIA A100-SXM4-40GB) is left out: it is split (MIG)" in logged
    assert "GPU 3 is left out: GPU is lost" in logged


def test_a_node_has_only_the_gpus_that_its_environment_leaves_it(tmp_path: Path):
    environ = simulated(tmp_path, [Simulated(uuid=f"GPU-{at}") for at in range(4)])
    gpus, _ = found(environ | {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert [uuid for uuid, *_ in gpus] == ["GPU-3", "GPU-1"]


def test_without_the_driver_there_are_no_gpus():
    gpus, logged = found({"LD_LIBRARY_PATH": ""})
    if gpus:
        pytest.skip("this machine has GPUs")
    assert "no GPUs: NVML Shared Library Not Found" in logged


def test_without_the_library_there_are_no_gpus(tmp_path: Path):
    (tmp_path / "pynvml.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert found({"PYTHONPATH": path})[0] == []


@pytest.mark.parametrize(
    ("visible", "left"),
    [
        (None, ["GPU-aa", None, "GPU-bb"]),
        ("", []),
        ("-1", []),
        ("0", ["GPU-aa"]),
        ("2,0", ["GPU-bb", "GPU-aa"]),
        ("1,2", [None, "GPU-bb"]),
        ("GPU-b,GPU-aa", ["GPU-bb", "GPU-aa"]),
        ("GPU-", []),
        ("0,7,2", ["GPU-aa"]),
        ("0,0,2", ["GPU-aa"]),
        ("0, GPU-bb", ["GPU-aa", "GPU-bb"]),
        ("none", []),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str | None, left: list[str | None]):
    gpus = [Gpu("GPU-aa", "T4", GIB), None, Gpu("GPU-bb", "T4", GIB)]
    assert [gpu and gpu.uuid for gpu in allowed(gpus, visible)] == left


def test_a_gpu_is_given_to_one_at_a_time_and_the_next_waits_for_it():
    async def take_all() -> None:
        pool = GpuPool([T4, L4])
        assert await pool.take("L4") == L4
        assert await pool.take(ANY_GPU) == T4
        waiting = [asyncio.ensure_future(pool.take(name)) for name in ("T4", "L4", ANY_GPU)]
        pool.give_back(L4)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [one.result() for one in done] == [L4] and waiting[0] not in done
        pool.give_back(T4)
        assert await waiting[0] == T4
        for one in waiting:
            one.cancel()

    asyncio.run(take_all())


def test_a_gpu_that_another_node_of_the_machine_has_is_waited_for():
    code = (
        "import asyncio\nfrom burla.node.gpus import GpuPool\nfrom burla.protocol import Gpu\n"
        "pool = GpuPool([Gpu('GPU-t4', 'T4', 1)])\nprint(asyncio.run(pool.take('any')).uuid, flush=True)\ninput()"
    )

    async def take_both() -> None:
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline() == b"GPU-t4\n"
            pool = GpuPool([T4, L4])
            assert await pool.take(ANY_GPU) == L4
            waiting = asyncio.ensure_future(pool.take("T4"))
            done, _ = await asyncio.wait([waiting], timeout=2 * ELSEWHERE_S)
            other.kill()
        assert not done and await asyncio.wait_for(waiting, 10) == T4
        pool.give_back(T4)
        assert await pool.take("T4") == T4

    asyncio.run(take_both())


def test_what_a_child_sees_of_gpus():
    assert GpuPool([T4]).environ(T4) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-t4"}
    assert GpuPool([T4]).environ(None) == {"CUDA_VISIBLE_DEVICES": ""}
    assert GpuPool([]).environ(None) == {}


def test_a_process_is_gone_when_it_is_dead_even_if_nobody_has_collected_it():
    async def wait_for_its_end() -> None:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        waiting = asyncio.ensure_future(gone(process.pid))
        try:
            done, _ = await asyncio.wait([waiting], timeout=3 * GONE_S)
            assert not done
        finally:
            process.kill()
        await asyncio.wait_for(waiting, 10)
        process.communicate()

    asyncio.run(wait_for_its_end())
    asyncio.run(gone(None))
