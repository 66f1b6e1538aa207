"""Named moments at which a test can have the head killed, as by `kill -9`: around commits, renames, replies."""

from __future__ import annotations

import os
import signal

VARIABLE = "BURLA_TEST_CRASH"  # "name:n:token": at the n-th time, unless the file `token` is there, which is made then

_armed = os.environ.get(VARIABLE, "").split(":", 2)
_reached = 0


def reach(name: str) -> None:
    """Say that the head has come to this point."""
    global _reached
    if _armed[0] != name:
        return
    _reached += 1
    _, count, token = _armed
    if _reached == int(count) and not os.path.exists(token):
        with open(token, "x"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
