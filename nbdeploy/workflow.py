"""The verbs: the only module that composes the others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy import (
    alert_store,
    bento,
    client,
    deployment,
    model_store,
    notebook_source,
    prediction_log,
    provenance,
    rehearsal,
    routing,
    version_file,
)
from nbdeploy import clean_env as clean_environment
from nbdeploy.answers import TOLERANCE
from nbdeploy.artifact import REQUIREMENTS, WHEELS, Options
from nbdeploy.deployment import Deployment
from nbdeploy.errors import NbdeployError, NotFound
from nbdeploy.gate_result import judged
from nbdeploy.home import check_name, folder, lock
from nbdeploy.model_store import ModelVersion, Staged
from nbdeploy.progress import Step, steps
from nbdeploy.requirements import Requirement, pinned
from nbdeploy.routing import Traffic
from nbdeploy.serve_options import ServeOptions, with_serve_options
from nbdeploy.watching import live_version, must_be_known

if TYPE_CHECKING:
    import os

    import httpx

    from nbdeploy.embedding import LocalModel
    from nbdeploy.http_app import HttpApp
    from nbdeploy.model_card import Card


def save(
    model: Any,
    name: str,
    X: Any = None,
    y: Any = None,
    *,
    format: str | None = None,  # noqa: A002  what the shell's --format is called
    private: Sequence[str] | Mapping[str, str] = (),
    metrics: Mapping[str, Any] | None = None,
    requirements: Sequence[str] = (),
    clean_env: bool = False,
    tolerance: float = TOLERANCE,
    unbatched: bool = False,
    progress: bool = True,
) -> ModelVersion:
    """Save a fitted model as the next version of `name`, after a fresh process has reproduced its predictions.

    Parameters
    ----------
    model
        A fitted model of any framework in docs/frameworks.md, anything with ``predict``, a function, or the path or
        URI of a stored MLflow or ONNX model. Classes and functions of the notebook, and of ``.py`` files beside it,
        come along.
    name : str
        Of the deployment it is for: lower-case letters, digits, ``.``, ``_``, ``-``.
    X : DataFrame, array of any rank, series, sparse matrix, list of texts, dict of arrays, Polars or Arrow table
        The training inputs, one entry per row. A reproducible sample is stored: at most 10,000 rows, and 64 MB of
        array cells. An MLflow model that has an input example needs none.
    y : Series, array or DataFrame, optional
        The true outcomes of the same rows; stored for the sample, and what a gate measures quality on.
    format : str, optional
        How to store it, where there is a choice: ``"skops"`` stores a scikit-learn model without pickle.
    private : list of str, or mapping
        Columns whose values are never logged and never shown. The stored sample holds them. As a mapping it says what
        the log holds of each: nothing (``"drop"``, which is what a list says), or a keyed hash of each value
        (``"hash"``), so that equal ones can be told: ``{"ssn": "hash", "name": "drop"}``.
    metrics : mapping, optional
        What you measured, by name: ``{"auc": 0.83}``. Kept with the version, and on its card.
    requirements : list of str
        Lines for pip, beside what the rehearsal finds out by itself.
    clean_env : bool
        Rehearse once more in a virtual environment that holds nothing but these requirements.
    tolerance : float
        How far predictions may differ in the fresh process, relatively; classes, strings and integers may not.
    unbatched : bool
        Answer each request by a model call of its own: for a model whose answer to a row depends on the rows that are
        asked with it.

    Raises
    ------
    SaveError, RehearsalError, InvalidName
        Nothing is saved then.
    """
    options = Options(format, private, tolerance, metrics or {}, requirements, clean_env, unbatched)
    with steps("save", ["write", "rehearse", *_CLEAN[:clean_env], "commit"], progress) as step:
        step("write")
        with model_store.stage(model, name, X, y, options, on_wait=step) as staged:
            step("rehearse")
            loaded = rehearsal.rehearse(staged, on_wait=step)
            whole = _with_requirements(staged, loaded, options, step)
            step("commit")
            version = model_store.commit(whole)
    bento.build_in_background(version)
    return version


@with_serve_options
def serve(
    name: str, version: str | None = None, *, port: int | None = None, progress: bool = True, **options: Any
) -> Deployment:
    """Start the service of `name` on this machine, detached; or return it where it runs already.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the live one, at first the newest.
    port : int, optional
        By default the one that it had, or a free one.
    **options
        See `nbdeploy.serve_options.ServeOptions`.

    Raises
    ------
    NotFound, PortBusy, ServiceError, SaveError
    InputError
        An option makes no sense.
    """
    check_name(name)
    chosen = ServeOptions.chosen(options)
    with lock("serve", name):
        wanted = model_store.get(name, version or live_version(name))
        if (running := deployment.find(name)) is not None:
            if version not in (None, running.version) or (port is not None and port != running.port):
                msg = f"{name!r} is running already: {running.version} on port {running.port}"
                raise NbdeployError(msg, f"Stop it first: %deploy stop {name}.")
            _refuse_other_options(running, options)
            return running
        with (
            lock("release", name),  # or a promotion in this very moment would be undone
            steps("serve", ["start"], progress) as step,
        ):
            wanted = model_store.get(name, version or live_version(name))
            routing.change(name, lambda old: replace(old, warm=()))  # what a release that was killed has left
            with deployment.launch(wanted, port=port, options=chosen, since=_since(wanted), on_wait=step) as probation:
                routing.go_live(name, wanted.version, "served")
                started = probation.keep(wanted)
    bento.build_in_background(wanted)  # which an interrupt may have prevented when it was saved
    return started


@with_serve_options
def deploy(
    model: Any,
    name: str,
    X: Any = None,
    y: Any = None,
    *,
    port: int | None = None,
    format: str | None = None,  # noqa: A002  what the shell's --format is called
    private: Sequence[str] | Mapping[str, str] = (),
    metrics: Mapping[str, Any] | None = None,
    requirements: Sequence[str] = (),
    clean_env: bool = False,
    tolerance: float = TOLERANCE,
    unbatched: bool = False,
    progress: bool = True,
    **options: Any,
) -> Deployment:
    """Save a model and serve it: `save` and `serve` in one go, with one process start for both.

    Where `name` is live already, the new version is saved as a candidate and live traffic stays with
    the version that has it. The parameters are those of `save` and `serve`. In the notebook of a `retrain` nothing is
    started: what is saved is judged first, and it is that version which is returned.

    Parameters
    ----------
    port : int, optional
        By default the one that it had, or a free one.
    **options
        See `nbdeploy.serve_options.ServeOptions`.

    Raises
    ------
    SaveError, RehearsalError, InvalidName, PortBusy, ServiceError
        Nothing is saved and nothing runs then.
    InputError
        An option makes no sense.
    """
    check_name(name)
    chosen = ServeOptions.chosen(options)
    saved_as = Options(format, private, tolerance, metrics or {}, requirements, clean_env, unbatched)
    if provenance.retraining() and deployment.find(name) is None:
        saved: Any = save(
            model, name, X, y, format=format, private=private, metrics=metrics, requirements=requirements,
            clean_env=clean_env, tolerance=tolerance, unbatched=unbatched, progress=progress,
        )  # fmt: skip
        return saved  # type: ignore[no-any-return]  # a version, as no deployment is there
    with lock("serve", name):
        running = deployment.find(name)
        if running is None:
            deployment.check(name, port, chosen)
            if live_version(name) is None:
                return _save_and_serve(model, name, X, y, saved_as, port=port, serve_as=chosen, progress=progress)
    if running is not None:
        if port not in (None, running.port):
            msg = f"{name!r} is running already on port {running.port}"
            raise NbdeployError(msg, "Leave --port out, or stop it first.")
        _refuse_other_options(running, options)
    save(
        model, name, X, y, format=format, private=private, metrics=metrics, requirements=requirements,
        clean_env=clean_env, tolerance=tolerance, unbatched=unbatched, progress=progress,
    )  # fmt: skip
    return running or serve(name, port=port, progress=progress, **options)


def _save_and_serve(
    model: Any, name: str, X: Any, y: Any, options: Options, *, port: int | None, serve_as: ServeOptions, progress: bool
) -> Deployment:
    with steps("deploy", ["write", "start and rehearse", *_CLEAN[: options.clean_env], "commit"], progress) as step:
        step("write")
        with model_store.stage(model, name, X, y, options, on_wait=step) as staged:
            step("start and rehearse")
            with deployment.launch(staged, port=port, options=serve_as, on_wait=step) as probation:
                whole = _with_requirements(staged, probation.loaded, options, step)
                step("commit")
                version = model_store.commit(whole)
                routing.go_live(name, version.version, "first release")
                started = probation.keep(version)
    bento.build_in_background(version)
    return started


def _since(wanted: ModelVersion) -> int | None:
    """The traffic that a service of `wanted` follows: what there is, unless it is for another version."""
    traffic = routing.traffic(wanted.name)
    return traffic.generation if traffic.live == wanted.version else None


def _with_requirements(staged: Staged, loaded: Sequence[Requirement], options: Options, step: Step) -> Staged:
    whole = model_store.add_requirements(staged, loaded, options.requirements, step)
    if options.clean_env:
        step(*_CLEAN)
        lines = (whole.folder / REQUIREMENTS).read_text().splitlines()
        with tempfile.TemporaryDirectory(dir=folder("run"), prefix="clean-") as where:
            log = Path(where) / "pip.log"

            def waiting() -> None:
                step(doing=clean_environment.doing(log))

            python = clean_environment.create(lines, whole.folder / WHEELS, Path(where) / "venv", waiting, log)
            rehearsal.rehearse(whole, on_wait=step, python=python)
    return whole


_CLEAN = ("rehearse in a clean environment",)


def predict(
    name: str,
    X: Any,
    *,
    url: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    proba: bool = False,
    headers: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Ask a running deployment.

    The token of one that runs here is found by itself. For one elsewhere it stands in `token_file`,
    ``NBDEPLOY_TOKEN`` or ``NBDEPLOY_TOKEN_FILE``, and its certificate is verified as ``SSL_CERT_FILE`` says.

    Parameters
    ----------
    X : DataFrame, array or list of records
        Column order is free. Sent in chunks.
    url : str, optional
        Of a service elsewhere; by default the one that runs here under `name`, in a gate the one that it judges.
    token_file : path, optional
        Of a file with the token that `url` wants, which nobody else may read.
    proba : bool
        Add one ``probability_<class>`` column per class.
    headers : mapping, optional
        What else to send: ``{"X-Client-ID": "desk 7"}``, where traffic is sticky by it.

    Returns
    -------
    DataFrame
        ``prediction``, ``prediction_id`` and ``version``, with the index of `X`.

    Raises
    ------
    InputError
        The rows do not fit the signature; ``problems`` says where.
    NotFound, ServiceError
    """
    with connect(name, url=url, token_file=token_file) as http:
        return client.predict(http, name, X, proba=proba, headers=headers)


def connect(name: str, *, url: str | None = None, token_file: str | os.PathLike[str] | None = None) -> httpx.Client:
    """An HTTP client for any route of a running deployment; close it, or use it in a ``with`` block.

    It has the address, the token and the certificate, which are found as `predict` finds them; from inside a gate, what
    it asks is marked as the gate's.

    Raises
    ------
    NotFound, ServiceError
    """
    where = url or judged(name) or deployment.get(name).url
    return client.connect(where, deployment.key_of(where, token_file))


def load(name: str, version: str | None = None) -> LocalModel:
    """Load a version into this process: its model, with the checks of its signature and without a service.

    Its code runs here, so load only what you trust. It is loaded only as it was saved, and has to reproduce its
    expected outputs first.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the live one, at first the newest.

    Raises
    ------
    NotFound, SaveError, RehearsalError
    """
    from nbdeploy.embedding import LocalModel

    return LocalModel.of(model_store.get(name, version or live_version(name)))


@with_serve_options
def asgi(name: str, version: str | None = None, **options: Any) -> HttpApp:
    """An ASGI application to mount in a FastAPI or Starlette of yours: the routes, checks, log and metrics of a service.

    The version is loaded into this process by this call. Which hosts may be called is your server's business, unless
    `allowed_hosts` names some; a token is asked for where `token` or `token_file` says so.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the live one, at first the newest. It stays the one that was loaded.
    **options
        See `nbdeploy.serve_options.ServeOptions`.

    Raises
    ------
    NotFound, SaveError, RehearsalError
    InputError
        An option makes no sense: `host`, `workers`, TLS are your server's.
    """
    from nbdeploy import embedding

    return embedding.application(model_store.get(name, version or live_version(name)), options)


def status(name: str | None = None) -> pd.DataFrame:
    """What runs and what is saved: one row per name, or the one of `name`.

    ``candidates`` are the versions that have a share of the requests beside the live one, and those saved after it;
    ``unreadable`` counts lines of the log that a fault of the disk has damaged. ``alerts`` says which of its rules fired when
    they were looked at last. ``stale`` says why what runs is not
    what this notebook would deploy now: a cell that defines what the model needs was edited or run again, or a
    package is another version here.

    Raises
    ------
    NotFound
        Nothing is saved under `name`.
    """
    if name is not None:
        must_be_known(name)
    rows = []
    everyone = {*model_store.names(), *(running.name for running in deployment.running_deployments())}
    for known in [name] if name is not None else sorted(everyone):
        running = deployment.find(known)
        saved = model_store.versions(known)
        live = live_version(known)
        traffic = routing.traffic(known)
        rows.append(
            {
                "name": known,
                "state": running.state if running else "stopped",
                "version": running.version if running else live or "",
                "candidates": _candidates(traffic, saved),
                "shadow": ", ".join(traffic.shadow),
                "url": running.url if running else "",
                "pid": running.pid if running else 0,
                "since": running.since if running else "",
                "workers": running.workers if running else 0,
                "predictions": prediction_log.size(known),
                "unreadable": prediction_log.unreadable(known),
                "alerts": alert_store.told(known),
                "stale": _stale(next((v for v in saved if running and v.version == running.version), None)),
            }
        )
    columns = [
        "name", "state", "version", "candidates", "shadow", "stale", "alerts", "url", "predictions", "since", "pid", "workers",
        "unreadable",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns).set_index("name")


def card(
    name: str, version: str | None = None, *, sections: Mapping[str, str] | None = None, progress: bool = True
) -> Card:
    """Write the model card of a version: what is known about it, and what you say of it.

    The first time, it is measured how much each column matters: in a fresh process, on at most 1,000 rows of the
    stored sample, within about 20 s. ``card.md`` and ``card.html`` are in the version's folder and are no part of its
    digest. What you write in ``card.md`` outside of the markers stays when the card is made again.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the live one, at first the newest.
    sections : mapping, optional
        Heading to Markdown, for example ``{"Intended use": "…"}``. Kept; a heading that is there already is replaced.

    Returns
    -------
    Card
        Shown inline in a notebook.

    Raises
    ------
    NotFound
    InputError
        A section is no text.
    """
    from nbdeploy import model_card

    subject = model_store.get(name, version or live_version(name))
    with steps("card", ["importance", "write"], progress) as step:
        return model_card.make(subject, subject.files, sections, on_step=step)


def logs(name: str, lines: int = 50) -> str:
    """The last lines that the service of `name` wrote."""
    return deployment.log_tail(name, lines)


def stop(name: str) -> Deployment:
    """End the service of `name` and every process of it; what is saved and logged stays."""
    stopped = deployment.stop(name)
    bento.wait(name)
    return stopped


def delete(name: str, version: str) -> ModelVersion:
    """Delete a version that is not in use, and its Bento. Its number is never used again; its log and evidence stay.

    Parameters
    ----------
    version : str
        ``"v2"``.

    Raises
    ------
    NotFound
    NbdeployError
        It is the live version, or it is running.
    """
    check_name(name)
    if not version:
        msg = f"which version of {name!r} is to be deleted is not said"
        raise NotFound(msg, f"Name one: {', '.join(known.version for known in model_store.versions(name)) or 'none'}.")
    with lock("serve", name), lock("release", name):
        subject = model_store.get(name, version)
        others = [known.version for known in model_store.versions(name) if known != subject]
        instead = f"%deploy serve {name} {others[0]}" if others else "save another and serve that"
        running = deployment.find(name)
        if running is not None and running.version == subject.version:
            msg = f"{subject.tag} is running at {running.url}"
            raise NbdeployError(msg, f"Stop it first (%deploy stop {name}), then {instead}, and delete it then.")
        traffic = routing.traffic(name)
        if traffic.live == subject.version:
            msg = f"{subject.tag} is the live version of {name!r}"
            raise NbdeployError(msg, f"First {instead}, and delete it then.")
        if subject.version in traffic.used:
            msg = f"{subject.tag} gets traffic: it is a {traffic.role(subject.version)}"
            raise NbdeployError(
                msg, f"First %deploy traffic {name} {traffic.live}=100 --no-shadow, and delete it then."
            )
        with bento.none_built(name):
            version_file.remove(subject)
        routing.change(name, lambda old: old.without(subject.version))
    return subject


# -- helpers ------------------------------------------------------------------------------------------------


def _refuse_other_options(running: Deployment, options: Mapping[str, Any]) -> None:
    # Whether there is a token may also follow from the address.
    asked = {key: each for key, each in options.items() if key != "token" or each is not bool(running.token_file)}
    if differing := running.options.differing(asked):
        msg = f"{running.name!r} is running already with {', '.join(differing)}"
        raise NbdeployError(msg, f"Stop it first: %deploy stop {running.name}.")


def _candidates(traffic: Traffic, saved: Sequence[ModelVersion]) -> str:
    """Who has a share beside the live version, and what was saved after it and has none."""
    if traffic.live is None:
        return ""
    told = [f"{version} {traffic.share(version):g} %" for version in traffic.candidates]
    known = [version.version for version in saved if version.number > int(traffic.live[1:])]
    return ", ".join([*told, *(version for version in known if version not in traffic.used)])


def _stale(version: ModelVersion | None) -> str:
    if version is None:
        return ""
    changed = notebook_source.packages_changed(pinned(version.requirements))
    return "; ".join([*notebook_source.stale(version.provenance.get("cells", [])), *changed])
