"""FastAPI by hand: typed fields, a frame, and the model in the thread pool, so that the event loop stays free."""

import os

import joblib
import numpy as np
import pandas as pd
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, FiniteFloat

model = joblib.load(os.environ["BENCH_MODEL"] + "/model.joblib")
app = FastAPI()


class Flight(BaseModel):
    """One row of the pipeline and the forest."""

    model_config = ConfigDict(extra="forbid")

    month: int
    day: int
    hour: int
    minute: int
    dep_delay: FiniteFloat
    distance: int
    carrier: str
    origin: str
    dest: str


class Predictions(BaseModel):
    """What the classifiers say."""

    predictions: list[bool]


class Estimates(BaseModel):
    """What the regression says."""

    predictions: list[float]


@app.post("/frames")
def frames(rows: list[Flight]) -> Predictions:
    X = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in Flight.model_fields})
    return Predictions(predictions=model.predict(X).tolist())


@app.post("/arrays")
def arrays(
    rows: list[tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]],
) -> Estimates:
    return Estimates(predictions=model.predict(np.array(rows)).tolist())


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}
