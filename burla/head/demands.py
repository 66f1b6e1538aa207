"""What a job asks of the nodes, which of them can give it, and what to say when none can: pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from burla.protocol import ANY_GPU, Gpu, JobSpec, NodeOffer

SHOWN_KINDS = 5  # so many kinds of nodes are spelled out in an error


@dataclass(frozen=True, slots=True)
class Demand:
    """What a job asks of the nodes; `unfinished` inputs have no outcome yet, and 0 means that the job is ending."""

    job: str
    order: int
    depth: int
    func_cpu: int
    func_ram_bytes: int | None
    func_gpu: str | None
    image: str | None
    unfinished: int
    max_parallelism: int | None
    dynamic: bool = False  # `func_ram_bytes` is what its calls are thought to need by now
    alone: bool = False  # no other call may run on its node, but nested ones
    had: float = 0.0  # CPUs, of late: see `turns`
    barred: frozenset[str] = frozenset()  # nodes that cannot run it, whatever room they have

    @property
    def limit(self) -> int:
        """How many slots the job can use."""
        return self.unfinished if self.max_parallelism is None else min(self.unfinished, self.max_parallelism)


def demand_of(spec: JobSpec, order: int, unfinished: int) -> Demand:
    """Return what a job asks for; `order`: which of several that are equal comes first."""
    return Demand(
        job=spec.id,
        order=order,
        depth=spec.depth,
        func_cpu=spec.func_cpu,
        func_ram_bytes=spec.func_ram_bytes,
        func_gpu=spec.func_gpu,
        image=spec.image,
        unfinished=unfinished,
        max_parallelism=spec.max_parallelism,
    )


def fits(job: Demand, node: NodeOffer) -> bool:
    """Return whether one slot of the job fits on the node when it is empty."""
    return (
        node.id not in job.barred
        and job.func_cpu <= node.cpus
        and (job.func_ram_bytes or 0) <= node.ram_bytes
        and (job.func_gpu is None or any(job.func_gpu in (gpu.name, ANY_GPU) for gpu in node.gpus))
        and (job.image is None or job.image == node.image)
    )


def share_out_gpus(nodes: Sequence[NodeOffer], used: Mapping[str, int]) -> list[NodeOffer]:
    """Return the nodes, each GPU at one of them.

    Of several on one machine that see the same, each has as many as it uses, and of the others one after the other.
    """
    untaken = [list(node.gpus) for node in nodes]
    own: list[list[Gpu]] = [[] for _ in nodes]
    while some := [at for at, left in enumerate(untaken) if left]:
        first = min(some, key=lambda at: (len(own[at]) >= used.get(nodes[at].id, 0), len(own[at]), at))
        gpu = untaken[first][0]
        own[first].append(gpu)
        untaken = [[one for one in left if one.uuid != gpu.uuid] for left in untaken]
    return [replace(node, gpus=tuple(gpus)) for node, gpus in zip(nodes, own, strict=True)]


def explain_misfit(job: Demand, nodes: Sequence[NodeOffer]) -> tuple[str, str]:
    """Return in words what the job asks for and what the nodes have."""
    asked = [f"func_cpu={job.func_cpu}"]
    asked += [f"func_ram={job.func_ram_bytes / 1e9:g} GB"] if job.func_ram_bytes else []
    asked += [f"func_gpu={job.func_gpu!r}"] if job.func_gpu else []
    asked += [f"image={job.image!r}"] if job.image else []
    kinds = Counter(_describe(node) for node in nodes).most_common()
    have = [f"{_plural(count, 'node')}: {kind}" for kind, count in kinds[:SHOWN_KINDS]]
    have += [f"{_plural(sum(count for _, count in kinds[SHOWN_KINDS:]), 'other node')}"] if kinds[SHOWN_KINDS:] else []
    return ", ".join(asked), "; ".join(have) or "no nodes"


def _describe(node: NodeOffer) -> str:
    gpus = " + ".join(f"{count} {kind}" for kind, count in sorted(node.gpu_counts.items())) or "no GPU"
    ram_gb = math.floor(node.ram_bytes / 1e8) / 10  # rounded down: never as much as was asked for and is not there
    image = f"image {node.image}" if node.image else "no image"
    return f"{_plural(node.cpus, 'CPU')}, {ram_gb:g} GB RAM, {gpus}, {image}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
