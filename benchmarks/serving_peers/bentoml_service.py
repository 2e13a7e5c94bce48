"""BentoML as its documentation shows it, and with its adaptive batching.

Adaptive batching of a DataFrame fails in 1.4.39 (its dispatcher takes the shape for the number of rows), so the batching
service takes a list of pydantic models, the other input that the documentation batches.
"""

from __future__ import annotations

import os

import bentoml
import joblib
import numpy as np
import pandas as pd
from pydantic import BaseModel


class Flight(BaseModel):
    """One row of the pipeline and the forest."""

    month: int
    day: int
    hour: int
    minute: int
    dep_delay: float
    distance: int
    carrier: str
    origin: str
    dest: str


@bentoml.service
class Frames:
    """A frame in, as the documentation shows it."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"] + "/model.joblib")

    @bentoml.api
    def predict(self, X: pd.DataFrame) -> list:
        return self.model.predict(X).tolist()


@bentoml.service
class Arrays:
    """An array in, as the documentation shows it."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"] + "/model.joblib")

    @bentoml.api
    def predict(self, X: np.ndarray) -> list:
        return self.model.predict(X).tolist()


@bentoml.service
class FramesBatched:
    """Rows in, with adaptive batching."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"] + "/model.joblib")

    @bentoml.api(batchable=True, max_batch_size=1000)
    def predict(self, X: list[Flight]) -> list:
        return self.model.predict(pd.DataFrame([row.model_dump() for row in X])).tolist()


@bentoml.service
class ArraysBatched:
    """An array in, with adaptive batching."""

    def __init__(self) -> None:
        self.model = joblib.load(os.environ["BENCH_MODEL"] + "/model.joblib")

    @bentoml.api(batchable=True, max_batch_size=1000)
    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.model.predict(X)
