"""Save the fitted model as MLflow's documentation shows it, with its signature: ``python mlflow_save.py MODEL PLACE``."""

import sys

import joblib
import mlflow.sklearn
from mlflow.models import infer_signature

if __name__ == "__main__":
    folder, place = sys.argv[1:]
    model, X = joblib.load(f"{folder}/model.joblib"), joblib.load(f"{folder}/X.joblib")
    signature = infer_signature(X, model.predict(X[:100]))
    mlflow.sklearn.save_model(
        model, place, signature=signature, serialization_format="cloudpickle", pip_requirements=["scikit-learn"]
    )
