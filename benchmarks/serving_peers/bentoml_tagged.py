"""A Bento with its model in it: ``python bentoml_tagged.py MODEL OWN VERSION`` builds ``flights:VERSION``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import bentoml
import joblib
import pandas as pd


@bentoml.service
class Tagged:
    """A frame in, as the documentation shows it."""

    def __init__(self) -> None:
        self.model = joblib.load(Path(__file__).with_name("model.joblib"))

    @bentoml.api
    def predict(self, X: pd.DataFrame) -> list:
        return self.model.predict(X).tolist()


if __name__ == "__main__":
    model, own, version = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    context = own / version
    context.mkdir()
    for path in (Path(__file__), model / "model.joblib"):
        shutil.copy(path, context)
    # Nothing is looked up in a package index.
    bentoml.bentos.build(
        "bentoml_tagged:Tagged", name="flights", version=version, build_ctx=str(context), include=["*.py", "*.joblib"],
        python={"lock_packages": False},
    )  # fmt: skip
