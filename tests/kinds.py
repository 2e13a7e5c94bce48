"""A frame with one column of each kind, its signature, and small models."""

from __future__ import annotations

import datetime as dt
import math
import time

import numpy as np
import pandas as pd

from nbdeploy.signature import Signature
from nbdeploy.signature_inference import infer_columns

# One column of each kind, and of each kind one that may be null.
FRAME = pd.DataFrame(
    {
        "whole": pd.Series([1, -2, 3], dtype="int64"),
        "byte": pd.Series([1, 2, 3], dtype="int8"),
        "big": pd.Series([1, 2, 3], dtype="uint64"),
        "maybe": pd.array([1, None, 3], dtype="Int32"),
        "size": [0.5, 1.5, -2.5],
        "half": pd.Series([0.5, 1.5, 2.5], dtype="float32"),
        "gap": [0.5, math.nan, 2.5],
        "endless": [0.5, math.inf, 2.5],
        "flag": [True, False, True],
        "perhaps": pd.array([True, None, False], dtype="boolean"),
        "word": ["a", 'say "b"', "c\\"],
        "blank": pd.Series(["a", None, "c"], dtype=object),
        "kind": pd.Categorical(["x", "y", "x"], categories=["x", "y", "z"]),
        "level": pd.Categorical([1, 2, None]),
        "side": pd.Categorical([True, False, True]),
        "share": pd.Categorical([0.5, 1.5, 0.5]),
        "when": pd.Series(pd.to_datetime(["2013-01-01T05:00", "2013-01-02T00:00", "2013-01-03T00:00"])).astype(
            "datetime64[ns]"
        ),
        "zoned": pd.Series(
            pd.to_datetime(["2013-01-01T05:00", None, "2013-01-03T00:00"]).tz_localize("Europe/Paris")
        ).astype("datetime64[ns, Europe/Paris]"),
        "day": pd.Series([dt.date(2013, 1, 1), dt.date(2013, 1, 2), None], dtype=object),
        "vector": [np.array([0.5, 1.5]), np.array([2.5, 3.5]), np.array([4.5, 5.5])],
        "holes": [np.array([0.5, 1.5]), np.array([2.5]), np.array([4.5, math.nan])],
        "longs": [np.array([1, 2]), np.array([3, 4]), np.array([5, 6])],
        "grid": [np.array([[1, 2], [3, 4]], dtype="int16")] * 3,
        "words": [["a", "b"], ["c"], []],
        "flags": [np.array([True, False])] * 3,
    }
)
SIGNATURE = Signature(columns=infer_columns(FRAME))
ROWS = SIGNATURE.encode(FRAME)["data"]
RECORD = dict(zip(SIGNATURE.names, ROWS[0], strict=True))


class Even:
    """Whether ``byte`` is even; it takes any row that fits the signature."""

    classes_ = np.array([False, True])

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return X["byte"].to_numpy() % 2 == 0

    def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
        return np.column_stack([np.full(len(X), 0.25), np.full(len(X), 0.75)])


class Double:
    """Doubles its column ``x``."""

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        return X["x"].to_numpy() * 2


class Slow:
    """Takes 20 ms for each call."""

    def predict(self, X: pd.DataFrame) -> np.ndarray:
        time.sleep(0.02)
        return X["x"].to_numpy() * 2
