"""Permutation importance: what a version's answers lose when one column's values are mixed, in a fresh process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nbdeploy import artifact, containers, processes
from nbdeploy.errors import NbdeployError
from nbdeploy.home import folder as state_folder
from nbdeploy.home import read_json, write_json
from nbdeploy.signature import Signature

FILE = "importance.json"
ROWS, REPEATS, SEED = 1_000, 5, 0
BUDGET = 20.0  # seconds for asking the model; what is not measured by then stays unmeasured, and is named
TIMEOUT = 180.0  # for everything: loading the model, and a single answer that takes forever
NEEDS = "importance is measured with scikit-learn, which is not installed: pip install 'nbdeploy[lab]'"


def read(folder: Path, digest: str) -> dict[str, Any] | None:
    """What was measured before for the version in `folder`, or None; a file of another digest counts for nothing."""
    try:
        found = read_json(folder / FILE)
    except NbdeployError:  # damaged: it is measured again
        return None
    return found if isinstance(found, dict) and found.get("digest") == digest else None


def measure(
    folder: Path, digest: str, files: Mapping[str, str] | None, on_wait: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The importance of every column, from ``importance.json`` where it was measured before.

    The model runs in a process of its own, on at most 1,000 rows of the reference sample, each column mixed up to 5
    times with fixed seeds. `on_wait` is called about every 0.1 s; an interrupt ends the process.

    Parameters
    ----------
    folder : Path
        Of the version. It gets the file ``importance.json``.
    digest : str
        Of the version; what the file is keyed by.
    files : mapping or None
        The recorded SHA-256 of every file.

    Returns
    -------
    dict
        ``columns`` (a list with ``column``, ``mean``, ``std``, ``repeats``, most important first), ``unmeasured``
        (names), ``score`` and ``against`` (in words), ``baseline``, ``rows``, ``repeats``, ``seconds``; or
        ``skipped``, the reason why there is nothing. Never raises for what the model does.
    """
    if (known := read(folder, digest)) is not None:
        return known
    signature = artifact.read_signature(folder)
    if reason := unsuitable(signature):
        return {"digest": digest, "skipped": reason}
    found = {"digest": digest, **_in_a_fresh_process(folder, files, on_wait)}
    if "skipped" not in found:
        write_json(folder / FILE, found)
    return found


def unsuitable(signature: Signature) -> str:
    """Why mixing columns would say nothing about this model, or ''."""
    if odd := [column.name for column in signature.columns if column.shape]:
        return f"importance is measured column by column, and a cell of {odd[0]!r} holds many values"
    if len(signature.columns) == 1:
        only = signature.columns[0]
        what = "free text" if only.kind == "string" and only.categories is None else "all it sees"
        return f"it has a single input column, {what}: there is nothing to compare it with"
    return ""


def compute(loaded: artifact.LoadedModel, X: pd.DataFrame, y: pd.DataFrame | None, seconds: float) -> dict[str, Any]:
    """The same in this process; what `measure` returns, without the digest.

    Parameters
    ----------
    y : DataFrame or None
        The true outcomes, one column per target.
    seconds : float
        For asking the model. At least one column is measured, however long that takes.

    Raises
    ------
    Exception
        Whatever the model raises on rows of its own sample.
    """
    started = time.monotonic()
    if y is not None:
        known = y.notna().all(axis=1).to_numpy()
        X, y = (X[known], y[known]) if known.any() else (X, None)
    rows = containers.sample_rows(len(X), ROWS)
    X = X.iloc[rows].reset_index(drop=True)
    y = None if y is None else y.iloc[rows].reset_index(drop=True)
    if len(X) < 2:
        return {"skipped": "there are fewer than two rows to mix"}
    measured = _score_of(loaded, X, y)
    if isinstance(measured, str):
        return {"skipped": measured}
    baseline = measured.score(X)
    rounds = _mix(X, measured.score, baseline, started + seconds)
    table: list[dict[str, Any]] = []
    unmeasured = []
    for i, column in enumerate(loaded.signature.columns):
        losses = [baseline - scores[i] for scores in rounds if i < len(scores) and math.isfinite(scores[i])]
        if losses:
            mean, std = float(np.mean(losses)), float(np.std(losses))
            table.append({"column": column.name, "mean": mean, "std": std, "repeats": len(losses)})
        else:
            unmeasured.append(column.name)
    if not table:
        return {"skipped": "the model fails on rows with one column mixed"}
    table.sort(key=lambda entry: -float(entry["mean"]))
    counts = [int(entry["repeats"]) for entry in table]
    return {
        "columns": table, "unmeasured": unmeasured, "score": measured.words, "against": measured.against,
        "baseline": float(baseline), "rows": len(X), "repeats": max(counts),
        "complete": min(counts) == REPEATS and not unmeasured, "seconds": round(time.monotonic() - started, 2),
    }  # fmt: skip


# -- the score ----------------------------------------------------------------------------------------------

_Score = Callable[[pd.DataFrame], float]


class _Measure(NamedTuple):
    score: _Score
    words: str
    against: str


def _score_of(loaded: artifact.LoadedModel, X: pd.DataFrame, y: pd.DataFrame | None) -> _Measure | str:
    """How answers are scored, that in words, and against what; or why they cannot be."""
    own = loaded.predict(X)
    columns = _columns(own)
    measured = None if y is None else _against_labels(loaded, X, y, columns)
    return measured or _against_itself(loaded, columns)


def _against_labels(
    loaded: artifact.LoadedModel, X: pd.DataFrame, y: pd.DataFrame, own: list[np.ndarray[Any, Any]]
) -> _Measure | None:
    from sklearn import metrics

    signature = loaded.signature
    if signature.task == "regression":
        numeric = all(pd.api.types.is_numeric_dtype(y[name].dtype) for name in y)
        if len(own) != y.shape[1] or not numeric or any(len(np.unique(y[name])) < 2 for name in y):
            return None
        truth = y.to_numpy(dtype=float)
        return _Measure(lambda Z: float(metrics.r2_score(truth, _numbers(loaded, Z))), "R²", "the labels")
    if signature.task != "classification" or len(own) != 1 or y.shape[1] != 1:
        return None
    labels = _as_text(y.iloc[:, 0].to_numpy())
    # Labels that were encoded otherwise than the answers would make every answer wrong.
    classes = _as_text(np.array(signature.classes or (), dtype=object))
    held = set(labels)
    if len(held) < 2 or not held <= {*_as_text(own[0]), *classes}:
        return None
    if len(classes) == 2 and loaded.probabilities(X) is not None:
        positive = labels == classes[1]

        def area(Z: pd.DataFrame) -> float:
            return float(metrics.roc_auc_score(positive, loaded.probabilities(Z)[:, 1]))

        return _Measure(area, "ROC-AUC", "the labels")
    groups = [labels == name for name in sorted(held)]

    def balanced(Z: pd.DataFrame) -> float:
        right = _as_text(_columns(loaded.predict(Z))[0]) == labels
        return float(np.mean([right[group].mean() for group in groups]))

    return _Measure(balanced, "balanced accuracy", "the labels")


def _against_itself(loaded: artifact.LoadedModel, own: list[np.ndarray[Any, Any]]) -> _Measure | str:
    from sklearn import metrics

    if all(column.dtype.kind == "f" for column in own):
        numbers = np.column_stack(own)
        if not np.isfinite(numbers).all():
            return "some of its answers are not finite"
        if float(np.ptp(numbers, axis=0).max()) == 0:
            return "it gives every row of its sample the same answer"

        def explained(Z: pd.DataFrame) -> float:
            return float(metrics.r2_score(numbers, _numbers(loaded, Z), multioutput="variance_weighted"))

        return _Measure(explained, "R²", "its own answers")
    if any(column.dtype.kind not in "fiubUSOM" for column in own):
        return "its answers are neither numbers nor classes"
    asked = [_as_text(column) for column in own]

    def equal(Z: pd.DataFrame) -> float:
        answered = [_as_text(column) for column in _columns(loaded.predict(Z))]
        return float(np.all([a == b for a, b in zip(asked, answered, strict=True)], axis=0).mean())

    return _Measure(equal, "share of equal answers", "its own answers")


def _columns(answered: Any) -> list[np.ndarray[Any, Any]]:
    """An answer as one array per value of a row."""
    arrays = list(answered.values()) if isinstance(answered, dict) else [answered]
    return [column for array in arrays for column in array.reshape(len(array), -1).T]


def _numbers(loaded: artifact.LoadedModel, Z: pd.DataFrame) -> np.ndarray[Any, Any]:
    return np.column_stack(_columns(loaded.predict(Z))).astype(float)


def _as_text(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([str(value) for value in values.tolist()], dtype=object)


# -- mixing -------------------------------------------------------------------------------------------------


class _OutOfTime(Exception):
    """The budget is used up."""


class _Asked:
    """The estimator and the scorer that scikit-learn is given: it keeps what was scored before time was up."""

    def __init__(self, score: _Score, baseline: float, deadline: float) -> None:
        self.scores: list[float] = []
        self._score, self._baseline, self._deadline = score, baseline, deadline
        self._begun = False

    def fit(self, *_args: Any) -> _Asked:
        return self

    def __call__(self, _estimator: Any, X: pd.DataFrame, _y: Any) -> float:
        if not self._begun:  # scikit-learn asks for the unmixed score first
            self._begun = True
            return self._baseline
        if self.scores and time.monotonic() > self._deadline:
            raise _OutOfTime
        try:
            self.scores.append(self._score(X))
        except Exception:  # noqa: BLE001 - anybody's model, on a row that may be impossible; it stays unmeasured
            self.scores.append(math.nan)
        return self.scores[-1]


def _mix(X: pd.DataFrame, score: _Score, baseline: float, deadline: float) -> list[list[float]]:
    """Per repeat the scores with the first, second, … column mixed; the last may be short of columns."""
    from sklearn.inspection import permutation_importance

    rounds = []
    for repeat in range(REPEATS):
        asked = _Asked(score, baseline, deadline)
        rounds.append(asked.scores)
        try:
            # One repeat at a time: when time is up, every column has had its turn equally often.
            permutation_importance(asked, X, None, scoring=asked, n_repeats=1, random_state=SEED + repeat, n_jobs=1)
        except _OutOfTime:
            break
    return rounds


# -- the process --------------------------------------------------------------------------------------------


def _in_a_fresh_process(folder: Path, files: Mapping[str, str] | None, on_wait: Callable[[], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=state_folder("run"), prefix="importance-") as where:
        spec, outcome, log = (Path(where) / name for name in ("spec.json", "outcome.json", "importance.log"))
        recorded = None if files is None else dict(files)
        write_json(spec, {"path": str(folder), "files": recorded, "outcome": str(outcome), "seconds": BUDGET})
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "nbdeploy.importance", str(spec)],
                cwd=where, env=processes.environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True, umask=0o077,
            )  # fmt: skip
        try:
            deadline = time.monotonic() + TIMEOUT
            while child.poll() is None and time.monotonic() < deadline:
                try:
                    child.wait(0.1)
                except subprocess.TimeoutExpired:
                    on_wait()
            if child.poll() is None:
                return {"skipped": f"the model did not answer its sample within {TIMEOUT:.0f} s"}
        finally:
            if child.poll() is None:
                processes.end_group(child.pid)
                child.wait()
        found = read_json(outcome)
        if isinstance(found, dict):
            return found
        code = child.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return {"skipped": f"the process that measured it {how}"}


def _main(spec_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    folder = Path(spec["path"])
    if util.find_spec("sklearn") is None:
        write_json(Path(spec["outcome"]), {"skipped": NEEDS})
        return
    private = True
    try:
        private = any(column.private for column in artifact.read_signature(folder).columns)
        loaded = artifact.load(folder, spec["files"])
        X = artifact.read_reference(folder, loaded.signature)
        labels = folder / artifact.LABELS
        y = artifact.read_frame(labels) if labels.is_file() else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the model's libraries, about rows that are mixed on purpose
            found = compute(loaded, X, y, float(spec["seconds"]))
    except Exception as error:  # noqa: BLE001 - anybody's model; the card says why there is nothing
        # What a model says of a row may quote a private value.
        said = type(error).__name__ if private else " ".join(f"{type(error).__name__}: {error}".split())[:300]
        found = {"skipped": f"the model could not be asked: {said}"}
    write_json(Path(spec["outcome"]), found)


if __name__ == "__main__":
    _main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the outcome is written; what the model's libraries do at their exit can only be late or wrong
