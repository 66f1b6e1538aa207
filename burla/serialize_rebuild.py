"""Exceptions from the records of `serialize_errors`: all are made first, then get their attributes, then are linked.

What cannot be made is a RemoteError.
"""

from __future__ import annotations

import ast
import functools
import pickle
import types

from burla import errors
from burla.serialize_errors import (
    FAILURES,
    SLOTS,
    Frame,
    Record,
    RefUnpickler,
    message_of,
    new_exception,
    set_attribute,
)
from burla.serialize_report import type_name


def load(data: bytes) -> BaseException:
    try:
        loader = _Loader(*pickle.loads(data))
    except FAILURES as failure:
        reason = f"{type(failure).__name__}: {message_of(failure)}"
        return errors.RemoteError(
            f"a call raised an exception whose description cannot be read here ({reason}). Check that the same "
            "versions of burla and Python are in use here and there.",
            type_name="unknown",
            traceback="",
        )
    try:
        return loader.load()
    except FAILURES as failure:
        return loader.remote_error(0, f"{type(failure).__name__}: {message_of(failure)}")


class _Loader:
    def __init__(self, index: int, records: list[Record]):
        if not records or not all(isinstance(record, Record) for record in records):
            raise ValueError("it holds no exception")
        self.index = index
        self.records = records
        self.made: dict[int, BaseException] = {}
        self.making: set[int] = set()
        self.bare: set[int] = (
            set()
        )  # made by `new_exception`: what they get is their `__dict__`, not what `__setstate__` takes
        self.failed: set[int] = set()  # these are a RemoteError here

    def load(self) -> BaseException:
        for number in range(len(self.records)):
            self._get(number)
        for number in range(len(self.records)):
            try:
                self._set_state(number)
            except FAILURES as failure:
                self._give_up(number, f"{type(failure).__name__}: {message_of(failure)}")
        for number in range(len(self.records)):
            self._link(number)
        error = self.made[0]
        note = f"burla: raised by the call of input {self.index}"
        state = vars(error)
        state["burla_input_index"] = self.index
        if note not in state.get("__notes__", ()):
            state["__notes__"] = [*state.get("__notes__", ()), note]
        return error

    def _get(self, number: int) -> BaseException:
        if number not in self.made:
            record = self.records[number]
            if record.make is None or number in self.making:
                return self._give_up(number, record.why or "it contains itself")
            self.making.add(number)
            try:
                function, args = RefUnpickler(record.make, self._get).load()
                made = function(*args)
                if function is new_exception:
                    self.bare.add(number)
                if not isinstance(made, BaseException):
                    raise TypeError(f"{record.type_name} was rebuilt as {type_name(made)}")
                self.made.setdefault(number, made)
            except FAILURES as failure:
                return self._give_up(number, f"{type(failure).__name__}: {message_of(failure)}")
        return self.made[number]

    def _give_up(self, number: int, why: str) -> errors.RemoteError:
        self.failed.add(number)
        error = self.made[number] = self.remote_error(number, why)
        return error

    def remote_error(self, number: int, why: str) -> errors.RemoteError:
        record = self.records[number]
        return errors.RemoteError(
            f"the call of input {self.index} raised {record.type_name}: {record.message}\n"
            f"(This exception cannot be rebuilt here: {why}. Raise one of a class that both sides can import.)\n\n"
            f"{record.text}",
            type_name=record.type_name,
            traceback=record.text,
        )

    def _set_state(self, number: int) -> None:
        record, error = self.records[number], self.made[number]
        if number in self.failed:
            return
        if record.state is not None:
            state = RefUnpickler(record.state, self.made.__getitem__).load()
            as_dict = number in self.bare or type(error).__setstate__ is BaseException.__setstate__
            if as_dict and isinstance(state, dict):
                for name, value in state.items():
                    if isinstance(getattr(type(error), name, None), SLOTS):  # name and path of an ImportError
                        set_attribute(error, name, value)
                    else:
                        vars(error)[name] = value
            else:
                error.__setstate__(state)
        if record.slots is not None:
            for name, value in RefUnpickler(record.slots, self.made.__getitem__).load().items():
                try:
                    set_attribute(error, name, value)
                except (AttributeError, TypeError):  # read-only: derived from what is set already
                    continue

    def _link(self, number: int) -> None:
        record, error = self.records[number], self.made[number]
        vars(error).pop("__notes__", None)
        if record.notes:
            vars(error)["__notes__"] = list(record.notes)
        set_attribute(error, "__cause__", None if record.cause is None else self.made[record.cause])
        set_attribute(error, "__context__", None if record.context is None else self.made[record.context])
        set_attribute(error, "__suppress_context__", record.suppress_context)
        set_attribute(error, "__traceback__", _traceback(record.frames))


def _traceback(frames: list[Frame]) -> types.TracebackType | None:
    """Make real frames with the file, function and line of the remote ones; they have no columns to underline."""
    tb = None
    for file, name, line, first_line, module in reversed(frames):
        stub = _stub(line - first_line)
        code = stub.replace(co_filename=file, co_name=name, co_qualname=name, co_firstlineno=first_line)
        try:
            exec(code, {"__name__": module, "__file__": file})
        except ZeroDivisionError as error:
            here = error.__traceback__
            assert here is not None and here.tb_next is not None
            tb = types.TracebackType(tb, here.tb_next.tb_frame, here.tb_next.tb_lasti, line)
    return tb


@functools.lru_cache(1000)
def _stub(line: int) -> types.CodeType:
    """Return code that raises so many lines after its first one."""
    tree = ast.increment_lineno(ast.parse("raise ZeroDivisionError"), line)
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)):
            node.col_offset = node.end_col_offset = -1
    return compile(tree, "", "exec")
