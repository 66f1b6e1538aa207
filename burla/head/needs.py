"""What a job asks of machines that may be booted for it, and what it has: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from burla.head.demands import Demand, fits
from burla.head.running import RunningJob
from burla.protocol import ANY_GPU, Need, NodeOffer


def need_of(job: RunningJob, wish: Demand, jobs: Sequence[RunningJob], offers: Sequence[NodeOffer]) -> Need:
    """Return what a job needs. What other jobs hold now is not there for it. `wish`: see `Dispatch.wish`."""
    spec, snapshot = job.spec, job.snapshot()
    others = [one for one in jobs if one is not job]
    busy = sum(job.slots_held().values())
    return Need(
        func_cpu=spec.func_cpu,
        func_ram_bytes=spec.func_ram_bytes,
        func_gpu=spec.func_gpu,
        image=spec.image,
        max_parallelism=spec.max_parallelism,
        unfinished=0 if job.state.ended else job.core.unfinished,
        call_s=busy / snapshot.rate_per_s if busy and snapshot.rate_per_s else None,
        peak_bytes=snapshot.peak_bytes,
        cpus=sum(offer.cpus for offer in offers),
        nodes=tuple(_left(offer, others) for offer in offers if fits(wish, offer)),
        unfit=tuple(offer.name for offer in offers if not fits(wish, offer)),
    )


def _left(offer: NodeOffer, others: Sequence[RunningJob]) -> NodeOffer:
    """Return what these jobs leave of a node."""
    cpus, ram_bytes, gpus = offer.cpus, offer.ram_bytes, list(offer.gpus)
    for job in others:
        slots = job.slots_held().get(offer.id, 0)
        cpus -= slots * job.spec.func_cpu
        ram_bytes -= slots * (job.spec.func_ram_bytes or 0)
        wanted = job.spec.func_gpu
        taken = [gpu for gpu in gpus if wanted in (gpu.name, ANY_GPU)][:slots] if wanted is not None else []
        gpus = [gpu for gpu in gpus if gpu not in taken]
    return replace(offer, cpus=max(0, cpus), ram_bytes=max(0, ram_bytes), gpus=tuple(gpus))
