"""`%burla debug`: the call that failed on the cluster, run here under the debugger."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from burla_jupyter import local
from burla_jupyter.failure import Failed, own_traceback
from burla_jupyter.remote import MapCell


def debug(shell: InteractiveShell, last: Failed | None) -> None:
    """Run the call that the last error came from once more here, and stop where it fails. Raises UsageError.

    `last`: the `%%burla` cell that failed last; the error may as well be of a `remote_parallel_map`.
    """
    error = getattr(sys, "last_value", None)
    if last is not None and (error is last.error or getattr(error, "burla_job", None) is None):
        error, again, filename = last.error, _cell(last), last.plan.filename
    else:
        again, filename = _function(shell, error), __file__
    try:
        again()
    except Exception as here:  # noqa: BLE001 - whatever it is, it is what the user came for
        traceback = own_traceback(here, filename) or here.__traceback__
        assert traceback is not None
        while traceback.tb_next is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        shell.InteractiveTB.tb = traceback
        shell.debugger(force=True)
    else:
        print(f"It does not fail here. On the cluster it did: {type(error).__name__}: {error}")


def _cell(last: Failed) -> Callable[[], Any]:
    cell = last.plan.cell
    if last.index is None and not last.plan.options.local:
        raise UsageError(f"%burla debug: no call of {cell.name} has failed")
    if not isinstance(cell, MapCell):
        return functools.partial(local.run, last.plan)
    if last.values is None:
        raise UsageError("%burla debug: it is not known which input failed")
    return functools.partial(local.call, cell, last.values, last.plan.shell.user_ns)


def _function(shell: InteractiveShell, error: BaseException | None) -> Callable[[], Any]:
    job, index = getattr(error, "burla_job", None), getattr(error, "burla_input_index", None)
    if job is None or index is None:
        raise UsageError("%burla debug: the last error of this notebook is not of a call of a job")
    function = shell.user_ns.get(job.function_name)
    if not callable(function):
        raise UsageError(
            f"%burla debug: this notebook has no function {job.function_name}. The input is there: "
            f"burla.attach({job.id!r}).input({index})"
        )
    value = job.input(index)
    return functools.partial(function, *(value if type(value) is tuple else (value,)))
