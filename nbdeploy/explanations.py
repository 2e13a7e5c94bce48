"""Why one row got its answer: SHAP values, for any model on any mixture of columns."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any

import numpy as np
import pandas as pd

from nbdeploy import artifact, containers
from nbdeploy.errors import InputError
from nbdeploy.signature import problem

NEEDED = "explanations need the 'explain' extra: pip install 'nbdeploy[explain]'"
MAX_ROWS = 100
MAX_BACKGROUND = 100
MAX_ANSWERS = 20  # distinct classes of a model without probabilities
SECONDS = 30.0  # for one request; looked at between rows
EXACT_COLUMNS = 8  # up to here all 2**columns mixtures cost no more than sampling them

MAX_VALUES = 100  # numbers in one prediction

_Call = Callable[[Callable[[], Any]], Any]
_Function = Callable[[pd.DataFrame], np.ndarray[Any, Any]]


def _now(work: Callable[[], Any]) -> Any:
    return work()


def available() -> bool:
    """Whether SHAP is installed."""
    return util.find_spec("shap") is not None


class Explainer:
    """Splits what a model answers into one contribution per column.

    A contribution is a Shapley value: what the answer gains, on average, when the row's own value takes the place
    of a training row's. For every row ``base + sum of its contributions == value``. A row's explanation does not
    depend on the other rows of a request, nor on when it is asked.

    Making one costs next to nothing: SHAP, whose import takes seconds, is loaded by the first `explain` or `prepare`.

    Parameters
    ----------
    model : LoadedModel
    reference : DataFrame
        The reference sample. A reproducible choice of at most 100 of its rows is what columns are mixed with.
    call : callable, optional
        Runs every call of the model, a few thousand rows at most: where a service has one thread for its model,
        explanations take turns with predictions instead of holding them up.
    """

    def __init__(self, model: artifact.LoadedModel, reference: pd.DataFrame, *, call: _Call = _now) -> None:
        columns = max(1, len(model.signature.columns))
        self.model = model
        self.labels = [column.label for column in model.signature.columns]
        # So many answers does a row cost, at least: wide models are mixed with fewer rows.
        size = min(MAX_BACKGROUND, max(20, 10_000 // columns), len(reference))
        self.background = (
            reference[self.labels].iloc[containers.sample_rows(len(reference), size)].reset_index(drop=True)
        )
        self.permutations = max(1, min(10, 200 // columns))
        self._call = call
        self._lock = threading.Lock()
        self._classes: list[Any] | None = None

    def prepare(self) -> None:
        """Load SHAP: several seconds the first time. In a service, call it in a thread that is not the model's."""
        importlib.import_module("shap")

    def explain(self, frame: pd.DataFrame) -> dict[str, Any]:
        """The contributions of every column to the answers of `frame`.

        Parameters
        ----------
        frame : DataFrame
            At most 100 rows with the columns and dtypes of the signature.

        Returns
        -------
        dict
            ``output`` (what is explained, in words), ``values`` (that of each row), ``base`` (its mean over the
            training rows), ``contributions`` (per row: column name to value), ``method``, ``background_rows``.
            With more than two classes, or several values per row, each number is a list, and ``classes`` says what
            its entries are of.

        Raises
        ------
        InputError
            Too many rows, more than 30 s of work, answers that are no numbers and no classes, or a model that fails
            on mixtures of this row and training rows.
        """
        if len(frame) > MAX_ROWS:
            msg = "too many rows to explain"
            raise _refused(msg, f"at most {MAX_ROWS} rows", f"{len(frame)} rows", "Send fewer.")
        self.prepare()
        with self._lock:  # shap draws from NumPy's global generator
            answer, output, classes = self._answer()
            deadline = time.monotonic() + SECONDS
            base: Any = None
            values, contributions = [], []
            for row in range(len(frame)):
                if time.monotonic() > deadline:
                    msg = f"these {len(frame)} rows take longer than {SECONDS:.0f} s to explain"
                    raise _refused(msg, "fewer rows", f"{len(frame)} rows, of which {row} were done", "Send fewer.")
                base, value, shares = self._explain_row(frame.iloc[[row]], answer)
                values.append(value)
                names = (column.name for column in self.model.signature.columns)
                contributions.append(dict(zip(names, shares, strict=True)))
        found = {
            "output": output, "base": base, "contributions": contributions, "values": values,
            "method": self._method(), "background_rows": len(self.background),
        }  # fmt: skip
        return found if classes is None else {**found, "classes": classes}

    # -- what is explained --------------------------------------------------------------------------------

    def _answer(self) -> tuple[_Function, str, list[Any] | None]:
        """The function to explain (frame to one or several numbers per row), in words, and what each number is of."""
        signature = self.model.signature
        if signature.classes is not None and self._ask(self.model.probabilities, self.background.head(1)) is not None:
            return self._probabilities(signature.classes, several=signature.several)
        first = _matrix(self._ask(self.model.predict, self.background.head(1)))
        if signature.task != "classification" and first.dtype.kind in "fiu":
            if first.shape[1] == 1:
                return lambda frame: _matrix(self.model.predict(frame))[:, 0].astype(float), "prediction", None
            if first.shape[1] <= MAX_VALUES:
                names = [f"{output.name or 'value'}" for output in signature.outputs]
                named = names if len(names) == first.shape[1] else list(range(first.shape[1]))
                return (
                    lambda frame: _matrix(self.model.predict(frame)).astype(float),
                    "each value of the prediction",
                    named,
                )
        elif first.shape[1] == 1:
            if self._classes is None:
                answers = _matrix(self._ask(self.model.predict, self.background))[:, 0].tolist()
                self._classes = sorted(dict.fromkeys(answers), key=str)
            known = self._classes
            if len(known) <= MAX_ANSWERS:
                return (
                    lambda frame: np.array(
                        [
                            [answer == one for one in known]
                            for answer in _matrix(self.model.predict(frame))[:, 0].tolist()
                        ],
                        dtype=float,
                    ),
                    "1 where the answer is this class, else 0",
                    known,
                )
        msg = "this model's answers cannot be explained"
        got = f"{first.shape[1]} values of type {first.dtype}"
        raise _refused(msg, f"probabilities, at most {MAX_VALUES} numbers, or {MAX_ANSWERS} classes", got, "")

    def _probabilities(self, classes: tuple[Any, ...], *, several: bool) -> tuple[_Function, str, list[Any] | None]:
        if several:
            names = [f"{target}: {name}" for target, held in enumerate(classes) for name in held]
            return (
                lambda frame: np.hstack(self.model.probabilities(frame)).astype(float),
                "probability of each class",
                names,
            )
        if len(classes) == 2:
            words = f"probability of class {classes[1]}"
            return lambda frame: np.asarray(self.model.probabilities(frame), dtype=float)[:, 1], words, None
        words = "probability of each class"
        return lambda frame: np.asarray(self.model.probabilities(frame), dtype=float), words, list(classes)

    def _ask(self, work: Callable[[pd.DataFrame], Any], frame: pd.DataFrame) -> Any:
        try:
            return self._call(lambda: work(frame))
        except Exception as error:  # noqa: BLE001 - raised again below, without its chain where that could quote
            # What a model says of a row may quote a private value, and these rows are partly of the training data.
            private = any(column.private for column in self.model.signature.columns)
            said = type(error).__name__ if private else " ".join(f"{type(error).__name__}: {error}".split())[:400]
            msg = f"the model cannot answer mixtures of this row and training rows: {said}"
            raise _refused(msg, "rows that may be mixed", said, "") from (None if private else error)

    # -- SHAP ---------------------------------------------------------------------------------------------

    @property
    def _exact(self) -> bool:
        return len(self.labels) <= EXACT_COLUMNS

    def _method(self) -> str:
        if self._exact:
            return "exact Shapley values"
        return f"Shapley values, sampled with {self.permutations} pairs of permutations"

    def _explain_row(self, row: pd.DataFrame, answer: _Function) -> tuple[Any, Any, list[Any]]:
        """Base, value and contributions of one row."""
        import shap

        # SHAP only ever moves a row's value to another row. So it sees where a value stands, and the model is asked
        # with the value itself: categories, datetimes, nulls and large integers arrive as they are.
        pool = _pooled(row[self.labels], self.background)
        codes, places = _encode(pool)

        def decoded(asked: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            picks = np.asarray(asked).astype(int)
            frame = pd.DataFrame(
                {
                    label: pool[label].take(places[i][picks[:, i]]).reset_index(drop=True)
                    for i, label in enumerate(self.labels)
                },
                columns=self.labels,
            )
            found: np.ndarray[Any, Any] = self._ask(answer, frame)
            return found

        value = self._ask(answer, row[self.labels])[0].tolist()
        if (codes[1:] == codes[0]).all():  # nothing that could be mixed
            return value, value, np.zeros((len(self.labels), *np.shape(value))).tolist()
        masker = shap.maskers.Independent(codes[1:], max_samples=len(self.background))
        count = len(self.labels)
        with _seeded():
            if self._exact:
                told = shap.ExactExplainer(decoded, masker)(codes[:1], max_evals=2 ** (count + 1), batch_size=16)
            else:
                evals = self.permutations * (2 * count + 1)
                explainer = shap.PermutationExplainer(decoded, masker, seed=0)
                told = explainer(codes[:1], max_evals=evals, batch_size=10, silent=True)
        shares = np.asarray(told.values, dtype=float)[0]
        base = np.asarray(told.base_values, dtype=float)[0]
        return base.tolist(), value, shares.tolist()


def _matrix(answered: Any) -> np.ndarray[Any, Any]:
    """A prediction as one row of values per row."""
    arrays = list(answered.values()) if isinstance(answered, dict) else [answered]
    return np.hstack([array.reshape(len(array), -1) for array in arrays])


def _encode(pool: pd.DataFrame) -> tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]:
    """Every value as a number, equal ones as the same, and per column the row where a number's value stands."""
    codes = np.empty(pool.shape, dtype=float)
    places = []
    for i in range(pool.shape[1]):
        try:
            found, _ = pd.factorize(pool.iloc[:, i], use_na_sentinel=False)
        except TypeError:  # values that cannot be compared, such as lists
            found = np.arange(len(pool))
        codes[:, i] = found
        places.append(np.unique(found, return_index=True)[1])
    return codes, places


def _pooled(row: pd.DataFrame, background: pd.DataFrame) -> pd.DataFrame:
    """Row and background, one below the other, where a category that training never saw has to be added first."""
    columns = {}
    for label in background.columns:
        known, asked = background[label], row[label]
        if isinstance(known.dtype, pd.CategoricalDtype) and asked.dtype != known.dtype:
            both = known.dtype.categories.append(asked.dtype.categories.difference(known.dtype.categories, sort=False))
            dtype: Any = pd.CategoricalDtype(both, ordered=known.dtype.ordered)
        else:
            dtype = known.dtype
        columns[label] = pd.concat([asked.astype(dtype), known.astype(dtype)], ignore_index=True)
    return pd.DataFrame(columns, columns=background.columns)


@contextmanager
def _seeded() -> Iterator[None]:
    # shap's permutations come from NumPy's global generator, which is put back as it was.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _refused(message: str, expected: str, got: str, hint: str) -> InputError:
    return InputError(message, [problem(None, None, expected, got, hint)], hint)
