"""Drift on 100,000 rows and 20 columns: nbdeploy against bare Evidently, in the same run, medians of three.

Both compare the same frames and write a whole report to disk. Evidently is imported, and both have run once,
before the clock starts.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from nbdeploy import drift_report

ROWS = 100_000
ROUNDS = 3


def frame(side: int) -> pd.DataFrame:
    """Numbers, words, nulls and long tails; on side 1 every other column has drifted."""
    rng = np.random.default_rng(side)
    columns: dict[str, object] = {}
    for i in range(20):
        shift = side * (i % 2)
        if i < 5:
            columns[f"normal_{i}"] = rng.normal(0.4 * shift, 1, ROWS)
        elif i < 8:
            columns[f"skewed_{i}"] = rng.lognormal(0.3 * shift, 1, ROWS)
        elif i < 11:
            columns[f"gaps_{i}"] = np.where(rng.random(ROWS) < 0.2, np.nan, rng.normal(0.4 * shift, 1, ROWS))
        elif i < 14:
            columns[f"count_{i}"] = rng.poisson(20 + 4 * shift, ROWS)
        elif i < 19:
            words = np.array([f"word {k}" for k in range(4 + 12 * (i - 14))], dtype=object)
            chosen = words[(rng.random(ROWS) ** (1 + shift) * len(words)).astype(int)]
            columns[f"words_{i}"] = np.where(rng.random(ROWS) < 0.05, None, chosen)
        else:
            columns[f"flag_{i}"] = rng.random(ROWS) < 0.5 + 0.2 * shift
    return pd.DataFrame(columns)


def bare(reference: pd.DataFrame, current: pd.DataFrame, path: Path) -> dict[str, bool]:
    from evidently import Report
    from evidently.presets import DataDriftPreset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Report([DataDriftPreset()], include_tests=True).run(current, reference)
        run.save_html(str(path))
    tests = [test for test in run.dict()["tests"] if test["id"] == "drift"]
    return {test["metric_config"]["params"]["column"]: str(test["status"]).endswith("FAIL") for test in tests}


def ours(reference: pd.DataFrame, current: pd.DataFrame, path: Path) -> dict[str, bool]:
    report = drift_report.measure(reference, current, name="bench", version="v1", html_path=path)
    return report.columns["drifted"].to_dict()


def main() -> None:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    drift_report.warm()
    reference, current = frame(0), frame(1)
    sides = {"bare Evidently": bare, "nbdeploy": ours}
    times: dict[str, list[float]] = {name: [] for name in sides}
    verdicts = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS + 1):
            for name, measure in sides.items():
                start = time.perf_counter()
                verdicts[name] = measure(reference, current, Path(folder, "drift.html"))
                if turn:
                    times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    print(f"{'drift, 100,000 x 20':<22}{'median s':>10}   rounds")
    for name, taken in times.items():
        print(f"{name:<22}{medians[name]:>10.2f}   {' '.join(f'{one:.2f}' for one in taken)}")
    ratio = medians["nbdeploy"] / medians["bare Evidently"]
    same = sum(verdicts["nbdeploy"][column] == drifted for column, drifted in verdicts["bare Evidently"].items())
    print(f"ratio {ratio:.3f} (at most 0.333); same verdict for {same} of {len(verdicts['bare Evidently'])} columns")


if __name__ == "__main__":
    main()
