"""From a fitted model to its first HTTP answer: ours against the same thing by hand with BentoML.

Ours saves with a rehearsal, signature, reference sample and log; by hand it is ``bentoml.sklearn.save_model``,
a service file, ``bentoml serve`` and a request. Both in fresh processes, interleaved; medians of ``--runs``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

from _flight_model import FIT

OURS = (
    FIT
    + """
begun = time.perf_counter()
import nbdeploy
nbdeploy.deploy(model, "flights", X, y, progress=False)
nbdeploy.predict("flights", X.head(1))
print(time.perf_counter() - begun)
nbdeploy.stop("flights")
"""
)
BY_HAND = (
    FIT
    + """
begun = time.perf_counter()
import json, socket, subprocess, sys, urllib.request
import bentoml
bentoml.sklearn.save_model("flights", model)
open("service.py", "w").write('''
import bentoml, pandas as pd
@bentoml.service
class Flights:
    def __init__(self):
        self.model = bentoml.sklearn.load_model("flights:latest")
    @bentoml.api
    def predict(self, X: pd.DataFrame) -> list:
        return self.model.predict(X).tolist()
''')
with socket.create_server(("127.0.0.1", 0)) as probe:
    port = probe.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "bentoml", "serve", "service:Flights", "--host", "127.0.0.1", "--port", str(port)],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
body = json.dumps({"X": json.loads(X.head(1).to_json(orient="records"))}).encode()
while True:
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).read()
        break
    except OSError:
        time.sleep(0.02)
print(time.perf_counter() - begun)
server.terminate()
server.wait()
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {"nbdeploy": [], "by hand": []}
    for number in range(runs + 1):
        for name, script in (("nbdeploy", OURS), ("by hand", BY_HAND)):
            took = _run(script)
            if number:  # the first round compiles bytecode
                seconds[name].append(took)
    print(f"{'':10} {'median s':>9} {'all':>6}")
    for name, took in seconds.items():
        print(f"{name:10} {statistics.median(took):9.2f}   {' '.join(f'{t:.2f}' for t in took)}")
    ratio = statistics.median(seconds["nbdeploy"]) / statistics.median(seconds["by hand"])
    print(f"fitted model to first answer: {ratio:.2f} x by hand (target: at most 0.80)")


def _run(script: str) -> float:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        env |= {"NBDEPLOY_HOME": f"{folder}/h", "BENTOML_HOME": f"{folder}/b", "BENTOML_DO_NOT_TRACK": "True"}
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=True
        )
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
