"""Any notebook is run with parameters and kept, executed and as a page, whatever becomes of it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest

from gates import write_gate
from nbdeploy import notebook_run
from nbdeploy.errors import NotebookError, NotFound

ROOT = Path(notebook_run.__file__).parent.parent
PARAMETERS = ("rows: int = 1\nsince: str = ''", "parameters")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path, parameters=None, **options):
    return notebook_run.run(path, parameters, name="flight-delay", progress=False, **options)


def texts(executed):
    cells = nbformat.read(executed.notebook, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_a_notebook_is_kept_executed_and_as_a_page_in_a_dated_folder_of_the_users_own(here):
    path = write_gate(here / "weekly.ipynb", PARAMETERS, "print('rows', rows + 1, since)")
    executed = run(path, {"rows": "41"}, told={"since": "7d", "unheard": 1})

    assert executed.passed
    assert executed.error == ""
    assert texts(executed) == "rows 42 7d\n"
    folder = executed.notebook.parent
    assert folder.parent == here / "nbdeploy-reports" / "flight-delay"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{4}-weekly", folder.name)
    assert {path.name for path in folder.iterdir()} == {"weekly.ipynb", "weekly.html"}
    assert "rows 42 7d" in executed.html.read_text()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert executed.to_dict()["html"] == str(executed.html)
    assert "weekly.ipynb for flight-delay ran in" in repr(executed)
    assert "weekly.html" in executed._repr_html_()


def test_a_notebook_that_raises_is_kept_up_to_its_fault_with_its_error_in_one_line(here):
    path = write_gate(
        here / "a.ipynb",
        "print('before')",
        ("boom", "skip-execution"),
        "raise ValueError('no\\nsecond line')",
        "print('after')",
    )
    executed = run(path)

    assert executed.error == "In [3] `raise ValueError('no\\nsecond line')` raised ValueError: no"
    assert not executed.passed
    assert texts(executed).startswith("before")
    assert "after\n" not in texts(executed)
    assert "ValueError" in executed.html.read_text()


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("while True: pass", "it was not done after 2 s, and stopped in In [1] `while True: pass`"),
        ("import os; os._exit(3)", "its kernel died in In [1] `import os; os._exit(3)`: exit code 3"),
    ],
)
def test_what_does_not_end_or_dies_is_said(cell, why, here):
    begun = time.monotonic()
    assert run(write_gate(here / "a.ipynb", cell), timeout=2).error == why
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"row": 1}, "a.ipynb has no parameter 'row'. Did you mean 'rows'? It knows rows, since."),
        ({"rows": "many"}, "Parameter 'rows' is a int, got str 'many'"),
        ({"rows\n__import__('os')": 1}, "a.ipynb has no parameter"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused_before_anything_runs(parameters, said, here):
    path = write_gate(here / "a.ipynb", PARAMETERS, "open('ran', 'w')")
    with pytest.raises(NotebookError, match=re.escape(said)):
        run(path, parameters)
    assert not (here / "ran").exists()
    assert not (here / "nbdeploy-reports").exists()


def test_what_is_no_notebook_is_refused_in_a_line(here):
    (here / "text.ipynb").write_text("hello")
    with pytest.raises(NotebookError, match=r"text\.ipynb is not a Jupyter notebook"):
        run(here / "text.ipynb")
    with pytest.raises(NotFound, match=r"There is no notebook .*gone\.ipynb"):
        run(here / "gone.ipynb")


def test_a_secret_reaches_the_notebook_and_nothing_that_is_kept(here):
    secret = "canary-5812-secret"
    path = write_gate(here / "a.ipynb", "import os\nprint(os.environ['DB'])", "raise ValueError(os.environ['DB'])")
    executed = run(path, env={"DB": secret})
    assert executed.error.endswith("raised ValueError: ***")
    assert "***" in texts(executed)
    assert not [file for file in executed.notebook.parent.iterdir() if secret in file.read_text()]


def test_the_page_runs_nothing_and_asks_no_server(here):
    markup = "<script>document.title='x'</script><img src='https://example.com/x.png'><b>seen</b>"
    shown = f"from IPython.display import HTML, Javascript\nHTML({markup!r})"
    path = write_gate(here / "a.ipynb", shown, "from IPython.display import Javascript\nJavascript('alert(1)')")
    page = run(path).html.read_text()

    (policy,) = [tag for tag in re.findall(r"<meta[^>]*>", page) if "Content-Security-Policy" in tag]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:;" in policy
    assert page.index(policy) < page.index("<script") < page.index("<b>seen</b>")
    assert page.count("<script") == 1  # the user's own, which the policy stops
    assert {*re.findall(r"(?:src|href)=[\"'](https?:[^\"']+)", page)} == {"https://example.com/x.png"}


def test_cells_tagged_remove_input_show_their_outputs_alone(here):
    path = write_gate(
        here / "a.ipynb", ("rows = 1", "parameters"), ("print('sum', 1 + 1)", "remove-input"), "x = 'kept'"
    )
    page = run(path, {"rows": 2}).html.read_text()
    assert "sum 2" in page
    shown = page[page.index("<main>") :]
    assert "print" not in shown
    assert "kept" in shown


def test_two_at_once_get_a_folder_each(here):
    path = write_gate(here / "a.ipynb", "import time\ntime.sleep(0.3)")
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: run(path), range(2)))
    assert len({executed.notebook.parent for executed in both}) == 2
    assert all(executed.passed and executed.html.is_file() for executed in both)


CALLER = """
import sys
from nbdeploy import notebook_run
try:
    notebook_run.run(sys.argv[1], name="flight-delay")
except KeyboardInterrupt:
    sys.exit(77)
"""


def test_an_interrupt_ends_it_and_no_bar_is_shown_where_nobody_looks(here):
    path = write_gate(here / "a.ipynb", "open('on', 'w')\nwhile True: pass")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(path)], cwd=here, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (here / "on").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    left = psutil.Process(caller.pid).children(recursive=True)
    caller.send_signal(signal.SIGINT)
    assert caller.wait(timeout=20) == 77
    assert caller.stderr.read() == b""
    caller.stderr.close()
    gone, alive = psutil.wait_procs(left, timeout=5)
    assert gone
    assert not alive
