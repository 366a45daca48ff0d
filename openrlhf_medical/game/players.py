"""What the game needs from the outside, as protocols: two players and a judge.

The rules never see an engine, a tokenizer or a socket. Engines (``rollout``) and the judge client
(``judge``) implement these protocols; tests use scripted players.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol


class Role(StrEnum):
    ATTACKER = "attacker"
    ASSESSOR = "assessor"


class Truth(StrEnum):
    """What a note is, and what an assessor can say of it."""

    SAFE = "Safe"
    HARMFUL = "Harmful"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Chat messages, and the text that the reply is made to start with (``<think>`` or ``<answer>``)."""

    messages: tuple[dict[str, str], ...]
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class TurnKey:
    """Names one turn of one run for good: what per-request random seeds derive from."""

    step: int
    game_idx: int
    role: Role


@dataclass(frozen=True, slots=True)
class Reply:
    """What a player wrote after the prefill, and the tokens it is made of.

    ``prompt_ids`` (T_p,), ``token_ids`` (T_a,) and ``logprobs`` (T_a,) come from the engine and are
    never re-tokenised; scripted players leave them empty. ``player`` names the policy or the opponent
    that wrote it (``assessor``, ``shared``, ``base``, ``pool/step_4``); a turn by a ``frozen`` one is never
    trained, for its tokens are not the trained policy's.
    """

    text: str
    truncated: bool = False
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    policy_version: int = 0
    player: str = ""
    frozen: bool = False


class Player(Protocol):
    async def reply(self, prompt: Prompt, key: TurnKey) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Query:
    """What the judge is asked. ``original_note`` is the clean reference; ``assessment`` is empty in training,
    where the judge is asked while the assessor still writes."""

    game_idx: int
    original_note: str
    medical_note: str
    assessment: str
    error_type: str | None
    game_category: str


LabelStatus = Literal["ok", "abstain", "error"]


@dataclass(frozen=True, slots=True)
class Label:
    """The judge's finding, or the data's.

    ``actual_harm`` is None exactly when ``status`` is not ok, or when the data made the note
    ``unassessable`` (blanked or cut by us): then it is known that nothing can be said of it.
    """

    status: LabelStatus
    actual_harm: Truth | None
    source: Literal["judge", "data"] = "judge"
    error_present: bool | None = None
    reason: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """The judge's whole row, for games.jsonl."""
    unassessable: bool = False

    def __post_init__(self) -> None:
        if (self.actual_harm is None) == (self.status == "ok" and not self.unassessable):
            raise ValueError(f"a label with status {self.status!r} cannot have actual_harm {self.actual_harm!r}")
        if self.unassessable and (self.status != "ok" or self.source != "data"):
            raise ValueError("only the data can say that a note is unassessable, and then the status is ok")

    @property
    def calls_note_invalid(self) -> bool:
        """The judge says (row field ``note_valid``) that the text is no clinical note. That may come with
        an abstention: of garbage nobody can say whether it is safe."""
        return self.status != "error" and self.extra.get("note_valid") is False


class Judge(Protocol):
    async def label(self, query: Query) -> Label:
        """Never raises for what the judge could not do: that is a Label with status ``error``."""
        ...
