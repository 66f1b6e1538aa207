"""Which names a piece of code reads before it has surely assigned them, and what it does to them. Pure.

In doubt a name counts as read: then it travels without need, and nothing else happens.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field

SWALLOWING = {"suppress", "raises"}  # of contextlib, and of pytest
# methods that change what they are called on, by their names
MUTATING = frozenset(
    {"append", "extend", "insert", "remove", "pop", "popitem", "clear", "sort", "reverse", "add", "discard", "update"}
    | {"setdefault", "appendleft", "extendleft", "popleft", "rotate", "difference_update", "intersection_update"}
    | {"symmetric_difference_update", "subtract", "fit", "partial_fit", "fit_transform", "fit_predict"}
)

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass
class Names:
    """Names of one piece of code, each with the line of its first use.

    `read`: may be read before it is assigned, `at_once`: not only by a nested function; `assigned`: may be assigned;
    `changed`: what it was before may be changed, as by `x.append(1)`, or by a nested function that declares it global.
    """

    read: dict[str, int] = field(default_factory=dict)
    at_once: set[str] = field(default_factory=set)
    assigned: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)


def names_of(statements: Iterable[ast.stmt], bound: Iterable[str] = ()) -> Names:
    """Return the names of statements that run in order; `bound` are assigned before, and stay out of it."""
    flow = _Flow(set(bound))
    flow.block(statements)
    return flow.names


class _Flow(ast.NodeVisitor):
    """Walks code in the order in which it runs, with the names that are surely assigned at each point."""

    def __init__(self, sure: set[str], around: set[str] | None = None):
        self.names = Names()
        self._sure: set[str] | None = sure  # None: this point is never reached
        self._around = around  # in a class: what its methods see, which is not what the class assigns
        self._means: dict[str, str] = {}  # names assigned here that mean what another does, or something in it

    def block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self.visit(statement)

    # names

    def _read(self, name: str, line: int) -> None:
        if self._sure is not None and name not in self._sure:
            self.names.read.setdefault(name, line)
            self.names.at_once.add(name)

    def _assign(self, name: str, line: int) -> None:
        self.names.assigned.setdefault(name, line)
        self._means.pop(name, None)
        if self._sure is not None:
            self._sure.add(name)

    def _change(self, target: ast.expr) -> None:
        root = root_name(target)
        if root is None or self._sure is None:
            return
        name = root.id if root is target else self._means.get(root.id, root.id)
        if name not in self._sure:
            self.names.changed.setdefault(name, root.lineno)

    def _mean(self, targets: Iterable[ast.expr], value: ast.expr) -> None:
        """Note that targets mean what a name means, or something in it: to change them is to change that."""
        if not isinstance(value, ast.Name):
            return
        meant = self._means.get(value.id, value.id)
        for one in (inner for target in targets for inner in ast.walk(target)):
            if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
                self._means[one.id] = meant

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._assign(node.id, node.lineno)
            return
        self._read(node.id, node.lineno)
        if isinstance(node.ctx, ast.Del):
            self.names.assigned.setdefault(node.id, node.lineno)
            if self._sure is not None:
                self._sure.discard(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._change(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and node.func.attr in MUTATING:
            self._change(node.func)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._change(node.target)
            self._read(node.target.id, node.target.lineno)
        self.visit(node.value)
        self.visit(node.target)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
        self._mean(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.annotation)
        if node.value is not None:
            self.visit(node.value)
            self.visit(node.target)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        self.visit(node.target)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._assign(alias.asname or alias.name.partition(".")[0], node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name != "*":
                self._assign(alias.asname or alias.name, node.lineno)

    # functions, classes, comprehensions

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in node.decorator_list:
            self.visit(part)
        self._visit_signature(node)
        self._assign(node.name, node.lineno)  # before its body counts: it may call itself
        self._visit_body(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_signature(node)
        self._visit_body(node)

    def _visit_signature(self, node: Function) -> None:
        for part in [*node.args.defaults, *node.args.kw_defaults]:
            if part is not None:
                self.visit(part)
        if not isinstance(node, ast.Lambda):
            for annotation in [*(one.annotation for one in _parameters(node)), node.returns]:
                if annotation is not None:
                    self.visit(annotation)

    def _visit_body(self, node: Function) -> None:
        body = [ast.Expr(node.body)] if isinstance(node, ast.Lambda) else node.body
        stored, declared = _stored(body)
        inner = _Flow(stored | {one.arg for one in _parameters(node)})
        inner.block(body)
        inner.names.at_once.clear()
        self._take(inner.names, declared, self._sure if self._around is None else self._around)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]:
            self.visit(part)
        around = set(self._sure or ())
        inner = _Flow(set(around), around)
        inner.block(node.body)
        self._take(inner.names, _stored(node.body)[1], self._sure)
        self._assign(node.name, node.lineno)

    def _visit_comprehension(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)
        inner = _Flow(set(self._sure or ()))
        for number, generator in enumerate(node.generators):
            if number:
                inner.visit(generator.iter)
            inner.visit(generator.target)
            inner._mean([generator.target], generator.iter)
            for condition in generator.ifs:
                inner.visit(condition)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            inner.visit(part)
        self._take(inner.names, frozenset(), self._sure)
        for one in ast.walk(node):
            if isinstance(one, ast.NamedExpr):  # not surely: there may be no element
                self.names.assigned.setdefault(one.target.id, one.lineno)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension

    def _take(self, inner: Names, declared: Set[str], sure: set[str] | None) -> None:
        """Take in what a nested scope does to names that are not its own; it sees `sure` of ours."""
        if sure is None:
            return
        self.names.at_once |= inner.at_once - sure
        rebound = {name: line for name, line in inner.assigned.items() if name in declared}
        for mine, theirs in ((self.names.read, inner.read), (self.names.changed, inner.changed | rebound)):
            for name, line in theirs.items():
                if name not in sure:
                    mine.setdefault(name, line)

    # branches

    def _either(self, *ways: Callable[[], None]) -> None:
        """Walk each way from here; afterwards surely assigned is what all of them assign that come to their end."""
        before, ends = self._sure, []
        for way in ways:
            self._sure = None if before is None else set(before)
            way()
            ends.append(self._sure)
        reached = [end for end in ends if end is not None]
        self._sure = set.intersection(*reached) if reached else None

    def _forget(self, names: set[str]) -> None:
        """These may have been deleted by now."""
        if self._sure is not None:
            self._sure -= names

    def _maybe(self, *ways: Callable[[], None]) -> None:
        """Walk ways each of which may be left out."""
        for way in ways:
            self._either(way, lambda: None)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        self._either(lambda: self.block(node.body), lambda: self.block(node.orelse))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.test)
        self._either(lambda: self.visit(node.body), lambda: self.visit(node.orelse))

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.visit(node.values[0])
        for value in node.values[1:]:
            self._maybe(lambda value=value: self.visit(value))

    def visit_While(self, node: ast.While) -> None:
        self.visit(node.test)

        def body() -> None:
            self._forget(_deleted(node.body))  # the time before
            self.block(node.body)

        self._maybe(body, lambda: self.block(node.orelse))

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)

        def body() -> None:
            self._forget(_deleted(node.body))  # the time before
            self.visit(node.target)
            self._mean([node.target], node.iter)
            self.block(node.body)

        self._maybe(body, lambda: self.block(node.orelse))

    visit_AsyncFor = visit_For

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        before = None if self._sure is None else set(self._sure)
        self.generic_visit(node)
        if self._sure is None or any(_swallows(item.context_expr) for item in node.items):
            self._sure = None if before is None else before - _deleted(node.body)  # it may have ended anywhere

    visit_AsyncWith = visit_With

    def visit_Try(self, node: ast.Try | ast.TryStar) -> None:
        # an exception may come after any of the statements that delete names
        before = None if self._sure is None else self._sure - _deleted([*node.body, *node.handlers, *node.orelse])

        def body() -> None:
            self.block(node.body)
            self.block(node.orelse)

        def handler(one: ast.ExceptHandler) -> None:
            self._forget(_deleted(node.body))
            if one.type is not None:
                self.visit(one.type)
            if one.name is not None:
                self._assign(one.name, one.lineno)
            self.block(one.body)
            if one.name is not None and self._sure is not None:
                self._sure.discard(one.name)  # Python deletes it

        self._either(body, *(lambda one=one: handler(one) for one in node.handlers))
        after, self._sure = self._sure, before
        self.block(node.finalbody)
        self._sure = None if after is None or self._sure is None else self._sure | after

    visit_TryStar = visit_Try

    def visit_Match(self, node: ast.Match) -> None:
        self.visit(node.subject)

        def case(one: ast.match_case) -> None:
            self.visit(one.pattern)
            if one.guard is not None:
                self.visit(one.guard)
            self.block(one.body)

        ways: list[Callable[[], None]] = [lambda one=one: case(one) for one in node.cases]
        last = node.cases[-1]
        if not (last.guard is None and isinstance(last.pattern, ast.MatchAs) and last.pattern.pattern is None):
            ways.append(lambda: None)
        self._either(*ways)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        if node.name is not None:
            self._assign(node.name, node.lineno)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest is not None:
            self._assign(node.rest, node.lineno)

    def _leave(self, node: ast.AST) -> None:
        self.generic_visit(node)
        self._sure = None

    visit_Return = visit_Raise = visit_Break = visit_Continue = _leave


def root_name(target: ast.expr) -> ast.Name | None:
    """Return `x` of `x.a[0].b`; None if something else stands at the beginning, such as a call."""
    while isinstance(target, (ast.Attribute, ast.Subscript, ast.Starred)):
        target = target.value
    return target if isinstance(target, ast.Name) else None


def in_scope(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield what is in these nodes, without the bodies of functions and classes in them."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _stored(body: Sequence[ast.stmt]) -> tuple[set[str], set[str]]:
    """Return the names that a scope binds itself, and those that it declares global or nonlocal."""
    declared = {name for node in in_scope(body) if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    return names_of(body).assigned.keys() - declared, declared


def _parameters(node: Function) -> list[ast.arg]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [one for one in every if one is not None]


def _swallows(manager: ast.expr) -> bool:
    """Whether a context manager is one that swallows exceptions, by its name."""
    called = manager.func if isinstance(manager, ast.Call) else manager
    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
    return name in SWALLOWING


def _deleted(nodes: Sequence[ast.AST]) -> set[str]:
    """Return the names that statements may delete: `del`, and at the end of an `except ... as`."""
    found: set[str] = set()
    for node in (inner for one in nodes for inner in ast.walk(one)):
        match node:
            case ast.Name(id=name, ctx=ast.Del()) | ast.ExceptHandler(name=str(name)):
                found.add(name)
    return found
