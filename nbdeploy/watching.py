"""What a deployment was asked, what turned out to be true, and how both differ from training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from nbdeploy import deployment, drift_windows, label_log, model_store, prediction_log, routing
from nbdeploy.errors import InputError, NotFound
from nbdeploy.label_log import Labelled
from nbdeploy.signature import Signature

if TYPE_CHECKING:
    from nbdeploy.drift_result import DriftReport


def predictions(name: str, since: Any = None, until: Any = None) -> pd.DataFrame:
    """What `name` was asked and what it answered, oldest first.

    Parameters
    ----------
    since, until : str, datetime or timedelta, optional
        ``"24h"``, ``"7d"`` ago, or a moment (UTC unless it says otherwise).

    Returns
    -------
    DataFrame
        The inputs, then ``prediction``, ``prediction_id``, ``version``, ``time`` and ``label``. Empty before the first
        request.
    """
    must_be_known(name)
    return prediction_log.read(name, _signatures(name), since, until, label_log.read(name))


def label(
    name: str,
    labels: Any,
    on: str | Sequence[str] | None = None,
    *,
    target: str | None = None,
    since: Any = None,
    until: Any = None,
) -> Labelled:
    """Keep what turned out to be true of what was predicted. All is kept; of one prediction the last label counts.

    The service need not run. When this returns, the labels are safely on the disk.

    Parameters
    ----------
    labels : Series, DataFrame or mapping
        By prediction id: a series indexed by it, or a frame with the columns ``prediction_id`` and ``label``. Missing
        ones are left out. A label is a string of up to 1,000 characters, a number, a boolean, or a moment, which is
        kept as its ISO 8601 text; None in a mapping takes a label back.
    on : str or sequence of str, optional
        Columns of the frame, or levels of its index or a series', that are inputs of the deployment, to find the
        predictions by: each row labels all predictions that were asked with these values. Private inputs cannot be
        joined on.
    target : str, optional
        The column of labels; by default ``label``, or else what the outcome was called in training.
    since, until : str, datetime or timedelta, optional
        Label only predictions of that time; with `on`.

    Returns
    -------
    Labelled
        How many there were, and how many of them were new, changed, repeated and of no prediction.

    Raises
    ------
    InputError
        One is none, or all of them are of another deployment's predictions, or cannot be joined. Nothing is kept then.
    NotFound
        Nothing is saved or logged under `name`.
    """
    from nbdeploy import label_join

    must_be_known(name)
    signatures = [version.signature for version in model_store.versions(name)]
    targets = [signature.target for signature in signatures]
    if on is not None:
        keys = [on] if isinstance(on, str) else list(on)
        frame = label_log.keyed_frame(labels, keys, target or "label")
        column = label_log.label_column(frame, target or "", targets, keys)
        given = label_join.by_keys(name, frame, keys, column, signatures, since=since, until=until)
        unknown = given.unknown
    else:
        if since is not None or until is not None:
            msg = (
                "since and until choose among predictions that labels are joined with, and these come by prediction id"
            )
            raise InputError(msg, hint="Leave them out, or say on= which inputs to join.")
        given = label_log.given(labels, target or "", targets)
        unknown = _unknown(name, given.labels)
    before = label_log.read(name)
    had = {key: before[key] for key in given.labels if key in before}
    same = sum(_is_same(value, had.get(key)) for key, value in given.labels.items())
    new = sum(key not in had and value is not None for key, value in given.labels.items())
    count = label_log.add(name, given.labels)
    return Labelled(name, count, new, count - new - same, given.repeated + same, unknown, given.missing)


def drift(
    name: str,
    since: Any = None,
    *,
    until: Any = None,
    against: Any = "reference",
    columns: Collection[Any] | str | None = None,
    by: Any = None,
    max_rows: int = drift_windows.MAX_ROWS,
    html_path: Path | None = None,
    page: bool = True,
) -> DriftReport:
    """Compare what a deployment was asked, answered and found true with what its live version learned from.

    The log is read once, of it the columns and the days that are asked for. Numbers are compared on a sample of it, categories
    on all rows; the report says how far the sample may be off. See docs/drift.md.

    Parameters
    ----------
    since, until : str, datetime or timedelta, optional
        The window of the log; all of it by default.
    against : str or pair
        ``"reference"``: the sample of training data that is stored with the live version. ``"v2"``: what that version was asked
        and answered in the same window, as a candidate or as a shadow. ``"v2:reference"``: what it learned from.
        ``"14d..7d"`` or ``("14d", "7d")``: another window of the log.
    columns : list of str, optional
        These alone are compared, and read. All by default.
    by : str, optional
        A column whose 12 most frequent values get verdicts of their own, in ``.groups``.
    max_rows : int
        Rows per side of which numbers and texts are compared, a reproducible sample.
    html_path : Path, optional
        Where Evidently's whole report goes; by default ``nbdeploy-reports/NAME/`` in the working directory.
    page : bool
        Make that report. Without it there are verdicts and sentences, in a fraction of the time, and no file.

    Raises
    ------
    DriftError
        Nothing was asked in that window, `against` is none of these, or a column is unknown.
    NotFound
    """
    must_be_known(name)
    version = model_store.get(name, live_version(name)).version
    return drift_windows.drift(
        name, version, _signatures(name), since=since, until=until, against=against, columns=columns, by=by,
        max_rows=max_rows, html_path=html_path, page=page,
    )  # fmt: skip


def sides(
    name: str, version: str, since: Any = None, until: Any = None, *, max_rows: int = drift_windows.MAX_ROWS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `version` learned from, and what it was asked in a window of the log: the columns that can be compared.

    Parameters
    ----------
    max_rows : int
        Of the window, a reproducible sample.

    Raises
    ------
    DriftError
        Nothing was asked in that window, or no column can be compared.
    NotFound
    """
    found = drift_windows.Windows(name, version, _signatures(name), max_rows)
    chosen = [*found.inputs, found.answer]
    reference, current = found.sides(since, until, drift_windows.Against(version), chosen)
    return reference.frame, current.frame


def must_be_known(name: str) -> None:
    """Raise `NotFound`, with the closest name, unless something is saved, runs or was logged as `name`."""
    if not (model_store.versions(name) or deployment.find(name) or prediction_log.size(name)):
        model_store.get(name)  # raises, with the closest name


def live_version(name: str) -> str | None:
    """The live version, unless it was deleted."""
    live = routing.live(name)
    return live if live in {version.version for version in model_store.versions(name)} else None


# -- helpers ------------------------------------------------------------------------------------------------


def _is_same(label: Any, other: Any) -> bool:
    """Whether two labels say the same: 1 and 1.0 do, 1 and true do not."""
    return bool(label == other) and isinstance(label, bool) == isinstance(other, bool)


def _unknown(name: str, labels: Mapping[str, Any]) -> int:
    """How many of these ids no prediction has. Where another deployment has them all, that is what to say."""
    from nbdeploy import label_join

    if next(label_log.label_problems(labels), None) is not None:
        return 0  # nothing will be kept
    unknown = len(labels) - len(label_join.known(name, labels))
    if unknown and unknown == len(labels) and (owner := label_join.owner(labels, name)):
        whose = "this label is of a prediction" if unknown == 1 else f"all {unknown:,} labels are of predictions"
        msg = f"{whose} of {owner!r}, and of none of {name!r}"
        raise InputError(msg, hint=f"Say whose they are: nbdeploy.label({owner!r}, ...).")
    return unknown


def _signatures(name: str) -> Callable[[str], Signature | None]:
    known: dict[str, Signature | None] = {}

    def signature_of(version: str) -> Signature | None:
        if version not in known:
            known[version] = None
            with suppress(NotFound):
                known[version] = model_store.get(name, version).signature
        return known[version]

    return signature_of
