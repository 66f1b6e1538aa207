"""What a call finds on a node in the place of the notebook: display(), figures, !command, and no keyboard."""

from __future__ import annotations

import base64
import builtins
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from burla_jupyter import inband

DISPLAYS = 50  # of one call
DISPLAYED_BYTES = 20_000_000  # of one call
LINE_BYTES = 8_000_000  # of one display
BACKEND = "module://burla_jupyter.figures"
METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}


class Displays:
    """Counts what one call displays."""

    def __init__(self) -> None:
        self.rich = True
        self.count = self.size_bytes = self.left_out = 0

    def show(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Send a MIME bundle to the notebook, or count it among those that were too many."""
        if not self.rich:
            print(data.get("text/plain", ""), file=sys.__stdout__)
            return
        line = inband.encode(data, metadata)
        if len(line) > LINE_BYTES:
            size = f"{len(line) / 1e6:.0f} MB, over the limit of {LINE_BYTES / 1e6:.0f} MB"
            line = inband.encode({"text/plain": f"{data.get('text/plain', '')} [burla: not shown: {size}]"}, {})
        if self.count >= DISPLAYS or self.size_bytes + len(line) > DISPLAYED_BYTES:
            self.left_out += 1
            return
        self.count += 1
        self.size_bytes += len(line)
        sys.stdout.flush()
        assert sys.__stdout__ is not None
        sys.__stdout__.write(line)  # what a call prints may be redirected; what it displays never is
        sys.__stdout__.flush()

    def end(self) -> None:
        """Say what was left out, and begin to count anew."""
        if self.left_out:
            kept = f"a call can show {DISPLAYS}, of {DISPLAYED_BYTES / 1e6:.0f} MB together"
            print(f"[burla: {self.left_out} more displays were left out: {kept}]", file=sys.__stderr__)
        self.count = self.size_bytes = self.left_out = 0


_displays = Displays()


def run(function: Callable[..., Any], *values: Any) -> Any:
    """Return what a function returns; then show its open figures. A coroutine it is as a coroutine."""
    try:
        result = function(*values)
        if inspect.iscoroutine(result):
            return _run_async(result)
    except BaseException:
        _end()
        raise
    _end()
    return result


async def _run_async(coroutine: Any) -> Any:
    try:
        return await coroutine
    finally:
        _end()


def _end() -> None:
    show_figures()
    if _displays.count or _displays.left_out:
        _displays.end()


def show_figures() -> None:
    """Display the open figures of matplotlib, and close them."""
    if "matplotlib.pyplot" in sys.modules:
        from burla_jupyter import figures

        figures.show()


class Handle:
    """What display(..., display_id=...) gives. Nothing that is shown can be taken back: an update is shown below it."""

    def __init__(self, display_id: str):
        self.display_id = display_id

    def display(self, one: Any, **named: Any) -> None:
        display(one, **named)

    update = display


def display(
    *objects: Any,
    metadata: dict[str, Any] | None = None,
    raw: bool = False,
    display_id: str | bool | None = None,
    **_: Any,
) -> Handle | None:
    """Show objects in the notebook; with `raw`, they are MIME bundles."""
    for one in objects:
        if raw:
            _displays.show(one, metadata or {})
        elif _method(one, "_ipython_display_") is not None:
            _call(one, "_ipython_display_")
        else:
            _displays.show(*_with_metadata(one, metadata))
    return Handle(str(display_id)) if display_id else None


def bundle(value: Any) -> dict[str, Any]:
    """Return how a value shows, by MIME type."""
    return _with_metadata(value, None)[0]


def _with_metadata(value: Any, metadata: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    data: dict[str, Any] = {"text/plain": repr(value)}
    found: dict[str, Any] = {}
    for method, mime_type in METHODS.items():
        shown = _call(value, method)
        if isinstance(shown, tuple):
            shown, found[mime_type] = shown
        if shown is not None:
            data[mime_type] = shown
    whole = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(whole, tuple):
        whole, more = whole
        found |= more
    data |= whole or {}
    if "matplotlib.figure" in sys.modules and isinstance(value, sys.modules["matplotlib.figure"].Figure):
        from burla_jupyter import figures

        data["image/png"] = figures.png(value)
    data.pop("application/vnd.jupyter.widget-view+json", None)  # a widget lives in its process
    data = {
        mime_type: base64.b64encode(shown).decode() if isinstance(shown, bytes) else shown
        for mime_type, shown in data.items()
    }
    return data, found | (metadata or {})


def _method(value: Any, name: str) -> Callable[..., Any] | None:
    """Return a method of a value. A class has none of its own: they are for its instances."""
    found = None if isinstance(value, type) else getattr(value, name, None)
    return found if callable(found) and not hasattr(value, "_burla_has_no_such_method_") else None  # as a mock has


def _call(value: Any, method: str, **named: Any) -> Any:
    """Return what a method of a value gives; None if it has no such method, or that fails, as IPython does."""
    found = _method(value, method)
    if found is None:
        return None
    try:
        return found(**named)
    except Exception as error:  # noqa: BLE001 - how a value shows is no reason for its call to fail
        print(f"burla: {type(value).__name__}.{method}() raised {type(error).__name__}: {error}", file=sys.stderr)
        return None


class Lines(list[str]):
    """What a !command printed: a list of lines; `s` and `n` are all of them with blanks or line ends between."""

    @property
    def l(self) -> list[str]:  # noqa: E743 - IPython's name
        return list(self)

    @property
    def s(self) -> str:
        return " ".join(self)

    @property
    def n(self) -> str:
        return "\n".join(self)


class Shell:
    """What get_ipython() is on a node: it runs commands."""

    def system(self, command: str) -> int:
        """Run a shell command with its output in the call's; return its exit code, negative for a signal."""
        sys.stdout.flush()
        sys.stderr.flush()
        return subprocess.run(command, shell=True, executable=_shell(), check=False).returncode

    def getoutput(self, command: str) -> Lines:
        """Run a shell command; return the lines that it prints, to stderr too."""
        done = subprocess.run(
            command, shell=True, executable=_shell(), check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return Lines(done.stdout.decode(errors="replace").splitlines())

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"get_ipython().{name}: a call runs on a node, and there is no notebook; !command works")


def _shell() -> str | None:
    return os.environ.get("SHELL")


def _input(prompt: object = "", /) -> NoReturn:
    raise RuntimeError(
        f"input({str(prompt)!r}): calls have no keyboard. Ask in a cell of its own, and use the answer here."
    )


_shell_object = Shell()


def get_ipython() -> Shell:
    """Return what runs !commands."""
    return _shell_object


class _Finder:
    """Makes libraries that show things do so by `display`, at the moment when something imports them."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "matplotlib":
            os.environ["MPLBACKEND"] = BACKEND  # the notebook's own would look for a notebook
        elif name == "IPython.display":
            _replace_display()


def _replace_display() -> None:
    import IPython.core.display_functions

    IPython.core.display_functions.display = display


def install(names: dict[str, Any], rich: bool) -> None:
    """Make this process a place for cells. `names`: the notebook's that came along; `rich`: it shows more than text."""
    _displays.rich = rich
    builtins.input = _input
    builtins.display = display  # pyright: ignore[reportAttributeAccessIssue]
    builtins.get_ipython = get_ipython  # pyright: ignore[reportAttributeAccessIssue]
    sys.meta_path.insert(0, _Finder)  # pyright: ignore[reportArgumentType]
    if "matplotlib" in sys.modules:
        sys.modules["matplotlib"].use(BACKEND)
    if "IPython.display" in sys.modules:
        _replace_display()
        sys.modules["IPython.display"].display = display  # pyright: ignore[reportAttributeAccessIssue]
    for name, value in names.items():
        if getattr(value, "__module__", None) == "IPython.core.display_functions" and value.__name__ == "display":
            names[name] = display
