"""Gates on a version: which notebooks judge it, where it answers them, and what a promotion needs from now on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy import deployment, gate, gate_evidence, gate_secrets, model_store, routing
from nbdeploy.deployment import Deployment
from nbdeploy.errors import GateError, InputError, NbdeployError, NotFound
from nbdeploy.home import folder, reports_folder, write_atomic
from nbdeploy.model_store import ModelVersion
from nbdeploy.routing import Traffic
from nbdeploy.watching import live_version

if TYPE_CHECKING:
    from nbdeploy.gate import GateResult, GateRun
    from nbdeploy.gate_group import GateRuns

Notebook = str | Path


def validate(
    name: str,
    version: str | None = None,
    *,
    notebook: Notebook | Sequence[Notebook] | None = None,
    data: Any = None,
    target: str = "",
    parameters: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | Sequence[str] | None = None,
    require: bool | None = None,
    timeout: float = 600,
    wait: bool = True,
    progress: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> GateResult | GateRun | GateRuns:
    """Run gate notebooks against a version and keep the executed notebooks as evidence.

    The live version is asked where it runs. Any other is served aside for as long as the gates take; live traffic
    does not notice. A gate fails closed: it passes only when every cell ran and every recorded check passed, at least
    one. Several gates run side by side where cores allow, and all have to pass.

    Parameters
    ----------
    version : str, optional
        ``"v2"``; by default the live one, at first the newest.
    notebook : path or list of paths, optional
        Notebooks of yours that call `nbdeploy.check`. By default the gate that comes with nbdeploy, and every notebook
        that promotions of this deployment need.
    data : DataFrame or path of a .parquet file, optional
        Labelled rows to measure quality on; by default the reference sample.
    target : str
        The column of `data` that holds the labels; by default the signature's.
    parameters : mapping, optional
        Further parameters that the notebook declares, for example ``{"at_least": 0.8}``.
    env : mapping or list of str, optional
        Secrets for the notebook, which reads them from ``os.environ``: names and values, or names alone of variables
        that have to be there. Their values are replaced by ``***`` in everything that is kept.
    require : bool, optional
        True makes this notebook, with these parameters, something that every promotion of this deployment needs from
        now on, whatever the verdict is. False takes that back. None leaves it.
    timeout : float
        Seconds for each notebook.
    wait : bool
        False returns at once and works in the background: the ``result()`` of what is returned is the `GateResult`,
        and `on_progress` is called with the cells done and their total.

    Raises
    ------
    NotFound, GateError
        It could not be run. A failed gate is a result with ``passed`` False.
    SaveError, ServiceError
        The version could not be served aside.
    """
    running = deployment.find(name)
    subject = model_store.get(name, version or (running.version if running else live_version(name)))
    if target and data is None:
        msg = f"target={target!r} names a column of data, and there is no data"
        raise GateError(msg, "Pass data= too (--data).")
    secrets = gate_secrets.environment(env)
    keys = _keys(notebook)
    chosen = _chosen(routing.traffic(name).gates, keys, parameters or {}, require=require)
    about: dict[str, Any] = {
        "deployment": name, "version": subject.version, "digest": subject.digest, "timeout": timeout, "env": secrets,
        "tokens": _tokens(running), "copies": reports_folder(name),
    }  # fmt: skip
    labelled = {}
    if data is not None:
        labelled = {"data": _labelled_file(name, data), "target": target or subject.signature.target}
    own = {"name": name, "version": subject.version}
    jobs = [gate.prepare(one.path, one.values(own, labelled), **about) for one in chosen]
    if require is not None:
        of = chosen[:1] if keys is None else chosen
        _remember(name, of, jobs[: len(of)], [""] if keys is None else keys, require=require)
    if running is not None and _answers_alone(running, subject) and len(jobs) == 1:
        run = gate.GateRun(jobs[0].told({"url": running.url, "live_url": ""}), on_progress, progress)
        return run.wait() if wait else run
    from nbdeploy.gate_group import GateRuns

    runs = GateRuns(jobs, lambda on_wait: _served(subject, on_wait, secrets), on_progress=on_progress, shown=progress)
    return runs.wait() if wait else runs


# -- which gates --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    """A gate to run: `key` is how the traffic file names it."""

    key: str
    path: Path
    declared: frozenset[str]
    given: Mapping[str, Any] = field(default_factory=dict)  # what the user says now
    required: Mapping[str, Any] = field(default_factory=dict)  # what promotions need
    judges_data: bool = True

    def values(self, own: Mapping[str, Any], labelled: Mapping[str, Any]) -> dict[str, Any]:
        more = {key: value for key, value in own.items() if key in self.declared}
        return {**more, **(labelled if self.judges_data else {}), **self.required, **self.given}


def _keys(notebook: Notebook | Sequence[Notebook] | None) -> list[str] | None:
    """How the traffic file names these notebooks; None for all that is needed."""
    if notebook is None:
        return None
    several = [notebook] if isinstance(notebook, (str, Path)) else list(notebook)
    if not several:
        msg = "notebook= names no notebook"
        raise GateError(msg, "Leave it out for the gate that comes with nbdeploy.")
    paths = [Path(one).expanduser().absolute() for one in several]
    return list(dict.fromkeys("" if path == gate_evidence.notebook_of({}) else str(path) for path in paths))


def _chosen(
    gates: Sequence[Mapping[str, Any]], keys: Sequence[str] | None, given: Mapping[str, Any], *, require: bool | None
) -> list[_Chosen]:
    required = {str(one["notebook"]): dict(one.get("parameters") or {}) for one in gates}
    if require is False:
        for key in [""] if keys is None else keys:
            required.pop(key, None)
    if keys is None:
        # What is told now is for the gate that comes with nbdeploy; the others are told what they always are.
        first = _one("", required.get("", {}), given)
        rest = [_one(key, told, {}, always=True) for key, told in required.items() if key]
        return [first, *(replace(one, judges_data="data" in one.declared) for one in rest)]
    if require is False:
        # Taking a gate back has to work when its notebook is gone; then it cannot run any more.
        keys = [key for key in keys if not key or Path(key).is_file()] or [""]
    found = [_one(key, required.get(key, {}), given) for key in keys]
    if len(found) == 1:
        return found
    # Each is told what it knows; what none knows, the first one complains about.
    anyone = frozenset[str]().union(*(one.declared for one in found))
    return [
        replace(
            one,
            given={key: value for key, value in given.items() if key in one.declared or (first and key not in anyone)},
            judges_data="data" in one.declared or (first and "data" not in anyone),
        )
        for first, one in ((one is found[0], one) for one in found)
    ]


def _one(key: str, required: Mapping[str, Any], given: Mapping[str, Any], *, always: bool = False) -> _Chosen:
    path = gate_evidence.notebook_of({"notebook": key})
    try:
        declared = frozenset(gate.declared_names(path))
    except NbdeployError as error:
        if not always:
            raise
        msg = f"{error.message.rstrip('.')}, and promotions need it"
        raise type(error)(msg, f"Put it back, or take it back: --notebook {path} --no-require.") from error
    return _Chosen(key, path, declared, dict(given), dict(required))


def _remember(
    name: str, chosen: Sequence[_Chosen], jobs: Sequence[gate.Job], taken_back: Sequence[str], *, require: bool
) -> None:
    """Write down what promotions need from now on, or do not need any more."""
    entries: dict[str, dict[str, Any] | None]
    if require:
        entries = {one.key: _entry(one, job) for one, job in zip(chosen, jobs, strict=True)}
    else:
        entries = dict.fromkeys(taken_back)

    def edit(now: Traffic) -> Traffic:
        kept = {str(one["notebook"]): one for one in now.gates}
        changed = {**kept, **entries}
        return replace(now, gates=tuple(one for one in changed.values() if one is not None))

    names = ", ".join(_told(key, entry) for key, entry in entries.items())
    why = f"promotions need {names}" if require else f"promotions do not need {names}"
    routing.change(name, edit, action="gates", why=why)


def _told(key: str, entry: Mapping[str, Any] | None) -> str:
    """A gate in the history: ``validate.ipynb (at_least=0.8)``."""
    strict = ", ".join(f"{name}={value!r}" for name, value in entry["parameters"].items()) if entry else ""
    return gate_evidence.notebook_of({"notebook": key}).name + (f" ({strict})" if strict else "")


def _entry(one: _Chosen, job: gate.Job) -> dict[str, Any]:
    """A required gate, its parameters as its notebook takes them: only what says how strict it is."""
    told = {**one.required, **one.given}.keys() - gate_evidence.UNCOUNTED
    return {"notebook": one.key, "parameters": {key: job.parameters[key] for key in sorted(told)}}


# -- where it answers ---------------------------------------------------------------------------------------


def _answers_alone(running: Deployment, subject: ModelVersion) -> bool:
    """Whether the running service answers every request by this version."""
    return running.version == subject.version and not routing.traffic(subject.name).candidates


@contextmanager
def _served(
    subject: ModelVersion, on_wait: Callable[[], None], secrets: Iterable[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """Where the version answers while the block runs, as parameters of a gate."""
    running = deployment.find(subject.name)
    if running is not None and _answers_alone(running, subject):
        yield {"url": running.url, "live_url": ""}
        return
    with deployment.aside(subject, on_wait=on_wait, untold=secrets) as service:
        other = running is not None and running.version != subject.version
        yield {"url": service.url, "live_url": running.url if running is not None and other else ""}


def _tokens(running: Deployment | None) -> list[str]:
    if running is not None:
        with suppress(NbdeployError):  # then nobody can ask it, and the gate says so
            return [running.key.token]
    return []


def _labelled_file(name: str, data: Any) -> str:
    if isinstance(data, pd.DataFrame):
        content = data.to_parquet(None, index=False)
        # Named by its content: two gates at once keep their own rows, the same rows are kept once.
        path = folder("gates", name) / f"labelled-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        write_atomic(path, content)
        return str(path)
    if not isinstance(data, (str, Path)):
        msg = f"data is a {type(data).__name__}"
        raise InputError(msg, hint="Pass a frame or the path of a .parquet file.")
    path = Path(data).expanduser().absolute()
    if not path.is_file():
        msg = f"there is no file {data!s}"
        raise NotFound(msg, "Pass a frame or the path of a .parquet file.")
    return str(path)
