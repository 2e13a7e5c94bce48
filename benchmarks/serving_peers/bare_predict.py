"""Bare ``model.predict`` in a process of its own: seconds of one call, for each line on standard input."""

import sys
import time

import joblib

if __name__ == "__main__":
    model, X = joblib.load(sys.argv[1] + "/model.joblib"), joblib.load(sys.argv[1] + "/large.joblib")
    for _ in range(3):
        model.predict(X)
    for _ in sys.stdin:
        begun = time.perf_counter()
        model.predict(X)
        print(time.perf_counter() - begun, flush=True)
