"""A served model under load: nbdeploy against the ways to serve it that its users know.

All in one run on one machine: each peer in an environment of its own with pinned versions, the same fitted models, the
same rows, the same client (wrk, one thread), one worker each. All services of a model are started, checked to answer as
the model does, and stopped with SIGSTOP; in each round each is woken, warmed and measured, beginning with another one
each time. Medians of the rounds. Ours has validation, log and metrics on, as a user gets it.

    python benchmarks/serving.py --write    # everything, and the section in docs/benchmarks.md
    python benchmarks/serving.py --quick --models pipeline --peers nbdeploy,FastAPI --parts load

The environments are made at first use, below ``~/.cache/nbdeploy-bench`` or ``NBDEPLOY_BENCH``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import _serving_models
import _serving_report
from _load import Bare, Client, Failed, Server, cache, free_ports, python_of, serving, wrk
from _serving_models import CHUNKS, Model
from serving_peers import HERE, OURS, PEERS, PLAIN, UNLOGGED, WITHOUT_LOG, Peer, rows_of

MODELS = ["pipeline", "forest", "linear"]
PARTS = ["load", "log", "start"]
CLIENTS = 32
WARM_SECONDS = 1
CHECKED = 25  # single rows
ARROW = "application/vnd.apache.arrow.stream"
TABLES = 15  # Arrow requests a round, each beside one bare call
STARTS = 5
LOG_TURNS = 6
WHO = {peer.name: peer for peer in PEERS}


class Asking:
    """A service of a model that runs, or is paused."""

    def __init__(self, model: Model, peer: Peer, server: Server, own: Path) -> None:
        self.peer, self.model, self.server, self.own = peer, model, server, own
        self.path = peer.paths(model.container)[0]
        self.singles = model.bodies(peer, own)
        chunks = [model.chunk(number) for number in range(CHUNKS)]
        self.chunks = [json.dumps(peer.body(rows_of(chunk))).encode() for chunk in chunks]

    def check(self) -> None:
        """Compare what it answers with what the model says.

        Raises
        ------
        Failed
            They differ.
        """
        with Client(self.server.port, self.path) as client:
            lines = self.singles.read_bytes().splitlines()[:CHECKED]
            for rows, body in [*((self.model.singles[i : i + 1], each) for i, each in enumerate(lines)), (self.model.chunk(0), self.chunks[0])]:  # fmt: skip
                values = self.peer.values(json.loads(client.ask(body)[1]))
                if not self.model.is_right(rows, values):
                    msg = f"{self.peer.name} does not answer as the model does: {values[:3]!r:.200}"
                    raise Failed(msg)

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.server.resume()
        try:
            self.load(CLIENTS, WARM_SECONDS, least=0)
            yield
        finally:
            self.server.pause()

    @property
    def logged_bytes(self) -> int:
        """What our log of this service holds."""
        return sum(path.stat().st_size for path in (self.own / "home" / "predictions").rglob("*") if path.is_file())

    def load(self, clients: int, seconds: float, least: int = 1) -> dict[str, float]:
        found = wrk(self.server.port, self.path, self.singles, connections=clients, seconds=seconds, least=least)
        self.server.settle()
        return found

    def thousand(self, seconds: float) -> float:
        """Median milliseconds of a request with 1,000 rows."""
        with Client(self.server.port, self.path) as client:
            client.ask(self.chunks[0])
            taken, end = [], time.monotonic() + seconds
            while time.monotonic() < end or len(taken) < 5:
                taken.append(client.ask(self.chunks[len(taken) % CHUNKS])[0] * 1000)
        return statistics.median(taken)

    def arrow(self, bare: Bare) -> tuple[float, float]:
        """Median milliseconds of 10,000 rows as an Arrow stream, and of the bare call on the same frame, in turn.

        Raises
        ------
        Failed
            The answer is not the model's.
        """
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        table = pa.Table.from_pandas(self.model.large, preserve_index=False)
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        body = sink.getvalue().to_pybytes()
        asked, called = [], []
        with Client(self.server.port, self.path, ARROW) as client:
            said = pa.ipc.open_stream(client.ask(body)[1]).read_pandas()
            if not self.model.is_right(self.model.large, said["prediction"].tolist()):
                msg = f"{self.peer.name} does not answer an Arrow stream as the model does"
                raise Failed(msg)
            for _ in range(TABLES):
                asked.append(client.ask(body)[0] * 1000)
                called.append(bare.seconds() * 1000)
        return statistics.median(asked), statistics.median(called)


def environment(peer: Peer, model: Model, own: Path) -> dict[str, str]:
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV", "NBDEPLOY_SPEC", "NBDEPLOY_PROCESS"}
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # BentoML clears the metrics below its home when it starts: a home for each.
    places = {
        "NBDEPLOY_HOME": str(own / "home"),
        "BENTOML_HOME": str(own / "bentoml"),
        "BENCH_MODEL": str(model.folder),
    }
    env |= {**quiet, **places, "PATH": f"{Path(python_of(peer.venv)).parent}{os.pathsep}{env['PATH']}"}
    if peer.name == UNLOGGED:
        env["PYTHONPATH"] = str(HERE / "without_log")
    return env


def start(stack: ExitStack, model: Model, peer: Peer, place: Path) -> Asking:
    """The service, checked and paused; it ends with `stack`."""
    own = Path(tempfile.mkdtemp(dir=place))
    python, env, ports = python_of(peer.venv), environment(peer, model, own), free_ports(3)
    if peer.prepare is not None:
        run([python, *peer.prepare(model.folder, own, ports)], env, own)
    command = [python, *peer.start(model.container, model.folder, own, ports)]
    ready = peer.paths(model.container)[1]
    server = stack.enter_context(serving(command, ports[0], ready, env=env, folder=own, detached=not peer.venv))
    asking = Asking(model, peer, server, own)
    asking.check()
    with asking.awake():
        pass
    return asking


def run(command: Sequence[str], env: dict[str, str], folder: Path) -> None:
    import subprocess

    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"{' '.join(command)}: {done.stderr[-1500:]}"
        raise Failed(msg)


def measure_load(model: Model, peers: Sequence[Peer], place: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Per peer the medians of the rounds; a peer that fails has ``failed`` instead."""
    failed: dict[str, Any] = {}
    taken: dict[str, list[dict[str, float]]] = {}

    def tried(peer: Peer, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Failed as error:
            if peer.name == OURS:
                raise
            say(f"{model.name}: {peer.name} failed: {error}")
            failed[peer.name] = {"failed": str(error)}

    with ExitStack() as stack:
        running: list[Asking] = []
        for peer in peers:
            say(f"{model.name}: starting {peer.name}")
            running += filter(None, [tried(peer, partial(start, stack, model, peer, place))])
        bare = stack.enter_context(Bare(model.folder)) if model.container == "frames" else None
        for turn in range(rounds):
            first = turn % len(running)
            for asking in running[first:] + running[:first]:
                name = asking.peer.name
                if (
                    name in failed
                    or (facts := tried(asking.peer, partial(measure_turn, asking, seconds, bare))) is None
                ):
                    continue
                taken.setdefault(name, []).append(facts)
                said = "".join(f"  {key} {value:.4g}" for key, value in facts.items())
                say(f"{model.name} {turn + 1}/{rounds}  {name:<20}{said}")
        fine = {asking.peer.name: asking for asking in running if asking.peer.name not in failed}
        return {**failed, **{name: _summary(taken[name], asking.server) for name, asking in fine.items()}}


def _summary(turns: list[dict[str, float]], server: Server) -> dict[str, Any]:
    resident, own = server.memory()
    medians = {key: statistics.median(each[key] for each in turns) for key in turns[0]}
    return {**medians, "resident_mb": resident, "own_mb": own, "rounds": turns}


def measure_turn(asking: Asking, seconds: float, bare: Bare | None) -> dict[str, float]:
    with asking.awake():
        used = asking.server.cpu_seconds()
        many = asking.load(CLIENTS, seconds)
        used = asking.server.cpu_seconds() - used
        one = asking.load(1, seconds)
        facts = {
            "rate": many["rate"], "p50": many["p50"], "p99": many["p99"], "cpu": used * 1000 / many["requests"],
            "one_p50": one["p50"], "one_p99": one["p99"],
        }  # fmt: skip
        facts["thousand"] = asking.thousand(seconds / 2)
        if asking.peer.name == OURS and bare is not None:
            facts["arrow"], facts["bare"] = asking.arrow(bare)
    return facts


def measure_log(model: Model, place: Path, turns: int, seconds: float) -> dict[str, Any]:
    """What the log costs: the same service with and without it, in turn, and the median of the pairs' ratios."""
    with ExitStack() as stack:
        say("log: starting both")
        both = [start(stack, model, peer, place) for peer in (WHO[OURS], WITHOUT_LOG)]
        rates: dict[str, list[float]] = {OURS: [], UNLOGGED: []}
        for turn in range(turns):
            for asking in both if turn % 2 else both[::-1]:
                with asking.awake():
                    rates[asking.peer.name].append(asking.load(CLIENTS, seconds)["rate"])
            say(f"log {turn + 1}/{turns}: {rates[OURS][-1]:.0f} with, {rates[UNLOGGED][-1]:.0f} without")
        if not both[0].logged_bytes > 100_000 > both[1].logged_bytes:
            msg = f"the log holds {both[0].logged_bytes} bytes with it and {both[1].logged_bytes} without"
            raise Failed(msg)
    pairs = [logged / unlogged for logged, unlogged in zip(rates[OURS], rates[UNLOGGED], strict=True)]
    return {
        "with": statistics.median(rates[OURS]),
        "without": statistics.median(rates[UNLOGGED]),
        "ratio": statistics.median(pairs),
    }


def measure_start(model: Model, place: Path, times: int) -> dict[str, Any]:
    """From the shell command to the first answer: ``nbdeploy serve`` and ``bentoml serve``, in turn."""
    own, seconds = Path(tempfile.mkdtemp(dir=place)), {OURS: [], PLAIN: []}
    saved = environment(WHO[OURS], model, own)
    with ExitStack() as stack:  # saved once, and started again and again
        port = free_ports(1)
        command = [sys.executable, *WHO[OURS].start(model.container, model.folder, own, port)]
        stack.enter_context(serving(command, port[0], "/readyz", env=saved, folder=own, detached=True))
        run([sys.executable, "-m", "nbdeploy", "stop", "flights"], saved, own)
    for turn in range(times + 1):
        for name, held in seconds.items():
            ports, python = free_ports(3), python_of(WHO[name].venv)
            if name == OURS:
                command, env = [python, "-m", "nbdeploy", "serve", "flights", "--port", str(ports[0])], saved
            else:
                command = [python, *WHO[name].start(model.container, model.folder, own, ports)]
                env = environment(WHO[name], model, own)
            with serving(command, ports[0], "/readyz", env=env, folder=own, detached=name == OURS) as server:
                if turn:  # the first round compiles bytecode
                    held.append(server.seconds)
                if name == OURS:
                    run([python, "-m", "nbdeploy", "stop", "flights"], env, own)
        say("start: " + ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in seconds.items() if taken))
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def chosen(text: str, known: Sequence[str]) -> list[str]:
    """The named ones, in the order of `known`; a peer's name may stand for all that begin with it."""
    words = [word.strip() for word in text.split("|" if "|" in text else ",") if word.strip()]
    for word in words:
        if not any(each.lower().startswith(word.lower()) for each in known):
            msg = f"{word!r} is none of: {' | '.join(known)}"
            raise SystemExit(msg)
    return [each for each in known if any(each.lower().startswith(word.lower()) for word in words)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of one measurement")
    parser.add_argument("--quick", action="store_true", help="one round of two seconds: to see that all works")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--peers", default="|".join(WHO), help="beginnings of their names, separated by commas")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks.md")
    parser.add_argument("--again", action="store_true", help="show, or write, the results of the last run")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    peers = [WHO[name] for name in chosen(options.peers, [*WHO])]
    parts, names = chosen(options.parts, PARTS), chosen(options.models, MODELS)
    for venv in {peer.venv for peer in peers} | ({"bentoml"} if "start" in parts else set()):
        python_of(venv)
    results: dict[str, Any] = {
        "rounds": rounds, "seconds": seconds, "models": {}, "titles": {}, "when": time.strftime("%Y-%m-%d"),
        "machine": _serving_report.machine(), "versions": _serving_report.versions(peers),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="nbd-bench-", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        models = {name: _serving_models.fit(name, place) for name in names}
        if "start" in parts:
            results["start"] = measure_start(next(iter(models.values())), place, 2 if options.quick else STARTS)
        if "load" in parts:
            for name, model in models.items():
                results["titles"][name] = model.title
                results["models"][name] = measure_load(model, peers, place, rounds, seconds)
        if "log" in parts:
            results["log"] = measure_log(next(iter(models.values())), place, 2 if options.quick else LOG_TURNS, seconds)
    return results


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: every server is ended on the way out
    kept = cache() / "serving.json"
    if options.again:
        results = json.loads(kept.read_text())
    else:
        try:
            results = measure(options)
        except KeyboardInterrupt:
            sys.exit(130)
        except Failed as error:
            traceback.print_exc()
            sys.exit(f"no result: {error}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results, indent=1))
    whole = [*results["models"]] == MODELS and {"log", "start"} <= results.keys()
    whole = whole and all([*each] and {*each} == {*WHO} for each in results["models"].values())
    print(_serving_report.markdown(results))
    if options.write and not whole:
        sys.exit("This is a part of the peers, models or parts; docs/benchmarks.md is left as it is.")
    if options.write:
        _serving_report.write(results)


if __name__ == "__main__":
    main()
