"""What other tools need to know of a deployment, written as files of theirs.

A kind is a pure function of what is kept; writing is done here, for all kinds alike.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbdeploy import exports_grafana, exports_prometheus, watching
from nbdeploy.drift_columns import visible
from nbdeploy.errors import InputError, NbdeployError, did_you_mean
from nbdeploy.home import check_name, private_folder, write_atomic


@dataclass(frozen=True)
class Kind:
    """One tool.

    Attributes
    ----------
    file : str
        What its file is called; ``{name}`` is the deployment.
    render : callable
        The text of the file, and what has to be said of it.
    """

    file: str
    render: Callable[[str], tuple[str, tuple[str, ...]]]

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (".json",) if self.file.endswith(".json") else (".yml", ".yaml")


KINDS: Mapping[str, Kind] = {
    "prometheus": Kind("{name}.rules.yml", exports_prometheus.render),
    "grafana": Kind("{name}.dashboard.json", exports_grafana.render),
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes
    ----------
    name, kind : str
    files : tuple of Path
    notes : tuple of str
        What could not be said in that tool's words, and what to do next.
    """

    name: str
    kind: str
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "files": list(map(str, self.files)), "notes": list(self.notes)}

    def __repr__(self) -> str:
        return "\n".join([*(visible(str(path)) for path in self.files), *(f"  {visible(note)}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def export(name: str, kind: str, to: str | os.PathLike[str] | None = None, *, overwrite: bool = False) -> Exported:
    """Write what another tool needs to know of a deployment.

    Parameters
    ----------
    kind : {"prometheus", "grafana"}
        ``"prometheus"``: alerting rules for those of its rules (`alert`) that Prometheus can judge by the deployment's
        metrics; the others, of drift and quality, are named in comments. ``"grafana"``: a dashboard of its metrics.
    to : path, optional
        The folder, which is made where it is missing, or the file; by default the working directory.
    overwrite : bool
        Replace a file that is there already.

    Returns
    -------
    Exported
        Its `notes` say what could not be exported. The file is 0600: it is for you to hand on.

    Raises
    ------
    InputError
        There is no such kind, nothing to export, or the file is there already.
    NotFound
    """
    check_name(name)
    watching.must_be_known(name)
    if kind not in KINDS:
        msg = f"{kind!r:.80} is nothing that a deployment is exported to"
        raise InputError(msg, hint=did_you_mean(str(kind), KINDS))
    text, notes = KINDS[kind].render(name)
    path = _path(name, KINDS[kind], to)
    if path.exists() and not overwrite:
        msg = f"{path} is there already"
        raise InputError(msg, hint="Choose another place, or overwrite it: --overwrite.")
    try:
        private_folder(path.parent)
        write_atomic(path, text.encode())
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}"
        raise NbdeployError(msg, "Choose another place.") from error
    return Exported(name, kind, (path,), notes)


def _path(name: str, kind: Kind, to: str | os.PathLike[str] | None) -> Path:
    place = Path.cwd() if to is None else Path(to).expanduser().absolute()
    if place.suffix in kind.suffixes and not place.is_dir():
        return place
    return place / kind.file.format(name=name)
