"""A real JupyterLab in a real Chromium, so that tests see what a user sees.

`serve_lab` owns a server, `open_browser` a browser, `Lab` is one browser tab of that server with a folder
of its own. The fixtures in conftest.py hand them out: tests ask for ``lab``.

    def test_summary(lab):
        lab.open(lab.write("one.ipynb", "1 + 1"))
        lab.run_all()
        assert "2" in lab.output(0).inner_text()
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import nbformat
import psutil
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",  # Chromium refuses to run as root without it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# What a user could choose too. Each one takes away something that moves while a test looks.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # With "full", cells that are not on the screen can never be clicked.
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/completer-extension:manager": {"autoCompletion": False},
}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}

# The application's own view of the open notebook: nothing is guessed from the page.
READ_STATE = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    if (!panel?.content?.model?.sharedModel || !panel.sessionContext) {
        return {ready: false, kernel: null, connection: null, counts: [], errors: []};
    }
    const kernel = panel.sessionContext.session?.kernel;
    const cells = panel.content.widgets.filter(
        (cell) => cell.model.type === 'code' && cell.model.sharedModel.getSource().trim());
    return {
        ready: panel.context.isReady && panel.sessionContext.isReady && !!kernel,
        kernel: kernel?.status ?? null,
        connection: kernel?.connectionStatus ?? null,
        counts: cells.map((cell) => cell.model.executionCount),
        errors: cells.flatMap((cell) => cell.model.outputs.toJSON())
            .filter((output) => output.output_type === 'error')
            .map((output) => `${output.ename}: ${output.evalue}`),
    };
}"""
RUN_COMMAND = """async ([command, arguments_, milliseconds]) => {
    const late = new Promise((_, reject) =>
        setTimeout(() => reject(new Error(`${command} took more than ${milliseconds} ms`)), milliseconds));
    await Promise.race([window.jupyterapp.commands.execute(command, arguments_), late]);
}"""
APPEND_CELL = """([source]) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    const cells = notebook.model.sharedModel;
    cells.insertCell(cells.cells.length, {cell_type: 'code', source});
    notebook.activeCellIndex = notebook.widgets.length - 1;
    notebook.deselectAll();
}"""
SELECT_CELL = """([index]) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = index;
    notebook.deselectAll();
}"""
READ_OUTPUTS = """([index]) => {
    const cells = window.jupyterapp.shell.currentWidget.content.widgets;
    return cells.at(index).model.outputs.toJSON();
}"""


@dataclass(frozen=True)
class LabServer:
    """A running JupyterLab server: where it answers, what it serves, and where its kernels keep their state."""

    url: str
    token: str
    pid: int
    root: Path
    state: Path

    @property
    def home(self) -> Path:
        """``NBDEPLOY_HOME`` of every kernel."""
        return self.state / "home"

    @property
    def bentoml_home(self) -> Path:
        """``BENTOML_HOME`` of every kernel."""
        return self.state / "bentoml"

    @property
    def settings(self) -> Path:
        """What a tab changes in the settings, the theme for one."""
        return self.state / "settings"

    def request(self, method: str, path: str, body: Any = None, timeout: float = 15) -> Any:
        """Ask the server's REST interface; the answer's JSON, or None."""
        headers = {"Authorization": f"token {self.token}"}
        response = httpx.request(method, self.url + path, json=body, headers=headers, timeout=timeout, trust_env=False)
        response.raise_for_status()
        return response.json() if response.content else None

    def sessions(self) -> list[dict[str, Any]]:
        """The open notebooks that have a kernel."""
        found: list[dict[str, Any]] = self.request("GET", "/api/sessions")
        return found

    def close_sessions(self) -> None:
        """Shut every kernel down."""
        for session in self.sessions():
            with suppress(httpx.HTTPStatusError):  # it ended by itself
                self.request("DELETE", f"/api/sessions/{session['id']}")

    def log(self, characters: int = 4000) -> str:
        """The end of what the server and its kernels wrote."""
        return (self.state / "log").read_text(errors="replace")[-characters:]


@contextmanager
def serve_lab(root: Path, timeout: float = 90) -> Iterator[LabServer]:
    """Run a JupyterLab on `root` that knows nothing of the user's own settings and kernels."""
    state = Path(tempfile.mkdtemp(prefix="lab-"))  # short: sockets live below it
    overrides = state / "overrides"
    for path in (overrides, state / "settings", state / "home", state / "bentoml"):
        path.mkdir(mode=0o700)
    (overrides / "overrides.json").write_text(json.dumps(SETTINGS))
    port, token = _free_port(), uuid.uuid4().hex
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"),
        *("--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", "--ServerApp.disable_check_xsrf=True"),
        *(f"--ServerApp.root_dir={root}", f"--LabApp.app_settings_dir={overrides}", "--LabApp.news_url=None"),
    ]
    with (state / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=root, env=_environment(state), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    server = LabServer(f"http://127.0.0.1:{port}", token, process.pid, root, state)
    try:
        _wait_for_server(server, process, timeout)
        yield server
    finally:
        _end(process)
        shutil.rmtree(state, ignore_errors=True)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium, and nothing that Playwright would download."""
    wished = os.environ.get("NBDEPLOY_CHROMIUM")
    found = next(filter(None, map(shutil.which, [wished] if wished else CHROMIUM_NAMES)), None)
    if not found:
        msg = "there is no Chromium: install the package chromium, or leave these tests out with -m 'not browser'"
        raise FileNotFoundError(msg)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Lab:
    """One tab of a JupyterLab, and a folder on the server that only it uses.

    Paths are relative to that folder. Nothing here sleeps for a fixed time to be on the safe side: every
    wait ends when what it waits for is there, or raises `TimeoutError` with the state it saw last.
    """

    def __init__(self, server: LabServer, page: Page, folder: Path, shots: Path) -> None:
        self.server = server
        self.page = page
        self.folder = folder
        self.shots = shots
        self.console: list[str] = []
        self.page_errors: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.page_errors.append(str(error)))

    # Notebooks

    def write(self, name: str, *sources: str) -> str:
        """Make a notebook with one code cell for each source, and return its name."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.folder / name)
        return name

    def copy(self, path: Path) -> str:
        """Copy a file into the folder, and return its name."""
        shutil.copy(path, self.folder / path.name)
        return path.name

    def read(self, name: str) -> nbformat.NotebookNode:
        """The notebook as it was last saved."""
        return nbformat.read(self.folder / name, as_version=4)

    def open(self, name: str, timeout: float = 60) -> Lab:
        """Open a notebook in a fresh workspace, and wait until its kernel is idle."""
        path = urllib.parse.quote(str((self.folder / name).relative_to(self.server.root)))
        query = urllib.parse.urlencode({"reset": "", "token": self.server.token})
        url = f"{self.server.url}/lab/workspaces/{uuid.uuid4().hex[:8]}/tree/{path}?{query}"
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=timeout * 1000)
        self.wait_ready(timeout)
        return self

    def save(self) -> None:
        """Save the open notebook."""
        self.command("docmanager:save")

    # Running

    def command(self, name: str, timeout: float = 60, **arguments: Any) -> None:
        """Run one of JupyterLab's commands to its end."""
        self.page.evaluate(RUN_COMMAND, [name, arguments, timeout * 1000])

    def run_all(self, timeout: float = 180, *, check: bool = True) -> dict[str, Any]:
        """Run every cell; the state after it.

        JupyterLab stops at an error and says nothing, so with `check` a cell that raised or that never ran is an
        `AssertionError`.
        """
        self.command("notebook:run-all-cells", timeout)
        self.wait_idle(timeout)
        state = self.state()
        if check:
            assert not state["errors"], f"cells raised: {state['errors']}"
            assert None not in state["counts"], f"cells did not run: {state['counts']}"
        return state

    def run_cell(self, index: int, timeout: float = 120) -> list[dict[str, Any]]:
        """Run one cell, counted over cells of all kinds, and return its outputs."""
        self.page.evaluate(SELECT_CELL, [index])
        self.command("notebook:run-cell", timeout)
        self.wait_idle(timeout)
        return self.outputs(index)

    def insert_and_run(self, source: str, timeout: float = 120) -> list[dict[str, Any]]:
        """Append a cell, run it, and return its outputs."""
        self.page.evaluate(APPEND_CELL, [source])
        self.command("notebook:run-cell", timeout)
        self.wait_idle(timeout)
        return self.outputs(-1)

    def click(self, button: Locator, shows: str | Locator, timeout: float = 60) -> None:
        """Click, wait until the page shows what the click is for, then until the kernel is done.

        The kernel is still idle right after a click: its callback has not arrived. So what the page shows comes first.
        """
        button.click()
        self.wait_for(shows, timeout)
        self.wait_idle(timeout)

    def restart_kernel(self, timeout: float = 60) -> None:
        """Restart the kernel, as its menu does, without the question."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
        self.wait_ready(timeout)

    def interrupt_kernel(self) -> None:
        """Interrupt the kernel."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")

    def shutdown_kernel(self) -> None:
        """End the kernel and leave the page as it is."""
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")

    # Looking

    def state(self) -> dict[str, Any]:
        """``ready``, ``kernel``, ``connection``; execution ``counts`` and ``errors`` of the cells that hold code."""
        state: dict[str, Any] = self.page.evaluate(READ_STATE)
        return state

    def cell(self, index: int) -> Locator:
        """A cell of the open notebook, counted over cells of all kinds; -1 is the last."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """What a cell shows below its code."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """What a cell holds as outputs, as it would be saved."""
        outputs: list[dict[str, Any]] = self.page.evaluate(READ_OUTPUTS, [index])
        return outputs

    def shot(self, name: str, of: Locator | None = None) -> Path:
        """Take a picture of the page, or `of` a part of it. ``LAB_SHOTS`` names a folder that keeps them."""
        path = self.shots / f"{name}.png"
        (of or self.page).screenshot(path=path)
        return path

    def set_theme(self, theme: Literal["light", "dark"]) -> None:
        """Change JupyterLab's theme, and wait until the page wears it."""
        self.command("apputils:change-theme", theme=THEMES[theme])
        expected = "true" if theme == "light" else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{expected}']", state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")  # it shows for a change of theme too

    def set_viewport(self, width: int, height: int) -> None:
        """Resize the page."""
        self.page.set_viewport_size({"width": width, "height": height})

    # Waiting

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait for an open notebook whose kernel is connected and idle."""
        self._wait("the notebook and its kernel are ready", _is_ready, timeout)

    def wait_idle(self, timeout: float = 60, settle: float = 0.15) -> None:
        """Wait for an idle kernel at two looks in a row: one may fall between two messages of one click."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._wait("the kernel is idle", _is_idle, deadline - time.monotonic())
            self.page.wait_for_timeout(settle * 1000)
            if _is_idle(self.state()):
                return
        msg = f"in {timeout:.0f} s the kernel did not stay idle: {self.state()}"
        raise TimeoutError(msg)

    def wait_for(self, what: str | Locator, timeout: float = 60) -> None:
        """Wait until a text, or an element, is visible in the page."""
        locator = self.page.get_by_text(what) if isinstance(what, str) else what
        locator.first.wait_for(state="visible", timeout=timeout * 1000)

    def _wait(self, what: str, holds: Callable[[dict[str, Any]], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not holds(state := self.state()):
            if time.monotonic() > deadline:
                console = "\n".join(self.console[-20:])
                msg = f"in {timeout:.0f} s it did not come true that {what}: {state}\n{console}"
                raise TimeoutError(msg)
            self.page.wait_for_timeout(50)  # unlike time.sleep, lets the page's events through

    def _hear(self, message: ConsoleMessage) -> None:
        self.console.append(f"{message.type}: {message.text}")


def _is_ready(state: dict[str, Any]) -> bool:
    return bool(state["ready"] and state["connection"] == "connected" and _is_idle(state))


def _is_idle(state: dict[str, Any]) -> bool:
    return bool(state["kernel"] == "idle")


def _environment(state: Path) -> dict[str, str]:
    """The environment of the server and its kernels: no outer Jupyter, no state of the user's."""
    foreign = ("JUPYTER", "JPY_", "NBDEPLOY_", "BENTOML_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # The kernels import the nbdeploy that the tests import, installed or not.
    spec = importlib.util.find_spec("nbdeploy")
    locations = spec.submodule_search_locations if spec else None
    package = [str(Path(location).parent) for location in locations or []]
    return {
        **kept,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join([*package, *filter(None, [kept.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_DIR": str(state / "config"),
        "JUPYTER_DATA_DIR": str(state / "data"),
        "JUPYTER_RUNTIME_DIR": str(state / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(state / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(state / "workspaces"),
        "IPYTHONDIR": str(state / "ipython"),
        "NBDEPLOY_HOME": str(state / "home"),
        "BENTOML_HOME": str(state / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
    }


def _wait_for_server(server: LabServer, process: subprocess.Popen[bytes], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        if process.poll() is not None:
            msg = f"jupyter lab ended with code {process.returncode}:\n{server.log()}"
            raise RuntimeError(msg)
        try:
            server.request("GET", "/api/status", timeout=2)
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                msg = f"jupyter lab did not answer in {timeout:.0f} s:\n{server.log()}"
                raise RuntimeError(msg) from None
            time.sleep(0.1)
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server, which ends its kernels; kill what does not go."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for child in [*children, psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
