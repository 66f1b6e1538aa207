"""The GPUs of a node: found by NVML when it starts; each is one child's alone, until that child is dead.

A lock on each keeps off other nodes of this machine: several Dask workers, or another cluster, may see the same GPU.
A GPU that is split (MIG) is left out: what its parts are called and how they are shared is nobody's promise here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence

import psutil

from burla.protocol import ANY_GPU, Gpu

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
VENDOR = {"NVIDIA", "TESLA", "GEFORCE", "QUADRO"}  # words that tell nothing apart
ONE_SIZE = {"H200", "B200", "L4", "T4", "V100"}  # known by that word alone
SIZED = {"A100", "H100"}  # known by their memory too
SIZES_GB = (40, 80)  # as they are sold; a little of it is not for calls
GONE_S = 0.01
ELSEWHERE_S = 0.2  # how often it is tried to get a GPU that another node has


def our_name(product: str, memory_bytes: int) -> str:
    """Return what `func_gpu` calls a product of NVML, such as "A100_80G"; of one that it does not know, its words."""
    words = [word for word in re.split(r"[^A-Z0-9]+", product.upper()) if word and word not in VENDOR]
    if words[:1] and words[0] in ONE_SIZE:
        return words[0]
    if words[:1] and words[0] in SIZED:
        has_gb = memory_bytes / 2**30
        return f"{words[0]}_{next((gb for gb in SIZES_GB if abs(has_gb - gb) < gb / 10), round(has_gb))}G"
    return "_".join(words) or "GPU"


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use, in the order of their PCI addresses; none without NVML."""
    try:
        import pynvml
    except ImportError:
        log.info("no GPUs: nvidia-ml-py is not installed")
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.info("no GPUs: %s", error)
        return ()
    try:
        found = [_look(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.warning("no GPUs: %s", error)
        return ()
    finally:
        pynvml.nvmlShutdown()
    return tuple(gpu for gpu in allowed(found, os.environ.get(VISIBLE)) if gpu is not None)


def _look(index: int) -> Gpu | None:
    """Return what NVML says of a GPU; None if calls cannot have it."""
    import pynvml

    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        product, uuid = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetUUID(handle)
        memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
    except pynvml.NVMLError as error:
        log.warning("GPU %d is left out: %s", index, error)
        return None
    try:
        split = pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:
        split = False  # it does not know of MIG
    if split:
        log.warning("GPU %d (%s) is left out: it is split (MIG)", index, product)
        return None
    return Gpu(uuid, our_name(product, memory_bytes), memory_bytes)


def allowed(found: Sequence[Gpu | None], visible: str | None) -> list[Gpu | None]:
    """Return those that CUDA_VISIBLE_DEVICES of the node leaves it: numbers (in PCI order) or beginnings of UUIDs."""
    if visible is None:
        return list(found)
    chosen: list[Gpu | None] = []
    for word in (word.strip() for word in visible.split(",")):
        if word.isdigit():
            match = found[int(word) : int(word) + 1]
        else:
            match = [gpu for gpu in found if gpu is not None and word and gpu.uuid.startswith(word)]
        if len(match) != 1 or match[0] in chosen:
            break  # as CUDA does: what stands behind a mistake does not count
        chosen += match
    return chosen


def _lock(gpu: Gpu) -> socket.socket | None:
    """Return a lock that ends with this process, whoever's it is; None: another process has it."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0burla-gpu-{gpu.uuid}")  # a name without a file
    except OSError:
        lock.close()
        return None
    return lock


class GpuPool:
    """The GPUs of a node, and which of them no child has."""

    def __init__(self, gpus: Iterable[Gpu]):
        self._free = list(gpus)
        self._some = bool(self._free)
        self._locks: dict[str, socket.socket] = {}
        self._freed = asyncio.Event()

    async def take(self, name: str) -> Gpu:
        """Return a GPU of that name, or of any, once the last child that had it is dead."""
        while True:
            for gpu in self._free:
                if name in (gpu.name, ANY_GPU) and (lock := _lock(gpu)) is not None:
                    self._locks[gpu.uuid] = lock
                    self._free.remove(gpu)
                    return gpu
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._freed.wait(), ELSEWHERE_S)

    def give_back(self, gpu: Gpu) -> None:
        """Nothing that had the GPU lives any more."""
        self._locks.pop(gpu.uuid).close()
        self._free.append(gpu)
        self._freed.set()

    def environ(self, gpu: Gpu | None) -> Mapping[str, str]:
        """Return what a child has to have in its environment: one GPU is its own, or none of those that are here."""
        if gpu is not None:
            return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", VISIBLE: gpu.uuid}
        return {VISIBLE: ""} if self._some else {}


async def gone(pid: int | None) -> None:
    """Return when a process is dead: that its zygote is does not mean that it is too."""
    while pid is not None:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        await asyncio.sleep(GONE_S)
