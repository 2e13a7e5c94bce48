"""What it costs that requests are routed: the same requests to the same versions, chosen by us or by who asks.

One deployment, one worker, two versions of the same model, and wrk with 32 clients that send one row each. Four
measurements, each in turns within one running service:

- loaded: v1 has all requests; with v2 loaded beside it, without a share, against without v2.
- chosen: v1 and v2 have 50 % each, drawn by request, sticky by a header or sticky by a column; against requests of the
  same length that name their version, the one that answered the same row before. The model calls are the same, so what
  differs is that we choose.
- two: the same, drawn by request, against all requests for v1: requests that arrive together are answered in two model
  calls, not in one. That is what a second model costs, not what routing does.

- inside: the processor time that the application itself takes for a request, by the way in which the version is chosen.
  It is the only one of the four that a busy machine leaves as it is.

The figures are medians of the turns' ratios, with their quartiles: of requests a second, and of the processor time of
the service per request, which other work on the machine disturbs less.

    python benchmarks/routing.py
    python benchmarks/routing.py --models linear --rounds 4 --seconds 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _serving_models
from _load import Client, Server, wrk
from _routing_inside import microseconds
from _serving_models import Model
from _serving_report import machine

NAME, CLIENTS, LIMIT = "routing-benchmark", 32, 0.97
HEADER = "X-Client-ID"
NAMED, UNNAMED = "version", "nothing"  # of one length; the second means nothing to a service
Turn = dict[str, float]


class Service:
    """The deployment, one worker, whose traffic is changed."""

    def __init__(self, model: Model, place: Path) -> None:
        import nbdeploy

        X, y = (_loaded(model, stem) for stem in "Xy")
        started = nbdeploy.deploy(model.fitted, NAME, X, y, workers=1, progress=False)
        nbdeploy.save(model.fitted, NAME, X, y, progress=False)
        self.server = Server(int(started.url.rpartition(":")[2]), place / "said.txt")
        self.server.adopt(started.pid)
        self._place, self._column = place, "carrier" if model.container == "frames" else _last_column()
        self._bodies = [json.dumps(row) for row in _serving_models.rows_of(model.singles)[:1000]]

    def sticky(self, kind: str) -> str:
        """What `nbdeploy.traffic` is told for one of the kinds of a choice."""
        return {"request": "", "header": HEADER, "column": self._column}[kind]

    def lines(self, stem: str, field: str, versions: list[str]) -> Path:
        """A file of requests for wrk: one per row, with a field in its query and a client's name."""
        path = self._place / f"{stem}.txt"
        each = zip(self._bodies, versions, strict=True)
        path.write_text("".join(f"/predict?{field}={v}\tclient {i}\t[{body}]\n" for i, (body, v) in enumerate(each)))
        return path

    def answered(self) -> list[str]:
        """The version that answers each row now."""
        with Client(self.server.port, f"/predict?{UNNAMED}=v1") as client:
            told = [client.ask(f"[{body}]".encode(), **{HEADER: f"client {i}"}) for i, body in enumerate(self._bodies)]
        return [json.loads(answer)["version"] for _, answer in told]

    def load(self, requests: Path, seconds: float) -> Turn:
        """Requests a second, and the service's microseconds per request."""
        self.server.settle()
        used = self.server.cpu_seconds()
        found = wrk(self.server.port, "/predict", requests, connections=CLIENTS, seconds=seconds)
        self.server.settle()
        return {"rate": found["rate"], "cpu": (self.server.cpu_seconds() - used) * 1e6 / found["requests"]}

    def load_only(self, *versions: str) -> None:
        """Have these loaded, the live one among them; the others get no share."""
        from nbdeploy import deployment, routing

        routing.change(NAME, lambda old: replace(old, warm=versions[1:]))
        while any(told["loaded"] != [*versions] for told in deployment.acknowledged(NAME).values()):
            time.sleep(0.02)
        self.server.settle()


def _loaded(model: Model, stem: str) -> Any:
    import joblib

    return joblib.load(model.folder / f"{stem}.joblib")


def _last_column() -> str:
    from nbdeploy import model_store

    return model_store.get(NAME, "v1").signature.columns[-1].name


def compare(sides: dict[str, Callable[[], Turn]], rounds: int, said: str) -> dict[str, list[Turn]]:
    """What each side has measured, in turns of changing order."""
    found: dict[str, list[Turn]] = {side: [] for side in sides}
    shuffled = random.Random(0)
    for turn in range(rounds + 1):
        for side in shuffled.sample([*sides], len(sides)):
            taken = sides[side]()
            if turn:  # the first one warms
                found[side].append(taken)
        if turn:
            print(f"{said} {turn}/{rounds}", *(f"{side} {turns[-1]['rate']:.0f}" for side, turns in found.items()),
                  file=sys.stderr, flush=True)  # fmt: skip
    return found


def ratios(found: dict[str, list[Turn]], one: str, other: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"rate": statistics.median(turn["rate"] for turn in found[one]),
                             "against": statistics.median(turn["rate"] for turn in found[other])}  # fmt: skip
    for key in ("rate", "cpu"):
        each = [a[key] / b[key] for a, b in zip(found[one], found[other], strict=True)]
        facts[f"{key} ratio"], facts[f"{key} quartiles"] = statistics.median(each), statistics.quantiles(each, n=4)[::2]
    return facts


def measure(model: Model, place: Path, given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    import nbdeploy

    results: dict[str, dict[str, Any]] = {}
    try:
        service = Service(model, place)
        rows = len(service.answered())
        every = service.lines("every", UNNAMED, ["v1"] * rows)

        def loaded(*versions: str) -> Turn:
            service.load_only(*versions)
            return service.load(every, given.seconds)

        if "inside" in given.parts and model.container == "frames":
            inside = microseconds(NAME, model.singles, service.sticky("column"), 25)
            print("| inside of a worker | processor time per request |\n|---|--:|")
            print("".join(f"| {way} | {taken:.1f} µs |\n" for way, taken in inside.items()))
        if "loaded" in given.parts:
            found = compare(
                {"v2 loaded": lambda: loaded("v1", "v2"), "v1 alone": lambda: loaded("v1")},
                given.rounds, f"{model.name}, loaded",
            )  # fmt: skip
            results["v2 loaded, no share"] = ratios(found, "v2 loaded", "v1 alone")
        for kind in ("request", "header", "column"):
            if kind not in given.parts:
                continue
            nbdeploy.traffic(NAME, v1=50, v2=50, sticky=service.sticky(kind), progress=False)
            answered = service.answered()
            files = {
                "chosen": service.lines("chosen", UNNAMED, answered),
                "named": service.lines("named", NAMED, answered),
                "one": service.lines("one", NAMED, ["v1"] * rows),
            }
            if kind != "request":
                del files["one"]
            sides = {side: lambda path=path: service.load(path, given.seconds) for side, path in files.items()}
            found = compare(sides, given.rounds, f"{model.name}, {kind}")
            facts = ratios(found, "chosen", "named")
            results[f"50/50 by {kind}"] = {**facts, "share of v2": answered.count("v2") / rows}
            if "one" in found:
                results["two versions, not one"] = ratios(found, "chosen", "one")
    finally:
        nbdeploy.stop(NAME)
    return results


def shown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "| model | what | requests/s | against | ratio (quartiles) | processor time per request |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for model, found in results.items():
        for what, facts in found.items():
            rate, cpu = (
                "{:.3f} ({:.3f} to {:.3f})".format(facts[f"{key} ratio"], *facts[f"{key} quartiles"])
                for key in ("rate", "cpu")
            )
            lines.append(f"| {model} | {what} | {facts['rate']:,.0f} | {facts['against']:,.0f} | {rate} | {cpu} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["pipeline", "linear"])
    parser.add_argument("--parts", nargs="+", default=["inside", "loaded", "request", "header", "column"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2, help="of one turn")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the service is stopped on the way out
    results = {}
    for name in given.models:
        with tempfile.TemporaryDirectory(prefix="nbd-") as place:
            os.environ |= {"NBDEPLOY_HOME": f"{place}/home", "BENTOML_HOME": f"{place}/bentoml"}
            model = _serving_models.fit(name, Path(place))
            results[name] = measure(model, Path(place), given)
    print(json.dumps(results, indent=1), file=sys.stderr)
    routed = [facts for found in results.values() for what, facts in found.items() if not what.startswith("two")]
    if not routed:
        return
    print(shown(results), f"\n{machine()}; medians of {given.rounds} turns of {given.seconds:g} s")
    sys.exit(0 if min(facts["rate ratio"] for facts in routed) >= LIMIT else 1)


if __name__ == "__main__":
    main()
