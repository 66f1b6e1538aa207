"""A real JupyterLab or Notebook 7 in a real Chromium, and one notebook open in it."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Locator, Page

CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
APPS = {"lab": "jupyterlab", "notebook": "notebook"}
START_S = 60
THEMES = "@jupyterlab/apputils-extension:themes"
RUN_TRIES = 5  # a front end sometimes swallows the keys, or forgets the cell, right after it has loaded
SETTLE_MS = 300
OUTPUT = ".jp-OutputArea-output"
CONNECTED_TIMES = 5


class Server:
    """A Jupyter server with folders of its own; `root` holds its notebooks."""

    def __init__(self, app: str):
        self.app = app
        self.home = Path(tempfile.mkdtemp(prefix="burla-lab-"))
        self.root = self.home / "notebooks"
        self.root.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        self._write("config/labconfig/page_config.json", {"buildCheck": False, "buildAvailable": False})
        news = {"fetchNews": "false", "checkForUpdates": False}
        self._write("settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings", news)
        environ = os.environ | {
            "HOME": str(self.home),
            "JUPYTER_CONFIG_DIR": str(self.home / "config"),
            "JUPYTER_DATA_DIR": str(self.home / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.home / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces"),
            "JUPYTER_PLATFORM_DIRS": "1",
            "IPYTHONDIR": str(self.home / "ipython"),
        }
        command = [
            sys.executable, "-m", APPS[app], "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}",
        ]  # fmt: skip
        self._log = open(self.home / "server.log", "w")
        self._process = subprocess.Popen(
            command, env=environ, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._await_start()

    def _write(self, path: str, content: object) -> None:
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    def _await_start(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                self.api("status")
                return
            except OSError:
                log = (self.home / "server.log").read_text()[-3000:]
                assert self._process.poll() is None and time.monotonic() < until, log
                time.sleep(0.1)

    def add_kernel(self, name: str) -> None:
        """Offer a kernel of this Python with another ipykernel; `name`: such as "ipykernel 7.3.0"."""
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "env": {"PYTHONPATH": f"{_package(name)}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        }
        self._write(f"data/kernels/{kernel_name(name)}/kernel.json", spec)

    def api(self, path: str, method: str = "GET", body: object = None) -> Any:
        """Ask the server's own API."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            data = reply.read()
        return json.loads(data) if data else None

    def set_theme(self, theme: str) -> None:
        """Have pages that are opened from now on in this theme."""
        request = urllib.request.Request(
            f"{self.url}/lab/api/settings/{THEMES}",
            method="PUT",
            data=json.dumps({"raw": json.dumps({"theme": theme})}).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        urllib.request.urlopen(request, timeout=20).close()

    def end_kernels(self) -> None:
        """End all sessions; a notebook that is opened then has a fresh kernel."""
        for session in self.api("sessions"):
            self.api(f"sessions/{session['id']}", "DELETE")

    def close(self) -> None:
        """End the server and its kernels."""
        self.end_kernels()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Notebook:
    """A notebook that is open on a page."""

    def __init__(self, server: Server, page: Page, path: str, shots: Path):
        self.server = server
        self.page = page
        self.path = path
        self.file = server.root / path
        self.errors: list[str] = []
        self._shots = shots
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("pageerror", lambda error: self._note(error.stack or str(error)))
        page.on("request", lambda request: self._note_request(request.url))
        self.open()

    def _note(self, error: str) -> None:
        if "blob:" in error or "burla" in error:  # of the code of a widget; the front ends have errors of their own
            self.errors.append(error)

    def _note_request(self, url: str) -> None:
        if not url.startswith((self.server.url, "data:", "blob:")):
            self.errors.append(f"a resource of another host: {url}")

    def open(self, busy: bool = False) -> None:
        """Load the page; also once more. `busy`: the kernel runs a cell now."""
        kind = "doc/tree" if self.server.app == "lab" else "notebooks"
        self.page.goto(f"{self.server.url}/{kind}/{self.path}?token={self.server.token}", wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=START_S * 1000)
        self.wait_kernel(("busy", "unknown") if busy else ("idle",))

    def wait_kernel(self, states: tuple[str, ...] = ("idle",)) -> None:
        """Return when the page is connected to its kernel, and shows that as one of `states`."""
        times = 0  # a page says idle for a moment before it is connected, and then forgets cells that were run

        def connected() -> bool:
            nonlocal times
            kernel = self._kernel()
            shown = self.page.locator(".jp-Notebook-ExecutionIndicator").first.get_attribute("data-status")
            times = times + 1 if kernel["connections"] > 0 and shown in states else 0
            return times >= CONNECTED_TIMES

        self.until(connected, START_S, "the kernel")

    def _kernel(self) -> dict[str, Any]:
        """Return what the server says of the kernel."""
        kernels = [session["kernel"] for session in self.server.api("sessions") if session["path"] == self.path]
        return kernels[0] if kernels else {"connections": 0}

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def output(self, number: int) -> Locator:
        return self.cell(number).locator(".jp-Cell-outputArea")

    def text(self, number: int) -> str:
        """Return what the outputs of a cell say."""
        return "\n".join(text.rstrip("\n") for text in self.output(number).locator(OUTPUT).all_inner_texts())

    def prompt(self, number: int) -> str:
        return self.cell(number).locator(".jp-InputPrompt").first.inner_text().strip()

    def start(self, number: int) -> None:
        """Run a cell; return when it has begun."""
        before = self.prompt(number)
        for _ in range(RUN_TRIES):
            self.cell(number).locator(".jp-InputPrompt").first.click()
            self.page.keyboard.press("Control+Enter")
            if self._comes(lambda: self.prompt(number) != before, 3):
                self.page.wait_for_timeout(SETTLE_MS)
                if self.prompt(number) != before:
                    return
        raise AssertionError(f"cell {number} does not run")

    def wait(self, number: int, timeout_s: float = 60) -> None:
        """Return when a cell has ended."""
        self.until(lambda: self.prompt(number) not in ("[ ]:", "[*]:"), timeout_s, f"the end of cell {number}")

    def run(self, number: int, timeout_s: float = 60) -> str:
        """Run a cell to its end; return what it shows."""
        self.start(number)
        self.wait(number, timeout_s)
        return self.text(number)

    def until(self, condition: Callable[[], object], timeout_s: float = 15, what: str = "the condition") -> None:
        """Return as soon as a condition holds, while the page goes on; fail if it does not in time."""
        if not self._comes(condition, timeout_s):
            self.shot("failed")
            raise AssertionError(f"{what} did not come in {timeout_s} s")

    def _comes(self, condition: Callable[[], object], timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                return False
            self.page.wait_for_timeout(30)
        return True

    def interrupt(self) -> None:
        """Press ■."""
        self.page.locator("[data-command='notebook:interrupt-kernel']").first.click()

    def restart_kernel(self) -> None:
        """Restart the kernel, whatever it does."""
        self.server.api(f"kernels/{self._kernel()['id']}/restart", "POST", {})
        self.wait_kernel()

    def save(self) -> dict[str, Any]:
        """Save the notebook; return what was saved."""
        before = self.file.stat().st_mtime_ns
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        self.until(lambda: self.file.stat().st_mtime_ns > before, 15, "the saved file")
        return nbformat.read(self.file, as_version=4)

    def distrust(self) -> None:
        """Change the saved notebook behind the server's back: what it has not signed is not trusted."""
        saved = nbformat.read(self.file, as_version=4)
        saved.cells[0].source += "\n# changed by somebody else"
        nbformat.write(saved, self.file)
        self.server.end_kernels()

    def shot(self, name: str) -> Path:
        """Take a screenshot."""
        path = self._shots / f"{name}.png"
        self.page.screenshot(path=path)
        return path


def kernel_name(name: str) -> str:
    return name.replace(" ", "-")


def _package(name: str) -> Path:
    """Return a folder with one version of a package; it stays beside this environment's own packages."""
    folder = Path(sys.prefix) / "other-versions" / kernel_name(name)
    if folder.exists():
        return folder
    python = sys.executable if importlib.util.find_spec("pip") else sys._base_executable  # type: ignore[attr-defined]
    new = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={new}", name.replace(" ", "==")]
    subprocess.run(install, check=True, timeout=120)
    try:
        new.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(new)
    return folder


def write_notebook(folder: Path, cells: list[str], kernel: str) -> str:
    """Write a notebook with these cells; return its name."""
    name = f"{secrets.token_hex(4)}.ipynb"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata.kernelspec = {"name": kernel, "display_name": kernel, "language": "python"}
    nbformat.write(notebook, folder / name)
    return name


def launch(playwright: Any) -> Browser:
    """Start Debian's Chromium."""
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), headless=True, args=CHROMIUM)
