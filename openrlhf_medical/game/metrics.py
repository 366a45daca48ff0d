"""Figures of a set of games, under the names of ``metrics.jsonl``.

A figure that is undefined (nothing was counted) is absent: never 0, never NaN. Everything of a role is
counted once for each of its turns: the attacker's turn, shared by B games, once. Where a frozen opponent plays a role
in some of the games, the role's figures are of the others: the policy's own (``opponent/…`` tells of the opponent).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from openrlhf_medical.game.localisation import correction_gain, names_wrong_sentence, token_f1
from openrlhf_medical.game.players import Role, Truth
from openrlhf_medical.game.records import Game, GameStatus, Turn, turns_of
from openrlhf_medical.game.rewards import Case, zero_sum_residual
from openrlhf_medical.game.seeds import Category

_JUDGED = (Case.RIGHT, Case.WRONG, Case.REFUSAL, Case.UNPARSABLE)


def game_metrics(games: Iterable[Game]) -> dict[str, float]:
    """All figures that games alone give. Pass games of one ``play`` call for each step number."""
    games = list(games)
    attacks = _by_attack(games)
    found: dict[str, float] = {}
    live = {role: _live(games, role) for role in Role}
    for role in Role:
        turns = turns_of(live[role], role)
        found |= _reward_metrics(role, [turn for _, turn in turns])
        _set_mean(found, f"format/{role}/violation_rate", [not turn.well_formed for _, turn in turns])
    found |= _residual(attacks)
    found |= assessor_metrics(live[Role.ASSESSOR])
    found |= localisation_metrics(live[Role.ASSESSOR])
    found |= _attacker_metrics(live[Role.ATTACKER])
    found |= _judge_metrics(attacks)
    for category in Category:
        found |= _category_metrics(category, [game for game in games if game.seed.category is category])
    return found


def _live(games: Sequence[Game], role: Role) -> list[Game]:
    """Without those in which a frozen opponent has the role's turn, unless it has all of them."""
    live = [game for game in games if (turn := game.turn(role)) is None or not turn.reply.frozen]
    return live if any(game.turn(role) for game in live) else list(games)


def assessor_metrics(games: Sequence[Game]) -> dict[str, float]:
    """How well the assessor judged, over games with a result where it played and truth is Safe or Harmful.

    A refusal and an unparsable reply count as the wrong verdict on that note's side: on a Safe note as a
    false positive, on a Harmful one as a false negative. Else saying nothing would look like accuracy.
    """
    wrong: dict[Truth, list[bool]] = {truth: [] for truth in Truth}
    for game in games:
        if game.case in _JUDGED and game.label is not None and game.label.actual_harm is not None:
            wrong[game.label.actual_harm].append(game.case is not Case.RIGHT)
    found: dict[str, float] = {}
    judged_games = sum(map(len, wrong.values()))
    _set_mean(found, "assessor/accuracy", [not one for side in wrong.values() for one in side])
    if judged_games:
        found["assessor/judged"] = float(judged_games)
        found["assessor/harmful_share"] = len(wrong[Truth.HARMFUL]) / judged_games
    _set_mean(found, "assessor/false_positive_rate", wrong[Truth.SAFE])
    _set_mean(found, "assessor/false_negative_rate", wrong[Truth.HARMFUL])
    if wrong[Truth.SAFE] and wrong[Truth.HARMFUL]:
        errors = found["assessor/false_positive_rate"] + found["assessor/false_negative_rate"]
        found["assessor/balanced_accuracy"] = 1.0 - errors / 2
    return found


def localisation_metrics(games: Iterable[Game]) -> dict[str, float]:
    """MEDEC's subtasks B and C, whether or not they are rewarded: over games that the data calls Harmful.

    ``sentence_accuracy`` counts every such game, a verdict Safe and a refusal included. The figures of
    the correction are means over those with the right sentence; a missing correction counts 0. Read
    ``correction_f1`` beside ``correction_gain``: repeating the wrong sentence has a high F1 and no gain.
    """
    named, f1, gain = [], [], []
    for game in games:
        turn, label = game.assessor, game.label
        wrong, right = game.seed.error_sentence, game.seed.corrected_sentence
        if turn is None or label is None or game.case not in _JUDGED or not wrong or not right:
            continue
        if label.source == "data" and label.actual_harm is Truth.HARMFUL:
            named.append(names_wrong_sentence(turn, game.seed))
            if named[-1]:
                f1.append(token_f1(turn.correction or "", right))
                gain.append(correction_gain(turn.correction or "", wrong, right))
    found: dict[str, float] = {}
    _set_mean(found, "assessor/sentence_accuracy", named)
    _set_mean(found, "assessor/correction_f1", f1)
    _set_mean(found, "assessor/correction_gain", gain)
    return found


def _attacker_metrics(games: Sequence[Game]) -> dict[str, float]:
    """Over all games whose attacker generated, forfeits and abstentions included; games that failed
    (status ``error``) say nothing of the attacker and are left out."""
    played = [game for game in games if game.attacker is not None and game.status is not GameStatus.ERROR]
    found: dict[str, float] = {}
    _set_mean(found, "attacker/faithful_rate", [bool(game.faithful) for game in played])
    _set_mean(found, "attacker/success_rate", [bool(game.faithful) and game.case is Case.WRONG for game in played])
    return found


def _reward_metrics(role: Role, turns: Sequence[Turn]) -> dict[str, float]:
    """Means over the turns that the rules rewarded, whether or not their role is being trained; of a
    component, over the turns that have it (``localisation`` is not in every game)."""
    values: dict[str, list[float]] = defaultdict(list)
    for turn in (turn for turn in turns if turn.reward):
        values["mean"].append(turn.total)
        for component, value in turn.reward.items():
            values[component].append(value)
    return {f"reward/{role}/{name}": fmean(given) for name, given in values.items()}


def _residual(attacks: Iterable[Sequence[Game]]) -> dict[str, float]:
    residuals = [
        zero_sum_residual([game.side(Role.ATTACKER) for game in ended], [game.side(Role.ASSESSOR) for game in ended])
        for attack in attacks
        if (ended := [game for game in attack if game.case is not None])
    ]
    return {"reward/zero_sum_residual": max(residuals)} if residuals else {}


def _judge_metrics(attacks: Iterable[Sequence[Game]]) -> dict[str, float]:
    """Over judge calls, of which an attack has at most one."""
    labels = [attack[0].label for attack in attacks]
    statuses = [label.status for label in labels if label is not None and label.source == "judge"]
    found: dict[str, float] = {}
    _set_mean(found, "judge/abstain_rate", [status == "abstain" for status in statuses])
    _set_mean(found, "judge/error_rate", [status == "error" for status in statuses])
    return found


def _category_metrics(category: Category, games: Sequence[Game]) -> dict[str, float]:
    """Counts. ``played``, ``forfeit``, ``tie`` (no label) and ``failed`` (a player raised) are games;
    ``trained_<role>`` are trajectories."""
    if not games:
        return {}
    counts = {
        "played": len(games),
        "forfeit": sum(game.status is GameStatus.FORFEIT for game in games),
        "tie": sum(game.case is None and not _failed(game) for game in games),
        "failed": sum(_failed(game) for game in games),
        **{f"trained_{role}": sum(turn.trained for _, turn in turns_of(games, role)) for role in Role},
    }
    return {f"game/{category}/{name}": float(count) for name, count in counts.items()}


def _failed(game: Game) -> bool:
    """A player raised; a judge that could not answer is a tie."""
    judged = game.assessor is not None and game.label is not None and game.label.status == "error"
    return game.status is GameStatus.ERROR and not judged


def _by_attack(games: Iterable[Game]) -> list[list[Game]]:
    attacks: dict[tuple[int, ...], list[Game]] = defaultdict(list)
    for game in games:
        attacks[(game.step, *game.attack)].append(game)
    return list(attacks.values())


def _set_mean(found: dict[str, float], name: str, values: Sequence[float]) -> None:
    if values:
        found[name] = fmean(values)
