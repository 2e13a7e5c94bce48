"""The model card: what is known about a version, written down where its owner can add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbdeploy import card_html, card_markdown, importance
from nbdeploy.card_blocks import Section, one_line
from nbdeploy.card_facts import Subject, collect
from nbdeploy.card_sections import sections
from nbdeploy.errors import InputError, NbdeployError
from nbdeploy.home import lock, write_atomic

MARKDOWN, HTML = "card.md", card_html.PAGE
MAX_SECTION = 200_000  # characters of one section of the user's


@dataclass(frozen=True, repr=False, eq=False)
class Card:
    """What is known about a version, and what its owner says of it.

    Attributes
    ----------
    name, version : str
        Of what.
    path : Path
        ``card.md`` in the version's folder. What you write there outside of the markers stays when the card is made
        again.
    facts : dict
        What the card says, as JSON types. Of a private column it holds the name and the type.
    """

    name: str
    version: str
    path: Path
    facts: Mapping[str, Any]
    parts: Sequence[Section | str] = field(default=(), repr=False)

    @property
    def markdown(self) -> str:
        """The text of ``card.md``."""
        return card_markdown.render(self.parts)

    @property
    def html(self) -> str:
        """A whole page without scripts; ``card.html`` beside ``card.md`` holds it."""
        return card_html.page(f"{self.name} {self.version}", self.parts)

    @property
    def sections(self) -> dict[str, str]:
        """Your own sections: heading to Markdown."""
        return card_markdown.titles(self.parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "path": str(self.path),
            "html_path": str(self.path.with_name(HTML)),
            "facts": dict(self.facts),
            "sections": self.sections,
            "markdown": self.markdown,
        }

    def __repr__(self) -> str:
        # Without the markers, which nobody reads.
        lines = [line for line in self.markdown.split("\n") if not line.startswith("<!-- ")]
        return "\n".join(lines).strip()

    def _repr_html_(self) -> str:
        return card_html.inline(self.parts, note=f"The whole card, to edit and to keep: {self.path}")

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        predicts = self.facts["predicts"]
        about = one_line(predicts["target"] or "one value")
        text = f"Card of {self.name} {self.version}: predicts {about} ({predicts['task']})\n  {self.path}"
        return {"text/html": self._repr_html_(), "text/plain": text}


def make(
    version: Subject,
    files: Mapping[str, str] | None,
    own: Mapping[str, str] | None = None,
    on_step: Callable[[str], None] = lambda _name: None,
) -> Card:
    """Write the card of `version` into its folder, and return it.

    Importance is measured, in a process of its own, unless it was before.

    Parameters
    ----------
    files : mapping or None
        The recorded SHA-256 of every file of the version.
    own : mapping, optional
        Heading to Markdown: sections of the user's, which are kept.
    on_step : callable
        Called with the step that begins (``importance``, ``write``), and with '' while time passes.

    Raises
    ------
    InputError
        A section is no text.
    NbdeployError
        The folder cannot be written to.
    """
    given: object = own
    if given is not None and not isinstance(given, Mapping):
        msg = f"sections of a card are a {type(own).__name__}"
        raise InputError(msg, hint="Pass sections={'Heading': 'Markdown text'}.")
    for title, text in (own or {}).items():
        if not isinstance(text, str) or not str(title).strip():  # type: ignore[redundant-expr]
            msg = f"section {title!r} of a card is a {type(text).__name__}"
            raise InputError(msg, hint="Pass sections={'Heading': 'Markdown text'}.")
        if len(text) > MAX_SECTION:
            msg = f"section {title!r} of a card has {len(text):,} characters"
            raise InputError(msg, hint=f"Keep it below {MAX_SECTION:,}; a card is to be read.")
    path = version.path / MARKDOWN
    with lock("card", version.name, version.version):
        on_step("importance")
        measured = importance.measure(version.path, version.digest, files, on_wait=lambda: on_step(""))
        on_step("write")
        facts = collect(version)
        facts["importance"] = measured
        before = _former(path)
        written = bool(own) or bool(card_markdown.titles(card_markdown.merge(before, sections(facts), {})))
        parts = card_markdown.merge(before, sections(facts, purpose_known=written), own or {})
        card = Card(version.name, version.version, path, facts, tuple(parts))
        try:
            write_atomic(path, card.markdown.encode("utf-8", "replace"))
            write_atomic(path.with_name(HTML), card.html.encode("utf-8", "replace"))
        except OSError as error:
            msg = f"the card of {version.name}:{version.version} cannot be written to {path}: {error.strerror}"
            raise NbdeployError(msg, "May you write to that folder, and is there room?") from error
    return card


def _former(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
