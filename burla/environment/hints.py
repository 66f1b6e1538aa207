"""Tells a user whose call has failed elsewhere that what it did not find there is here."""

from __future__ import annotations

import os

from burla.protocol import MISSING


def add(error: BaseException) -> None:
    """Add a note to an exception of a call that missed a file or a variable which this machine has."""
    kind, name = vars(error).pop(MISSING, (None, ""))
    if kind == "path" and os.path.exists(name):
        error.add_note(
            f"burla: {name!r} exists here, but the call ran on a node that does not share this machine's disk. Read it "
            "here and pass its content as input, or have it on storage that the nodes reach."
        )
    elif kind == "variable" and name in os.environ:
        error.add_note(
            f"burla: the environment variable {name} is set here, but the call ran on a node that has an environment "
            f"of its own. burla.configure(env_vars={{{name!r}: ...}}) sends it there."
        )
