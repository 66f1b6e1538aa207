"""What a job leaves in a notebook, seen on the wire of real kernels: no front end, no browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from burla_jupyter import flood, inband, view

WIDGET = "application/vnd.jupyter.widget-view+json"
LIVE = {"cellId": "one"}  # what front ends send that draw notebooks
WITHIN_S = 30.0


class Kernel:
    """A kernel, and all messages that it has published, by the request that they belong to."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient):
        self.manager, self.client = manager, client
        self.published: list[dict[str, Any]] = []

    def begin(self, code: str, metadata: dict[str, Any] | None = None) -> str:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        return self._send("execute_request", content, metadata)

    def run(self, code: str, metadata: dict[str, Any] | None = None) -> str:
        """Run a cell to its end; return the id of its request. Raises what it raises, as text."""
        request = self.begin(code, metadata)
        self.wait(lambda: any(one["content"].get("execution_state") == "idle" for one in self.of(request, "status")))
        for error in self.of(request, "error"):
            raise RuntimeError("\n".join(error["content"]["traceback"]))
        return request

    def tell(self, comm_id: str, content: dict[str, Any]) -> None:
        """Send a widget a message, as its front end does."""
        self._send("comm_msg", {"comm_id": comm_id, "data": {"method": "custom", "content": content}}, None)

    def wait(self, true: Callable[[], Any]) -> Any:
        """Take in what is published until `true` is; return what it returned."""
        until_s = time.monotonic() + WITHIN_S
        while not (found := true()):
            left_s = until_s - time.monotonic()
            assert left_s > 0, "the kernel did not do what was waited for"
            self.published.append(self.client.get_iopub_msg(timeout=left_s))
        return found

    def of(self, request: str, *kinds: str) -> list[dict[str, Any]]:
        """Return the messages of a request."""
        mine = (one for one in self.published if one["parent_header"].get("msg_id") == request)
        return [one for one in mine if not kinds or one["msg_type"] in kinds]

    def text(self, request: str, name: str = "stdout") -> str:
        """Return what a cell has in its stdout or stderr."""
        streams = (one["content"] for one in self.of(request, "stream"))
        return "".join(one["text"] for one in streams if one["name"] == name)

    def displayed(self, request: str) -> list[dict[str, Any]]:
        """Return the mimebundles that a cell shows in the end, in order."""
        shown: dict[str, dict[str, Any]] = {}
        for one in self.of(request, "display_data", "update_display_data"):
            number = one["content"]["transient"].get("display_id", f"own {len(shown)}")
            assert (one["msg_type"] == "update_display_data") == (number in shown)
            shown[number] = one["content"]["data"]
        return list(shown.values())

    def _send(self, kind: str, content: dict[str, Any], metadata: dict[str, Any] | None) -> str:
        message = self.client.session.msg(kind, content, metadata=metadata)
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    manager, client = start_new_kernel()
    try:
        kernel = Kernel(manager, client)
        kernel.run("import burla, time, threading\nburla.remote_parallel_map(str, [0])  # the cluster is there now")
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# what calls print ----------------------------------------------------------------------------------------------------


def test_a_quick_job_leaves_what_its_calls_print_and_nothing_else(kernel: Kernel):
    cell = kernel.run(
        """
        def quick(x):
            import sys
            print("out", x)
            print("err", x, file=sys.stderr)
        burla.remote_parallel_map(quick, [1], spinner=True);
        """
    )
    assert (kernel.text(cell), kernel.text(cell, "stderr")) == ("out 1\n", "err 1\n")
    assert kernel.of(cell, "display_data", "comm_open") == []


def test_capture_gets_every_line_even_of_a_flood(kernel: Kernel):
    lines = flood.LINES + 100
    kernel.run(f"%%capture captured\nburla.remote_parallel_map(lambda n: print('x\\n' * n, end=''), [{lines}])", LIVE)
    cell = kernel.run("print(captured.stdout.count('x\\n'), repr(captured.stderr))")
    assert kernel.text(cell) == f"{lines} ''\n"


def test_without_a_live_front_end_every_line_of_a_flood_arrives(kernel: Kernel):
    lines = flood.LINES + 100
    cell = kernel.run(f"burla.remote_parallel_map(lambda n: print('x\\n' * n, end=''), [{lines}]);")
    assert kernel.text(cell) == "x\n" * lines


def test_a_flood_stops_where_a_front_end_draws_and_the_end_says_so(kernel: Kernel):
    lines = flood.LINES + 100
    cell = kernel.run(f"burla.remote_parallel_map(lambda n: print('x\\n' * n, end=''), [{lines}]);", LIVE)
    assert kernel.text(cell) == "x\n" * flood.LINES
    assert kernel.text(cell, "stderr").count("in the log of the job only") == 1
    (shown,) = kernel.displayed(cell)
    assert f"Log: the last {view.LAST_LINES_OF_FLOOD} of {lines:,} lines, 100 of which are not in" in shown["text/html"]


def test_bytes_that_are_no_text_are_shown_escaped(kernel: Kernel):
    cell = kernel.run("burla.remote_parallel_map(lambda x: __import__('os').write(1, b'a\\xffb\\n'), [1]);")
    assert kernel.text(cell) == "a\\udcffb\n"


def test_prints_of_a_thread_go_to_the_cell_that_started_it(kernel: Kernel):
    owner = kernel.run(
        """
        def late(x):
            time.sleep(0.5)
            print("late", x)
        threading.Thread(target=burla.remote_parallel_map, args=(late, range(4))).start()
        time.sleep(0.2)  # the thread has asked which cell it is of
        """
    )
    other = kernel.run("for _ in range(20):\n    time.sleep(0.1)\n    print('own')")
    kernel.wait(lambda: kernel.text(owner).count("late") == 4)
    assert kernel.text(other) == "own\n" * 20


def test_another_cell_does_not_capture_what_a_thread_prints_for_its_own(kernel: Kernel):
    owner = kernel.run(
        """
        def later(x):
            time.sleep(0.6)
            print("later", x)
        burla.submit(later, range(4)).follow(wait=False)
        """
    )
    kernel.run("%%capture captured\ntime.sleep(2)")
    kernel.wait(lambda: kernel.of(owner, "update_display_data"))
    cell = kernel.run("print(repr(captured.stdout), captured.outputs)")
    assert kernel.text(cell) == "'' []\n"
    assert kernel.text(owner).count("later") == 4


# what stays ----------------------------------------------------------------------------------------------------------


def test_a_longer_job_leaves_static_html_and_no_widget(kernel: Kernel):
    cell = kernel.run(
        """
        def slow(x):
            time.sleep(0.8)
            print("slow", x)
        burla.remote_parallel_map(slow, range(4));
        """
    )
    first = kernel.of(cell, "display_data")[0]["content"]["data"]
    assert WIDGET in first and first["text/plain"].startswith("burla: slow")
    (shown,) = kernel.displayed(cell)
    assert set(shown) == {"text/plain", "text/html"}
    assert "4/4 calls done" in shown["text/plain"] and "4/4 calls done" in shown["text/html"]
    assert "attach" not in shown["text/plain"], "a job that nobody needs any more is forgotten"
    opened, closed = (
        {one["content"]["comm_id"] for one in kernel.of(cell, kind)} for kind in ("comm_open", "comm_close")
    )
    assert opened == closed != set()


def test_a_job_that_failed_says_what_failed_and_how_to_come_back(kernel: Kernel):
    cell = kernel.run(
        """
        def fail(x):
            time.sleep(1.2)
            raise ValueError("no luck")
        try:
            burla.remote_parallel_map(fail, range(2))
        except ValueError as error:
            print(error.burla_job.id)
        """
    )
    (shown,) = kernel.displayed(cell)
    assert f"burla.attach({kernel.text(cell).strip()!r})" in shown["text/plain"]
    assert "ValueError at line 3 of a cell: no luck" in shown["text/plain"]
    assert "Traceback (most recent call last)" in shown["text/html"]


def test_a_notebook_that_is_run_without_a_front_end_keeps_no_widgets_in_its_outputs():
    source = "import burla, time\nburla.remote_parallel_map(time.sleep, [0.8] * 4);"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=60).execute()
    (output,) = notebook.cells[0].outputs
    assert set(output["data"]) == {"text/plain", "text/html"}
    assert len(json.dumps(notebook)) < 100_000


@pytest.mark.parametrize("missing", ["ipywidgets", "anywidget"])
def test_what_is_not_installed_is_done_without(kernel: Kernel, missing: str):
    cell = kernel.run(
        f"""
        import sys
        kept = {{name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == {missing!r}}}
        sys.modules[{missing!r}] = None
        try:
            burla.remote_parallel_map(lambda x: (print("here", x), time.sleep(0.8)), range(4));
        finally:
            sys.modules.update(kept)
            if {missing!r} not in kept:
                del sys.modules[{missing!r}]
        """
    )
    assert sorted(kernel.text(cell).split("\n")) == ["", *(f"here {x}" for x in range(4))]
    (shown,) = kernel.displayed(cell)
    assert "4/4 calls done" in shown["text/html"]
    widgets = any(WIDGET in one["content"]["data"] for one in kernel.of(cell, "display_data"))
    assert widgets == (missing == "anywidget")


# what calls display --------------------------------------------------------------------------------------------------


def test_what_calls_display_is_shown_among_what_they_print(kernel: Kernel):
    line = inband.encode({"text/plain": "<figure>", "image/png": "AAAA"}, {"image/png": {"width": 7}})
    cell = kernel.run(
        f"burla.remote_parallel_map(lambda x: print('before\\n' + {line!r} + 'after'), [0, 0], max_parallelism=1);"
    )
    kinds = [one["msg_type"] for one in kernel.of(cell, "stream", "display_data")]
    assert kinds == ["stream", "display_data", "display_data", "stream", "display_data", "display_data", "stream"]
    assert kernel.text(cell) == "before\nafter\nbefore\nafter\n"
    label, figure, *_ = [one["content"] for one in kernel.of(cell, "display_data")]
    assert label["data"]["text/plain"] == "input 0:"
    assert figure["data"] == {"text/plain": "<figure>", "image/png": "AAAA"}
    assert figure["metadata"] == {"image/png": {"width": 7}}


def test_a_single_call_displays_without_a_label_and_too_much_is_counted(kernel: Kernel):
    lines = inband.encode({"text/plain": "one"}, {}) * (view.DISPLAYS + 3)
    cell = kernel.run(f"burla.remote_parallel_map(lambda x: print({lines!r}, end=''), [0]);")
    assert [one["text/plain"] for one in kernel.displayed(cell)] == ["one"] * view.DISPLAYS
    assert kernel.text(cell, "stderr") == "burla: 3 more displays of calls are not shown\n"


# a front end ---------------------------------------------------------------------------------------------------------


def begin_in_background(kernel: Kernel) -> str:
    """Start a job that runs until it is cancelled, and is followed by a thread; return its cell once it shows."""
    cell = kernel.run(
        """
        def endless(x):
            print("first", x)
            time.sleep(60)
        burla.submit(endless, range(3), max_parallelism=1).follow(wait=False)
        """
    )
    kernel.wait(lambda: kernel.of(cell, "display_data"))
    return cell


def comms(kernel: Kernel, cell: str) -> dict[str, str]:
    """Return the comms of a cell's log and buttons."""
    found = {}
    for one in kernel.of(cell, "comm_open"):
        state = one["content"]["data"]["state"]
        name = "log" if "_esm" in state else state.get("description")
        if name:
            found[name] = one["content"]["comm_id"]
    return found


def batches(kernel: Kernel, comm_id: str) -> list[dict[str, Any]]:
    """Return what was sent to a log."""
    mine = (one for one in kernel.published if one["content"].get("comm_id") == comm_id)
    return [
        json.loads(bytes(one["buffers"][0]))
        for one in mine
        if one["content"]["data"].get("content", {}).get("kind") == "lines"
    ]


def test_every_front_end_that_says_hello_gets_all_lines_and_cancel_works_when_pressed_twice(kernel: Kernel):
    cell = begin_in_background(kernel)
    log, cancel = comms(kernel, cell)["log"], comms(kernel, cell)["Cancel"]
    whole = {"first": 0, "index": [0], "stream": [1], "text": ["first 0"]}
    for number in (1, 2):
        kernel.tell(log, {"kind": "hello", "id": number})
        kernel.wait(lambda number=number: len(batches(kernel, log)) == number)
    assert batches(kernel, log) == [whole, whole]
    kernel.tell(cancel, {"event": "click"})
    kernel.tell(cancel, {"event": "click"})
    kernel.wait(lambda: kernel.of(cell, "update_display_data"))
    (shown,) = kernel.displayed(cell)
    assert shown["text/plain"].startswith("burla: endless: cancelled")
