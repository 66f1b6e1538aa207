"""The kinds of machines that clouds have: their size, their GPUs, what an hour costs. Data, and how to search it.

Prices are in US dollars, on demand, for Linux, in us-east-1 (AWS), us-central1 (GCP) and eastus (Azure). They come from
the vendors' public lists as remembered in the month of `NOTED`, and no list has been asked since: take them as an
estimate. Spot machines cost less. `verified` is about size and GPUs alone, which are compared with the cloud's own data
where the tests have it (AWS).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from burla.protocol import ANY_GPU

NOTED = "2025-08"
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine. `ram_bytes`: as its cloud sells it; `gpu`: as a node calls it (see `func_gpu`), "": none."""

    cloud: str
    name: str
    cpus: int
    ram_bytes: int
    gpu: str
    gpus: int
    usd_per_hour: float
    verified: bool = False

    @property
    def usable_ram_bytes(self) -> int:
        """What is left for calls, at least: the kernel, the container and the node have their part."""
        return int(0.93 * self.ram_bytes)

    def fits(self, cpus: int, ram_bytes: int, gpu: str | None) -> bool:
        """Whether a call that asks for so much runs there."""
        has_gpu = gpu is None or (self.gpus > 0 and gpu in (self.gpu, ANY_GPU))
        return has_gpu and cpus <= self.cpus and ram_bytes <= self.usable_ram_bytes


def _sizes(
    cloud: str, pattern: str, sizes: Mapping[str, int], gib_per_cpu: float, usd_per_cpu: float
) -> Iterator[Machine]:
    """Return machines without GPU whose memory and price grow with their CPUs; `sizes`: what fills the name → CPUs."""
    for size, cpus in sizes.items():
        ram_bytes = int(cpus * gib_per_cpu * _GIB)
        usd = round(cpus * usd_per_cpu, 6)
        yield Machine(cloud, pattern.format(size), cpus, ram_bytes, "", 0, usd, verified=cloud == "aws")


def _gpus(cloud: str, *rows: tuple[str, int, float, str, int, float]) -> Iterator[Machine]:
    """Return machines with GPUs. A row: name, CPUs, GiB, GPU, how many, price."""
    for name, cpus, gib, gpu, gpus, usd in rows:
        yield Machine(cloud, name, cpus, int(gib * _GIB), gpu, gpus, usd, verified=cloud == "aws")


_AWS_SIZES = {
    "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48, "16xlarge": 64,
    "24xlarge": 96, "48xlarge": 192,
}  # fmt: skip
_GCP_SIZES = {str(cpus): cpus for cpus in (2, 4, 8, 16, 32, 48, 64, 80)}
_AZURE_SIZES = {str(cpus): cpus for cpus in (2, 4, 8, 16, 32, 48, 64)}

_MACHINES = (
    *_sizes("aws", "c7i.{}", _AWS_SIZES, 2, 0.044625),
    *_sizes("aws", "m7i.{}", _AWS_SIZES, 4, 0.0504),
    *_sizes("aws", "r7i.{}", _AWS_SIZES, 8, 0.06615),
    *_gpus(
        "aws",
        ("g4dn.xlarge", 4, 16, "T4", 1, 0.526),
        ("g4dn.2xlarge", 8, 32, "T4", 1, 0.752),
        ("g4dn.4xlarge", 16, 64, "T4", 1, 1.204),
        ("g4dn.8xlarge", 32, 128, "T4", 1, 2.176),
        ("g4dn.12xlarge", 48, 192, "T4", 4, 3.912),
        ("g4dn.16xlarge", 64, 256, "T4", 1, 4.352),
        ("g5.xlarge", 4, 16, "A10G", 1, 1.006),
        ("g5.2xlarge", 8, 32, "A10G", 1, 1.212),
        ("g5.4xlarge", 16, 64, "A10G", 1, 1.624),
        ("g5.8xlarge", 32, 128, "A10G", 1, 2.448),
        ("g5.12xlarge", 48, 192, "A10G", 4, 5.672),
        ("g5.48xlarge", 192, 768, "A10G", 8, 16.288),
        ("g6.xlarge", 4, 16, "L4", 1, 0.8048),
        ("g6.2xlarge", 8, 32, "L4", 1, 0.9776),
        ("g6.4xlarge", 16, 64, "L4", 1, 1.3232),
        ("g6.8xlarge", 32, 128, "L4", 1, 2.0144),
        ("g6.12xlarge", 48, 192, "L4", 4, 4.6016),
        ("g6.16xlarge", 64, 256, "L4", 1, 3.3968),
        ("g6.48xlarge", 192, 768, "L4", 8, 13.3504),
        ("g6e.xlarge", 4, 32, "L40S", 1, 1.861),
        ("g6e.2xlarge", 8, 64, "L40S", 1, 2.2421),
        ("g6e.4xlarge", 16, 128, "L40S", 1, 3.0042),
        ("g6e.12xlarge", 48, 384, "L40S", 4, 10.4926),
        ("g6e.48xlarge", 192, 1536, "L40S", 8, 30.1312),
        ("p3dn.24xlarge", 96, 768, "V100", 8, 31.212),
        ("p4d.24xlarge", 96, 1152, "A100_40G", 8, 21.9576),
        ("p4de.24xlarge", 96, 1152, "A100_80G", 8, 27.4471),
        ("p5.4xlarge", 16, 256, "H100_80G", 1, 6.88),
        ("p5.48xlarge", 192, 2048, "H100_80G", 8, 55.04),
        ("p5en.48xlarge", 192, 2048, "H200", 8, 63.296),
        ("p6-b200.48xlarge", 192, 2048, "B200", 8, 113.9328),
    ),
    *_sizes("gcp", "n2-highcpu-{}", _GCP_SIZES, 1, 0.035848),
    *_sizes("gcp", "n2-standard-{}", _GCP_SIZES, 4, 0.048559),
    *_sizes("gcp", "n2-highmem-{}", _GCP_SIZES, 8, 0.065507),
    *_gpus(
        "gcp",
        ("n1-standard-4", 4, 15, "T4", 1, 0.54),  # no GPU of its own: one T4 is attached
        ("n1-standard-8", 8, 30, "T4", 1, 0.73),
        ("g2-standard-4", 4, 16, "L4", 1, 0.7069),
        ("g2-standard-8", 8, 32, "L4", 1, 0.8536),
        ("g2-standard-16", 16, 64, "L4", 1, 1.1471),
        ("g2-standard-32", 32, 128, "L4", 1, 1.7342),
        ("g2-standard-24", 24, 96, "L4", 2, 2.0006),
        ("g2-standard-48", 48, 192, "L4", 4, 4.0012),
        ("g2-standard-96", 96, 384, "L4", 8, 8.0025),
        ("a2-highgpu-1g", 12, 85, "A100_40G", 1, 3.6734),
        ("a2-highgpu-2g", 24, 170, "A100_40G", 2, 7.3469),
        ("a2-highgpu-4g", 48, 340, "A100_40G", 4, 14.6938),
        ("a2-highgpu-8g", 96, 680, "A100_40G", 8, 29.3877),
        ("a2-ultragpu-1g", 12, 170, "A100_80G", 1, 5.0688),
        ("a2-ultragpu-2g", 24, 340, "A100_80G", 2, 10.1376),
        ("a2-ultragpu-4g", 48, 680, "A100_80G", 4, 20.2752),
        ("a2-ultragpu-8g", 96, 1360, "A100_80G", 8, 40.5504),
        ("a3-highgpu-1g", 26, 234, "H100_80G", 1, 11.06),
        ("a3-highgpu-2g", 52, 468, "H100_80G", 2, 22.12),
        ("a3-highgpu-4g", 104, 936, "H100_80G", 4, 44.25),
        ("a3-highgpu-8g", 208, 1872, "H100_80G", 8, 88.49),
    ),
    *_sizes("azure", "Standard_F{}s_v2", _AZURE_SIZES, 2, 0.0423),
    *_sizes("azure", "Standard_D{}s_v5", _AZURE_SIZES, 4, 0.048),
    *_sizes("azure", "Standard_E{}s_v5", _AZURE_SIZES, 8, 0.063),
    *_gpus(
        "azure",
        ("Standard_NC4as_T4_v3", 4, 28, "T4", 1, 0.526),
        ("Standard_NC8as_T4_v3", 8, 56, "T4", 1, 0.752),
        ("Standard_NC16as_T4_v3", 16, 110, "T4", 1, 1.204),
        ("Standard_NC64as_T4_v3", 64, 440, "T4", 4, 4.352),
        ("Standard_NC24ads_A100_v4", 24, 220, "A100_80G", 1, 3.673),
        ("Standard_NC48ads_A100_v4", 48, 440, "A100_80G", 2, 7.346),
        ("Standard_NC96ads_A100_v4", 96, 880, "A100_80G", 4, 14.692),
        ("Standard_ND96asr_v4", 96, 900, "A100_40G", 8, 27.197),
        ("Standard_NC40ads_H100_v5", 40, 320, "H100_80G", 1, 6.98),
        ("Standard_NC80adis_H100_v5", 80, 640, "H100_80G", 2, 13.96),
        ("Standard_ND96isr_H100_v5", 96, 1900, "H100_80G", 8, 98.32),
    ),
)
_BY_NAME = {(one.cloud, one.name): one for one in _MACHINES}


def machines(cloud: str) -> list[Machine]:
    """Return the machines of a cloud, the cheapest first; none of a cloud that is not known."""
    return sorted((one for one in _MACHINES if one.cloud == cloud), key=lambda one: (one.usd_per_hour, one.name))


def find(cloud: str, name: str) -> Machine | None:
    """Return a machine by its name; None: the catalogue does not have it."""
    return _BY_NAME.get((cloud, name))


def fitting(cloud: str, cpus: int, ram_bytes: int, gpu: str | None) -> list[Machine]:
    """Return the machines on which a call that asks for so much runs, the cheapest first.

    `gpu` None: machines without GPUs, which cost less for what such a call can use.
    """
    return [one for one in machines(cloud) if bool(one.gpus) == (gpu is not None) and one.fits(cpus, ram_bytes, gpu)]
