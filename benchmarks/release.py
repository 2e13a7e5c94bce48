"""Another version takes over under load: nbdeploy's promotion and rollback, against a restart with another tag.

16 clients ask a fitted pipeline without a pause. In each round, one after the other, and each with clients of its own:

- nbdeploy, two workers: `promote` of a candidate that has 10 % of the requests, and `rollback`;
- BentoML: ``bentoml serve flights:v1`` is ended as by Ctrl-C, and as soon as its processes are gone,
  ``bentoml serve flights:v2`` is started on the same port;
- MLflow: the same with ``mlflow models serve -m``.

The second version says the contrary of the first one about each row, so that each answer tells who gave it. Counted from
the call, or from the Ctrl-C: the seconds until the new version answers, and no request is sent any more that the old one
answers; the failed requests of a client that waits a tenth of a second before it asks again; and the longest time without any
answer. Medians of the rounds.

    python benchmarks/release.py
    python benchmarks/release.py --rounds 1 --who nbdeploy
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import _serving_models
import joblib
import psutil
from _load import Failed, Server, free_ports, python_of, serving
from _serving_report import machine, versions
from serving_peers import HERE, PEERS, rows_of
from sklearn.base import clone

NAME, CLIENTS, WORKERS, LIMIT = "release-benchmark", 16, 2, 1.0
BEFORE, AFTER = 1.5, 1.0  # seconds of load before the call, and after it
OLD, NEW = "true", "false"
PEER = {peer.name: peer for peer in PEERS}
Facts = dict[str, float]


@contextmanager
def clients(port: int, path: str, bodies: Path) -> Iterator[list[tuple[float, float, str]]]:
    """Have them ask while the block runs; what they were told is in the list afterwards."""
    told: list[tuple[float, float, str]] = []
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("_clients.py"), str(port), path, bodies, str(CLIENTS)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield told
        told += [(sent, ended, what) for sent, ended, what in json.loads(process.communicate(timeout=60)[0])]
    finally:
        process.kill()
        process.wait()


def facts_of(told: list[tuple[float, float, str]], called: float, returned: float, old: str, new: str) -> Facts:
    """What the clients saw of a change that was called for at `called`.

    Raises
    ------
    Failed
        Something else than the two versions answered, or none has taken over.
    """
    answers = sorted((ended, what) for _, ended, what in told if what in (OLD, NEW))
    last_old = max((sent for sent, _, what in told if what == old), default=called)
    first_new = min((ended for ended, what in answers if what == new and ended >= called), default=None)
    if first_new is None or answers[-1][1] != new:
        msg = f"the other version never took over: {sorted({what for *_, what in told})}"
        raise Failed(msg)
    gaps = [after - before for (before, _), (after, _) in pairwise(answers)]
    return {
        "seconds": max(first_new, last_old) - called, "returned": returned - called, "requests": len(told),
        "failed": sum(what.startswith("failed") for *_, what in told), "dark": max(gaps),
    }  # fmt: skip


def changed(
    port: int, path: str, bodies: Path, change: Callable[[], object], *, old: str = OLD, new: str = NEW,
    check: Callable[[], None] = lambda: None,
) -> Facts:  # fmt: skip
    """Have `change` done under load."""
    with clients(port, path, bodies) as told:
        time.sleep(BEFORE)
        check()
        called = time.monotonic()
        change()
        returned = time.monotonic()
        time.sleep(AFTER)
    return facts_of(told, called, returned, old, new)


class Ours:
    """The deployment, with two versions."""

    def __init__(self, models: list[Path], bodies: Path) -> None:
        import nbdeploy

        self._nbdeploy, self._bodies = nbdeploy, bodies
        first, second = ([joblib.load(folder / f"{stem}.joblib") for stem in ("model", "X", "y")] for folder in models)
        self._service = nbdeploy.deploy(first[0], NAME, *first[1:], workers=WORKERS, progress=False)
        nbdeploy.save(second[0], NAME, *second[1:], progress=False)
        self._port = int(self._service.url.rpartition(":")[2])

    def turns(self) -> dict[str, Facts]:
        """A promotion, and back."""
        self._nbdeploy.traffic(NAME, v1=90, v2=10, progress=False)
        promote = lambda: self._nbdeploy.promote(NAME, "v2", force="the benchmark's", progress=False)  # noqa: E731
        rollback = lambda: self._nbdeploy.rollback(NAME, progress=False)  # noqa: E731
        path = "/predict"
        return {
            "nbdeploy, promote": changed(self._port, path, self._bodies, promote, check=self._every_worker_is_asked),
            "nbdeploy, rollback": changed(
                self._port, path, self._bodies, rollback, old=NEW, new=OLD, check=self._every_worker_is_asked
            ),
        }

    def _every_worker_is_asked(self) -> None:
        end, asked = time.monotonic() + 2, set()
        while time.monotonic() < end and len(asked) < WORKERS:
            asked.clear()
            for child in psutil.Process(self._service.pid).children(recursive=True):
                held = child.net_connections("tcp")
                if any(each.status == "ESTABLISHED" and each.laddr.port == self._port for each in held):
                    asked.add(child.pid)
        if len(asked) < WORKERS:
            msg = f"the clients are connected to {len(asked)} of {WORKERS} workers"
            raise Failed(msg)

    def end(self) -> None:
        self._nbdeploy.stop(NAME)


class Restarted:
    """A peer that has to be started again to serve another version."""

    def __init__(self, name: str, models: list[Path], bodies: Path, place: Path) -> None:
        self._peer, self._bodies, self._place = PEER[name], bodies, place
        place.mkdir()
        self._python = python_of(self._peer.venv)
        dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV"}
        quiet = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._env = {key: value for key, value in os.environ.items() if key not in dropped} | quiet
        path = f"{Path(self._python).parent}{os.pathsep}{os.environ['PATH']}"
        self._env |= {"BENTOML_HOME": str(place / "bentoml"), "PATH": path}
        for version, model in zip(("v1", "v2"), models, strict=True):
            if name == "BentoML":
                made = [str(HERE / "bentoml_tagged.py"), str(model), str(place), version]
            else:
                made = [str(HERE / "mlflow_save.py"), str(model), str(place / version)]
            done = subprocess.run(
                [self._python, *made], cwd=place, env=self._env, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise Failed(done.stderr[-1500:])

    def _serving(self, stack: ExitStack, version: str, port: int) -> Server:
        if self._peer.venv == "bentoml":
            said = ["bentoml", "serve", f"flights:{version}"]
        else:
            said = ["mlflow", "models", "serve", "-m", str(self._place / version), "--env-manager", "local"]
            said += ["--workers", "1"]
        command = [self._python, "-m", *said, "--host", "127.0.0.1", "--port", str(port)]
        ready = self._peer.paths("frames")[1]
        return stack.enter_context(serving(command, port, ready, env=self._env, folder=self._place))

    def turns(self) -> dict[str, Facts]:
        """A restart with the other version."""
        (port,) = free_ports(1)
        with ExitStack() as stack:
            first = self._serving(stack, "v1", port)

            def restart() -> None:
                first.adopt(first.processes[0].pid)
                os.killpg(first.processes[0].pid, signal.SIGINT)
                _, alive = psutil.wait_procs(first.processes, timeout=30)
                if alive:
                    msg = f"{self._peer.name} does not end"
                    raise Failed(msg)
                self._serving(stack, "v2", port)

            facts = changed(port, self._peer.paths("frames")[0], self._bodies, restart)
        return {f"{self._peer.name}, restart": facts}

    def end(self) -> None:
        """It has ended."""


def fit(place: Path) -> tuple[list[Path], Any]:
    """The folders of both models, and rows about which the first one says true, and the second one false."""
    model = _serving_models.fit("pipeline", place)
    X, y = (joblib.load(model.folder / f"{stem}.joblib") for stem in "Xy")
    contrary = clone(model.fitted).fit(X, ~y)
    folder = place / "contrary"
    folder.mkdir()
    for stem, held in {"model": contrary, "X": X, "y": ~y}.items():
        joblib.dump(held, folder / f"{stem}.joblib")
    rows = model.singles
    return [model.folder, folder], rows[model.fitted.predict(rows) & ~contrary.predict(rows)]


def measure(given: argparse.Namespace, place: Path) -> dict[str, list[Facts]]:
    models, rows = fit(place)
    found: dict[str, list[Facts]] = {}
    who: list[Any] = []
    with ExitStack() as stack:
        for name in given.who:
            bodies = place / f"{name}.jsonl"
            lines = [json.dumps(PEER[name].body([row]), separators=(",", ":")) for row in rows_of(rows)]
            bodies.write_text("\n".join(lines) + "\n")
            one = Ours(models, bodies) if name == "nbdeploy" else Restarted(name, models, bodies, place / name)
            stack.callback(one.end)
            who.append(one)
        for turn in range(given.rounds + 1):
            for one in who[turn % len(who) :] + who[: turn % len(who)]:
                for what, facts in one.turns().items():
                    said = "".join(f"  {key} {value:.3f}" for key, value in facts.items())
                    print(f"{turn}/{given.rounds} {what:<20}{said}", file=sys.stderr, flush=True)
                    if turn:  # the first round compiles bytecode
                        found.setdefault(what, []).append(facts)
    return found


def shown(found: dict[str, list[Facts]]) -> str:
    lines = [
        "| what | until only the other version answers | slowest | the call returned | failed requests | longest time without an answer |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for what, rounds in found.items():
        middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        total = sum(each["requests"] for each in rounds)
        failed = sum(each["failed"] for each in rounds)
        lines.append(
            f"| {what} | {middle['seconds']:.2f} s | {max(each['seconds'] for each in rounds):.2f} s | {middle['returned']:.2f} s "
            f"| {failed:,.0f} of {total:,.0f} | {middle['dark']:.2f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--who", nargs="+", default=["nbdeploy", "BentoML", "MLflow"])
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: every server is ended on the way out
    with tempfile.TemporaryDirectory(prefix="nbd-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"NBDEPLOY_HOME": f"{folder}/home", "BENTOML_HOME": f"{folder}/bentoml"}
        found = measure(given, Path(folder))
    print(shown(found))
    print(f"\n{machine()}; {given.rounds} rounds. {json.dumps(versions(PEER[name] for name in given.who))}")
    ours = [facts for what, rounds in found.items() if what.startswith("nbdeploy") for facts in rounds]
    sys.exit(0 if all(each["seconds"] <= LIMIT and not each["failed"] for each in ours) else 1)


if __name__ == "__main__":
    main()
