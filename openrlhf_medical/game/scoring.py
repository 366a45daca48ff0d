"""From what happened on one presented note to its games, with rewards. Pure: no player, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from openrlhf_medical.game import edits
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.localisation import localisation_score
from openrlhf_medical.game.players import Label, Role
from openrlhf_medical.game.records import Game, GameStatus, Turn, label_for
from openrlhf_medical.game.rewards import (
    Case,
    Outcome,
    assessor_reward,
    attacker_reward,
    case_of,
    faithful,
    result_rewards,
)
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Seed


@dataclass(slots=True)
class Attack:
    """One presented note and all that happened on it, as the manager fills it in.

    ``assessors`` (B,) has None where the assessor did not play; ``errors`` maps an assessment index to
    what its player raised, and ``error`` is what ended the whole attack. ``judge_failures``: the reasons of
    labels that failed and were asked for again.
    """

    step: int
    seed_idx: int
    attack_idx: int
    seed: Seed
    assessors: list[Turn | None]
    presented_note: str | None = None
    attacker: Turn | None = None
    label: Label | None = None
    errors: dict[int, str] = field(default_factory=dict)
    error: str = ""
    judge_failures: list[str] = field(default_factory=list)

    def game_idx(self, rules: GameRules, assessment_idx: int = 0) -> int:
        """Unique within a call of ``play``, and the same in every run: from positions alone."""
        attack = self.seed_idx * rules.attacks_per_seed + self.attack_idx
        return attack * rules.assessments_per_note + assessment_idx


def score(attack: Attack, rules: GameRules) -> list[Game]:
    """The B games of an attack, in the order of their assessments."""
    attacker = _judged_attacker(attack)
    cases = [_case(attack, attacker, b) for b in range(len(attack.assessors))]
    was_faithful = _faithful(attack, attacker, rules)
    finished = [case for case in cases if case is not None]
    if attacker is not None and finished:
        reward = attacker_reward(rules.table, finished, faithful=bool(was_faithful), well_formed=attacker.well_formed)
        attacker = _rewarded(attacker, reward, rules)
    return [_game(attack, attacker, case, was_faithful, b, rules) for b, case in enumerate(cases)]


def unjudged_attacks(games: Iterable[Game]) -> list[Attack]:
    """The attacks that the judge failed, as they were before it was asked: ``score`` rewards no turn without a
    label, so the turns are as the players left them. Takes the games of one ``play`` call."""
    found: dict[tuple[int, int], list[Game]] = defaultdict(list)
    for game in sorted(games, key=lambda game: game.game_idx):
        if game.label is not None and game.label.status == "error":
            found[game.attack].append(game)
    return [_unjudged(own, own[0].label) for own in found.values() if own[0].label]


def _unjudged(games: list[Game], failed: Label) -> Attack:
    first = games[0]
    return Attack(
        step=first.step,
        seed_idx=first.seed_idx,
        attack_idx=first.attack_idx,
        seed=first.seed,
        assessors=[game.assessor for game in games],
        presented_note=first.presented_note,
        attacker=first.attacker,
        errors={b: game.reason for b, game in enumerate(games) if game.assessor is None},
        judge_failures=[*first.judge_failures, failed.reason],
    )


def _rewarded(turn: Turn, reward: dict[str, float], rules: GameRules) -> Turn:
    return replace(turn, reward=reward, trained=turn.role in rules.trained_roles and not turn.reply.frozen)


def _judged_attacker(attack: Attack) -> Turn | None:
    """A note that the judge calls no note is a forfeit after the fact: garbage of the right length must
    not earn what a fooled assessor would give."""
    turn = attack.attacker
    if turn is None or attack.label is None or not attack.label.calls_note_invalid:
        return turn
    return replace(turn, status=TurnStatus.FORFEIT, reason="the judge: not a valid note")


def _case(attack: Attack, attacker: Turn | None, assessment_idx: int) -> Case | None:
    if attack.error or assessment_idx in attack.errors:
        return None
    assessor = attack.assessors[assessment_idx]
    return case_of(
        Outcome(
            attack.label,
            attacker.status if attacker else None,
            assessor.status if assessor else None,
            assessor.verdict if assessor else None,
        )
    )


def _faithful(attack: Attack, attacker: Turn | None, rules: GameRules) -> bool | None:
    if attacker is None or attack.error:
        return None
    if attacker.status is TurnStatus.FORFEIT or attack.presented_note is None:
        return False
    if attack.label is None or attack.label.status != "ok":
        return None
    copied = edits.is_copy(attack.presented_note, attack.seed.seed_note)
    return faithful(attack.seed.category, rules.benign_goal, attack.label, is_copy=copied)


def _game(
    attack: Attack, attacker: Turn | None, case: Case | None, was_faithful: bool | None, idx: int, rules: GameRules
) -> Game:
    assessor = attack.assessors[idx]
    booked: dict[Role, dict[str, float]] = {}
    if case is not None:
        if attacker is None:
            booked[Role.ATTACKER] = result_rewards(rules.table, Role.ATTACKER, case)
        if assessor is None or case is Case.FORFEIT:
            booked[Role.ASSESSOR] = result_rewards(rules.table, Role.ASSESSOR, case)
        else:
            localised = localisation_score(assessor, attack.label, attack.seed) if attack.label else None
            reward = assessor_reward(rules.table, case, well_formed=assessor.well_formed, localised=localised)
            assessor = _rewarded(assessor, reward, rules)
    status, reason = _status(attack, attacker, assessor, case, idx)
    forfeit = case is Case.FORFEIT
    return Game(
        step=attack.step,
        game_idx=attack.game_idx(rules, idx),
        seed_idx=attack.seed_idx,
        attack_idx=attack.attack_idx,
        assessment_idx=idx,
        seed=attack.seed,
        status=status,
        presented_note=None if forfeit else attack.presented_note,
        attacker=attacker,
        assessor=assessor,
        label=label_for(attack.label, attack.assessors[idx]) if attack.label else None,
        case=case,
        faithful=was_faithful,
        booked=booked,
        reason=reason,
        judge_failures=tuple(attack.judge_failures),
    )


def _status(
    attack: Attack, attacker: Turn | None, assessor: Turn | None, case: Case | None, idx: int
) -> tuple[GameStatus, str]:
    if error := attack.error or attack.errors.get(idx, ""):
        return GameStatus.ERROR, error
    if case is Case.FORFEIT and attacker is not None:
        return GameStatus.FORFEIT, attacker.reason
    if case is None:
        abstained = attack.label is not None and attack.label.status == "abstain"
        reason = attack.label.reason if attack.label else "no label"
        return (GameStatus.ABSTAIN if abstained else GameStatus.ERROR), reason
    return GameStatus.OK, assessor.reason if assessor else ""
