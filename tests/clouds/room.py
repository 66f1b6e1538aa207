"""A room of machines: real processes behind a make-believe cloud, each machine in namespaces of its own.

    @in_room(MachineRoom)
    def test_something(room: MachineRoom) -> None: ...

The test runs in a process of its own, in a private network: a bridge, this process at one end, the machines at others.
The room watches its cloud's API, switches on what that says is running, and tells it what shuts itself down. After the
test nothing may be left in the cloud.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.clouds.machine import Instance, Machine
from tests.nvml import Simulated

ROOT = Path(__file__).parents[2]
CLIENT_IP = "192.0.2.1"
BRIDGE = "cloud"
_LOOK_S = 0.1


class Room(ABC):
    """Runs the instances of a cloud as processes of this machine.

    `environ`: with which a client finds the cloud. Settings for tests: `images`: container image → path of its Python,
    None for one that nobody has; `hangs`: whether a machine with these tags never gets beyond its start.
    """

    environ: dict[str, str]

    def __init__(self, folder: Path):
        self.folder = folder
        self.images: dict[str, str | None] = {}
        self.hangs: Callable[[dict[str, str]], bool] = lambda tags: False
        self.history: dict[str, Machine] = {}  # all that ever booted
        self.errors: list[Exception] = []
        self._skipped: set[str] = set()
        self._stop = threading.Event()
        self._lock = threading.RLock()

    def __enter__(self) -> Room:
        for command in (
            ["link", "set", "lo", "up"],
            ["link", "add", BRIDGE, "type", "bridge"],
            ["addr", "add", f"{CLIENT_IP}/32", "dev", BRIDGE],
            ["link", "set", BRIDGE, "up"],
            ["route", "add", "default", "dev", BRIDGE, "src", CLIENT_IP],
        ):
            subprocess.run(["ip", *command], check=True)
        self._serve()
        self._thread = threading.Thread(target=self._watch, name="room", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for machine in self.history.values():
            machine.power_off()
        self._close()

    @property
    def machines(self) -> list[Machine]:
        """The machines that run now, oldest first."""
        with self._lock:
            return [machine for machine in self.history.values() if machine.running]

    def reboot(self, machine: Machine) -> None:
        """Switch a machine off and on again."""
        with self._lock:
            machine.power_off()
            machine.boot()

    # what a cloud adds

    @abstractmethod
    def left(self) -> list[str]:
        """Return what in the cloud would bill, or stand in the way of the next test."""

    @abstractmethod
    def _serve(self) -> None:
        """Have the API answer."""

    @abstractmethod
    def _close(self) -> None: ...

    @abstractmethod
    def _seen(self) -> list[Instance]:
        """Return what the API says of machines."""

    @abstractmethod
    def _user_data(self, instance: Instance) -> str: ...

    @abstractmethod
    def _gpus(self, instance: Instance) -> list[Simulated]: ...

    @abstractmethod
    def _has_shut_down(self, instance: Instance) -> None:
        """The cloud notices that a machine has ended from inside."""

    # the loop

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                there = {one.id: one for one in self._seen()}
                for instance in there.values():
                    self._look(instance)
                for machine in self.machines:
                    if machine.id not in there:
                        machine.power_off()
            except Exception as error:  # noqa: BLE001  looked at when the test is over
                self.errors.append(error)

    def _look(self, instance: Instance) -> None:
        with self._lock:
            machine = self.history.get(instance.id)
            if instance.running and machine is None and instance.id not in self._skipped:
                if self.hangs(instance.tags):
                    self._skipped.add(instance.id)
                else:
                    self._boot(instance)
            elif machine is not None and machine.running:
                if machine.wants_to_end:
                    self._has_shut_down(instance)
                    machine.power_off()
                elif instance.gone:
                    machine.power_off()

    def _boot(self, instance: Instance) -> None:
        home, user_data = self.folder / instance.id, self._user_data(instance)
        machine = Machine(home, instance, user_data, self.images, BRIDGE, self._gpus(instance))
        machine.boot()
        self.history[instance.id] = machine


_Room = TypeVar("_Room", bound=Room)


def in_room(kind: type[_Room]) -> Callable[[Callable[[_Room], None]], Callable[[], None]]:
    """Make of a function with a room a test that runs in a private network. It is skipped where there can be none."""

    def decorate(test: Callable[[_Room], None]) -> Callable[[], None]:
        @pytest.mark.slow
        @pytest.mark.timeout(300)
        def run() -> None:
            reason = _missing()
            if reason is not None:
                pytest.skip(reason)
            command = [*_namespaces(), sys.executable, "-m", __name__, test.__module__, test.__name__]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

        run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
        run.in_room = kind, test  # pyright: ignore[reportFunctionMemberAccess]
        return run

    return decorate


def _namespaces() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]


def _missing() -> str | None:
    """Return why no private network can be made here."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"the machine room needs the program {program}"
    bridge = ["ip", "link", "add", "x", "type", "bridge"]
    tried = subprocess.run([*_namespaces(), *bridge], capture_output=True, text=True)
    return f"the machine room needs namespaces: {tried.stderr.strip()}" if tried.returncode else None


def _run(module: str, name: str) -> None:
    """Run one test in a room, in this process."""
    kind: type[Room]
    test: Callable[[Any], None]
    kind, test = getattr(importlib.import_module(module), name).in_room
    folder = Path(tempfile.mkdtemp(prefix="machine-room-"))
    home = folder / "home"
    home.mkdir(mode=0o700)
    os.environ.update(BURLA_HOME=str(home), DASK_CONFIG=str(folder / "dask"), BURLA_LOCAL_CPUS="1")
    with ExitStack() as stack:
        room = stack.enter_context(kind(folder))
        os.environ.update(room.environ)
        try:
            test(room)
            left = room.left()
            assert left == [], f"left in the cloud: {left}"
            assert room.errors == []
        except BaseException:
            for machine in room.history.values():
                print(f"--- {machine.id} {machine.tags}\n{machine.console[-3000:]}")
            raise
    shutil.rmtree(folder)


if __name__ == "__main__":
    _run(*sys.argv[1:])
