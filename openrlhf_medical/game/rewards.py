"""What a game earns: the reward table as data, and pure functions over it.

The assessor's result components are a sign (from the table) times its coefficient; the attacker's are
the opposite sign times its own coefficient, so that equal coefficients make the game zero-sum. Revision,
format and localisation shape one role's own reply and are outside the identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.players import Label, Role, Truth
from openrlhf_medical.game.seeds import Category

RESULT_COMPONENTS = ("res_harm", "res_refusal")
"""The components of the zero-sum identity; the others are shaping."""

OPTIONAL_COMPONENTS = ("localisation",)
"""Components that nobody earns unless they are switched on: at 0 they are in no table and no reward.
``localisation`` has no sign: it is its coefficient times a score in [0, 1] (``game.localisation``)."""


class Case(StrEnum):
    """A row of the reward table. The last three are for notes that the data made unassessable."""

    RIGHT = "right"
    WRONG = "wrong"
    REFUSAL = "refusal"
    UNPARSABLE = "unparsable"
    FORFEIT = "forfeit"
    UNASSESSABLE_VERDICT = "unassessable_verdict"
    UNASSESSABLE_REFUSAL = "unassessable_refusal"
    UNASSESSABLE_UNPARSABLE = "unassessable_unparsable"


# case: the assessor's signs of (res_harm, res_refusal). On an unassessable note refusing is right:
# there the sign of res_refusal turns, and no verdict is true or false, so res_harm is 0.
ASSESSOR_SIGNS: dict[Case, tuple[int, int]] = {
    Case.RIGHT: (+1, +1),
    Case.WRONG: (-1, +1),
    Case.REFUSAL: (-1, -1),
    Case.UNPARSABLE: (-1, 0),
    Case.FORFEIT: (+1, 0),
    Case.UNASSESSABLE_VERDICT: (0, -1),
    Case.UNASSESSABLE_REFUSAL: (0, +1),
    Case.UNASSESSABLE_UNPARSABLE: (0, 0),
}

# scheme → role → component: magnitudes. general_sum and general_sum_all_one are Self-RedTeam's
# tables (arXiv 2506.07468); its zero_sum raises NotImplementedError, ours is the default.
COEFFICIENTS: dict[str, dict[Role, dict[str, float]]] = {
    "zero_sum": {
        Role.ATTACKER: {"res_harm": 1.0, "res_refusal": 0.5, "revision": 0.5, "format": 1.0},
        Role.ASSESSOR: {"res_harm": 1.0, "res_refusal": 0.5, "format": 1.0, "localisation": 0.0},
    },
    "general_sum": {
        Role.ATTACKER: {"res_harm": 1.0, "res_refusal": 0.5, "revision": 0.5, "format": 1.0},
        Role.ASSESSOR: {"res_harm": 1.0, "res_refusal": 1.0, "format": 1.0, "localisation": 0.0},
    },
    "general_sum_all_one": {
        Role.ATTACKER: {"res_harm": 1.0, "res_refusal": 1.0, "revision": 1.0, "format": 1.0},
        Role.ASSESSOR: {"res_harm": 1.0, "res_refusal": 1.0, "format": 1.0, "localisation": 0.0},
    },
}

RewardTable = Mapping[Role, Mapping[str, float]]


def reward_table(scheme: str, overrides: Mapping[str, Mapping[str, float]] | None = None) -> RewardTable:
    """The coefficients of a scheme with ``overrides`` ({role: {component: coefficient}}) applied.

    Raises:
        UserError: an unknown scheme, role or component; a coefficient that is not a finite number of at
            least 0 (a negative one would pay for garbage); under ``zero_sum``, coefficients of the two
            roles that differ in a result component.
    """
    if scheme not in COEFFICIENTS:
        raise UserError(f"game.rewards.scheme is {scheme!r}; allowed: {', '.join(COEFFICIENTS)}")
    table = {role: dict(coefficients) for role, coefficients in COEFFICIENTS[scheme].items()}
    for role_name, changes in (overrides or {}).items():
        if role_name not in tuple(Role):
            raise UserError(f"game.rewards.coefficients names the role {role_name!r}; allowed: {', '.join(Role)}")
        coefficients = table[Role(role_name)]
        for component, value in changes.items():
            key = f"game.rewards.coefficients.{role_name}.{component}"
            if component not in coefficients:
                raise UserError(f"{key} is not a reward component; allowed: {', '.join(coefficients)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise UserError(f"{key} is {value!r}; allowed: a finite number of at least 0")
            coefficients[component] = float(value)
    if scheme == "zero_sum":
        _refuse_unequal(table)
    return {role: _switched_on(coefficients) for role, coefficients in table.items()}


def _switched_on(coefficients: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in coefficients.items() if value or name not in OPTIONAL_COMPONENTS}


def _refuse_unequal(table: RewardTable) -> None:
    for component in RESULT_COMPONENTS:
        attacker, assessor = (table[role][component] for role in Role)
        if attacker != assessor:
            raise UserError(
                f"zero_sum needs the same {component} for both roles, but attacker has {attacker:g} and assessor "
                f"{assessor:g}; override both alike, or set game.rewards.scheme to general_sum"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that decides a game's result.

    ``label`` None means that it was not asked for (a forfeit); ``attacker`` None that it did not
    generate; ``assessor`` None that it did not play. ``verdict`` is set exactly with ``verdict`` status.
    """

    label: Label | None
    attacker: TurnStatus | None = None
    assessor: TurnStatus | None = None
    verdict: Truth | None = None


def case_of(outcome: Outcome) -> Case | None:
    """The row of the table, or None where there is no result: a tie, or no assessment."""
    if outcome.attacker is TurnStatus.FORFEIT:
        return Case.FORFEIT
    label = outcome.label
    if outcome.assessor is None or label is None or label.status != "ok":
        return None
    if outcome.assessor is TurnStatus.VERDICT:
        if label.unassessable:
            return Case.UNASSESSABLE_VERDICT
        return Case.RIGHT if outcome.verdict == label.actual_harm else Case.WRONG
    if outcome.assessor is TurnStatus.REFUSAL:
        return Case.UNASSESSABLE_REFUSAL if label.unassessable else Case.REFUSAL
    return Case.UNASSESSABLE_UNPARSABLE if label.unassessable else Case.UNPARSABLE


def result_rewards(table: RewardTable, role: Role, case: Case) -> dict[str, float]:
    """``res_harm`` and ``res_refusal`` of one role in one game."""
    direction = 1 if role is Role.ASSESSOR else -1
    return {
        component: direction * sign * table[role][component] + 0.0  # + 0.0 turns -0.0 into 0.0
        for component, sign in zip(RESULT_COMPONENTS, ASSESSOR_SIGNS[case], strict=True)
    }


def assessor_reward(
    table: RewardTable, case: Case, *, well_formed: bool, localised: float | None = None
) -> dict[str, float]:
    """All components of an assessor that played. ``localised`` is its score in [0, 1] for subtasks B and C,
    or None where the game has none; then, or where the table has none, the component is absent."""
    coefficients = table[Role.ASSESSOR]
    shaping = {"format": _signed(coefficients["format"], well_formed)}
    if localised is not None and "localisation" in coefficients:
        shaping["localisation"] = coefficients["localisation"] * localised
    return result_rewards(table, Role.ASSESSOR, case) | shaping


def attacker_reward(
    table: RewardTable, cases: Sequence[Case], *, faithful: bool, well_formed: bool
) -> dict[str, float]:
    """All components of an attacker that generated: results are the mean over its note's assessments.

    Raises:
        ValueError: no case, that is, nothing to reward.
    """
    if not cases:
        raise ValueError("an attacker's reward needs at least one finished assessment or a forfeit")
    results = [result_rewards(table, Role.ATTACKER, case) for case in cases]
    coefficients = table[Role.ATTACKER]
    return {component: fmean(result[component] for result in results) for component in RESULT_COMPONENTS} | {
        "revision": _signed(coefficients["revision"], faithful),
        "format": _signed(coefficients["format"], well_formed),
    }


def _signed(value: float, positive: bool) -> float:
    return value if positive or value == 0 else -value


def zero_sum_residual(attackers: Sequence[Mapping[str, float]], assessors: Sequence[Mapping[str, float]]) -> float:
    """How far one presented note is from zero-sum: the largest |mean attacker + mean assessor| over the
    result components, from the rewards that trajectories carried or that were booked. 0 when it holds.

    ``attackers`` has the one reward of a shared attacker turn, or one booked for each assessment.
    """
    return max(
        abs(fmean(reward[component] for reward in attackers) + fmean(reward[component] for reward in assessors))
        for component in RESULT_COMPONENTS
    )


def faithful(category: Category, benign_goal: str, label: Label | None, *, is_copy: bool) -> bool:
    """Whether a note that the attacker wrote does what its task asked for.

    ``label`` is None for a forfeit, which is never faithful unless it is a copy that was to be copied;
    callers pass forfeits as ``is_copy=False``. An error is present where the label says so, or, if it
    does not say, where it calls the note Harmful.
    """
    if category.is_vanilla:
        return is_copy
    if label is None or label.status != "ok":
        return False
    present = label.error_present if label.error_present is not None else label.actual_harm is Truth.HARMFUL
    if category is Category.ADVERSARIAL_HARMFUL:
        return present and not is_copy
    return present if benign_goal == "inject" else not present and not is_copy
