"""Saving a small scikit-learn pipeline: ours with its rehearsal, against MLflow's `log_model` with inferred requirements.

Ours writes the model, signature, reference sample, expected outputs and provenance, and loads it all in a fresh
process that reproduces the predictions and reports what it loaded. MLflow's also starts a process, to find out which
packages the model imports. The same fitted model in fresh processes, interleaved; medians of ``--runs``.

With ``--large N``, a model of N MB is saved instead, and the peak of memory beyond the model itself is printed.
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
import nbdeploy
begun = time.perf_counter()
nbdeploy.save(model, "flights", X, y, progress=False)
print(time.perf_counter() - begun)
"""
)
MLFLOW = (
    FIT
    + """
import logging, mlflow
logging.disable(logging.WARNING)
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("flights")  # makes the database, which is not part of saving
options = {"name": "model", "registered_model_name": "flights", "input_example": X.head(5)}
try:
    from skops.io import get_untrusted_types  # where MLflow stores by skops, it wants to be told what to trust
    import skops.io
    options["skops_trusted_types"] = get_untrusted_types(data=skops.io.dumps(model))
    import inspect
    if "skops_trusted_types" not in inspect.signature(mlflow.sklearn.log_model).parameters:
        del options["skops_trusted_types"]
except ImportError:
    pass
begun = time.perf_counter()
mlflow.sklearn.log_model(model, **options)
print(time.perf_counter() - begun)
"""
)
LARGE = """
import resource, sys, time
import numpy as np
import nbdeploy

class Large:
    def __init__(self, megabytes):
        self.weights = np.random.default_rng(0).random(megabytes * 131072)
    def predict(self, X):
        return X[:, 0] * self.weights[0]

model, X = Large(int(sys.argv[1])), np.arange(1000.0).reshape(500, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.perf_counter()
nbdeploy.save(model, "large", X, progress=False)
seconds = time.perf_counter() - begun
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
rehearsal = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(f"{seconds} {own / 1024} {rehearsal / 1024}")
"""


def run(program: str, *words: str) -> list[float]:
    """What a fresh process in an empty folder prints at its end."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"PYTHONWARNINGS": "ignore", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
        env = {**os.environ, **quiet, "NBDEPLOY_HOME": f"{folder}/home", "BENTOML_HOME": f"{folder}/bentoml"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        done = subprocess.run(
            [sys.executable, "-c", program, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return list(map(float, done.stdout.split()[-3:] if words else done.stdout.split()[-1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--large", type=int, default=0, metavar="MB")
    options = parser.parse_args()
    if options.large:
        seconds, own, rehearsal = run(LARGE, str(options.large))
        print(f"a model of {options.large} MB: {seconds:.1f} s; {own:.0f} MB beyond it in the kernel,")
        print(f"{rehearsal - options.large:.0f} MB beyond it in the process that rehearses")
        return
    run(OURS)  # fills the caches of both
    run(MLFLOW)
    ours, theirs = [], []
    for _ in range(options.runs):
        ours += run(OURS)
        theirs += run(MLFLOW)
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"nbdeploy.save {a:.2f} s, mlflow.sklearn.log_model {b:.2f} s (medians of {options.runs}): {a / b:.2f} x")


if __name__ == "__main__":
    main()
