"""Every kind of model: trained in a real kernel, deployed from there, and asked there against its own answers."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kernels import CellError, kernel

# What every notebook below starts with: tables of numbers and words, and how answers are compared.
START = """
import uuid, warnings; warnings.simplefilter("ignore")
from contextlib import contextmanager
import numpy as np, pandas as pd
import nbdeploy
from nbdeploy import deployment
rng = np.random.default_rng(0)
X = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60)})
mixed = X.assign(word=rng.choice(["u", "v", "w"], 60))
floats = X.to_numpy("float32")
y = (X["a"] + X["b"] > 0).astype(int).rename("y")
words = pd.Series(np.where(y, "yes", "no"), name="word")
three = pd.Series(rng.integers(0, 3, 60))
scores, tolerance = None, 1e-6

def same(got, want, where):
    got = np.stack(got.to_list()) if np.ndim(want) > 1 else got.to_numpy()
    assert got.shape == np.shape(want), (where, got.shape, np.shape(want))
    if want.dtype.kind in "OU":
        assert [str(value) for value in got.ravel()] == [str(value) for value in want.ravel()], where
    else:
        assert got.dtype == want.dtype, (where, got.dtype, want.dtype)
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance / 10, err_msg=where)

def check_probabilities(answers):
    blocks = scores if isinstance(scores, list) else [scores]
    assert sum(name.startswith("probability_") for name in answers) == sum(np.shape(block)[1] for block in blocks)
    for i, block in enumerate(blocks):
        labels = classes[i] if isinstance(scores, list) else classes
        assert len(labels) == block.shape[1]
        prefix = f"probability_{i}_" if isinstance(scores, list) else "probability_"
        for k, label in enumerate(labels):
            np.testing.assert_allclose(answers[f"{prefix}{label}"], block[:, k], rtol=tolerance, atol=tolerance / 10)

@contextmanager
def deployed(*what, **more):
    name = f"it-{uuid.uuid4().hex[:8]}"
    nbdeploy.deploy(what[0], name, *what[1:], progress=False, **more)
    try:
        yield name
    finally:
        deployment.stop(name)  # without the wait for its Bento, which nothing here needs

def check(data, **more):
    global scores
    with deployed(model, data, **more) as name:
        answers = nbdeploy.predict(name, data, proba=scores is not None)
    expected = live if isinstance(live, dict) else {"": live}
    found = {name for name in answers.columns if name.startswith("prediction") and name != "prediction_id"}
    assert found == {f"prediction_{name}" if name else "prediction" for name in expected}, found
    for name, want in expected.items():
        same(answers[f"prediction_{name}" if name else "prediction"], np.asarray(want), f"output {name!r}")
    if scores is not None:
        check_probabilities(answers)
        scores = None
"""

# What is trained, what it answers itself (`live`, `scores` of `classes`), and the data that it is deployed with.
MODELS = {
    "a scikit-learn pipeline with words and a transformer of the notebook": """
        from sklearn.base import BaseEstimator, TransformerMixin
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder
        class Double(TransformerMixin, BaseEstimator):
            def fit(self, X, y=None):
                return self
            def transform(self, X):
                return X * 2
        columns = make_column_transformer((Double(), ["a", "b"]), (OneHotEncoder(), ["word"]))
        model = make_pipeline(columns, LogisticRegression()).fit(mixed, words)
        live, scores, classes = model.predict(mixed), model.predict_proba(mixed), model.classes_
        check(mixed, y=words)
        """,
    "a scikit-learn pipeline that hands frames on": """
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        model = make_pipeline(StandardScaler(), LinearRegression()).set_output(transform="pandas").fit(X, X["a"] * 3)
        live = model.predict(X)
        check(X)
        """,
    "scikit-learn with several targets": """
        from sklearn.ensemble import RandomForestRegressor
        model = RandomForestRegressor(n_estimators=3, random_state=0).fit(X, np.c_[X["a"], X["b"] * 2, y])
        live = model.predict(X)
        check(X)
        from sklearn.tree import DecisionTreeClassifier
        model = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, np.c_[y, three])
        live, scores, classes = model.predict(X), model.predict_proba(X), model.classes_
        check(X)
        """,
    "a clusterer and an outlier detector": """
        from sklearn.cluster import KMeans
        model = KMeans(3, n_init=1, random_state=0).fit(X)
        live = model.predict(X)
        check(X)
        from sklearn.ensemble import IsolationForest
        model = IsolationForest(n_estimators=5, random_state=0).fit(X)
        live = model.predict(X)
        check(X)
        """,
    "functions of the notebook": """
        shift = 3
        def model(frame):
            return frame["a"] * 2 + shift
        live = model(X).to_numpy()
        check(X)
        import functools
        class Rule:
            def __init__(self):
                self.limit = 0.5
            def ask(self, frame, factor):
                return {"high": (frame["a"] * factor > self.limit).to_numpy(), "label": frame["word"].to_numpy()}
        model = functools.partial(Rule().ask, factor=2)
        live = model(mixed)
        check(mixed)
        """,
    "XGBoost": """
        import xgboost
        tolerance = 1e-5
        frame = mixed.assign(word=mixed["word"].astype("category"))
        model = xgboost.XGBClassifier(n_estimators=30, early_stopping_rounds=2, enable_categorical=True)
        model.fit(frame[:40], y[:40], eval_set=[(frame[40:], 1 - y[40:])], verbose=False)
        assert model.best_iteration < 20
        live, scores, classes = model.predict(frame), model.predict_proba(frame), [0, 1]
        check(frame)
        about = {"objective": "multi:softprob", "num_class": 3}
        model = xgboost.train(about, xgboost.DMatrix(frame, three, enable_categorical=True), 4)
        live = model.predict(xgboost.DMatrix(frame, enable_categorical=True))
        check(frame)
        class Shifted(xgboost.XGBRegressor):
            def predict(self, X, **more):
                return super().predict(X, **more) + 10
        data = floats.copy(); data[::5, 0] = -9
        model = Shifted(n_estimators=4, missing=-9).fit(data, y)
        live = model.predict(data)
        check(data)
        """,
    "LightGBM": """
        import lightgbm
        frame = mixed.assign(word=mixed["word"].astype("category"))
        model = lightgbm.LGBMClassifier(n_estimators=4, min_child_samples=3, verbose=-1).fit(frame, words)
        live, scores, classes = model.predict(frame), model.predict_proba(frame), ["no", "yes"]
        check(frame)
        model = lightgbm.train({"verbose": -1, "min_data_in_leaf": 3}, lightgbm.Dataset(frame, y), 4)
        live = model.predict(frame)
        check(frame)
        """,
    "CatBoost": """
        import catboost
        frame = mixed.copy(); frame.loc[::7, "a"] = np.nan
        model = catboost.CatBoostClassifier(iterations=4, verbose=False, allow_writing_files=False)
        model.fit(frame, np.array(["x", "y", "z"])[three], cat_features=["word"])
        live, scores, classes = model.predict(frame)[:, 0], model.predict_proba(frame), ["x", "y", "z"]
        check(frame)
        model = catboost.CatBoostRegressor(iterations=4, verbose=False, allow_writing_files=False).fit(floats, y)
        live = model.predict(floats)
        check(floats)
        """,
    "PyTorch": """
        import torch
        tolerance = 1e-3
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.drop, self.outer = torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3)
            def forward(self, x):
                return self.outer(self.drop(torch.relu(self.inner(x))))
        model = Net()
        with torch.no_grad():
            live = model.eval()(torch.tensor(floats)).numpy()
        model.train(); model.drop.eval()
        check(X)
        assert model.training and model.inner.training and not model.drop.training
        class Two(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.picture, self.row = torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 2)
            def forward(self, picture, row):
                both = self.picture(picture).mean((2, 3)) + self.row(row)
                return {"raw": both, "best": both.argmax(1)}
        model = Two()
        data = {"picture": rng.normal(size=(60, 1, 5, 5)).astype("float32"), "row": floats}
        with torch.no_grad():
            live = {k: v.numpy() for k, v in model(**{k: torch.tensor(v) for k, v in data.items()}).items()}
        check(data)
        model = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.tensor(floats))
        live = model(torch.tensor(floats)).detach().numpy()
        check(floats)
        """,
    "Keras with a layer of the notebook and two outputs": """
        import os
        os.environ["KERAS_BACKEND"] = "torch"
        import keras
        tolerance = 1e-3
        class Scale(keras.layers.Layer):
            def __init__(self, factor=2.0, **more):
                super().__init__(**more)
                self.factor = factor
            def call(self, x):
                return x * self.factor
            def get_config(self):
                return super().get_config() | {"factor": self.factor}
        def bent(x):
            return keras.ops.tanh(x) * 3
        given = keras.Input((2,))
        inner = keras.layers.Dense(4, activation=bent)(Scale(3.0)(given))
        model = keras.Model(given, [keras.layers.Dense(2, name="left")(inner), keras.layers.Dense(1, name="right")(inner)])
        left, right = model.predict(floats, verbose=0)
        live = {"left": left, "right": right}
        del os.environ["KERAS_BACKEND"]
        check(floats)
        """,
    "ONNX": """
        from skl2onnx import to_onnx
        from sklearn.linear_model import LogisticRegression
        tolerance = 1e-3
        fitted = LogisticRegression().fit(floats, words)
        model = to_onnx(fitted, floats[:1])
        live, scores, classes = fitted.predict(floats), fitted.predict_proba(floats), fitted.classes_
        check(floats)
        import onnxruntime
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType, StringTensorType
        from sklearn.compose import make_column_transformer
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder
        columns = make_column_transformer(("passthrough", ["a", "b"]), (OneHotEncoder(), ["word"]))
        fitted = make_pipeline(columns, LinearRegression()).fit(mixed, X["a"])
        kinds = {"a": FloatTensorType, "b": FloatTensorType, "word": StringTensorType}
        proto = convert_sklearn(fitted, initial_types=[(name, kind([None, 1])) for name, kind in kinds.items()])
        model = onnxruntime.InferenceSession(proto.SerializeToString())
        live = fitted.predict(mixed).astype("float32")[:, None]
        check(mixed)
        import onnx
        from onnx import TensorProto, helper, numpy_helper
        weights = rng.normal(size=(2, 700)).astype("float32")
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
        y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 700]) for name in "yz")
        graph = helper.make_graph(nodes, "two", [x], [y, z], [numpy_helper.from_array(weights, "w")])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save_model(proto, "two.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        model = "two.onnx"
        live = {"y": floats @ weights, "z": -(floats @ weights)}
        check(floats)
        """,
    "statsmodels": """
        import statsmodels.api as sm
        data = sm.add_constant(X)
        model = sm.GLM(three, data, family=sm.families.Poisson()).fit()
        live = model.predict(data).to_numpy()
        check(data)
        model.summary()
        import statsmodels.formula.api as smf
        def twice(values):
            return 2 * values
        model = smf.ols("y ~ np.exp(a) + twice(b) + center(b) + C(word)", mixed.assign(y=y)).fit()
        live = model.predict(mixed).to_numpy()
        check(mixed)
        """,
    "a pipeline of Hugging Face": """
        from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, pipeline
        tolerance = 1e-3
        vocabulary = "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad film the was very".split()
        config = BertConfig(
            vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
        )
        network = BertForSequenceClassification(config).eval()
        tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})
        model = pipeline("text-classification", model=network, tokenizer=tokenizer, top_k=None)
        texts = ["a good film", "the film was very bad", "bad"]
        own = model(texts)
        with deployed(model, texts) as name:
            answers = nbdeploy.predict(name, texts)["prediction"]
        for told, wanted in zip(answers, own, strict=True):
            assert [each["label"] for each in told] == [each["label"] for each in wanted]
            np.testing.assert_allclose([each["score"] for each in told], [each["score"] for each in wanted], rtol=1e-3)
        """,
    "an MLflow model with code and artifacts of its own": """
        import mlflow
        from pathlib import Path
        Path("factor.txt").write_text("3")
        class Times(mlflow.pyfunc.PythonModel):
            def load_context(self, context):
                self.place = context.artifacts["factor"]
            def predict(self, context, model_input, params=None):
                factor = float(Path(self.place).read_text())  # at every call
                return pd.DataFrame({"times": model_input["a"] * factor, "word": ["x"] * len(model_input)})
        mlflow.pyfunc.save_model(
            "stored", python_model=Times(), artifacts={"factor": "factor.txt"}, input_example=X.head(5),
            signature=mlflow.models.infer_signature(X), pip_requirements=[],
        )
        model = "stored"
        live = {"times": (X["a"].head(5) * 3).to_numpy(), "word": np.array(["x"] * 5)}
        import shutil
        with deployed("stored") as name:  # no X: the example was logged
            shutil.rmtree("stored")
            answers = nbdeploy.predict(name, X.head(5))
        same(answers["prediction_times"], live["times"], "times")
        same(answers["prediction_word"], live["word"], "word")
        """,
    "a model of a framework that the notebook brings": """
        class Formula:
            def __init__(self, text):
                self.text = text
        class Formulas(nbdeploy.Framework):
            name, format, bentoml = "formulas", "txt", ""
            def owns(self, model):
                return isinstance(model, Formula)
            def save(self, model, folder):
                (folder / "formula.txt").write_text(model.text)
                return {"length": len(model.text)}
            def load(self, folder, facts):
                text = (folder / "formula.txt").read_text()
                assert len(text) == facts["length"]
                return Formula(text)
            def can_predict(self, model):
                return True
            def predict(self, model, inputs):
                return inputs.eval(model.text)
        nbdeploy.register(Formulas())
        model = Formula("a * 2 + b")
        live = X.eval(model.text).to_numpy()
        check(X)
        """,
}


@pytest.mark.parametrize("cell", MODELS.values(), ids=MODELS)
def test_a_deployed_model_answers_as_it_does_in_the_notebook(cell, tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run(cell)


def test_saving_a_model_imports_no_library_that_it_does_not_come_from(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        told = notebook.run("""
            import sys
            from sklearn.linear_model import LinearRegression
            nbdeploy.save(LinearRegression().fit(X, y), "it", X, y, progress=False)
            heavy = "torch xgboost lightgbm catboost keras onnx onnxruntime transformers mlflow statsmodels tensorflow skops"
            print(sorted(set(heavy.split()) & set(sys.modules)))
            """)
    assert told.splitlines()[-1] == "[]"


def test_skops_stores_a_pipeline_without_pickle_and_refuses_a_class_of_the_notebook(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run("""
            from sklearn.base import BaseEstimator, RegressorMixin
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
            model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, words)
            version = nbdeploy.save(model, "it", X, words, format="skops", progress=False)
            assert (version.path / "saved_model.skops").is_file() and not list(version.path.glob("*.pkl"))
            assert (version.expected["prediction"].to_numpy() == model.predict(X)).all()
            class Mine(RegressorMixin, BaseEstimator):
                def fit(self, X, y):
                    self.fitted_ = True
                    return self
                def predict(self, X):
                    return np.zeros(len(X))
            """)
        with pytest.raises(CellError, match=r"skops would have to run __main__\.Mine"):
            notebook.run('nbdeploy.save(Mine().fit(X, y), "it", X, format="skops", progress=False)')


# BentoML's own modules load the files of a version ------------------------------------------------------------

# What is trained, on which data it is saved, and what BentoML's load_model has to be told.
BENTOML = {
    "sklearn": ("from sklearn.linear_model import LinearRegression; model = LinearRegression().fit(X, y)", "X", {}),
    "xgboost": ("import xgboost; model = xgboost.XGBClassifier(n_estimators=3).fit(X, y)", "X", {}),
    "lightgbm": ("import lightgbm; model = lightgbm.train({'verbose': -1}, lightgbm.Dataset(X, y), 3)", "X", {}),
    "catboost": ("import catboost; model = catboost.CatBoostRegressor(iterations=3, silent=True).fit(X, y)", "X", {}),
    "picklable_model": ("import statsmodels.api as sm; model = sm.OLS(y, X).fit()", "X", {}),
    "pytorch": ("import torch; model = torch.nn.Linear(2, 3)", "floats", {"weights_only": False}),
    "torchscript": ("import torch; model = torch.jit.script(torch.nn.Linear(2, 3))", "floats", {}),
    "onnx": ("import skl2onnx; model = skl2onnx.to_onnx(LinearRegression().fit(floats, y), floats[:1])", "floats", {}),
    "mlflow": (
        "import mlflow; mlflow.sklearn.save_model(LinearRegression().fit(X, y), 'm', pip_requirements=[]); model = 'm'",
        "X",
        {},
    ),
}
ASK_THROUGH_BENTOML = """
import json, sys, warnings; warnings.simplefilter("ignore")
import bentoml, numpy as np, pandas as pd, torch
X = pd.read_parquet("X.parquet")
floats = X.to_numpy("float32")
for name, options in json.loads(sys.argv[1]).items():
    model = getattr(bentoml, name).load_model(f"{name.replace('_', '-')}:v1", **options)
    if "torch" in name:
        got = model(torch.tensor(floats)).detach().numpy()
    else:
        got = model.run(None, {"X": floats})[0] if name == "onnx" else np.asarray(model.predict(X))
    want = np.load(f"{name}.npy")
    assert got.shape == want.shape, (name, got.shape, want.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)
    print(name)
"""


def test_bentomls_own_modules_load_what_was_saved(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run('X.to_parquet("X.parquet")')
        for name, (cell, data, _) in BENTOML.items():
            notebook.run(f"""{cell}
version = nbdeploy.save(model, "{name.replace("_", "-")}", {data}, progress=False)
np.save("{name}.npy", np.stack(version.expected["prediction"].to_list()))
""")
    options = json.dumps({name: options for name, (_, _, options) in BENTOML.items()})
    command = [sys.executable, "-c", ASK_THROUGH_BENTOML, options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == list(BENTOML), done.stderr[-3000:]


def test_every_module_of_bentoml_that_the_table_names_is_tested():
    from nbdeploy import frameworks

    table = frameworks.table()
    assert {row["bentoml"] for row in table} - {""} == {f"bentoml.{name}" for name in BENTOML}
    assert len({(row["framework"], row["format"]) for row in table}) == len(table)
    assert all(row["stored"] and row["guaranteed"] and row["models"] for row in table)


# What cannot be saved, and why ---------------------------------------------------------------------------------

REFUSED = """
def refused(model, data, *words, **more):
    try:
        nbdeploy.save(model, "it", data, progress=False, **more)
    except nbdeploy.SaveError as error:
        told = str(error)
        assert "\\n" not in told and all(word in told for word in words), told
    else:
        raise AssertionError("it was saved")
"""


def test_what_cannot_be_saved_is_refused_by_name(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run(REFUSED)
        notebook.run("""
            import threading
            from sklearn.cluster import DBSCAN
            from sklearn.linear_model import LinearRegression
            from sklearn.preprocessing import StandardScaler
            refused(DBSCAN().fit(X), X, "DBSCAN has no predict", "label the rows it was fitted on")
            refused(StandardScaler().fit(X), X, "StandardScaler", "model.transform")
            refused("hello", X, "'hello' is not a model", "MLflow or ONNX")
            refused("nowhere.onnx", X, "there is no file nowhere.onnx")
            refused(LinearRegression().fit(X, y), X, "cannot be stored as 'skop'", "'skops'", format="skop")
            class Connected:
                def __init__(self):
                    self.parts = [{"lock": threading.Lock()}]
                def predict(self, X):
                    return np.zeros(len(X))
            refused(Connected(), X, "model.parts[0]['lock']", "lock")
            fitted = LinearRegression().fit(X, y)
            refused(fitted, X.rename(columns={"a": "A"}), "no column 'a'", "Known: A")
            """)


def test_a_library_says_why_it_does_not_store_a_model(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run(REFUSED)
        notebook.run("""
            import catboost, lightgbm, xgboost
            booster = xgboost.train({}, xgboost.DMatrix(X, y), 2)
            refused(booster, X.rename(columns={"b": "c"}), "no column 'b'")
            refused(booster, X, "cannot be stored as 'onnx'", "Known: cloudpickle, ubj", format="onnx")
            refused(catboost.CatBoostRegressor(), X, "no trained model")
            refused(lightgbm.LGBMRegressor(), X, "not fitted")
            refused(xgboost.XGBRegressor(), X, "fit")
            import statsmodels.api as sm
            refused(sm.OLS(y, sm.add_constant(X)).fit(), X, "no column 'const'")
            refused(sm.OLS(y, X), X, "OLS is not fitted")
            refused(sm.tsa.ARIMA(X["a"]).fit(), X, "predicts moments, not rows")
            """)
        notebook.run("""
            import os
            os.environ["KERAS_BACKEND"] = "torch"
            import keras
            model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2, name="twice")])
            refused(model, floats, "the layer 'twice' is a Lambda", "def")
            from nbdeploy import frameworks
            how = {"framework": "Keras", "format": "keras", "facts": {"backend": "jax"}}
            try:
                frameworks.restore(__import__("pathlib").Path("."), how)
            except nbdeploy.SaveError as error:
                assert "needs Keras on jax" in str(error) and "runs on torch" in str(error)
            import onnx, torch
            from onnx import TensorProto, helper, numpy_helper
            x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
            z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2])
            weights = numpy_helper.from_array(np.eye(2, dtype="float32"), "w")
            graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "one", [x], [z], [weights])
            proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
            onnx.save_model(proto, "one.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
            os.rename("w.bin", "elsewhere.bin")
            refused("one.onnx", floats, "ONNX Runtime cannot load the model")
            """)


def test_an_mlflow_model_is_found_by_its_run_and_named_where_it_is_not(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(START)
        notebook.run(REFUSED)
        notebook.run("""
            import os
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # a database takes MLflow ten seconds to make
            import mlflow
            from sklearn.linear_model import LinearRegression
            mlflow.set_tracking_uri("file:./tracked")
            with mlflow.start_run() as run:
                told = mlflow.sklearn.log_model(LinearRegression().fit(X, y), name="line", pip_requirements=[])
            uri = f"runs:/{run.info.run_id}/line"
            version = nbdeploy.save(uri, "it", X, progress=False)
            want = LinearRegression().fit(X, y).predict(X)
            np.testing.assert_allclose(version.expected["prediction"], want)
            assert (version.path / "mlflow_model" / "MLmodel").is_file()
            loaded = nbdeploy.save(mlflow.pyfunc.load_model(uri), "it", X, progress=False)
            np.testing.assert_allclose(loaded.expected["prediction"], want)
            refused(uri, None, "without an input example", "X=X_train")
            refused("models:/nothing/3", X, "MLflow finds no model at models:/nothing/3")
            mlflow.sklearn.save_model(LinearRegression().fit(X, y), "folder", pip_requirements=[])
            refused(mlflow.pyfunc.load_model("folder"), X, "does not tell where its files are", "path or URI")
            """)


def test_a_path_is_a_model_only_if_there_is_one(tmp_path: Path, monkeypatch):
    from nbdeploy import SaveError, frameworks

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "MLmodel").write_text("flavors: {}\n")
    assert frameworks.find("~/stored").name == "MLflow"
    assert frameworks.find(tmp_path / "stored" / "MLmodel").name == "MLflow"
    with pytest.raises(SaveError, match="is not a model"):
        frameworks.find(tmp_path)


def test_what_an_mlflow_signature_lets_be_missing_may_be_missing_in_a_request(tmp_path):
    with kernel(tmp_path) as notebook:
        notebook.run(
            START
            + textwrap.dedent("""
            import mlflow

            class Filled(mlflow.pyfunc.PythonModel):
                def predict(self, context, model_input, params=None):
                    return model_input["a"].fillna(0.0).to_numpy() * 2

            gaps = X.assign(a=X["a"].mask(X.index < 5))
            mlflow.pyfunc.save_model(
                "gaps", python_model=Filled(), input_example=X.head(20),
                signature=mlflow.models.infer_signature(gaps), pip_requirements=[],
            )
            with deployed("gaps") as name:  # no X: the example is the sample
                version = nbdeploy.versions(name)[0]
                assert version.provenance["rows"] == 20, version.provenance
                assert {c.name: c.nullable for c in version.signature.columns} == {"a": True, "b": False}
                answers = nbdeploy.predict(name, gaps)["prediction"]
                np.testing.assert_array_equal(answers, gaps["a"].fillna(0.0) * 2)
            """)
        )
