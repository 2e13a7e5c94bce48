"""What became of a retraining, in a sentence and in full."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbdeploy.drift_result import DriftReport
    from nbdeploy.gate_result import GateResult
    from nbdeploy.model_store import ModelVersion
    from nbdeploy.notebook_run import Executed


@dataclass(frozen=True, repr=False)
class Retrained:
    """What became of a retraining.

    Attributes
    ----------
    name : str
        The deployment.
    said : str
        What happened, in one sentence.
    version : ModelVersion or None
        The candidate; None where nothing had to be done.
    gate : GateResult or None
        The verdict on it.
    executed : Executed or None
        The training notebook, executed, and its page.
    of : str
        The version whose log it learned from, ``"v1"``.
    rows, held_out : int
        The labelled rows that it learned from, and those that its gate judged it by.
    target : str
        The column of labels.
    drift : DriftReport or None
        What `if_drifted` looked at.
    rollout : str
        ``"started"``, or why it was not; '' where none was asked for.
    notes : tuple of str
        What was left out of the rows, and what else one should know.
    """

    name: str
    said: str
    version: ModelVersion | None = None
    gate: GateResult | None = None
    executed: Executed | None = None
    of: str = ""
    rows: int = 0
    held_out: int = 0
    target: str = ""
    drift: DriftReport | None = None
    rollout: str = ""
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether there is a candidate, and it has passed its gates."""
        return self.gate is not None and self.gate.passed

    @property
    def done(self) -> bool:
        """Whether what was asked for is done: nothing had to be, or the candidate passed and its rollout began."""
        return (self.version is None or self.passed) and self.rollout in {"", "started"}

    @property
    def next_steps(self) -> tuple[str, ...]:
        """Commands that may follow."""
        if self.version is None or self.rollout == "started":
            return ()
        name, version = self.name, self.version.version
        return (f"%deploy rollout {name} {version}", f"%deploy promote {name} {version}") if self.passed else ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "said": self.said, "version": self.version and self.version.version, "passed": self.passed,
            "done": self.done, "of": self.of, "rows": self.rows, "held_out": self.held_out, "target": self.target,
            "rollout": self.rollout, "notes": list(self.notes),
            "gate": self.gate and self.gate.to_dict(), "executed": self.executed and self.executed.to_dict(),
        }  # fmt: skip

    def __repr__(self) -> str:
        lines = [self.said, *(f"  note: {note}" for note in self.notes)]
        if self.gate is not None:
            lines += [f"  {'✓' if one.passed else '✗'} {one}" for one in self.gate.checks]
            lines.append(f"  evidence: {self.gate.notebook}")
        if self.executed is not None:
            lines.append(f"  training: {self.executed.notebook}")
        return "\n".join([*lines, *(f"  next: {step}" for step in self.next_steps)])

    def _repr_html_(self) -> str:
        parts = [f"<div><b>{html.escape(self.said)}</b></div>"]
        parts += [f"<div>Note: {html.escape(note)}</div>" for note in self.notes]
        if self.executed is not None:
            parts.append(f"<div>Training: {self.executed.links}</div>")
        if self.gate is not None:
            held = sum(one.passed for one in self.gate.checks)
            title = f"{held} of {len(self.gate.checks)} checks held"
            parts.append(f"<details><summary>{title}</summary>{self.gate._repr_html_()}</details>")
        if self.next_steps:
            steps = " or ".join(f"<code>{html.escape(step)}</code>" for step in self.next_steps)
            parts.append(f"<div>Next: {steps}</div>")
        return f"<div>{''.join(parts)}</div>"
