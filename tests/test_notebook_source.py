"""The cells behind a model, in a real kernel, a real IPython and real notebooks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nbdeploy.notebook_source import cells, notebook_path, packages_changed, stale
from nbdeploy.redaction import without_secrets

CLIP = """\
class Clip:
    def __init__(self, high):
        self.high = high

    def predict(self, X):
        return [min(x, self.high) for x in X]
"""
BARE = "class Bare(Exception):\n    limit = 3\n"
WIDEN = "import functools\n\ndef widen(x, by=2):\n    return x * by\n\nhalve = lambda x: x / 2\n"
START = "import json\nfrom nbdeploy import notebook_source as ns\n"


class Kernel:
    """A real kernel with a notebook on disk; cells are run as JupyterLab does, with their ids."""

    def __init__(self, folder):
        from jupyter_client.manager import start_new_kernel

        self.notebook = folder / "model.ipynb"
        env = {**os.environ, "JPY_SESSION_NAME": str(self.notebook), "PYTHONPATH": str(Path.cwd())}
        self.manager, self.client = start_new_kernel(kernel_name="python3", env=env, cwd=str(folder))
        self.cells = {}

    def run(self, source, cell=""):
        """Run a cell and give back what it printed as JSON, if it did."""
        content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = self.client.session.msg("execute_request", content)
        if cell:
            self.cells[cell] = source
            request["metadata"] = {"cellId": cell}
        self.client.shell_channel.send(request)
        printed = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                continue
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                printed.append(message["content"]["text"])
            elif message["msg_type"] == "error":
                raise AssertionError("\n".join(message["content"]["traceback"]))
            elif message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                self.client.get_shell_msg(timeout=60)
                break
        text = "".join(printed)
        return json.loads(text) if text.startswith(("[", '"', "0")) else None

    def save_notebook(self, **changed):
        """Write the notebook as JupyterLab does, with some cells as they are on the screen now."""
        listed = [
            {"cell_type": "code", "id": cell, "source": source.splitlines(keepends=True), "metadata": {}, "outputs": []}
            for cell, source in {**self.cells, **changed}.items()
        ]
        self.notebook.write_text(json.dumps({"cells": listed, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))

    def record(self, *names):
        return self.run(f"recorded = ns.cells([{', '.join(names)}]); print(json.dumps(recorded))")

    def stale(self):
        return self.run("print(json.dumps(ns.stale(recorded)))")

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory):
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    yield kernel
    kernel.stop()


@pytest.fixture
def kernel(shared_kernel):
    """One kernel for all: its history begins anew for each test."""
    shared_kernel.run("%reset -f in")
    shared_kernel.run("%reset -f")
    shared_kernel.cells.clear()
    shared_kernel.notebook.unlink(missing_ok=True)
    shared_kernel.run(START)
    shared_kernel.run("ns.watch_cells(get_ipython())\nns.watch_cells(get_ipython())")
    return shared_kernel


def test_the_cells_that_defined_what_a_model_needs_are_recorded_in_order_each_once(kernel):
    kernel.run(WIDEN, "c-widen")
    kernel.run("model = 1", "c-other")
    kernel.run(CLIP, "c-clip")
    kernel.run(BARE, "c-bare")
    widen, clip, bare = kernel.record("Clip", "widen", "halve", "Bare", "Clip")
    assert [widen["name"], clip["name"], bare["name"]] == ["widen, <lambda>", "Clip", "Bare"]
    assert [widen["cell"], clip["cell"], bare["cell"]] == ["c-widen", "c-clip", "c-bare"]
    assert clip["source"] == CLIP.rstrip("\n")
    assert widen["execution"] + 2 == clip["execution"] == bare["execution"] - 1
    assert len(clip["sha256"]) == 64
    assert kernel.stale() == []


def test_the_ids_are_sent_without_a_watch_too_when_the_notebook_was_saved(kernel):
    kernel.run("get_ipython().events.unregister('pre_run_cell', ns._note_cell); ns._cell_ids.clear()")
    kernel.run(CLIP, "c-clip")
    assert kernel.record("Clip")[0]["cell"] == ""
    kernel.save_notebook()
    assert kernel.record("Clip")[0]["cell"] == "c-clip"


def test_a_cell_that_was_run_again_or_edited_is_stale(kernel):
    kernel.run(CLIP, "c-clip")
    [clip] = kernel.record("Clip")
    n = clip["execution"]
    assert kernel.stale() == []
    kernel.run(CLIP, "c-clip")
    assert kernel.stale() == [f"cell {n}, which defines Clip, was run again"]
    kernel.run(CLIP.replace("min", "max"), "c-clip")
    assert kernel.stale() == [f"cell {n}, which defines Clip, was edited and run again"]
    kernel.record("Clip")
    assert kernel.stale() == []
    kernel.run("# nothing is left here", "c-clip")
    assert [reason.partition(", was")[2] for reason in kernel.stale()] == [" edited and run again"]


def test_a_cell_that_was_edited_and_not_run_is_seen_once_it_is_saved(kernel):
    kernel.run(CLIP, "c-clip")
    kernel.save_notebook()
    [clip] = kernel.record("Clip")
    assert kernel.stale() == []
    kernel.save_notebook(**{"c-clip": CLIP.replace("min", "max")})
    assert kernel.stale() == [f"cell {clip['execution']}, which defines Clip, was edited and not run since"]
    kernel.save_notebook(**{"c-clip": CLIP})
    assert kernel.stale() == []
    kernel.notebook.write_text("{half")
    assert kernel.stale() == []


def test_another_cell_or_object_of_the_name_is_stale(kernel):
    kernel.run(CLIP, "c-clip")
    [clip] = kernel.record("Clip")
    kernel.run("Clip = type('Clip', (), {})", "c-new")
    assert kernel.stale() == [f"Clip, which cell {clip['execution']} defined, is another object now"]
    kernel.run(CLIP.replace("min", "max"), "c-copy")
    assert kernel.stale()[0].startswith(f"Clip, which cell {clip['execution']} defined, was defined again by cell")


def test_without_cell_ids_the_source_and_the_names_tell(kernel):
    kernel.run(CLIP)
    [clip] = kernel.record("Clip")
    assert clip["cell"] == ""
    kernel.run("print(1)")
    assert kernel.stale() == []
    kernel.save_notebook(other="x = 1", clip=CLIP.replace("min", "max"))
    assert kernel.stale() == [f"cell {clip['execution']}, which defines Clip, was edited and not run since"]
    kernel.run(CLIP)
    assert kernel.stale() == [f"cell {clip['execution']}, which defines Clip, was run again"]
    kernel.run(CLIP + "# else\n")
    assert kernel.stale() == [f"cell {clip['execution']}, which defines Clip, was edited and run again"]


def test_an_object_older_than_the_last_run_belongs_to_the_run_before(kernel):
    kernel.run(CLIP, "c-clip")
    kernel.run("model = Clip(3)")
    kernel.run(CLIP, "c-clip")
    [clip] = kernel.record("type(model)")
    assert kernel.stale() == [f"cell {clip['execution']}, which defines Clip, was run again"]


def test_methods_given_later_decorators_and_magics_lead_to_their_cells(kernel):
    kernel.run(CLIP, "c-clip")
    kernel.run("def other(self, X):\n    return X\nClip.predict = other", "c-patch")
    kernel.run("%%time\nclass Timed:\n    def predict(self, X):\n        return X\nprint(end='')", "c-timed")
    kernel.run(
        "import functools\ndef quiet(f):\n    @functools.wraps(f)\n    def around(*a):\n        return f(*a)\n    return around",
        "c-quiet",
    )
    kernel.run("@quiet\ndef loud(x):\n    return x", "c-loud")
    kernel.run("import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int = 0", "c-point")
    found = kernel.run("print(json.dumps([[c['cell'] for c in ns.cells([x])] for x in (Clip, Timed, loud, Point)]))")
    assert found == [["c-clip", "c-patch"], ["c-timed"], ["c-quiet", "c-loud"], ["c-point"]]


def test_in_another_kernel_only_another_source_is_stale(kernel):
    kernel.run(CLIP, "c-clip")
    kernel.record("Clip")
    kernel.run("recorded[0]['session'] = 'another'; recorded[0]['execution'] = 999")
    assert kernel.stale() == []
    kernel.run(CLIP, "c-clip")
    assert kernel.stale() == []
    kernel.run(CLIP.replace("min", "max"), "c-clip")
    assert kernel.stale() == ["cell 999, which defines Clip, was edited and run again"]


def test_looking_again_costs_next_to_nothing(kernel):
    kernel.run(CLIP, "c-clip")
    kernel.save_notebook(**{f"c{i}": f"x = {i}\n" * 50 for i in range(2000)})
    kernel.record("Clip")
    [took] = kernel.run(
        "import time\nns.stale(recorded)\nt = time.perf_counter()\nfor _ in range(100):\n    ns.stale(recorded)\n"
        "print(json.dumps([(time.perf_counter() - t) / 100]))"
    )
    assert took < 0.005


def test_passwords_are_not_stored_and_a_version_has_at_most_a_megabyte(kernel):
    kernel.run(f"TOKEN = 'c4n4ry'\n{CLIP}", "c-clip")
    kernel.run("def long():\n    return 1\n" + "# filler\n" * 100_000, "c-long")
    clip, long = kernel.record("Clip", "long")
    assert "c4n4ry" not in json.dumps(clip)
    assert 'TOKEN = "***"' in clip["source"]
    assert len(long["source"]) == 200_000
    assert kernel.stale() == []


def test_the_kernel_knows_its_notebook(kernel):
    assert kernel.run("print(json.dumps(ns.notebook_path()))") == str(kernel.notebook)
    assert kernel.run("__vsc_ipynb_file__ = '/a/b.ipynb'\nprint(json.dumps(ns.notebook_path()))") == "/a/b.ipynb"


def test_nbclient_and_papermill_give_sources_without_ids(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook()
    code = START + "print(json.dumps([ns.cells([Clip]), ns.stale(ns.cells([Clip])), ns.notebook_path()]))"
    notebook.cells = [nbformat.v4.new_code_cell(one) for one in (CLIP, code)]
    env = {key: value for key, value in os.environ.items() if key != "JPY_SESSION_NAME"}
    NotebookClient(notebook, kernel_name="python3").execute(
        env={**env, "PYTHONPATH": str(Path.cwd())}, cwd=str(tmp_path)
    )
    [clip], reasons, path = json.loads(notebook.cells[1].outputs[0].text)
    assert (clip["execution"], clip["cell"], clip["source"]) == (1, "", CLIP.rstrip("\n"))
    assert (reasons, path) == ([], "")


def test_the_ipython_terminal_has_cells_too(tmp_path):
    code = f"""
    import json
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shell.run_cell({CLIP!r}, store_history=True)
    shell.run_cell("model = Clip(1)", store_history=True)
    shell.run_cell({CLIP!r}, store_history=True)
    from nbdeploy import notebook_source as ns
    ns.watch_cells(shell)
    old, new = ns.cells([type(shell.user_ns["model"])]), ns.cells([shell.user_ns["Clip"]])
    print(json.dumps([old[0]["execution"], ns.stale(old), new[0]["execution"], ns.stale(new), ns.notebook_path()]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
    )
    assert json.loads(done.stdout) == [1, ["cell 1, which defines Clip, was run again"], 3, [], ""]


def test_outside_ipython_there_are_no_cells():
    code = (
        f"{CLIP}\nfrom nbdeploy import notebook_source as ns\nprint(ns.cells([Clip]), ns.stale([]), ns.notebook_path())"
    )
    env = {key: value for key, value in os.environ.items() if key != "JPY_SESSION_NAME"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout == "[] [] -c\n"
    assert cells([Kernel]) == []
    assert stale([{"name": "Clip", "execution": 3, "cell": "a", "source": "", "sha256": "0", "session": "x"}]) == []


def test_a_saved_notebook_tells_a_shell_what_was_edited(tmp_path, monkeypatch):
    notebook = tmp_path / "a.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "id": "a", "source": [CLIP]}]}))
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "RTC:a.ipynb"))
    assert notebook_path() == str(notebook)
    one = {"name": "Clip", "execution": 3, "cell": "a", "source": "", "sha256": "0", "session": "x"}
    assert stale([one]) == [], "of another notebook"
    one["notebook"] = str(notebook)
    assert stale([one]) == ["cell 3, which defines Clip, was edited and not run since"]


def test_other_versions_of_packages_are_named_once_they_are_installed():
    import numpy as np

    assert packages_changed({"numpy": np.__version__, "no-such-package": "1"}) == []
    assert packages_changed({"numpy": "1.0.0"}) == [f"numpy is {np.__version__} here and 1.0.0 in the version"]
    started = time.perf_counter()
    packages_changed({"numpy": "1.0.0"})
    assert time.perf_counter() - started < 0.005


SECRETS = [
    'TOKEN = "c4n4ry"',
    "password: str = 'c4n4ry'",
    "connect(user='me', password=b'c4n4ry')",
    'os.environ["ANYTHING"] = "c4n4ry"',
    'os.environ.setdefault("ANYTHING", "c4n4ry")',
    'os.environ.update(ANYTHING="c4n4ry")',
    'os.putenv("ANYTHING", "c4n4ry")',
    'headers = {"Authorization": "Bearer c4n4ry"}',
    'config["db_password"] = "c4n4ry"',
    'self.api_key = f"{a}c4n4ry{b}"',
    'user, pwd = "me", "c4n4ry"',
    'SECRET = """one\nc4n4ry\ntwo"""',
    'SECRET = ("c4n"\n    "c4n4ry")',
    'TOKEN = os.environ.get("X", "c4n4ry")',
    "SECRET = f\"{login(password='x')} c4n4ry\"",
    "def connect(host, password='c4n4ry', *, token='c4n4ry'):\n    pass",
    'if password == "c4n4ry":\n    pass',
    'setattr(client, "password", "c4n4ry")',
    'x = 1; grün = "ü"; TOKEN = "c4n4ry"',
    "%env API_TOKEN=c4n4ry",
    "%set_env DB c4n4ry",
    "!export DB=c4n4ry",
    "!curl --token c4n4ry http://x",
    "out = !login --password=c4n4ry",
    '%%time\nTOKEN = "c4n4ry"\nrun()',
    'this is no python\nTOKEN = "c4n4ry"',
    'nor this (\nd = {"password": "c4n4ry"',
    'nor this (\nos.environ["X"] = "c4n4ry"',
    'nor this (\nTOKEN = """a\nc4n4ry"""',
    'url = "postgresql://me:c4n4ry@host/db"',
    'key = "AKIAC4N4RYC4N4RYC4N4"',
    'note = "AKIAC4N4RYC4N4RYC4N4"  # AKIAC4N4RYC4N4RYC4N4',
    'use("ghp_c4n4ryc4n4ryc4n4ryc4n4ryc4n4ryc4n4")',
    'pem = """-----BEGIN RSA PRIVATE KEY-----\nc4n4ry\n-----END RSA PRIVATE KEY-----"""',
    'TOKEN = "c4n4ry"\r\nx = 1',
]


@pytest.mark.parametrize("source", SECRETS)
def test_what_looks_like_a_secret_is_not_stored(source):
    found = without_secrets(source)
    assert "c4n4ry" not in found.lower()
    assert "***" in found


@pytest.mark.parametrize(
    "source", [CLIP, BARE, WIDEN, "%matplotlib inline\nx = 'ü'\n!ls", "tokenizer = 'bert'", "author = 'me'", ""]
)
def test_other_source_is_kept_as_it_is(source):
    assert without_secrets(source) == source
