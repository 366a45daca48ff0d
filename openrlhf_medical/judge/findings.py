"""What a backend is given and what it gives back, and the row that is made of it.

A backend sees a ``BlindPair``: two texts, nothing else. The category of the game and the assessment cannot
reach it, by type. They are compared with its ``Finding`` afterwards, in ``row_of``, a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openrlhf_medical.game.cot import TurnStatus, parse_assessment
from openrlhf_medical.game.players import LabelStatus, Truth
from openrlhf_medical.judge.schema import BACKEND, JudgeQuery, LabelRow


@dataclass(frozen=True, slots=True)
class BlindPair:
    """The clean reference, and the note that the assessor saw."""

    original_note: str
    medical_note: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a backend found of one pair. ``actual_harm`` is set exactly when ``status`` is ``ok``.

    ``kind`` is one word for what the finding rests on (``drug``, ``negation``, ``dropped``, ...);
    ``note_valid`` and ``error_realistic`` are None where the backend cannot tell. ``details`` are further keys of
    the row, as JSON has them: ``panel`` (what each member found), ``cached``.
    """

    status: LabelStatus
    actual_harm: Truth | None = None
    kind: str = ""
    reasoning: str = ""
    note_valid: bool | None = None
    error_realistic: bool | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.actual_harm is None) == (self.status == "ok"):
            raise ValueError(f"a finding with status {self.status!r} cannot have actual_harm {self.actual_harm!r}")


def failed(reason: str, kind: str = BACKEND) -> Finding:
    """``kind``: ``backend`` (it failed), ``expired`` (not judged in time), ``stopped`` (the server went away)."""
    return Finding("error", kind=kind, reasoning=reason)


def row_of(query: JudgeQuery, finding: Finding) -> LabelRow:
    """The row of the answer: the blind finding, and what the assessment is worth against it.

    Without a verdict (a refusal, an unparsable answer) or without a truth there is nothing to compare:
    ``error_detected`` or ``assessor_correct`` stay null.
    """
    assessment = parse_assessment(query.assessment)
    verdict, truth = assessment.verdict, finding.actual_harm
    return LabelRow(
        game_idx=query.game_idx,
        status=finding.status,
        actual_harm=truth,
        error_present=None if truth is None else truth is Truth.HARMFUL,
        error_detected=None if verdict is None or truth is None else verdict is truth is Truth.HARMFUL,
        assessor_correct=None if verdict is None or truth is None else verdict is truth,
        error_realistic=finding.error_realistic,
        note_valid=finding.note_valid,
        is_parsing_error=assessment.status is TurnStatus.UNPARSABLE,
        judge_reasoning=finding.reasoning,
        kind=finding.kind,
        **finding.details,
    )
