"""Evidently's own workspace on disk: what `evidently ui --workspace DIR` shows, one project for each deployment."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from nbdeploy import drift_report, home
from nbdeploy.drift_columns import inert
from nbdeploy.errors import NbdeployError, ReportError


def add(folder: Path | str, deployment: str, snapshot: Any, *, title: str, version: str, preset: str) -> Path:
    """Add a snapshot to the project of a deployment, which is made when it is missing. Returns the workspace's folder.

    Parameters
    ----------
    folder : path
        On this machine. It is made, for this user alone, when it is missing; what is written below it is too.
    deployment : str
        The name of the project.
    snapshot
        What Evidently's ``Report.run`` gave, of data whose strings are inert: its pages are not sealed.
    title, version, preset : str
        The name of the run, and what it can be filtered by.

    Raises
    ------
    ReportError
        The folder cannot be written to.
    """
    place = place_of(folder)
    drift_report.warm()
    from evidently.sdk.models import ProjectModel
    from evidently.ui.workspace import Workspace

    snapshot.set_name(inert(title))
    snapshot._tags = [version, preset]  # noqa: SLF001 - there is no other way after the run
    snapshot._metadata = {"version": version, "preset": preset}  # noqa: SLF001
    try:
        home.private_folder(place)
        with home.lock("workspace", deployment):
            workspace = Workspace(str(place))
            found = [project for project in workspace.search_project(deployment) if project.name == deployment]
            if found:
                project = found[0]
            else:
                made = ProjectModel(name=deployment, description=f"What nbdeploy saw of {deployment}")
                home.private_folder(place / str(made.id))
                project = workspace.add_project(made)
            home.private_folder(place / str(project.id) / "snapshots")
            workspace.add_run(project.id, snapshot, include_data=False)
            _keep_private(place / str(project.id))
    except (OSError, NbdeployError) as error:
        msg = f"{place} cannot be written: {getattr(error, 'strerror', '') or error}"
        raise ReportError(msg, "Choose a folder that you may write to.") from error
    return place


def place_of(folder: Path | str) -> Path:
    """The folder of a workspace, absolute; raises `ReportError` where Evidently would take it for something else."""
    place = Path(folder).expanduser().absolute()
    if "::" in str(place):  # a chain of file systems
        msg = f"{place} cannot be a workspace: its name has '::'"
        raise ReportError(msg, "Choose another folder.")
    return place


def _keep_private(project: Path) -> None:
    for path in (project, *project.rglob("*")):
        with suppress(OSError):
            path.chmod(0o700 if path.is_dir() else 0o600)
