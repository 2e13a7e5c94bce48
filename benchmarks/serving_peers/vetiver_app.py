"""vetiver as its documentation shows it: the prototype is read from the training data, and checked."""

import os

import joblib
from vetiver import VetiverAPI, VetiverModel

folder = os.environ["BENCH_MODEL"]
model = VetiverModel(
    joblib.load(f"{folder}/model.joblib"), "flights", prototype_data=joblib.load(f"{folder}/prototype.joblib")
)
app = VetiverAPI(model, check_prototype=True).app
