"""A cell on a node: runs its code with the names that came with it."""

from __future__ import annotations

import inspect
import linecache
import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from burla_jupyter import node
from burla_jupyter.outcome import CODE, LEFT, Before, Outcome

LEFT_BYTES = 10_000_000  # an error is no way for more


def show_lines(filename: str, text: str) -> None:
    """Let tracebacks of this process show the lines of a cell."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


@dataclass
class Cell:
    """What travels. `names` is a function whose globals become the cell's: in the notebook those are the notebook's.

    With such a function cloudpickle sends the names that it uses, and what notebook functions among them use; all these
    functions share their globals on the node, as they do in the notebook.
    """

    name: str
    code: types.CodeType
    names: Any  # a function; as FunctionType a class attribute would be taken for a method
    filename: str
    text: str
    rich: bool  # what it displays can be shown as more than text

    machinery_files = (__file__, node.__file__)  # tracebacks begin behind these

    def __post_init__(self) -> None:
        self.__name__ = self.name  # what the job is called

    @property
    def globals(self) -> dict[str, Any]:
        """The names that the cell sees."""
        return self.names.__globals__

    def prepare(self) -> None:
        """Make this process, of a node, one in which the cell can run and tracebacks show its lines."""
        show_lines(self.filename, self.text)
        node.install(self.globals, self.rich)


@dataclass
class MapCell(Cell):
    """The body of a map: runs once for each tuple of values of its targets, which are its arguments.

    Every call gets the names in `own_copy` as they were in the notebook, whatever calls before it did to them.
    """

    targets: tuple[str, ...]
    own_copy: tuple[str, ...]
    _function: Callable[..., Any] | None = field(default=None, init=False, repr=False)
    _unchanged: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _copied: bytes = field(default=b"", init=False, repr=False)

    def __call__(self, *values: Any) -> Any:
        """Run the body; return its value, or a coroutine that does."""
        if self._function is None:
            self.prepare()
            self._function = self.function()
        if self.own_copy:
            self.restore()
        return node.run(self._function, *values)

    def function(self) -> types.FunctionType:
        """Return the body as a function of the targets."""
        return types.FunctionType(self.code, self.globals)

    def own(self) -> dict[str, Any]:
        """Return the values of the names in `own_copy`, and of others that mean the same objects."""
        meant = {id(self.globals[name]) for name in self.own_copy}
        return {name: value for name, value in self.globals.items() if id(value) in meant}

    def restore(self) -> None:
        """Give the names in `own_copy` the values that they came with."""
        if not self._copied:
            import cloudpickle

            values = self.own()
            self._unchanged = {name: value for name, value in values.items() if isinstance(value, CODE)}
            self._copied = cloudpickle.dumps({name: values[name] for name in values.keys() - self._unchanged.keys()})
        self.globals.update(self._unchanged)
        self.globals.update(pickle.loads(self._copied))


@dataclass
class RunCell(Cell):
    """A cell that runs once, as if it ran in the notebook.

    `wanted`: the names that are to come back; None: those that it assigns or changes. `by_name`: who gets the outcome
    still has the objects that were sent, so that of an unchanged one the name is enough.
    """

    wanted: tuple[str, ...] | None
    by_name: bool

    def __call__(self) -> Any:
        """Run the cell; return an Outcome, or a coroutine that does."""
        self.prepare()
        before = Before(self.globals, compare=self.wanted is None)
        if self.code.co_flags & inspect.CO_COROUTINE:
            return node.run(self._run_async, before)
        return node.run(self._run, before)

    def _run(self, before: Before) -> Outcome:
        try:
            exec(self.code, self.globals)
        except Exception as error:
            self._leave(error, before)
            raise
        return self._outcome(before)

    async def _run_async(self, before: Before) -> Outcome:
        try:
            await eval(self.code, self.globals)
        except Exception as error:
            self._leave(error, before)
            raise
        return self._outcome(before)

    def _leave(self, error: Exception, before: Before) -> None:
        """What the cell did to names before it failed travels with its error, as far as an error can carry it."""
        try:
            left = self._outcome(before)
        except Exception as another:  # noqa: BLE001 - a user's class may raise anything, and why the cell failed matters more
            error.add_note(f"burla: what the cell had assigned cannot come back: {type(another).__name__}: {another}")
            return
        if len(left.data) <= LEFT_BYTES:
            vars(error)[LEFT] = left
        elif left.names:
            error.add_note(f"burla: too large to come back from a cell that failed: {', '.join(left.names)}")

    def _outcome(self, before: Before) -> Outcome:
        node.show_figures()  # while they are open: a figure that comes back is closed
        return Outcome.of(self.globals, before, self.wanted, self.by_name)
