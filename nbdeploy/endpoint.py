"""The model behind a service: loaded, verified, asked by many at once, logged and counted. It knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from nbdeploy import answers, artifact, explanations, requirements
from nbdeploy.batching import Batcher
from nbdeploy.errors import InputError
from nbdeploy.exchange import Answer, Question, Refused, Reply, Served
from nbdeploy.home import bentoml_home
from nbdeploy.log_writer import Entry, LogWriter
from nbdeploy.requirements import Requirement
from nbdeploy.serve_options import ServeOptions
from nbdeploy.serving_metrics import Metrics
from nbdeploy.signature import problem

WARM_ROWS = 200
VERSIONS = 4  # that a worker is expected to write the log of at the same time

# The rows of a model call, as far as they were not handed to the model.
_Seen = tuple[Mapping[str, Sequence[Any]] | None, pd.DataFrame | None]

logger = logging.getLogger("bentoml.nbdeploy")


class Endpoint:
    """One loaded version in this process, with its log and its metrics.

    Parameters
    ----------
    path, files
        Where the version is, and the recorded SHA-256 of its files; see `nbdeploy.artifact.load`.
    rows : int or None
        How many rows of its sample it must reproduce before it answers; None for all.
    folder, worker
        Where the workers of a deployment tell each other their numbers, and which one this is.
    leads : bool
        Whether it is the version that its process counts under; see `nbdeploy.serving_metrics.Metrics`.
    purpose : str
        Why everything here is asked, where it is no user's question.

    Raises
    ------
    SaveError
        It cannot be loaded, is not the one that was saved, or does not reproduce its expected outputs: what would
        answer wrongly never starts.
    """

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        files: Mapping[str, str] | None,
        options: ServeOptions,
        *,
        rows: int | None = WARM_ROWS,
        folder: Path | None = None,
        worker: str = "",
        leads: bool = True,
        purpose: str = "",
    ) -> None:
        self._before = frozenset(sys.modules)
        self._path, self.options = path, options
        self.model = artifact.rehearse(path, files, rows)
        self.signature = self.model.signature
        self.served = Served(name, version, self.signature)
        self.log = LogWriter(
            name, self.signature.columns, outputs=self.signature.outputs, required=options.log_required,
            max_bytes=options.log_bytes, days=options.log_days, workers=options.workers * VERSIONS,
        )  # fmt: skip
        self.metrics = Metrics(name, version, self.signature, self.log, folder=folder, worker=worker, leads=leads)
        # One model call at a time: few models promise that predict may run in two threads at once.
        self._batcher = Batcher[Question, Reply](
            self._replies, together=not self.model.unbatched, max_wait=options.timeout / 2
        )
        self.name, self.version, self._purpose = name, version, purpose
        self.in_use = 0  # requests that are being answered: what is in use is not closed
        self._explainer: explanations.Explainer | None = None
        self._explaining = ThreadPoolExecutor(1, thread_name_prefix="explain")
        # Times are compared with those of training in the frame, which the model must then leave as it is.
        self._needs_frame = any(column.kind in ("datetime", "date") for column in self.signature.columns)

    @property
    def place(self) -> Path:
        """The folder of the version. What was loaded before it was committed has moved since."""
        committed = bentoml_home() / "models" / self.name / self.version
        return self._path if self._path.is_dir() else committed

    def loaded(self) -> list[Requirement]:
        """The distributions that loading the version brought into this process."""
        return requirements.loaded(self._before, self.model.modules)

    async def answer(self, question: Question) -> Reply:
        """The reply to one question, in the log before it is returned; with others in flight in one model call.

        Raises
        ------
        InputError
            The rows fit the signature, and the model cannot answer them.
        Overloaded
            Too much is waiting already.
        Refused
            It could not be logged, and had to be.
        """
        return await self._batcher.answer(question, question.rows)

    async def explain(self, read: Callable[[], Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
        """What each column adds to the answer to each row; see `nbdeploy.explanations`. It is not logged.

        Parameters
        ----------
        read : callable
            Gives the checked values by column. It is called in another thread.

        Raises
        ------
        InputError
            Too many rows, or rows that cannot be explained.
        """
        work = asyncio.get_running_loop().run_in_executor(self._explaining, self._explain, read)
        return {**await work, "version": self.version}

    def _explain(self, read: Callable[[], Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
        frame = self.signature.build(read())
        if self._explainer is None:
            # Each call takes its turn with the predictions; SHAP is loaded by the first one.
            reference = artifact.read_reference(self.place, self.signature)
            thread = self._batcher.thread
            self._explainer = explanations.Explainer(
                self.model, reference, call=lambda work: thread.submit(work).result()
            )
        return self._explainer.explain(frame)

    def close(self) -> None:
        """Close the log. What is asked afterwards opens it again."""
        self.log.close()
        self.metrics.close()
        self._explaining.shutdown(wait=False)

    def complain(self, what: str, error: Exception) -> None:
        """Write a failure to the log of the service, without what may quote a private value."""
        private = self.signature.has_private
        logger.error("%s: %s", what, type(error).__name__, exc_info=None if private else error)

    # -- in the model's thread ------------------------------------------------------------------------

    def _replies(self, questions: list[Question]) -> list[Reply | Exception]:
        """Nothing is logged before all replies are there: a batch that fails is tried again, one by one."""
        begun = time.perf_counter()
        try:
            told = [question for question in questions if question.frame is None]
            listed, seen = self._told(told) if told else ([], [])
            # Tensors and streams are large: each is a call of its own.
            given = [self._given(question) for question in questions if question.frame is not None]
            seen += [(None, question.frame) for question in questions if question.frame is not None]
            first, second = iter(listed), iter(given)
            found = [next(first if question.frame is None else second) for question in questions]
            replies: list[Reply | Exception] = [
                question.write(answer) for question, answer in zip(questions, found, strict=True)
            ]
        except Refused as refused:
            if len(questions) > 1:
                raise
            return [refused]
        except BaseException as error:  # a library in Rust panics, a model may exit
            if len(questions) > 1:  # whose fault it is shows when each is asked alone
                raise
            raise self._blamed(error, questions[0]) from (None if self.signature.has_private else error)
        taken = time.perf_counter() - begun
        kept = self.log.write_each([self._entry(*pair) for pair in zip(questions, found, strict=True)])
        if self.options.log_required and not all(kept):
            msg = "the answer could not be logged, and this service gives none that is not"
            unlogged = Refused(503, msg, headers={"Retry-After": "5"}, reason="log")
            replies = [reply if held else unlogged for reply, held in zip(replies, kept, strict=True)]
            questions = [question for question, held in zip(questions, kept, strict=True) if held]
        if questions:
            self.metrics.called([question.rows for question in questions], taken, self._batcher.waiting_rows)
        for columns, frame in seen:
            self.metrics.saw(columns, frame)
        return replies

    def _told(self, questions: list[Question]) -> tuple[list[Answer], list[_Seen]]:
        columns = _joined(questions)
        frame = self.signature.build(columns)
        wanted = [question.proba for question in questions]
        fresh = not (self._needs_frame or any(wanted))
        predictions = iter(answers.rows_of(self.model.predict(frame, fresh=fresh)))
        scores: Any = iter(())
        if any(wanted):
            mask = np.repeat(wanted, [question.rows for question in questions])
            rows = frame if mask.all() else frame[mask].reset_index(drop=True)
            scores = iter(answers.score_rows(self.model.probabilities(rows)) or ())
        found = [
            Answer(
                question.request, self.version, self.signature.outputs, self.signature.classes, question.rows,
                given=[*islice(predictions, question.rows)],
                given_scores=[*islice(scores, question.rows)] if question.proba else None,
            )
            for question in questions
        ]  # fmt: skip
        return found, [(columns, None if fresh else frame)]

    def _given(self, question: Question) -> Answer:
        assert question.frame is not None
        predictions = self.model.predict(question.frame)
        scores = self.model.probabilities(question.frame) if question.proba else None
        return Answer(
            question.request, self.version, self.signature.outputs, self.signature.classes, question.rows,
            raw=predictions, raw_scores=scores,
        )  # fmt: skip

    def _entry(self, question: Question, answer: Answer) -> Entry:
        return Entry(
            self.version, answer.request, question.columns or {}, answer.values, answer.scores, question.purpose or self._purpose, time.time(),
            question.frame, question.part,
        )  # fmt: skip

    def _blamed(self, error: BaseException, question: Question) -> BaseException:
        """The refusal of rows that the model cannot answer though it answers its example; else the error itself."""
        if isinstance(error, InputError) or not self._answers_its_example(proba=question.proba):
            return error
        # What a model complains about may quote the row.
        private = self.signature.has_private
        said = type(error).__name__ if private else " ".join(f"{type(error).__name__}: {error}".split())[:400]
        logger.warning(
            "the model answers its example, and not these rows: %s", said, exc_info=None if private else error
        )
        msg = f"the model cannot answer these rows: {said}"
        general = problem(None, None, "rows that the model can answer", said)
        frame = self.signature.build(question.columns or {}) if question.frame is None else question.frame
        return InputError(msg, self.signature.novelties(frame) or [general])

    def _answers_its_example(self, *, proba: bool) -> bool:
        """Whether the model still answers a row of its training frame: then other rows are to blame."""
        try:
            frame = self.signature.decode(self.signature.example)
            scores = self.model.probabilities(frame) if proba else None
            orjson.dumps([answers.rows_of(self.model.predict(frame)), answers.score_rows(scores)])
        except BaseException:  # noqa: BLE001 - whatever it is, the caller logs the failure that matters
            return False
        return True


def _joined(questions: list[Question]) -> dict[str, list[Any]]:
    held = [question.columns for question in questions if question.columns is not None]
    if len(held) == 1:
        return held[0]
    return {name: [*chain.from_iterable(values[name] for values in held)] for name in held[0]}
