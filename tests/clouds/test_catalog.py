"""The catalogue of machines, against what the clouds say of them."""

from __future__ import annotations

import pytest
from moto.ec2.models.instance_types import INSTANCE_TYPES

from burla.clusters import catalog
from burla.clusters.cloud import CLOUDS
from burla.node.gpus import our_name
from burla.options import GPUS
from burla.protocol import ANY_GPU

ALL = [one for cloud in ("aws", "gcp", "azure") for one in catalog.machines(cloud)]


@pytest.mark.parametrize("machine", catalog.machines("aws"), ids=lambda machine: machine.name)
def test_machines_of_ec2_have_the_size_and_the_gpus_that_its_own_data_say(machine: catalog.Machine):
    """The name of the GPU is the one that a node would give it."""
    told = INSTANCE_TYPES[machine.name]
    gpus = told.get("GpuInfo", {}).get("Gpus", [])
    assert machine.verified
    assert machine.cpus == told["VCpuInfo"]["DefaultVCpus"]
    assert machine.ram_bytes == told["MemoryInfo"]["SizeInMiB"] * 2**20
    assert machine.gpus == sum(gpu["Count"] for gpu in gpus)
    names = {our_name(gpu["Name"], gpu["MemoryInfo"]["SizeInMiB"] * 2**20) for gpu in gpus}
    assert names == ({machine.gpu} if machine.gpu else set())


def test_what_nobody_has_looked_up_says_so():
    assert {one.cloud for one in ALL if not one.verified} == {"gcp", "azure"}


def test_every_machine_has_one_entry_that_makes_sense():
    assert len({(one.cloud, one.name) for one in ALL}) == len(ALL)
    for one in ALL:
        assert catalog.find(one.cloud, one.name) is one
        assert one.cpus >= 2 and one.ram_bytes >= 2**30 * one.cpus and 0.01 < one.usd_per_hour < 200
        assert bool(one.gpu) == bool(one.gpus)
    assert catalog.find("aws", "z9.huge") is None and catalog.machines("nowhere") == []


def test_every_cloud_has_general_machines_and_each_gpu_that_a_call_may_ask_for_is_somewhere():
    for cloud in {*CLOUDS, "aws", "gcp", "azure"}:
        assert catalog.fitting(cloud, 1, 0, None) and catalog.fitting(cloud, 1, 0, ANY_GPU)
    assert {one.gpu for one in ALL} >= set(GPUS.values()) - {ANY_GPU}


def test_the_cheapest_machine_that_fits_comes_first_and_gpus_are_for_calls_that_ask_for_them():
    found = catalog.fitting("aws", 8, 40 * 10**9, None)
    assert found[0].name == "r7i.2xlarge" and not any(one.gpus for one in found)
    assert [one.usd_per_hour for one in found] == sorted(one.usd_per_hour for one in found)
    assert catalog.fitting("aws", 1, 0, "A100_40G")[0].name == "p4d.24xlarge"
    assert catalog.fitting("aws", 1, 0, ANY_GPU)[0].name == "g4dn.xlarge"
    assert catalog.fitting("aws", 500, 0, None) == []


def test_a_call_that_asks_for_all_memory_of_a_machine_gets_a_larger_one():
    """A machine keeps some of it for itself."""
    assert catalog.fitting("aws", 1, 16 * 2**30, None)[0].ram_bytes == 32 * 2**30
