"""Retraining: the user's training notebook, run on the labelled log; what it saves is judged, and is a candidate."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbdeploy import (
    bento,
    deployment,
    guarding,
    home,
    model_store,
    notebook_run,
    provenance,
    retraining_data,
    routing,
    validation,
    watching,
)
from nbdeploy.errors import DriftError, InputError, NbdeployError, RetrainError
from nbdeploy.progress import visible
from nbdeploy.retraining_result import Retrained

if TYPE_CHECKING:
    import pandas as pd

    from nbdeploy.gate_result import GateResult
    from nbdeploy.model_store import ModelVersion
    from nbdeploy.notebook_run import Executed, Prepared
    from nbdeploy.retraining_data import LabelledRows

DATA = "data"  # the parameter with the path of the labelled rows
HOLDOUT = 0.2
DRIFT_SHARE = 0.5
ENOUGH_SHARE = 0.9


def retrain(
    name: str,
    notebook: Path | str,
    parameters: Mapping[str, Any] | None = None,
    *,
    since: Any = None,
    until: Any = None,
    then: str = "",
    if_drifted: bool = False,
    drift_share: float = DRIFT_SHARE,
    holdout: float = HOLDOUT,
    timeout: float = notebook_run.TIMEOUT,
    env: Mapping[str, str] | Sequence[str] | None = None,
    progress: bool = True,
) -> Retrained:
    """Run a training notebook on the labelled log, and judge what it saves.

    The notebook gets the path of a Parquet file as its parameter ``data``: of the labelled rows all but the newest, with
    the dtypes of the training data and the labels in the column that the version's own target is called by. It also gets
    ``name``, ``target``, ``since`` and ``until`` where it declares them. What it saves by ``%deploy model --name NAME`` or
    `save` becomes a candidate, which the gate of `validate`, and every one that promotions need, judges on the newest rows.
    No request is answered by it. Both notebooks are kept as executed.

    The rows are in the memory of this process while they are written. The files are deleted at the end: the log alone keeps what was asked.

    Parameters
    ----------
    notebook : path
        It has a cell tagged ``parameters`` that assigns ``data``.
    parameters : mapping, optional
        Further parameters that it declares.
    since, until : str, datetime or timedelta, optional
        The window of the log, all of it by default.
    then : {"", "rollout"}
        What follows a passed gate: nothing, or a `rollout` with its usual steps.
    if_drifted : bool
        Do nothing unless this window has drifted from the training data of the live version.
    drift_share : float
        The share of columns that have drifted from which on that is so.
    holdout : float
        The share of the newest labelled rows that the notebook does not get and the gate judges by. With 0, or where the
        model needs a private column, which no log holds, the gate judges by the sample stored with the version.
    timeout : float
        Seconds for the notebook, and again for each gate.
    env : mapping or list of str, optional
        Secrets for the notebooks, which read them from ``os.environ``; see `validate`.

    Returns
    -------
    Retrained
        With ``passed`` False where the gate failed.

    Raises
    ------
    RetrainError
        There are too few labels, a retraining of `name` runs already, the notebook stopped, or it saved no version of
        `name`. A version that it saved before is a candidate that no gate has passed.
    NotFound, NotebookError, GateError, InputError
        It could not begin.
    """
    home.check_name(name)
    watching.must_be_known(name)
    base = model_store.get(name, watching.live_version(name))
    _sensible(name, then, holdout, drift_share)
    prepared = notebook_run.prepare(notebook, parameters, name=name, timeout=timeout, env=env)
    if DATA not in prepared.declared:
        msg = f"{prepared.path.name} has no parameter {DATA!r}, so it would not see the labelled rows"
        raise RetrainError(msg, f"In its cell tagged 'parameters', write: {DATA}: str = ''.")
    if DATA in (parameters or {}):
        msg = f"{DATA!r} is what a retraining gives to {prepared.path.name}"
        raise InputError(msg, hint="Name a parameter of yours otherwise.")
    with _alone(name):
        drift = None
        if if_drifted:
            drift, reason = _drift(name, since, until, drift_share)
            if reason:
                return Retrained(name, f"nothing was retrained: {reason}", of=base.version, drift=drift)
        rows = retraining_data.labelled_rows(name, base, since, until, holdout=holdout)
        told = {"name": name, "target": rows.target, "since": since, "until": until}
        prepared = prepared.told({key: value for key, value in told.items() if value is not None})
        run = _Run(name, base, rows, prepared, {"since": _text(since), "until": _text(until)})
        progress = progress and visible()  # a scheduler's log wants no bars
        with run.in_a_place():
            executed, version = run.trained(progress)
            gate = run.judged(version, env=env, timeout=timeout, progress=progress)
            rollout = _rolled(name, version) if then and gate.passed else ""
    facts = run.facts
    window = "".join(f" {word} {facts[word]}" for word in ("since", "until") if facts[word])
    verdict = (
        f"passed its gate on {_count(len(run.judged_by), 'newer row')}" if len(run.judged_by) else "passed its gate"
    )
    fate = "a rollout has begun" if rollout == "started" else "it is a candidate without traffic"
    said = f"{version.tag}, retrained from {base.version} on {_count(len(rows.training), 'labelled row')}{window}, "
    said += f"{verdict}; {fate}" if gate.passed else f"failed its gate: {gate.reason}; it gets no traffic"
    if rollout not in {"", "started"}:
        said += f", and no rollout has begun: {rollout}"
    return Retrained(
        name, said, version, gate, executed, base.version, len(rows.training), len(run.judged_by), rows.target, drift, rollout,
        tuple(run.notes),
    )  # fmt: skip


class _Run:
    """One retraining: its rows, its notebook, and what that saves."""

    place: Path  # while it runs

    def __init__(
        self, name: str, base: ModelVersion, rows: LabelledRows, prepared: Prepared, window: Mapping[str, str]
    ) -> None:
        self.name, self.rows, self.prepared = name, rows, prepared
        self.id = secrets.token_hex(8)
        self.facts = {
            "id": self.id, "of": base.version, "rows": len(rows.training), "notebook": str(prepared.path), **window,
        }  # fmt: skip
        self.judged_by = rows.held_out
        self.notes = list(rows.notes)

    def saved(self) -> list[ModelVersion]:
        """What this run's notebook has saved, under its own name first, the newest first."""
        others = [name for name in model_store.names() if name != self.name]
        known = (version for name in [self.name, *others] for version in model_store.versions(name))
        return [one for one in known if (one.provenance.get("retrained") or {}).get("id") == self.id]

    @contextmanager
    def in_a_place(self) -> Iterator[None]:
        """Have a folder for the rows while the block runs; an interrupt is told what had been saved before it."""
        self.place = home.folder("retrain", self.name, self.id)
        try:
            yield
        except KeyboardInterrupt:
            if tags := ", ".join(version.tag for version in self.saved()):
                sys.stderr.write(f"nbdeploy: {tags} had been saved before the interrupt, and gets no traffic\n")
            raise
        finally:
            shutil.rmtree(self.place, ignore_errors=True)

    def written(self, what: str, rows: pd.DataFrame) -> str:
        """The path of a Parquet file of `rows`."""
        path = self.place / f"{what}.parquet"
        home.write_atomic(path, rows.to_parquet(None, index=False))
        return str(path)

    def trained(self, progress: bool) -> tuple[Executed, ModelVersion]:
        """Run the notebook on the rows, and find the version that it saved."""
        data = self.written(DATA, self.rows.training)
        untold = {provenance.RETRAINING: json.dumps(self.facts)}
        executed = self.prepared.told({DATA: data}).run(untold=untold, progress=progress)
        saved, called = self.saved(), self.prepared.path.name
        mine = [version for version in saved if version.name == self.name]
        if executed.error:
            left = f" {', '.join(v.tag for v in saved)} had been saved, and gets no traffic." if saved else ""
            msg = f"{called} stopped: {executed.error}"
            raise RetrainError(msg, f"See {executed.notebook}.{left}")
        if not mine:
            other = f"saved {', '.join(v.tag for v in saved)}, and" if saved else "came to its end, and saved"
            msg = f"{called} {other} no version of {self.name!r}"
            raise RetrainError(msg, f"Let it end with nbdeploy.save(model, {self.name!r}, X, y).")
        self.notes += [f"{version.tag} was saved, too" for version in saved if version != mine[0]]
        bento.build_in_background(mine[0])  # the notebook's own has ended with it
        return executed, mine[0]

    def judged(self, version: ModelVersion, *, progress: bool, **options: Any) -> GateResult:
        """Let the gates judge what was saved, on the rows that its notebook has not seen."""
        held = {*self.rows.held_out.columns}
        if unseen := [column.name for column in version.signature.columns if column.name not in held]:
            self.judged_by = self.rows.held_out.head(0)
            if len(self.rows.held_out):
                self.notes.append(f"the gate judged by the stored sample: the log holds no {', '.join(unseen)[:80]}")
        data: dict[str, Any] = {}
        if len(self.judged_by):
            data = {"data": self.written("held_out", self.judged_by), "target": self.rows.target}
        try:
            found: Any = validation.validate(self.name, version.version, **data, **options, progress=progress)
        except NbdeployError as error:
            msg = f"{version.tag} is saved and could not be judged: {error.message}"
            raise RetrainError(msg, f"{error.hint} It gets no traffic.".strip(), error.details) from error
        gate: GateResult = found
        return gate


# -- helpers ------------------------------------------------------------------------------------------------


def _sensible(name: str, then: str, holdout: Any, drift_share: Any) -> None:
    if then not in {"", "rollout"}:
        msg = f"then={then!r:.40} is nothing that can follow a passed gate"
        raise InputError(msg, hint="It is 'rollout', or ''.")
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0 <= holdout <= ENOUGH_SHARE:
        msg = f"holdout={holdout!r:.40} is no share from 0 to {ENOUGH_SHARE}"
        raise InputError(msg, hint=f"A fifth of the rows is holdout={HOLDOUT}.")
    if isinstance(drift_share, bool) or not isinstance(drift_share, (int, float)) or not 0 < drift_share <= 1:
        msg = f"drift_share={drift_share!r:.40} is no share above 0, up to 1"
        raise InputError(msg, hint=f"Half of the columns is drift_share={DRIFT_SHARE}.")
    if not then:
        return
    if deployment.find(name) is None:
        msg = f"{name!r} does not run, and nobody would roll a new version out"
        raise RetrainError(msg, f"Serve it first: %deploy serve {name}; or leave --then out.")
    traffic = routing.traffic(name)
    if traffic.rollout is not None or traffic.candidates:
        busy = traffic.rollout["version"] if traffic.rollout is not None else traffic.candidates[0]
        msg = f"{name}:{busy} is being rolled out already"
        raise RetrainError(msg, f"End that first: %deploy traffic {name} {traffic.live}=100; or leave --then out.")


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Hold the one place for a retraining of `name`, cleared of what one that was killed has left."""
    with ExitStack() as held:
        try:
            held.enter_context(home.lock("retrain", name, timeout=0))
        except NbdeployError as error:
            msg = f"a retraining of {name!r} runs already"
            raise RetrainError(msg, "Wait for its end, or interrupt it.") from error
        for left in home.folder("retrain", name).iterdir():
            shutil.rmtree(left, ignore_errors=True)
        yield


def _drift(name: str, since: Any, until: Any, share: float) -> tuple[Any, str]:
    """What the window looks like, and why it calls for no retraining, or ''."""
    try:
        report = watching.drift(name, since, until=until, page=False)
    except DriftError as error:
        return None, error.message
    judged = report.columns["drifted"].dropna().astype(bool)
    if not len(judged):
        return report, f"of no column of {name} can it be said whether it has drifted"
    count = int(judged.sum())
    if count >= share * len(judged):
        return report, ""
    return report, f"{count} of {len(judged)} columns of {name} have drifted, which is less than {share:.0%}"


def _rolled(name: str, version: ModelVersion) -> str:
    try:
        guarding.rollout(name, version.version)
    except NbdeployError as error:
        return str(error)
    return "started"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(when: Any) -> str:
    return "" if when is None else str(when)
