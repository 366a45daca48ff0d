"""A clinical note and what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

ERROR_TYPES = ("diagnosis", "management", "treatment", "pharmacotherapy", "causalOrganism")
"""MEDEC's five kinds of error."""


@dataclass(frozen=True, slots=True)
class Note:
    """One text, as its data set describes it.

    An error note names the one wrong sentence and how it should read; a clean note has none of that.
    Twins (two writings of one case, one with an error and one without) share ``vignette_id``.
    """

    note_id: str
    text: str
    vignette_id: str
    sentences: tuple[str, ...] = ()
    error_type: str | None = None
    error_sentence_id: int = -1
    error_sentence: str | None = None
    corrected_sentence: str | None = None
    corrected_text: str | None = None

    @property
    def has_error(self) -> bool:
        return self.corrected_text is not None

    @property
    def reference(self) -> str:
        """The clean text of this very note: its own Corrected Text, never its twin's wording."""
        return self.text if self.corrected_text is None else self.corrected_text
