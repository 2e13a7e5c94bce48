"""Deploy the fitted model as a user does: ``python nbdeploy_deploy.py MODEL PORT``."""

import sys

import joblib

import nbdeploy

if __name__ == "__main__":
    folder, port = sys.argv[1], int(sys.argv[2])
    model, X = joblib.load(f"{folder}/model.joblib"), joblib.load(f"{folder}/X.joblib")
    service = nbdeploy.deploy(model, "flights", X, joblib.load(f"{folder}/y.joblib"), port=port, progress=False)
    print(service.pid)
