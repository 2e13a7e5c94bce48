"""A service hands a model what its kernel handed it: every container, dtype and value, and answers the same."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pandas as pd
import pytest

import nbdeploy
from kernels import Kernel, kernel
from nbdeploy import containers
from services import own_home

# What a notebook would have: a model that says, row by row, exactly what it was handed.
SETUP = """
import datetime as dt, math, pickle
import numpy as np, pandas as pd, polars as pl, pyarrow as pa, torch
from scipy import sparse
import nbdeploy

UTC, NAN, INF = dt.timezone.utc, math.nan, math.inf

def cell(value):
    if isinstance(value, np.ndarray):
        return f"ndarray {value.dtype} {value.shape} {value.tolist()!r}"
    return f"{type(value).__name__} {value!r}"

def kind(series):
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        known = dtype.categories
        return f"category of {known.dtype} {known.tolist()!r}{' in order' * dtype.ordered}"
    return repr(dtype)

class Spy:
    def predict(self, X):
        if isinstance(X, pd.DataFrame):
            head = [f"{type(X).__name__} {label!r}: {kind(X[label])}" for label in X.columns]
            rows = [[cell(X[label].iloc[i]) for label in X.columns] for i in range(len(X))]
        elif isinstance(X, pd.Series):
            head, rows = [f"Series {X.name!r} {kind(X)}"], [[cell(value)] for value in X]
        elif isinstance(X, list):
            head, rows = ["list"], [[cell(value)] for value in X]
        elif hasattr(X, "tocsr"):
            head, rows = [f"{type(X).__name__} {X.dtype} {X.shape[1:]}"], [[cell(row)] for row in X.toarray()]
        elif isinstance(X, dict):
            head = [f"{name}: {type(part).__name__} {part.dtype} {part.shape[1:]}" for name, part in X.items()]
            rows = [[cell(part[i]) for part in X.values()] for i in range(len(next(iter(X.values()))))]
        elif isinstance(X, pl.DataFrame):
            head, rows = [f"polars {X.schema!r}"], [[cell(value) for value in row] for row in X.rows()]
        elif isinstance(X, pa.Table):
            head = ["arrow " + str([(field.name, str(field.type)) for field in X.schema])]
            rows = [[cell(value) for value in row.values()] for row in X.to_pylist()]
        else:
            head, rows = [f"{type(X).__name__} {X.dtype} {X.shape[1:]}"], [[cell(row)] for row in X]
        return ["\\n".join([*head, *row]) for row in rows]

T = ["2020-01-01T01:02:03.123456789", None, "1999-12-31", "2030-06-01"]
times = pd.Series(pd.to_datetime(T, format="ISO8601")).astype("datetime64[ns]")
moments = [dt.datetime(2020, 1, 1, 1, 1, 1, 5), None, dt.datetime(1960, 1, 1), dt.datetime(2020, 6, 1)]
aware = [each and each.replace(tzinfo=UTC) for each in moments]
days = [dt.date(2020, 1, 1), dt.date(1, 1, 1), dt.date(9999, 12, 31), dt.date(2000, 2, 29)]
words = ["a", None, "ü", ""]

def backed(values, kind):
    return pd.Series(values, dtype=pd.ArrowDtype(kind))

def through_json(version, X):
    from nbdeploy import artifact, arrow_body, client, request_body
    loaded = artifact.load(version.path, version.files)
    body, media = client.body_of(loaded.signature, client.frame_of(X, loaded.signature))
    if media == arrow_body.MEDIA:
        return loaded.predict(arrow_body.read(body, loaded.signature)).tolist()
    return loaded.predict(loaded.signature.decode(request_body.parse_json(body))).tolist()

def end_services():
    import os, psutil
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("NBDEPLOY_HOME") == os.environ["NBDEPLOY_HOME"]
        except psutil.Error:
            continue
        if ours and process.pid != os.getpid():
            process.kill()
"""

# Name: the expression that makes four rows of it.
SPIED = {
    "frame-plain": """pd.DataFrame({
        **{f"i{w}": np.array([-(2 ** (w - 1)), 2 ** (w - 1) - 1, 0, 1], dtype=f"int{w}") for w in (8, 16, 32, 64)},
        **{f"u{w}": np.array([0, 2 ** w - 1, 2, 1], dtype=f"uint{w}") for w in (8, 16, 32, 64)},
        "f16": np.array([0.5, 1, NAN, 2], "float16"), "f32": np.array([0.1, NAN, INF, -1e38], "float32"),
        "f64": [0.1, NAN, -INF, 1e308], "tiny": [0.1, 0.2, 0.3, 5e-324], "b": [True, False, True, False],
        "s": ["ä", "b", "", "漢"], "none": pd.Series(["a", None, "c", "d"], dtype=object),
        "nan": pd.Series(["a", NAN, "c", "d"], dtype=object), "na": pd.Series(["a", pd.NA, "c", "d"], dtype=object),
        "gap": ["a", None, "c", "d"], "t": times, "t_us": times.astype("datetime64[us]"),
        "t_s": times.astype("datetime64[s]"), "zoned": times.dt.tz_localize("Europe/Berlin"),
        "utc": times.dt.tz_localize("UTC"), "d": days, "d_none": pd.Series([days[0], None, *days[2:]], dtype=object),
    })""",
    "frame-extension": """pd.DataFrame({
        "cat": pd.Categorical(["x", "y", None, "x"]), "cat_i": pd.Categorical([3, 1, 2, 3]),
        "cat_obj": pd.Categorical(["x", "y", None, "x"], categories=pd.Index(["y", "x", "z"], dtype=object)),
        "cat_f": pd.Categorical([0.5, 1.5, None, 3.0]), "cat_b": pd.Categorical([True, False, True, True]),
        "cat_i8": pd.Categorical.from_codes([0, 1, 0, -1], categories=pd.Index([7, 8], dtype="int8")),
        "ordered": pd.Categorical(["lo", "hi", "lo", "hi"], categories=["lo", "mid", "hi"], ordered=True),
        "I64": pd.array([1, None, 2**53 + 1, -5], dtype="Int64"), "U8": pd.array([1, None, 255, 5], dtype="UInt8"),
        "F64": pd.array([1.5, None, 2, -5], dtype="Float64"), "F32": pd.array([1.1, None, 2, -5], dtype="Float32"),
        "Bo": pd.array([True, None, False, True], dtype="boolean"), "St": pd.array(words, dtype="string"),
        "St_py": pd.array(words, dtype="string[python]"),
    })""",
    "frame-backed": """pd.DataFrame({
        "i64": backed([1, None, 2**53 + 1, 3], pa.int64()), "i8": backed([1, 2, -128, 3], pa.int8()),
        "u64": backed([1, 2, 2**64 - 1, 3], pa.uint64()), "f64": backed([0.1, None, 3.0, INF], pa.float64()),
        "f32": backed([0.1, None, 3.0, 2.0], pa.float32()), "b": backed([True, None, False, True], pa.bool_()),
        "s": backed(words, pa.string()), "ls": backed(words, pa.large_string()),
        "us": backed(moments, pa.timestamp("us")), "ns": backed(moments, pa.timestamp("ns")),
        "zoned": backed(aware, pa.timestamp("us", "Europe/Berlin")), "d": backed([days[0], None, *days[2:]], pa.date32()),
    })""",
    "frame-numbered": "pd.DataFrame(np.arange(8.0).reshape(4, 2))",
    "frame-arrays": """pd.DataFrame({
        "k": [1, 2, 3, 4], "embedding": [np.array([0.1, 0.2, i], "float32") for i in range(4)],
        "ragged": [np.arange(i, dtype="int16") for i in range(4)], "lists": [[1, 2], [3], [], [4, 5]],
        "words": [["a", "b"], [], ["c"], ["d"]], "texts": [np.array(["a", "bb"])] * 4,
        "matrix": [np.ones((2, i + 1)) for i in range(4)], "odd": [np.ones((i + 1, i + 2)) * i for i in range(4)],
        "flags": [[True], [False], [True], []], "gap": [[1.0, 2.0], None, [3.0], [4.0]],
        "nan": [[1.0, NAN], [2.0], [INF], [4.0]],
    })""",
    "polars": """pl.DataFrame({
        **{f"i{w}": pl.Series([1, None, -1, 2], dtype=getattr(pl, f"Int{w}")) for w in (8, 16, 32, 64)},
        **{f"u{w}": pl.Series([1, None, 3, 2], dtype=getattr(pl, f"UInt{w}")) for w in (8, 16, 32, 64)},
        "f32": pl.Series([0.1, INF, NAN, 2], dtype=pl.Float32), "f64": pl.Series([0.1, None, 3.0, 2]),
        "nan": pl.Series([0.1, 0.3, NAN, 2]), "b": pl.Series([True, None, False, True]), "s": pl.Series(words),
        "cat": pl.Series(["a", None, "b", "a"], dtype=pl.Categorical),
        "enum": pl.Series(["a", None, "b", "a"], dtype=pl.Enum(["b", "a", "c"])), "d": pl.Series([days[0], None, *days[2:]]),
        "us": pl.Series(moments, dtype=pl.Datetime("us")), "ms": pl.Series(moments, dtype=pl.Datetime("ms")),
        "ns": pl.Series(moments, dtype=pl.Datetime("ns")), "zoned": pl.Series(moments, dtype=pl.Datetime("us", "Europe/Berlin")),
        "list": pl.Series([[1.0, 2.0], [3.0], [], [4.0]]), "array": pl.Series([[1.0, 2.0]] * 4, dtype=pl.Array(pl.Float64, 2)),
    })""",
    "arrow": """pa.table({
        "i": pa.array([1, None, 3, 2**60]), "u8": pa.array([1, 2, 3, 255], pa.uint8()), "f": pa.array([0.1, 1, NAN, 2.0]),
        "f32": pa.array([0.1, None, 3.0, 2.0], pa.float32()), "words": pa.array(["a", None, "b", "a"]).dictionary_encode(),
        "small": pa.array(words).cast(pa.dictionary(pa.int8(), pa.large_string())),
        "codes": pa.array([5, None, 6, 5]).dictionary_encode(), "us": pa.array(moments, pa.timestamp("us")),
        "zoned": pa.array(aware, pa.timestamp("us", "UTC")), "ls": pa.array(words, pa.large_string()),
        "d": pa.array(days), "b": pa.array([True, None, False, True]), "list": pa.array([[1.0, 2.0], [3.0], [], [4.0]]),
    })""",
    "vector-text": 'np.array(["a", "bb", "ccc", "d"])',
    "vector-objects": 'np.array(["a", None, "c", "d"], dtype=object)',
    "array-integers": 'np.arange(12, dtype="int16").reshape(4, 3)',
    "array-text": 'np.array([["a", "bb"], ["c", "d"], ["e", "f"], ["g", "h"]])',
    "array-objects": "np.array([[1, 'x', 0.5], [2, None, None], [None, 'z', 1.5], [4, 'z', 2.5]], dtype=object)",
    "array-times": 'np.array([["2020-01-01", "NaT"]] * 4, "datetime64[ns]")',
    "array-foreign": 'np.arange(12.0).reshape(4, 3).astype(">f8")',
    "array-wide": "np.random.default_rng(0).normal(size=(4, 2000))",
    "images": 'np.random.default_rng(0).integers(0, 255, (4, 5, 5, 3)).astype("uint8")',
    "cubes": "np.where(np.arange(24).reshape(4, 3, 2) % 5, np.float32(0.1), np.float32(NAN))",
    "csr": "sparse.random(4, 6, density=0.4, format='csr', random_state=0)",
    "coo": "sparse.coo_array(np.array([[0, 1.5, 0], [0, 0, 0], [2, 0, 3], [0, 0, 4]], dtype='float32'))",
    "csc": "sparse.csc_matrix(np.array([[0, 1, 0], [0, 0, 0], [2, 0, 3], [0, 0, 4]]))",
    "texts": "pd.Series(['a', 'b', None, 'd'], name='text')",
    "series": "pd.Series([1, 2, 3, 4], name=0)",
    "list": "['a', 'b', 'ü', '']",
    "dict": """{
        "image": np.arange(16, dtype="uint8").reshape(4, 2, 2), "x": np.ones((4, 3), "float32"), "n": np.arange(4, dtype="int32"),
        "s": np.array(["a", "bb", "c", "d"]), "b": np.array([True, False, True, True]), "f": np.array([1, NAN, 2, 3.0]),
        "o": np.array(["a", None, "b", "c"], dtype=object), "one": np.ones((4, 1)), "t": np.array(["2020-01-01"] * 4, "datetime64[s]"),
        "flags": np.ones((4, 2), bool), "tensor": torch.arange(4.0), "names": np.full((4, 2), "ab"),
    }""",
    "tensor": "torch.arange(24.0).reshape(4, 3, 2)",
    "tensor-flat": "torch.arange(12).reshape(4, 3)",
}
SERVED = {  # by the service itself; the others in the same process as these tests, through the same JSON
    "frame-plain", "frame-extension", "frame-arrays", "polars", "arrow", "array-objects", "images", "coo", "dict",
}  # fmt: skip


@dataclass
class Notebook:
    """One kernel, whose deployments live in one home."""

    kernel: Kernel
    folder: Path
    home: Path

    def run(self, code: str, timeout: float = 180) -> str:
        return self.kernel.run(code, timeout)

    def get(self, expression: str) -> Any:
        """A value of the kernel, as it is there."""
        self.run(f"import cloudpickle\nwith open('value', 'wb') as file: cloudpickle.dump({expression}, file)")
        return pickle.loads((self.folder / "value").read_bytes())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    if missing := [name for name in ("polars", "scipy", "torch") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {missing[0]}")
    folder = tmp_path_factory.mktemp("notebook")
    with own_home() as home, kernel(folder) as running:
        running.run(SETUP)
        yield Notebook(running, folder, home)
        running.run("end_services()")


@pytest.fixture
def notebook(session: Notebook, monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """The module's kernel; `nbdeploy` in this process sees its deployments."""
    monkeypatch.setenv("NBDEPLOY_HOME", str(session.home))
    monkeypatch.setenv("BENTOML_HOME", str(session.home.parent / "bentoml"))
    return session


@pytest.fixture
def deployed(notebook: Notebook) -> Iterator[Callable[..., nbdeploy.Deployment]]:
    """``deployed(name)``: deploys the kernel's `model` with its `X` (and `y`), stopped after the test."""
    names = []

    def deploy(name: str, more: str = "") -> Any:
        names.append(name)
        notebook.run(f"service = nbdeploy.deploy(model, {name!r}, X, {more} progress=False)")
        return Asked(name, notebook.get("service.url"))

    yield deploy
    for name in names:
        nbdeploy.stop(name)


@dataclass
class Asked:
    """A running service, and how a stranger asks it: with JSON that was written by hand."""

    name: str
    url: str

    def post(self, body: Any, **params: str) -> httpx.Response:
        content = body if isinstance(body, (str, bytes)) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        return httpx.post(f"{self.url}/predict", content=content, params=params, headers=headers, timeout=60)

    def answers(self, body: Any) -> list[Any]:
        response = self.post(body)
        assert response.status_code == 200, response.text
        return response.json()["predictions"]

    def problem(self, body: Any) -> dict[str, Any]:
        response = self.post(body)
        assert response.status_code == 422, response.text
        return response.json()["problems"][0]

    def get(self, path: str) -> Any:
        return httpx.get(f"{self.url}{path}", timeout=30).json()


# -- what a model is handed


@pytest.mark.parametrize("case", sorted(SERVED))
def test_a_service_hands_over_what_the_kernel_did(case, notebook, deployed):
    notebook.run(f"X = {SPIED[case]}\nmodel = Spy()")
    service = deployed(f"spy-{case}")
    X, want = notebook.get("X"), notebook.get("model.predict(X)")

    assert nbdeploy.predict(service.name, X)["prediction"].tolist() == want
    second = (
        {name: part[1:2] for name, part in X.items()}
        if isinstance(X, dict)
        else X.tocsr()[1:2]
        if hasattr(X, "tocsr")
        else X[1:2]
    )
    assert nbdeploy.predict(service.name, second)["prediction"].tolist() == want[1:2]

    record = service.get("/signature")["example"]  # a real row
    assert service.answers(record)[0] in want
    assert service.answers([record, record]) == service.answers(record) * 2
    assert service.answers({"columns": list(record), "data": [list(record.values())]}) == service.answers(record)
    _log_holds(service.name, X, len(want))
    _documents_itself(service)


@pytest.mark.parametrize("case", sorted(SPIED.keys() - SERVED))
def test_a_version_hands_over_what_the_kernel_did(case, notebook):
    """Saving asks a fresh process the same rows, as they are and as JSON, and refuses another answer."""
    notebook.run(f"X = {SPIED[case]}\nwant = Spy().predict(X)")
    notebook.run(f"version = nbdeploy.save(Spy(), 'spied-{case}', X, progress=False)")

    assert notebook.get("through_json(version, X)") == notebook.get("want")


def _log_holds(name: str, X: Any, rows: int) -> None:
    """The first rows of the log are the inputs, value by value and dtype by dtype."""
    (version,) = nbdeploy.versions(name)
    told = nbdeploy.predictions(name).head(rows)
    given = containers.read(X).whole()
    for column in version.signature.columns:
        want, got = given.iloc[:, version.signature.names.index(column.name)], told[column.label]
        if column.shape:
            for a, b in zip(want, got, strict=True):
                assert type(a) is type(b) or hasattr(a, "tocsr"), column.name
                one, other = (value.toarray() if hasattr(value, "tocsr") else value for value in (a, b))
                if isinstance(one, np.ndarray):
                    assert one.dtype == other.dtype
                    np.testing.assert_array_equal(one, other)
                else:
                    assert repr(one) == repr(other)
        else:
            assert want.dtype == got.dtype, column.name
            assert list(map(repr, want)) == list(map(repr, got)), column.name


def _documents_itself(service: Asked) -> None:
    """The OpenAPI document is well formed, and its examples are answered and fit their own schema."""
    document = service.get("/openapi.json")
    row = document["components"]["schemas"]["Row"]
    jsonschema.Draft202012Validator.check_schema(row)
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        service.answers(example["value"])
    jsonschema.validate(body["examples"]["record"]["value"], row)


def test_an_unseen_category_arrives_among_the_known_ones(notebook, deployed):
    notebook.run("X = pd.DataFrame({'c': pd.Categorical(['x', 'y', 'x', 'y'])})\nmodel = Spy()")
    service = deployed("unseen")

    (said,) = service.answers({"c": "new"})

    want = notebook.get("model.predict(pd.DataFrame({'c': pd.Categorical(['new'], categories=['x', 'y', 'new'])}))")
    assert [said] == want


# -- what cannot be a training set says so in a line


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([('a', 'b'), ('a', 'c')]))", "MultiIndex columns"),
        ("pd.DataFrame([[1, 2]], columns=['a', 'a'])", "column 'a' twice"),
        ("pl.LazyFrame({'a': [1]})", "LazyFrame"),
        ("pl.Series([1])", "Polars Series"),
        ("pa.array([1])", "Int64Array"),
        ("np.zeros(3, dtype=[('a', 'f8')])", "dtype \\[\\('a'"),
        ("np.zeros(3, dtype=complex)", "complex128"),
        ("np.zeros((3, 2, 2), dtype='datetime64[s]')", "array of 3 dimensions"),
        ("np.zeros((0, 3))", "no row"),
        ("[{'a': 1}]", "list of records"),
        ("{'a': np.zeros(3), 'b': np.zeros(4)}", "3, 4"),
        ("sparse.csr_matrix((0, 3))", "sparse matrix of shape"),
        ("pd.DataFrame({'a': [[1], 'x']})", "lists or arrays of different kinds"),
        ("torch.ones(3).bfloat16()", "bfloat16"),
    ],
)
def test_what_cannot_be_asked_about_over_http_is_refused_in_a_line(made, said, notebook):
    notebook.run(f"X = {made}")
    notebook.run(
        "try:\n    nbdeploy.save(Spy(), 'refused', X, progress=False)\n    found = 'it was saved'\n"
        "except nbdeploy.SaveError as error:\n    found = str(error)"
    )

    found = notebook.get("found")

    assert re.search(said, found), found
    assert "\n" not in found


# -- fitted models


FITTED = {
    "mixed": """
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler
        R = np.random.default_rng(0)
        X = pd.DataFrame({"a": R.normal(size=80), "n": pd.array([None, 1, 2, 3] * 20, dtype="Int64"),
                          "c": pd.Categorical(["x", "y", None, "z"] * 20), "s": ["p", "q"] * 40, "f": R.normal(size=80).astype("float32")})
        y = (X["a"] > 0).map({True: "yes", False: "no"})
        encode = make_column_transformer((make_pipeline(SimpleImputer(), StandardScaler()), ["a", "n", "f"]),
                                         (OneHotEncoder(handle_unknown="ignore"), ["c", "s"]))
        model = make_pipeline(encode, LogisticRegression()).fit(X, y)""",
    "boosting": """
        from sklearn.ensemble import HistGradientBoostingRegressor
        X = pd.DataFrame({"c": pd.Categorical(["x", "y", "z", None] * 30), "v": np.arange(120.0)})
        model = HistGradientBoostingRegressor(categorical_features="from_dtype", max_iter=5).fit(X, X["v"] % 7)""",
    "text-series": """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        X = pd.Series(["good day", "bad day", "very good", "so bad"] * 5, name="review")
        model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(X, [1, 0, 1, 0] * 5)""",
    "text-list": """
        X = ["good day", "bad day", "very good", "so bad"] * 5
        model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(X, [1, 0, 1, 0] * 5)""",
    "image": """
        from sklearn.datasets import load_digits
        digits = load_digits()
        class OnImages:
            def fit(self, X, y):
                self.inner = LogisticRegression(max_iter=300).fit(X.reshape(len(X), -1), y)
                self.classes_ = self.inner.classes_
                return self
            def predict(self, X):
                return self.inner.predict(X.reshape(len(X), -1))
            def predict_proba(self, X):
                return self.inner.predict_proba(X.reshape(len(X), -1))
        X, y = digits.images[:200].astype("float32"), digits.target[:200]
        model = OnImages().fit(X, y)""",
    "sparse": """
        X = sparse.random(60, 30, density=0.2, format="csr", random_state=0)
        y = (X.sum(axis=1).A1 if hasattr(X.sum(axis=1), "A1") else X.sum(axis=1)) > 3
        model = LogisticRegression().fit(X, y)""",
    "multi-regression": """
        from sklearn.linear_model import LinearRegression
        X = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=list("abc"))
        y = X[["a", "b"]] * 2
        model = LinearRegression().fit(X, y)""",
    "multi-class": """
        from sklearn.ensemble import RandomForestClassifier
        X = np.random.default_rng(0).normal(size=(60, 3))
        y = np.column_stack([X[:, 0] > 0, np.digitize(X[:, 1], [-0.5, 0.5])]).astype(int)
        model = RandomForestClassifier(5, random_state=0).fit(X, y)""",
}
FUNCTIONS = {
    "dict-function": """
        X = {"image": np.arange(32.0).reshape(8, 2, 2), "n": np.arange(8), "word": np.array(list("abcdefgh"))}
        def model(X):
            return X["image"].sum(axis=(1, 2)) + X["n"]""",
    "polars-function": """
        X = pl.DataFrame({"a": [1.0, 2.0, None], "s": pl.Series(["x", "y", "x"], dtype=pl.Categorical)})
        def model(X):
            return X.select((pl.col("a").fill_null(0) * 2 + (pl.col("s") == "x")).cast(pl.Float32))["a"]""",
    "arrow-function": """
        import pyarrow.compute as pc
        X = pa.table({"a": pa.array([1, None, 3])})
        def model(X):
            return pc.fill_null(X["a"], -1)""",
    "grid": """
        X = pd.DataFrame({"a": np.arange(6.0)})
        def model(X):
            return np.multiply.outer(X["a"].to_numpy(), np.ones((3, 2), dtype="float32")).astype("float32")""",
}


@pytest.mark.parametrize("case", [*FITTED, *FUNCTIONS])
def test_a_fitted_model_answers_as_in_the_kernel(case, notebook, deployed):
    imports = "from sklearn.feature_extraction.text import TfidfVectorizer\nfrom sklearn.linear_model import LogisticRegression\n"
    notebook.run(imports + "from sklearn.pipeline import make_pipeline\ny = None")
    notebook.run(({**FITTED, **FUNCTIONS}[case]).lstrip("\n"))
    service = deployed(case, "y," if case in ("mixed", "image", "sparse", "multi-regression", "multi-class") else "")
    X = notebook.get("X")
    want = np.asarray(notebook.get("model.predict(X) if hasattr(model, 'predict') else model(X)"))

    told = nbdeploy.predict(service.name, X)["prediction"]

    if want.ndim == 1:
        np.testing.assert_array_equal(told.to_numpy(), want)
        assert told.dtype == want.dtype or want.dtype.kind in "OU"
    else:
        np.testing.assert_array_equal(np.stack(told.tolist()), want)
        assert {value.dtype for value in told} == {want.dtype}
    if case in ("mixed", "image", "multi-class"):
        _probabilities_are_the_kernel_s(case, notebook, X)
    if case in ("image", "sparse", "multi-class"):
        assert nbdeploy.validate(case, progress=False).passed
    if case == "image":
        _images_are_asked_about_by_strangers(service, X, want)
        _is_asked_from_a_panel(notebook, "image")
    if case == "sparse":
        _is_asked_from_a_panel(notebook, "sparse")
        _sparse_rows_are_asked_about_by_strangers(service, X, want)


def _probabilities_are_the_kernel_s(case: str, notebook: Notebook, X: Any) -> None:
    told = nbdeploy.predict(case, X, proba=True).filter(like="probability_").to_numpy()
    want = notebook.get("model.predict_proba(X)")
    np.testing.assert_array_equal(told, np.hstack(want) if isinstance(want, list) else want)


def _images_are_asked_about_by_strangers(service: Asked, X: np.ndarray, want: np.ndarray) -> None:
    rows = X[:3].tolist()
    assert service.answers(rows) == want[:3].tolist()  # bare: nobody named this input
    assert service.answers(rows[:1]) == want[:1].tolist()
    assert service.answers({"x": rows[0]}) == want[:1].tolist()
    bad = {
        "shape": rows[0][:7], "ragged": [*rows[0][:7], rows[0][7][:3]], "flat": [1.0] * 64, "number": 3, "text": "3",
        "strings": [["1"] * 8] * 8, "bools": [[True, *[1] * 7], *[[1] * 8] * 7], "null": None,
        "inner null": [[None] * 8] * 8, "deep": [[[1] * 8] * 8], "empty": [], "objects": [[{}] * 8] * 8, "big": [[1e39] * 8] * 8,
        "beyond": [[10**400] * 8] * 8,
    }  # fmt: skip
    for what, value in bad.items():
        found = service.problem({"x": value})
        assert found["column"] == "x", what
        assert "8 x 8" in found["expected"], what
    assert service.post('{"x": ' + json.dumps([[1] * 8] * 8).replace("1", "1e400", 1) + "}").status_code == 422
    assert service.post('{"x": ' + "[" * 5000 + "]" * 5000 + "}").status_code in (400, 422)
    assert service.post(f'{{"x": {json.dumps(rows[0])}, "x": 1}}').status_code == 422
    assert service.post([rows[0], 5]).status_code == 422
    assert service.answers(rows) == want[:3].tolist()


def _is_asked_from_a_panel(notebook: Notebook, name: str) -> None:
    """The example row, as the panel's form sends it."""
    notebook.run(f"panel = nbdeploy.panel({name!r})\npanel")
    asked, said = notebook.get(
        "(lambda form, s: (r := form.record(s, form.texts(s)), form.answer(s, nbdeploy.predict(panel.name, [r]))[0]))"
        "(__import__('nbdeploy.panel_form').panel_form, nbdeploy.versions(panel.name)[0].signature)"
    )
    assert asked == nbdeploy.versions(name)[0].signature.example
    assert said
    notebook.run("panel.close()")


def _sparse_rows_are_asked_about_by_strangers(service: Asked, X: Any, want: np.ndarray) -> None:
    row = X[:1]
    assert service.answers({"x": row.toarray()[0].tolist()}) == want[:1].tolist()
    assert service.answers(X[:4].toarray().tolist()) == want[:4].tolist()
    told = {"indices": row.indices.tolist(), "values": row.data.tolist()}
    assert service.answers({"x": told}) == want[:1].tolist()
    assert service.answers({"x": {"indices": [], "values": []}}) in ([False], [True])
    for bad in (
        {"indices": [30], "values": [1]}, {"indices": [-1], "values": [1]}, {"indices": [1, 1], "values": [1, 2]},
        {"indices": [1], "values": []}, {"indices": [1]}, {"indices": [True], "values": [1]}, {"indices": [0.5], "values": [1]},
        {"indices": [1], "values": ["1"]}, {"indices": [1], "values": [None]}, {"indices": [1], "values": [[1]]}, [1, 2], None, "x",
        {"indices": {}, "values": [1]}, {"indices": [2**70], "values": [1]},
    ):  # fmt: skip
        found = service.problem({"x": bad})
        assert found["column"] == "x"
        assert "30" in found["expected"]


# -- what comes out


OUTPUTS = {
    "float32": "(i / 3).astype('float32')", "int8": "i.astype('int8')", "uint64": "i.astype('uint64') + 2**63",
    "bool": "i > 1", "text": "np.array(['a', 'bbb', 'c', 'd', 'ee'])[i]", "nan": "np.where(i == 1, NAN, i / 3)",
    "nullable": "pd.Series([None if k == 1 else int(k) for k in i], dtype='Int64')",
    "flags": "pd.Series([None if k == 1 else bool(k) for k in i], dtype='boolean')",
    "strings": "pd.Series([None if k == 1 else str(k) for k in i], dtype='string')",
    "time": "np.datetime64('2020-01-01T00:00:01.5') + i.astype('timedelta64[h]')",
    "nat": "np.where(i == 1, np.datetime64('NaT'), np.datetime64('2020-01-01', 's'))",
    "zoned": "pd.Series(pd.Timestamp('2020-01-01', tz='UTC') + pd.to_timedelta(i, 'D'))",
    "date": "[dt.date(2020, 1, int(k) + 1) for k in i]", "grid": "np.ones((len(i), 3, 2), 'float32') * i[:, None, None]",
    "category": "pd.Categorical.from_codes(i % 2, categories=['a', 'b'])",
    "objects": "[{'k': int(k), 'v': [1, 2.5, None], 'deep': {'z': np.float32(k), 'a': np.arange(2)}} for k in i]",
    "ragged": "[list(range(int(k))) for k in i]", "vectors": "[np.ones(int(k) + 1, 'float32') for k in i]",
    "mixed": "[1 if k % 2 else 'a' for k in i]", "names": "np.array([['a', 'bb']] * len(i))",
    "times": "np.full((len(i), 2), np.datetime64('2020-01-01', 'ns'))",
    "tensor": "torch.as_tensor(i / 2, dtype=torch.float32)", "polars": "pl.Series(i / 2)",
}  # fmt: skip


def test_every_kind_of_answer_comes_back_as_it_was(notebook, deployed):
    """All of them at once: a model with that many named outputs."""
    listed = ", ".join(f"{name!r}: {made}" for name, made in OUTPUTS.items())
    notebook.run(f"""
X = pd.DataFrame({{"i": np.arange(5)}})
class Named:
    def predict(self, X):
        i = X["i"].to_numpy()
        return {{{listed}}}
model = Named()""")
    service = deployed("named")
    raw = notebook.get("model.predict(X)")

    told = nbdeploy.predict("named", notebook.get("X"))

    for name, values in raw.items():
        got, want = told[f"prediction_{name}"], list(values)
        for a, b in zip(want, got, strict=True):
            assert _says_the_same(a, b), (name, a, b)
        if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
            assert (got[0].dtype if values.ndim > 1 else got.dtype) == values.dtype, name
    assert {value.dtype for value in told["prediction_vectors"]} == {np.dtype("float32")}
    assert list(map(type, told["prediction_mixed"])) == [str, int, str, int, str]
    assert service.answers({"i": 3})[0]["int8"] == 3
    assert nbdeploy.validate("named", progress=False).passed
    _is_asked_from_a_panel(notebook, "named")


def _says_the_same(raw: Any, told: Any) -> bool:
    """Dates and zoned times are texts in JSON, and what is in an object is plain."""
    if raw is None or raw is pd.NA or (np.ndim(raw) == 0 and raw != raw):
        return told is None or told is pd.NaT or bool(told != told)
    if isinstance(raw, dict):
        return bool(told == {**raw, "deep": {"z": float(raw["deep"]["z"]), "a": raw["deep"]["a"].tolist()}})
    if hasattr(raw, "isoformat") and not isinstance(told, pd.Timestamp):
        return bool(raw.isoformat() == told)
    return np.array_equal(raw, told)


def test_drift_leaves_a_column_of_arrays_out(notebook, deployed):
    notebook.run("""
R = np.random.default_rng(0)
X = pd.DataFrame({"a": R.normal(size=300), "embedding": [R.normal(size=3) for _ in range(300)]})
def model(X):
    return X["a"] * 2""")
    deployed("embedded")
    X = notebook.get("X")
    nbdeploy.predict("embedded", X.assign(a=X["a"] + 50))

    report = nbdeploy.drift("embedded", html_path=notebook.folder / "report")

    assert bool(report.columns.loc["a", "drifted"])
    assert list(report.columns.index) == ["a", "prediction"]
