"""A simulated NVML: a library of the driver's name, in C, that tells of the GPUs that a file lists.

With its folder in LD_LIBRARY_PATH, nvidia-ml-py loads it as it would the driver's own.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "libnvidia-ml.so.1"
LISTED = "gpus.txt"
SOURCE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, LOST = 15, MOST = 16, TEXT = 96 };
typedef struct { unsigned long long total, free, used; } Memory;
static struct gpu { char product[TEXT], uuid[TEXT]; unsigned long long bytes; int mig, lost; } gpus[MOST];
static unsigned count;

int nvmlInitWithFlags(unsigned flags) {
    FILE *file = fopen(getenv("BURLA_TEST_GPUS"), "r");
    if (!file) return NOT_SUPPORTED;
    count = 0;
    while (count < MOST && fscanf(file, "%95[^|]|%95[^|]|%llu|%d|%d\n", gpus[count].product, gpus[count].uuid,
                                  &gpus[count].bytes, &gpus[count].mig, &gpus[count].lost) == 5) count++;
    fclose(file);
    return OK;
}
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *found) { *found = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (index >= count) return INVALID;
    *handle = &gpus[index];
    return OK;
}
int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned size) {
    if (gpu->lost) return LOST;
    snprintf(name, size, "%s", gpu->product);
    return OK;
}
int nvmlDeviceGetUUID(struct gpu *gpu, char *uuid, unsigned size) { snprintf(uuid, size, "%s", gpu->uuid); return OK; }
int nvmlDeviceGetMemoryInfo(struct gpu *gpu, Memory *memory) {
    memset(memory, 0, sizeof *memory);
    memory->total = memory->free = gpu->bytes;
    return OK;
}
int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned *current, unsigned *pending) {
    if (gpu->mig < 0) return NOT_SUPPORTED;
    *current = *pending = gpu->mig;
    return OK;
}
int nvmlDeviceGetUtilizationRates(struct gpu *gpu, void *rates) { return NOT_SUPPORTED; } /* Dask asks */
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : "simulated error"; }
"""


@dataclass(frozen=True)
class Simulated:
    """A GPU that the library tells of. `mig`: 1 split, 0 whole, -1 it does not know of that. `lost`: it fails."""

    product: str = "Tesla T4"
    uuid: str = "GPU-0"
    memory_bytes: int = 16 * 10**9
    mig: int = -1
    lost: bool = False


def simulate(folder: Path, gpus: Sequence[Simulated]) -> dict[str, str] | None:
    """Return the environment in which NVML tells of these GPUs, or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    if not (folder / LIBRARY).exists():
        (folder / "nvml.c").write_text(SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / LIBRARY), str(folder / "nvml.c")], check=True)
    rows = [f"{gpu.product}|{gpu.uuid}|{gpu.memory_bytes}|{gpu.mig}|{int(gpu.lost)}\n" for gpu in gpus]
    (folder / LISTED).write_text("".join(rows))
    return {"LD_LIBRARY_PATH": str(folder), "BURLA_TEST_GPUS": str(folder / LISTED)}
