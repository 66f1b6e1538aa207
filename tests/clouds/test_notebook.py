"""The notebook on clusters in a cloud, run in the machine room; see `tests.test_notebooks`."""

from __future__ import annotations

import os

from tests.clouds.machine_room import MachineRoom, in_machine_room
from tests.test_notebooks import FOLDER, check


@in_machine_room
def test_the_notebook_on_clouds_runs_and_leaves_nothing(room: MachineRoom) -> None:
    os.environ["BURLA_LOCAL_CPUS"] = "2"
    notebook = check(FOLDER / "cloud.ipynb", ["[0, 1, 4, 9, 16, 25, 36, 49]", "(2, 'GPUs')", "['example.org/tools:1']"])
    assert "machine room" in notebook.cells[0].source
    assert {machine.type for machine in room.history.values()} >= {"g4dn.xlarge"}
