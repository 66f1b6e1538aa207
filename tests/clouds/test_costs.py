"""What machines in a cloud cost: shown by `status`, and as a limit of a job."""

from __future__ import annotations

import re

import pytest

import burla
from burla.cloud_state import Bill
from burla.clusters import catalog
from burla.clusters.cloud import Vm
from tests.clouds.clusters import make
from tests.clouds.machine_room import MachineRoom, in_machine_room


def _vm(machine: str, started_at_s: float) -> Vm:
    return Vm("i", "name", "node", machine, "running", "zone", False, started_at_s, "", "")


def _price(machine: str) -> float:
    found = catalog.find("aws", machine)
    assert found is not None
    return found.usd_per_hour


def test_a_bill_is_hours_times_prices_and_names_what_has_no_price():
    small, large = _price("m7i.large"), _price("m7i.xlarge")
    bill = Bill.of("aws", [_vm("m7i.large", 0.0), _vm("m7i.xlarge", 1800.0), _vm("x9.huge", 3600.0)], 3600.0)
    assert bill == Bill(3, 1.5, pytest.approx(small + large / 2), pytest.approx(small + large), ("x9.huge",))
    assert re.fullmatch(
        r"3 machines, 1\.50 h in all: at most \$0\.20 so far, \$0\.30 an hour, and what x9\.huge costs, which is "
        rf"unknown \(by list prices of {catalog.NOTED}, without disks and traffic\)",
        str(bill),
    )
    assert Bill.of("aws", [_vm("m7i.large", 50.0)], 0.0).hours == 0.0, "a clock that goes wrong"
    unknown = Bill.of("aws", [_vm("x9.huge", 0.0)], 7200.0)
    assert str(unknown) == "1 machine, 2.00 h in all: cost unknown (x9.huge not in the catalogue)"


@in_machine_room
def test_a_job_stops_when_its_machines_have_cost_so_much(room: MachineRoom) -> None:
    """The head knows what its nodes cost; the status says what all machines cost."""

    def slow(x: int) -> int:
        import time

        time.sleep(0 if x < 2 else 600)
        return x

    make("dear", machine="m7i.48xlarge")
    state = burla.cluster_status("dear")
    assert [node.usd_per_hour for node in state.status.nodes] == [_price("m7i.48xlarge")]
    assert re.search(r"^  2 machines, 0\.0\d h in all: at most \$[\d.]+ so far, \$9\.\d\d an hour", str(state), re.M)
    with burla.use("dear"):
        job = burla.submit(slow, range(8), max_cost_usd=0.01)  # in 4 s
        with pytest.raises(burla.LimitReached, match=r"max_cost_usd=0.01, and its nodes have cost 0\.0\d") as caught:
            job.results(timeout_s=60)
        assert caught.value.burla_results == {0: 0, 1: 1} and job.status == "cancelled"
    burla.delete_cluster("dear")
