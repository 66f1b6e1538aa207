"""The cell magic `%%burla`."""

from __future__ import annotations

import sys
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand, output_can_be_silenced

import burla
from burla_jupyter import line as burla_line
from burla_jupyter import local, options, preview, running
from burla_jupyter.errors import CellSyntaxError, Refused
from burla_jupyter.failure import Failed, explain
from burla_jupyter.plan import Plan, make_plan
from burla_jupyter.results import Results

NOTICED_BYTES = 10_000_000  # what travels is named if it is more

last: Failed | None = None  # for `%burla debug`


@magics_class
class BurlaMagics(Magics):
    """Cells that run on the cluster."""

    @no_var_expand
    @output_can_be_silenced
    @cell_magic("burla")
    @options.declare
    def burla_cell(self, line: str, cell: str) -> Any:
        """Run the cell on the cluster.

        With `for` it is the body of a function that runs for every element; its value is what it returns, else its last
        expression. Without, it runs once, as if it ran here: names that it assigns or changes come back.

            %%burla -o sizes --func-cpu 2 for path in paths if keep(path)
            os.path.getsize(path)
        """
        shell = self.shell
        assert shell is not None
        try:
            plan = make_plan(shell, self.burla_cell.parser, line, cell)
        except Refused as error:
            raise UsageError(f"%%burla: {error}") from None
        except SyntaxError as error:
            raise CellSyntaxError(error, shell.SyntaxTB.structured_traceback(SyntaxError, error, None)) from None
        return _carry_out(plan)

    @line_magic("burla")
    def burla_line(self, line: str) -> Any:
        """Jobs and clusters: `%burla --help` lists the commands."""
        __tracebackhide__ = True
        assert self.shell is not None
        return burla_line.run(self.shell, line, last)


def _carry_out(plan: Plan) -> Any:
    global last
    job: burla.Job | None = None
    try:
        if plan.options.dry_run:
            print(preview.text(plan))
            return None
        _point_out(plan)
        if plan.options.local:
            return local.run(plan)
        job = burla.submit(plan.cell, plan.inputs(), detach=plan.options.detach, **plan.options.resources)
        if plan.options.detach:
            return _leave(plan, job)
        job.follow(spinner=plan.options.spinner)
        if plan.header is None:
            return running.bring(plan.shell, job.results()[0])
        if plan.options.out is None:
            return Results(job)
        plan.shell.push({plan.options.out[0]: job.results()})
        return None
    except BaseException as error:
        running.bring_left(plan.shell, error)
        last = explain(plan, error, job)
        raise


def _point_out(plan: Plan) -> None:
    """Say before anything runs what may not be meant so, and what of size travels."""
    changed = ", ".join(plan.body.changed)
    if plan.header is None and changed:
        _say(f"changes to {changed} stay on the node: classes and functions do not come back changed")
    elif changed:
        _say(f"each call has its own copy of {changed}: what it changes there stays in the call. Return what is needed")
    if plan.header is not None and plan.shared:
        what = ", ".join(f"{name} (in {function})" for name, function in sorted(plan.shared.items()))
        _say(
            f"calls change {what}: later calls in the same process see it, the notebook does not. Return what is needed"
        )
    if plan.body.gives_none:
        _say("every call gives None: end the cell with a value, or `return` one")
    sizes = plan.sizes()
    if sum(sizes.values()) > NOTICED_BYTES:
        _say(f"{preview.size_text(sum(sizes.values()))} travel with the cell: {preview.listed(sizes)}")


def _say(text: str) -> None:
    print(f"burla: {text}", file=sys.stderr)


def _leave(plan: Plan, job: burla.Job) -> burla.Job | None:
    """Show a job as it goes on, and give the notebook a handle on it."""
    _say(f'job {job.id} goes on without this notebook. To come back: burla.attach("{job.id}")')
    if plan.options.spinner:
        job.follow(wait=False)
    if plan.options.out is None:
        return job
    plan.shell.push({plan.options.out[0]: job})
    return None
