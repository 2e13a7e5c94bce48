"""A gate passes only when everything held, and says in one line why it did not."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import json
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from nbdeploy import arrow_body, gate, home
from nbdeploy.errors import GateError, NotFound
from nbdeploy.gate_parameters import declared, fitted
from nbdeploy.gate_result import Check, GateResult
from nbdeploy.signature import Output, Signature
from nbdeploy.signature_inference import infer_columns

WHO: dict[str, str] = {"deployment": "flight-delay", "version": "v1", "digest": "0123456789abcdef" * 4}
CHECK = "import nbdeploy.gate as g\ng.check('accuracy', 0.9, at_least=0.8)"
ROOT = Path(gate.__file__).parent.parent


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a notebook from the sources of its code cells; ``(source, tag)`` tags one."""

    def write_notebook(*cells: str | tuple[str, str], name: str = "gate.ipynb", metadata: Any = None) -> Path:
        path = tmp_path / name
        code = [(cell, "") if isinstance(cell, str) else cell for cell in cells]
        body = [
            {
                "cell_type": "code",
                "source": source.splitlines(keepends=True),
                "metadata": {"tags": [tag]} if tag else {},
                "outputs": [],
                "execution_count": None,
            }
            for source, tag in code
        ]
        path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": metadata or {}, "cells": body}))
        return path

    return write_notebook


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert not kernels(before)


def kernels(before: set[int], process: psutil.Process | None = None) -> list[psutil.Process]:
    children = (process or psutil.Process()).children(recursive=True)
    return [child for child in children if child.pid not in before and child.status() != psutil.STATUS_ZOMBIE]


def run(notebook: Path, parameters: Mapping[str, object] | None = None, **options: Any) -> GateResult:
    return gate.run(notebook, parameters or {}, **WHO, **{"timeout": 60, "progress": False, **options})


# Which notebooks pass -------------------------------------------------------------------------------------------------

NOTEBOOKS: dict[str, tuple[list[str | tuple[str, str]], str]] = {
    "ok": (["x = 1", CHECK], ""),
    "failing": ([CHECK, "g.check('recall', 0.71, at_least=0.8)", "1"], "recall: 0.71, wanted at least 0.8"),
    "sys.exit(0) first": (["import sys; sys.exit(0)", CHECK], "In [1] `import sys; sys.exit(0)` raised SystemExit: 0"),
    "empty": ([], "no check was recorded"),
    "swallowed assert": (["try:\n    assert 1 == 2\nexcept AssertionError:\n    pass"], "no check was recorded"),
    "killed kernel": ([CHECK, "import os; os.kill(os.getpid(), 9)"], "its kernel died in In [2] `import os"),
    "os._exit": ([CHECK, "import os; os._exit(0)"], "exit code 0"),
    "endless": ([CHECK, "while True: pass"], "it was not done after 3 s, and stopped in In [2] `while True: pass`"),
    "raises-exception tag": ([CHECK, ("1 / 0", "raises-exception"), "2"], "raised ZeroDivisionError: division by zero"),
    "quit()": ([CHECK, "quit()"], "it asked its own kernel to quit"),
    "KeyboardInterrupt": ([CHECK, "raise KeyboardInterrupt"], "raised KeyboardInterrupt"),
    "100 MB output": ([CHECK, "for _ in range(100): print('x' * 1_000_000)"], "it put out more than 20 MB, in In [2]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOTEBOOKS)
def test_only_the_notebook_whose_checks_all_hold_passes(kind: str, write: Callable[..., Path]) -> None:
    cells, why = NOTEBOOKS[kind]
    result = run(write(*cells), timeout=3 if kind == "endless" else 60)
    assert result.passed == (kind == "ok")
    assert why in result.reason
    assert bool(why) == bool(result.reason)
    assert "\n" not in result.reason
    assert result.seconds < 20
    assert result.notebook.stat().st_size < 21_000_000


def test_a_passed_gate_holds_its_checks_and_its_parameters(write: Callable[..., Path]) -> None:
    path = write(
        ("limit = 0.5", "parameters"), "import nbdeploy.gate as g\ng.check('a', 0.7, at_least=limit, detail='<b>')"
    )
    result = run(path, {"limit": np.float32(0.25)})
    assert result.passed
    assert result.checks == (Check("a", True, 0.7, at_least=0.25, detail="<b>"),)
    assert result.parameters == {"limit": 0.25}
    assert repr(result).splitlines()[0].startswith("flight-delay v1 passed its gate: 1 of 1 checks passed in ")
    assert "<b>" not in result._repr_html_().replace("<b>flight", "")


def test_a_check_that_fails_stops_nothing_and_comes_before_the_fault_that_follows(write: Callable[..., Path]) -> None:
    bad = "import nbdeploy.gate as g\ng.check('bias', 2, at_most=1); g.check('seen', True)"
    result = run(write(bad, "raise RuntimeError('and then')"))
    assert [one.passed for one in result.checks] == [False, True]
    assert result.reason == (
        "bias: 2, wanted at most 1; In [2] `raise RuntimeError('and then')` raised RuntimeError: and then"
    )


@pytest.mark.parametrize(
    "hide",
    [
        "from IPython.utils.capture import capture_output\nwith capture_output():\n    {}",
        "old = get_ipython().display_pub.publish\nget_ipython().display_pub.publish = lambda **_: None\n{}\nget_ipython().display_pub.publish = old",
    ],
    ids=["captured", "swallowed"],
)
def test_a_failing_check_cannot_be_hidden_by_capturing_it(hide: str, write: Callable[..., Path]) -> None:
    result = run(write(CHECK, hide.format("g.check('hidden', False)")))
    assert not result.passed
    assert result.reason == "it made 2 checks of which 1 arrived; show checks, do not capture them"


def test_a_failing_check_counts_after_its_output_was_cleared(write: Callable[..., Path]) -> None:
    clear = "g.check('recall', False)\nfrom IPython.display import clear_output\nclear_output()"
    assert run(write(CHECK, clear)).reason == "recall: False, wanted True"


def test_a_check_in_another_process_is_an_error_not_a_lost_check(write: Callable[..., Path]) -> None:
    forked = "import os\npid = os.fork()\nif not pid:\n    try:\n        g.check('x', True)\n    except Exception:\n        os._exit(7)\n    os._exit(0)\n"
    result = run(write(CHECK, forked + "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7"))
    assert result.passed, result.reason


def test_the_nonce_of_another_run_is_not_accepted(write: Callable[..., Path]) -> None:
    forged = """
        from IPython.display import publish_display_data
        record = {"name": "a", "value": True, "at_least": None, "at_most": None, "number": 0, "nonce": "0" * 32}
        publish_display_data({"application/vnd.nbdeploy.check+json": record})
    """
    result = run(write(textwrap.dedent(forged)))
    assert not result.passed
    assert result.checks == ()
    assert "no check was recorded" in result.reason


def test_a_cell_that_is_skipped_fails_the_gate(write: Callable[..., Path]) -> None:
    assert (
        run(write(CHECK, ("2 + 2", "skip-execution"))).reason == "In [2] `2 + 2` was not executed (tag skip-execution)"
    )


def test_the_parameters_of_an_earlier_run_are_dropped(write: Callable[..., Path]) -> None:
    path = write(
        ("limit = 0.9", "parameters"),
        ("limit = 0.1", "injected-parameters"),
        CHECK + "\ng.check('x', 0.5, at_least=limit)",
    )
    assert run(path).reason == "x: 0.5, wanted at least 0.9"


# Where it runs --------------------------------------------------------------------------------------------------------


def test_the_kernel_is_this_interpreter_in_the_folder_of_the_notebook(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    here = f"import os, sys\ng.check('python', sys.executable == {sys.executable!r})\ng.check('cwd', os.path.samefile('.', {str(tmp_path)!r}))"
    before = Path.cwd()
    result = run(
        write(CHECK, here, metadata={"kernelspec": {"name": "gone", "display_name": "Gone", "language": "python"}})
    )
    assert result.passed, result
    assert Path.cwd() == before


def test_it_runs_inside_a_running_event_loop(write: Callable[..., Path]) -> None:
    async def cell() -> GateResult:
        return run(write(CHECK))

    assert asyncio.run(cell()).passed


def test_it_runs_in_the_main_thread_of_a_kernel(write: Callable[..., Path]) -> None:
    inner = write(CHECK, name="inner.ipynb")
    source = f"""
        from pathlib import Path
        import nbdeploy.gate as g
        inner = g.run(Path({str(inner)!r}), deployment="d", version="v1", digest="ab")
        g.check("inner", inner.passed, detail=inner.reason)
        inner
    """
    result = run(write(textwrap.dedent(source)))
    assert result.passed, result
    assert [one.name for one in result.checks] == ["inner"]
    assert "d v1 passed its gate: 1 of 1 checks passed" in result.notebook.read_text()


def test_a_watcher_that_raises_changes_nothing(write: Callable[..., Path]) -> None:
    handle = gate.start(write(CHECK), {}, **WHO, on_progress=lambda done, total: done / 0)
    assert handle.wait().passed


def test_a_started_gate_is_watched_from_elsewhere(write: Callable[..., Path]) -> None:
    seen: list[tuple[int, int]] = []
    threads = threading.active_count()
    handle = gate.start(
        write(CHECK, "import time; time.sleep(0.5)"), {}, **WHO, on_progress=lambda *at: seen.append(at)
    )
    assert not handle.done
    with pytest.raises(TimeoutError, match="still running"):
        handle.result(timeout=0.01)
    assert handle.result(timeout=30).passed
    assert handle.done
    assert handle.progress == (3, 3)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    wait_for(lambda: threading.active_count() == threads)


def test_a_cancelled_gate_fails_at_once(write: Callable[..., Path]) -> None:
    handle = gate.start(write(CHECK, "import time; time.sleep(60)"), {}, **WHO)
    wait_for(lambda: handle.progress[0] == 1)
    started = time.monotonic()
    handle.cancel()
    result = handle.result(timeout=10)
    assert result.reason == "it was cancelled in In [2] `import time; time.sleep(60)`"
    assert time.monotonic() - started < 5


CALLER = """
import os, sys
from pathlib import Path
from nbdeploy import gate
from nbdeploy.errors import NbdeployError
try:
    gate.run(Path(sys.argv[1]), {}, deployment="d", version="v1", digest="ab" * 32, progress=sys.argv[2] == "bar")
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_the_gate_ends_with_its_caller(ending: signal.Signals, write: Callable[..., Path], tmp_path: Path) -> None:
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    path = write(child if ending == signal.SIGINT else CHECK, f"open({str(tmp_path / 'on')!r}, 'w')\nwhile True: pass")
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(path), "no"], cwd=ROOT)
    wait_for((tmp_path / "on").exists)
    left = psutil.Process(caller.pid).children(recursive=True)
    assert len(left) == (2 if ending == signal.SIGINT else 1)
    caller.send_signal(ending)
    assert caller.wait(timeout=20) == (77 if ending == signal.SIGINT else -ending)
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in left), 5)


def test_what_the_notebook_started_ends_with_it(write: Callable[..., Path]) -> None:
    child = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert run(write(CHECK, child)).passed  # and the fixture finds nothing running


def test_a_progress_bar_is_drawn_unless_told_not_to(
    write: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    run(write(CHECK))
    assert capfd.readouterr().err == ""
    run(write(CHECK), progress=True)
    assert "Validating flight-delay v1: 100%" in capfd.readouterr().err


# Evidence -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [True, False])
def test_evidence_is_kept_for_the_user_only(good: bool, write: Callable[..., Path]) -> None:
    result = run(
        write(("at = 1", "parameters"), CHECK, "1" if good else "1 / 0"), {"at": 2}, env={"TOKEN": "canary-5812"}
    )
    folder = home.home() / "gates" / "flight-delay" / WHO["digest"][:16]
    assert result.passed is good
    assert result.notebook.parent == folder
    assert sorted(path.suffix for path in folder.iterdir()) == [".ipynb", ".json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert json.loads(result.notebook.with_suffix(".json").read_text()) == json.loads(json.dumps(result.to_dict()))
    text = result.notebook.read_text()
    assert "at = 2" in text
    assert "canary-5812" not in text
    assert "accuracy" in text
    assert ("ZeroDivisionError" in text) is not good


def test_two_runs_leave_two_pieces_of_evidence(write: Callable[..., Path]) -> None:
    path = write(CHECK)
    handles = [gate.start(path, {}, **WHO) for _ in range(2)]
    results = [handle.result(timeout=60) for handle in handles]
    assert all(result.passed for result in results)
    assert results[0].notebook != results[1].notebook


@pytest.mark.parametrize("good", [True, False])
def test_without_room_for_its_copy_the_verdict_stands(good: bool, write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    result = run(write(CHECK, "1" if good else "1 / 0"), copies=tmp_path / "file" / "reports")

    assert result.passed is good
    assert result.copy is None
    assert json.loads(result.notebook.with_suffix(".json").read_text())["copy"] is None
    assert "Executed notebook" not in result._repr_html_()


def test_a_copy_is_the_executed_notebook(write: Callable[..., Path], tmp_path: Path) -> None:
    result = run(write(CHECK), copies=tmp_path / "reports")

    assert result.copy is not None
    assert result.copy.read_bytes() == result.notebook.read_bytes()


@pytest.mark.parametrize("suffix", [".ipynb", ".json"])
def test_evidence_that_cannot_be_written_is_an_error_with_its_path(
    suffix: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _content: object, real: Callable[..., None]) -> None:
        if path.suffix == suffix:
            raise OSError(28, "No space left on device")
        real(path, _content)

    for name in ("write_atomic", "write_json"):
        monkeypatch.setattr(gate.home, name, functools.partial(full, real=getattr(home, name)))
    with pytest.raises(GateError, match=rf"could not be written to \S+\{suffix}: No space left"):
        run(write(CHECK))


# Parameters -----------------------------------------------------------------------------------------------------------

CELL = """
%matplotlib inline
name = "flight-delay"   # a comment
count = 30
share = 0.5
fast: bool = True
at_least: float | None = None
limit = None  # type: float
free = None
columns = ["a"]
data = str(1)
"""


def fit(**values: object) -> dict[str, Any]:
    return fitted(values, declared(CELL), "gate.ipynb")


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("share", 1, 1.0),
        ("share", "0.8", 0.8),
        ("share", np.float32(0.5), 0.5),
        ("count", np.int64(3), 3),
        ("count", " 7 ", 7),
        ("fast", np.bool_(False), False),
        ("fast", "no", False),
        ("at_least", None, None),
        ("at_least", "none", None),
        ("limit", "1e-3", 0.001),
        ("limit", None, None),
        ("name", Path("a/b"), "a/b"),
        ("name", 'a"; import os #\n', 'a"; import os #\n'),
        ("name", dt.date(2013, 7, 1), "2013-07-01"),
        ("name", pd.Timestamp("2013-07-01 12:00"), "2013-07-01T12:00:00"),
        ("free", np.datetime64("2013-07-01"), "2013-07-01"),
        ("free", {"a": (1, np.arange(2))}, {"a": [1, [0, 1]]}),
        ("free", "0.8", "0.8"),
        ("columns", ("b", "a"), ["b", "a"]),
        ("columns", {"b", "a"}, ["a", "b"]),
        ("columns", pd.Series([1, 2]), [1, 2]),
        ("columns", pd.Series(pd.to_datetime(["2013-07-01"])), ["2013-07-01"]),
        ("columns", np.array(["2013-07-01"], dtype="M8[ns]"), ["2013-07-01T00:00:00.000000000"]),
        ("columns", '["x"]', ["x"]),
        ("data", 3, 3),
    ],
)
def test_values_become_json_of_the_declared_type(name: str, value: object, expected: object) -> None:
    fit_value = fit(**{name: value})[name]
    assert fit_value == expected
    assert type(fit_value) is type(expected)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("cuont", 3, "has no parameter 'cuont'. Did you mean 'count'?"),
        ("x; import os", 3, "has no parameter 'x; import os'"),
        ("count", 1.5, "'count' is a int, got float 1.5"),
        ("count", True, "'count' is a int, got bool True"),
        ("count", "many", "'count' is a int, got str 'many'"),
        ("share", None, "'share' is a float, got None"),
        ("share", float("nan"), "'share' is nan"),
        ("share", "inf", "'share' is inf"),
        ("fast", 1, "'fast' is a bool, got int 1"),
        ("name", 3, "'name' is a str, got int 3"),
        ("at_least", [1], "'at_least' is a float or None, got list [1]"),
        ("columns", "a", "'columns' is a list, got str 'a'"),
        ("free", object(), "'free' is a object, which a notebook cannot be given"),
        ("free", pd.DataFrame({"a": [1]}), "Save it to a file and give its path"),
        ("free", pd.NaT, "'free' is a NaTType"),
        ("free", {1: 2}, "'free' has the key 1"),
        ("free", "\ud800", "not valid Unicode"),
    ],
)
def test_a_value_that_does_not_fit_is_named_before_anything_runs(name: str, value: object, message: str) -> None:
    with pytest.raises(GateError) as caught:
        fit(**{name: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_declared_parameters_of_the_default_gate_are_typed() -> None:
    cells = json.loads((ROOT / "notebooks" / "validate.ipynb").read_text())["cells"]
    known = declared(
        "".join(next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", [])))
    )
    assert gate.declared_names(ROOT / "notebooks" / "validate.ipynb") == list(known)
    assert {name: one.kind + "?" * one.optional for name, one in known.items()} == {
        "name": "str", "version": "str", "url": "str", "live_url": "str", "data": "str", "target": "str", "metric": "str",
        "at_least": "float?", "margin": "float", "confidence": "float", "slices": "list", "slice_rows": "int",
        "slice_at_least": "float?", "slice_margin": "float", "max_calibration_error": "float",
        "max_latency_ms": "float", "p99_ms": "float", "clients": "int", "requests": "int", "reach": "float",
        "tolerance": "float",
    }  # fmt: skip


def test_an_unknown_parameter_starts_no_kernel(write: Callable[..., Path]) -> None:
    with pytest.raises(GateError, match=r"gate\.ipynb has no parameter 'shar'. Did you mean 'share'\?"):
        run(write(("share = 1.0", "parameters")), {"shar": 2.0})
    assert not list(home.folder("gates").iterdir())


def test_any_text_arrives_as_it_is(write: Callable[..., Path]) -> None:
    text = "quote \" ' \\ \n {brace} $(rm) \u2028 <script> \N{SNOWMAN} %matplotlib"
    result = run(
        write(("text = ''", "parameters"), f"import nbdeploy.gate as g; g.check('same', text == {text!r})"),
        {"text": text},
    )
    assert result.passed, result


# What is not a gate ---------------------------------------------------------------------------------------------------


def test_a_notebook_that_is_not_there_or_is_none_is_one_line(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(NotFound, match="There is no notebook"):
        run(tmp_path / "gone.ipynb")
    for text in ("", "{}", "[1]", '{"nbformat": 4, "cells": [1]}', "print(1)"):
        (tmp_path / "bad.ipynb").write_text(text)
        with pytest.raises(GateError, match=r"bad\.ipynb is not a Jupyter notebook"):
            run(tmp_path / "bad.ipynb")
    (tmp_path / "bad.ipynb").write_text('{"nbformat": 3, "worksheets": []}')
    with pytest.raises(GateError, match=r"bad\.ipynb has the notebook format 3"):
        run(tmp_path / "bad.ipynb")
    cell = {"cell_type": "cake", "source": "", "metadata": {}}
    (tmp_path / "bad.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "cells": [cell]}))
    with pytest.raises(GateError, match=r"bad\.ipynb is not a valid Jupyter notebook: "):
        run(tmp_path / "bad.ipynb")
    with pytest.raises(GateError, match="written in R"):
        run(write(metadata={"kernelspec": {"name": "ir", "language": "R", "display_name": "R"}}))
    with pytest.raises(GateError, match="cannot run for -1 seconds"):
        run(write(CHECK), timeout=-1)


# The gate that comes with nbdeploy -------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Service(ThreadingHTTPServer):
    """Answers as a deployment does, and badly where it is told to."""

    faults: tuple[str, ...] = ()
    signature: Signature
    asking = 0


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        facts = self.server.signature.to_dict()
        if "schema" in self.server.faults:
            facts["task"] = "regression"
        self.answer(200, {"name": "toy", "version": "v2" if "version" in self.server.faults else "v1", **facts})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        arrow = self.headers["Content-Type"] == arrow_body.MEDIA
        signature = self.server.signature
        try:
            frame = arrow_body.read(body, signature) if arrow else signature.decode(json.loads(body))
        except ValueError as error:
            self.answer(500 if "refusals" in self.server.faults else 422, {"error": str(error)})
            return
        if "hard" in self.server.faults and not frame["kind"].eq("a").all():
            self.answer(500, {"error": "KeyError"})
            return
        if "overloaded" in self.server.faults and self.server.asking > 1:
            self.answer(503, {"error": "too much"})
            return
        self.server.asking += 1
        if "slow" in self.server.faults:
            time.sleep(0.2)
        self.server.asking -= 1
        late = frame["x"] > (0.6 if "parity" in self.server.faults else 0.5)
        if "moody" in self.server.faults and 1 < len(frame) < 20:
            late = ~late
        sure = late * 0.1 + 0.45 if "unsure" in self.server.faults else late * 1.0
        if arrow:
            scores = np.column_stack([1.0 - sure, sure])
            told = arrow_body.write_answers(late.to_numpy(), scores, (False, True), "id", "v1")
            self.answer(200, told, arrow_body.MEDIA)
            return
        told = [
            None if "hard" in self.server.faults and abs(x) > 2 else y
            for x, y in zip(frame["x"], late.tolist(), strict=True)
        ]
        answer = {"predictions": told, "prediction_ids": ["id"] * len(frame), "version": "v1"}
        self.answer(200, {**answer, "probabilities": [[1 - p, p] for p in sure], "classes": [False, True]})

    def answer(self, status: int, body: dict[str, Any] | bytes, media: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


STORED = """
from types import SimpleNamespace
import nbdeploy
import numpy as np
import pandas as pd
from nbdeploy.signature import Signature

reference = pd.DataFrame({"x": np.linspace(0, 1, 101), "kind": ["a"] * 101})
late = reference["x"] > 0.5
expected = pd.DataFrame({"prediction": late, "probability_False": 1.0 - late, "probability_True": late * 1.0})
stored = SimpleNamespace(
    name="toy", version="v1", tag="toy:v1", digest="ab", reference=reference, expected=expected,
    labels=late if LABELS else None, unbatched=False, signature=Signature.from_dict(SIGNATURE),
)
nbdeploy.versions = lambda name: [stored]
"""


@pytest.fixture
def ask(service: Service, tmp_path: Path) -> Callable[..., GateResult]:
    """Run the default gate against the fake service, with a version stored only in its kernel."""
    columns = infer_columns(pd.DataFrame({"x": np.linspace(0, 1, 101), "kind": ["a"] * 101}))
    example = {"x": 0.5, "kind": "a"}
    service.signature = Signature(
        columns, task="classification", outputs=(Output(dtype="bool"),), classes=(False, True), example=example
    )

    def run_default(*faults: str, labels: bool = True, **parameters: object) -> GateResult:
        service.faults = faults
        notebook = json.loads((ROOT / "notebooks" / "validate.ipynb").read_text())
        source = f"LABELS, SIGNATURE = {labels}, {service.signature.to_dict()}\n{STORED}"
        new = {
            "cell_type": "code",
            "id": "new",
            "source": source,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        notebook["cells"].insert(0, new)
        path = tmp_path / "default.ipynb"
        path.write_text(json.dumps(notebook))
        url = f"http://127.0.0.1:{service.server_port}"
        return run(path, {"name": "toy", "version": "v1", "url": url, **parameters})

    return run_default


def test_the_default_gate_passes_a_good_service(ask: Callable[..., GateResult]) -> None:
    result = ask(at_least="0.9", requests=5)
    assert result.passed, result
    assert [one.name for one in result.checks] == [
        "it is the right service",
        "schema",
        "answered by the right version",
        "rows with another prediction",
        "rows with another probability_False",
        "rows with another probability_True",
        "accuracy",
        "calibration error",
        "latency p95 in ms",
        "requests that failed under load",
        "latency p99 in ms under load",
        "copes with unseen categories: failures",
        "copes with extreme values: failures",
        "rows answered in more than one way",
        "refuses a missing column",
        "refuses an unknown column",
        "refuses a wrong type",
        "refuses what is not JSON",
    ]


def test_the_default_gate_sees_every_fault_at_once(ask: Callable[..., GateResult]) -> None:
    faults = ("schema", "version", "parity", "slow", "refusals", "moody", "hard", "overloaded", "unsure")
    result = ask(*faults, at_least=0.99, max_latency_ms=100, p99_ms=100, requests=2)
    assert not result.passed
    assert [one.name for one in result.checks if one.passed] == ["answered by the right version"]
    details = {one.name: one.detail for one in result.checks}
    assert details["schema"] == "differs in task"
    assert details["rows with another prediction"] == "first in row 51: saved True, served False"


def test_without_labels_quality_is_left_out_unless_it_was_asked_for(ask: Callable[..., GateResult]) -> None:
    assert ask(labels=False, requests=1, at_least=0.5).reason.startswith("quality can be measured: False, wanted True")
    result = ask(labels=False, requests=1)
    assert result.passed
    assert {"accuracy", "calibration error"} & {one.name for one in result.checks} == set()
    assert len(result.checks) == 16


def test_the_default_gate_is_stored_without_outputs() -> None:
    for cell in json.loads((ROOT / "notebooks" / "validate.ipynb").read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_a_kernel_that_cannot_start_is_an_error_with_its_last_words(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "ipykernel_launcher.py").write_text("raise RuntimeError('no kernel today')")
    with pytest.raises(GateError, match=r"The kernel for gate\.ipynb did not start") as caught:
        run(write(CHECK), env={"PYTHONPATH": str(tmp_path)})
    assert "no kernel today" in caught.value.details


# One check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, bounds, passed",
    [
        (True, {}, True),
        (np.bool_(False), {}, False),
        (0.8, {"at_least": 0.8}, True),
        (0.8, {"at_most": np.float64(0.79)}, False),
        (3, {"at_least": 1, "at_most": 3}, True),
        (np.array(3), {"at_least": 4}, False),
        (float("nan"), {"at_least": 0}, False),
        (float("inf"), {"at_least": 0}, False),
    ],
)
def test_a_check_holds_when_true_or_within_bounds(
    value: object, bounds: dict[str, Any], passed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate.check("x", value, **bounds) is passed
    assert capsys.readouterr().out.startswith("✓ x: " if passed else "✗ x: ")
    one = Check.of("x", value, **bounds)
    assert repr(Check.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False)))) == repr(one)


@pytest.mark.parametrize(
    "name, value, bounds, message",
    [
        ("x", 0.8, {}, "no bound"),
        ("x", True, {"at_least": 1}, "compares True with a number"),
        ("x", "0.8", {"at_least": 1}, "is str, not a number"),
        ("x", None, {}, "is NoneType"),
        ("x", np.arange(2), {"at_least": 1}, "is ndarray"),
        ("x", 1, {"at_least": float("nan")}, "bounds nothing"),
        ("x", 1, {"at_most": float("inf")}, "bounds nothing"),
        ("", 1, {"at_most": 1}, "needs a name"),
    ],
)
def test_a_check_that_cannot_be_decided_is_an_error(
    name: str, value: object, bounds: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        gate.check(name, value, **bounds)


def test_a_value_just_short_of_its_bound_does_not_look_equal_to_it() -> None:
    assert str(Check.of("x", 0.79999999, at_least=0.8)) == "x: 0.79999999, wanted at least 0.8"


def test_importing_the_gate_loads_no_notebook_machinery() -> None:
    code = "import sys, nbdeploy.gate; print({'papermill', 'nbclient', 'nbformat', 'IPython', 'pandas', 'numpy'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        == "set()\n"
    )


def wait_for(true: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
