"""What a game leaves behind: its turns, what they earned, and its line in ``games.jsonl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rewards import Case
from openrlhf_medical.game.seeds import Seed


class GameStatus(StrEnum):
    """How a game ended: with a result (ok, forfeit), or without one (abstain, error: trains nobody)."""

    OK = "ok"
    ABSTAIN = "abstain"
    ERROR = "error"
    FORFEIT = "forfeit"


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply, read and rewarded.

    ``thinking`` is hidden from everyone; of a reply that could not be parsed it is the raw text, and
    ``answer`` is None. ``reward`` maps component to value and is empty when the rules reward nothing
    (a tie, a failed game, an assessment that a forfeit made void). ``trained``: rewarded, the role is
    being trained, and the player that wrote it is not frozen. Tokens are in ``reply``: ``prompt_ids``
    (T_p,), ``token_ids`` (T_a,).
    """

    role: Role
    reply: Reply
    thinking: str
    answer: str | None
    status: TurnStatus
    well_formed: bool
    reason: str = ""
    verdict: Truth | None = None
    sentence: str | None = None
    correction: str | None = None
    reward: dict[str, float] = field(default_factory=dict)
    trained: bool = False

    @property
    def total(self) -> float:
        """The scalar reward of this turn's trajectory: the sum of its components."""
        return sum(self.reward.values())

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"thinking": self.thinking, "answer": self.answer}
        if self.role is Role.ASSESSOR:
            row["verdict"] = self.verdict.value if self.verdict else None
        return row | {
            "status": self.status.value,
            "reward": self.reward,
            "trained": self.trained,
            "policy_version": self.reply.policy_version,
            "player": self.reply.player,
            "frozen": self.reply.frozen,
        }


@dataclass(frozen=True, slots=True)
class Game:
    """One assessment of one presented note. ``Game``s of one attack share the ``attacker`` turn object,
    whose result components are the mean over their assessments.

    ``game_idx`` = (seed_idx · A + attack_idx) · B + assessment_idx, with ``seed_idx`` the seed's position
    in the call of ``play``. ``booked`` holds the result components of a role that no trajectory carries:
    the attacker's where it did not generate, the assessor's where a forfeit kept it from playing.
    ``case`` is the row of the reward table, None without a result. ``faithful`` is None where the
    attacker did not generate or nothing could be decided. ``reason`` says why the game is not a plain one;
    ``judge_failures`` what the judge said when it failed before (``manager.judge_again``).
    """

    step: int
    game_idx: int
    seed_idx: int
    attack_idx: int
    assessment_idx: int
    seed: Seed
    status: GameStatus
    presented_note: str | None
    attacker: Turn | None
    assessor: Turn | None
    label: Label | None
    case: Case | None = None
    faithful: bool | None = None
    booked: dict[Role, dict[str, float]] = field(default_factory=dict)
    reason: str = ""
    judge_failures: tuple[str, ...] = ()

    @property
    def attack(self) -> tuple[int, int]:
        """Names the presented note within its ``play`` call; equal for its B games."""
        return (self.seed_idx, self.attack_idx)

    def turn(self, role: Role) -> Turn | None:
        return self.attacker if role is Role.ATTACKER else self.assessor

    def opponent(self, role: Role) -> tuple[str, int] | None:
        """(player, policy version) that a role met in this game, or None where the other side did not play."""
        met = self.turn(Role.ASSESSOR if role is Role.ATTACKER else Role.ATTACKER)
        return None if met is None else (met.reply.player, met.reply.policy_version)

    def group(self, role: Role) -> str:
        """The group, within its step, that an estimator compares this role's reward with: attacks on the
        same seed, or assessments of the same presented note."""
        seed = f"s{self.seed_idx}"
        return seed if role is Role.ATTACKER else f"{seed}a{self.attack_idx}"

    def side(self, role: Role) -> dict[str, float]:
        """What a role earned: its trajectory's components, else those booked for it, else nothing."""
        turn = self.turn(role)
        return turn.reward if turn is not None and turn.reward else self.booked.get(role, {})

    def to_json(self) -> dict[str, Any]:
        """One line of ``games.jsonl``."""
        return {
            "step": self.step,
            "game_idx": self.game_idx,
            "category": self.seed.category.value,
            "note_id": self.seed.note_id,
            "seed_note": self.seed.seed_note,
            "reference_note": self.seed.reference_note,
            "presented_note": self.presented_note,
            "status": self.status.value,
            "attacker": self.attacker.to_json() if self.attacker else None,
            "assessor": self.assessor.to_json() if self.assessor else None,
            "label": _label_json(self.label, self.game_idx) if self.label else None,
            "seed_id": self.seed.seed_id,
            "vignette_id": self.seed.vignette_id,
            "error_type": self.seed.error_type,
            "attack_idx": self.attack_idx,
            "assessment_idx": self.assessment_idx,
            "groups": {role.value: self.group(role) for role in Role},
            "case": self.case.value if self.case else None,
            "faithful": self.faithful,
            "booked": {role.value: reward for role, reward in self.booked.items()},
            "reason": self.reason,
            "judge_failures": list(self.judge_failures),
        }


def turns_of(games: Iterable[Game], role: Role) -> list[tuple[Game, Turn]]:
    """Every turn of a role, once: the attacker's turn is shared by its B games and comes with the first."""
    found: dict[tuple[int, ...], tuple[Game, Turn]] = {}
    for game in games:
        turn = game.turn(role)
        if turn is not None:
            key = (game.step, *game.attack) if role is Role.ATTACKER else (game.step, game.game_idx)
            found.setdefault(key, (game, turn))
    return list(found.values())


def label_for(label: Label, assessor: Turn | None) -> Label:
    """The label as one game shows it. The judge is asked without an assessment, once for the B games of a note:
    the fields of its row that speak of the assessment are filled in here, as the judge would."""
    if not label.extra:
        return label
    verdict, truth = assessor.verdict if assessor else None, label.actual_harm
    comparable = verdict is not None and truth is not None
    return replace(
        label,
        extra=label.extra
        | {
            "error_detected": verdict is truth is Truth.HARMFUL if comparable else None,
            "assessor_correct": verdict is truth if comparable else None,
            "is_parsing_error": assessor is not None and assessor.status is TurnStatus.UNPARSABLE,
        },
    )


def _label_json(label: Label, game_idx: int) -> dict[str, Any]:
    row = dict(label.extra)
    if "game_idx" in row:
        row["game_idx"] = game_idx
    row |= {
        "source": label.source,
        "status": label.status,
        "actual_harm": label.actual_harm.value if label.actual_harm else None,
        "error_present": label.error_present,
    }
    if label.unassessable:
        row["unassessable"] = True
    if label.reason:
        row["reason"] = label.reason
    return row
