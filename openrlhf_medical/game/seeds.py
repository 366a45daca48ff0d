"""Seeds: a note plus the category of the game that will be played on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Category(StrEnum):
    """The four kinds of game. The first word is the attacker's turn, the second the seed note."""

    VANILLA_HARMFUL = "vanilla_harmful"
    ADVERSARIAL_HARMFUL = "adversarial_harmful"
    VANILLA_BENIGN = "vanilla_benign"
    ADVERSARIAL_BENIGN = "adversarial_benign"

    @property
    def is_vanilla(self) -> bool:
        """The note is passed on as it is, and the data decides what is true."""
        return self in (Category.VANILLA_HARMFUL, Category.VANILLA_BENIGN)

    @property
    def is_harmful(self) -> bool:
        """The seed note carries an error."""
        return self in (Category.VANILLA_HARMFUL, Category.ADVERSARIAL_HARMFUL)


@dataclass(frozen=True, slots=True)
class Seed:
    """One row of ``train.jsonl`` or ``val.jsonl``.

    ``origin`` says where a clean seed note comes from: ``clean`` (a note that never had an error),
    ``corrected`` (an error note's Corrected Text), or ``error`` for seeds that carry an error.
    ``error_sentence`` and ``corrected_sentence`` are those of the seed note and None when it is clean.
    """

    seed_id: str
    category: Category
    note_id: str
    vignette_id: str
    origin: str
    seed_note: str
    reference_note: str
    error_type: str | None = None
    error_sentence: str | None = None
    corrected_sentence: str | None = None
    sentences: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "category": self.category.value, "sentences": list(self.sentences)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Seed:
        """Raises KeyError, ValueError or TypeError on a row that is not a seed."""
        return cls(**{**row, "category": Category(row["category"]), "sentences": tuple(row.get("sentences", ()))})
