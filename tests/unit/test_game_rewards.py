"""The reward table, row by row from the design, and the identities that must hold on all inputs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.cot import TurnStatus
from openrlhf_medical.game.players import Label, Role, Truth
from openrlhf_medical.game.rewards import (
    ASSESSOR_SIGNS,
    COEFFICIENTS,
    RESULT_COMPONENTS,
    Case,
    Outcome,
    assessor_reward,
    attacker_reward,
    case_of,
    faithful,
    result_rewards,
    reward_table,
    zero_sum_residual,
)
from openrlhf_medical.game.seeds import Category

HARMFUL = Label("ok", Truth.HARMFUL)
SAFE = Label("ok", Truth.SAFE)
UNASSESSABLE = Label("ok", None, source="data", unassessable=True)
ABSTAIN = Label("abstain", None)
ERROR = Label("error", None)

# case: assessor (res_harm, res_refusal), attacker (res_harm, res_refusal), by hand from the design
DESIGN = {
    Case.RIGHT: ((1, 0.5), (-1, -0.5)),
    Case.WRONG: ((-1, 0.5), (1, -0.5)),
    Case.REFUSAL: ((-1, -0.5), (1, 0.5)),
    Case.UNPARSABLE: ((-1, 0), (1, 0)),
    Case.FORFEIT: ((1, 0), (-1, 0)),
    Case.UNASSESSABLE_VERDICT: ((0, -0.5), (0, 0.5)),
    Case.UNASSESSABLE_REFUSAL: ((0, 0.5), (0, -0.5)),
    Case.UNASSESSABLE_UNPARSABLE: ((0, 0), (0, 0)),
}


@pytest.mark.parametrize("case", Case)
def test_each_row_of_the_design(case):
    table = reward_table("zero_sum")
    for role, expected in zip((Role.ASSESSOR, Role.ATTACKER), DESIGN[case], strict=True):
        assert tuple(result_rewards(table, role, case).values()) == expected


def test_shaping_is_by_the_roles_own_reply():
    table = reward_table("zero_sum")
    assert assessor_reward(table, Case.UNPARSABLE, well_formed=False) == {
        "res_harm": -1.0,
        "res_refusal": 0.0,
        "format": -1.0,
    }
    assert attacker_reward(table, [Case.WRONG], faithful=True, well_formed=True) == {
        "res_harm": 1.0,
        "res_refusal": -0.5,
        "revision": 0.5,
        "format": 1.0,
    }
    forfeit = attacker_reward(table, [Case.FORFEIT], faithful=False, well_formed=False)
    assert sum(forfeit.values()) == -2.5  # −1 res_harm, 0 res_refusal, −0.5 revision, −1 format


def test_general_sum_is_self_redteams_table():
    table = reward_table("general_sum")
    assert result_rewards(table, Role.ATTACKER, Case.REFUSAL)["res_refusal"] == 0.5
    assert result_rewards(table, Role.ASSESSOR, Case.REFUSAL)["res_refusal"] == -1.0
    ones = reward_table("general_sum_all_one")
    assert {value for coefficients in ones.values() for value in coefficients.values()} == {1.0}


def test_an_attackers_result_is_the_mean_over_the_assessments():
    cases = [Case.RIGHT, Case.WRONG, Case.WRONG, Case.REFUSAL]
    reward = attacker_reward(reward_table("zero_sum"), cases, faithful=True, well_formed=True)
    assert reward["res_harm"] == (-1 + 1 + 1 + 1) / 4
    assert reward["res_refusal"] == (-0.5 - 0.5 - 0.5 + 0.5) / 4
    assert (reward["revision"], reward["format"]) == (0.5, 1.0)  # its own reply, once


V, R, U, F = TurnStatus.VERDICT, TurnStatus.REFUSAL, TurnStatus.UNPARSABLE, TurnStatus.FORFEIT


@pytest.mark.parametrize(
    ("outcome", "case"),
    [
        (Outcome(HARMFUL, None, V, Truth.HARMFUL), Case.RIGHT),
        (Outcome(HARMFUL, None, V, Truth.SAFE), Case.WRONG),
        (Outcome(SAFE, TurnStatus.OK, V, Truth.SAFE), Case.RIGHT),
        (Outcome(SAFE, TurnStatus.OK, V, Truth.HARMFUL), Case.WRONG),
        (Outcome(SAFE, TurnStatus.OK, R), Case.REFUSAL),
        (Outcome(SAFE, TurnStatus.OK, U), Case.UNPARSABLE),
        (Outcome(None, F), Case.FORFEIT),
        (Outcome(ABSTAIN, F, V, Truth.SAFE), Case.FORFEIT),
        (Outcome(UNASSESSABLE, None, V, Truth.SAFE), Case.UNASSESSABLE_VERDICT),
        (Outcome(UNASSESSABLE, None, R), Case.UNASSESSABLE_REFUSAL),
        (Outcome(UNASSESSABLE, None, U), Case.UNASSESSABLE_UNPARSABLE),
        (Outcome(ABSTAIN, TurnStatus.OK, V, Truth.SAFE), None),
        (Outcome(ERROR, TurnStatus.OK, R), None),
        (Outcome(ERROR, TurnStatus.OK, U), None),
        (Outcome(SAFE, TurnStatus.OK, None), None),
        (Outcome(None, None, V, Truth.SAFE), None),
    ],
)
def test_cases(outcome, case):
    assert case_of(outcome) is case


coefficient = st.floats(min_value=0, max_value=1e6)
labels = st.sampled_from([HARMFUL, SAFE, UNASSESSABLE, ABSTAIN, ERROR, None])
outcomes = st.builds(
    Outcome,
    labels,
    st.sampled_from([None, TurnStatus.OK, F]),
    st.sampled_from([V, R, U]),
    st.sampled_from(Truth),
)


@given(coefficient, coefficient, coefficient, coefficient, st.lists(outcomes, min_size=1, max_size=6), st.booleans())
def test_zero_sum_holds_on_all_outcomes_and_allowed_overrides(harm, refusal, revision, form, played, flag):
    result = {"res_harm": harm, "res_refusal": refusal}
    table = reward_table(
        "zero_sum", {"attacker": {**result, "revision": revision}, "assessor": {**result, "format": form}}
    )
    cases = [case for case in map(case_of, played) if case is not None]
    if not cases:
        return  # a tie: nobody is rewarded
    attacker = attacker_reward(table, cases, faithful=flag, well_formed=flag)
    assessors = [assessor_reward(table, case, well_formed=flag) for case in cases]
    assert zero_sum_residual([attacker], assessors) == 0.0
    booked = [result_rewards(table, Role.ATTACKER, case) for case in cases]
    assert zero_sum_residual(booked, assessors) == 0.0


def test_the_residual_sees_what_is_not_zero_sum():
    table = reward_table("general_sum")
    attacker = attacker_reward(table, [Case.RIGHT], faithful=True, well_formed=True)
    assessor = assessor_reward(table, Case.RIGHT, well_formed=True)
    assert zero_sum_residual([attacker], [assessor]) == 0.5  # −0.5 + 1


@given(st.sampled_from(RESULT_COMPONENTS), coefficient, coefficient)
def test_overrides_that_break_zero_sum_are_refused_under_that_name(component, attacker, assessor):
    overrides = {"attacker": {component: attacker}, "assessor": {component: assessor}}
    if attacker == assessor:
        assert reward_table("zero_sum", overrides)[Role.ATTACKER][component] == attacker
    else:
        with pytest.raises(UserError, match="zero_sum"):
            reward_table("zero_sum", overrides)
        reward_table("general_sum", overrides)


@pytest.mark.parametrize(
    ("scheme", "overrides", "named"),
    [
        ("zerosum", {}, "zero_sum"),
        ("zero_sum", {"defender": {"format": 1}}, "attacker, assessor"),
        ("zero_sum", {"assessor": {"revision": 1}}, "res_harm"),
        ("zero_sum", {"attacker": {"format": -1}}, "at least 0"),
        ("zero_sum", {"attacker": {"format": float("nan")}}, "finite"),
        ("zero_sum", {"attacker": {"format": "1"}}, "number"),
        ("zero_sum", {"attacker": {"format": True}}, "number"),
        ("zero_sum", {"attacker": {"res_harm": 2}}, "zero_sum"),
    ],
)
def test_bad_tables_are_refused_with_what_is_allowed(scheme, overrides, named):
    with pytest.raises(UserError, match=named):
        reward_table(scheme, overrides)


def test_overrides_do_not_change_the_shipped_table():
    reward_table("zero_sum", {"attacker": {"format": 9}})
    assert COEFFICIENTS["zero_sum"][Role.ATTACKER]["format"] == 1.0


@pytest.mark.parametrize("scheme", COEFFICIENTS)
@pytest.mark.parametrize("well_formed", [True, False])
def test_a_forfeit_always_costs_the_attacker(scheme, well_formed):
    reward = attacker_reward(reward_table(scheme), [Case.FORFEIT], faithful=False, well_formed=well_formed)
    assert reward["res_harm"] < 0 and reward["res_refusal"] == 0 and reward["revision"] < 0
    assert sum(reward.values()) < 0


def test_the_table_knows_every_case():
    assert set(ASSESSOR_SIGNS) == set(Case) == set(DESIGN)


@pytest.mark.parametrize(
    ("category", "goal", "label", "is_copy", "expected"),
    [
        (Category.ADVERSARIAL_HARMFUL, "inject", HARMFUL, False, True),
        (Category.ADVERSARIAL_HARMFUL, "inject", HARMFUL, True, False),
        (Category.ADVERSARIAL_HARMFUL, "inject", SAFE, False, False),
        (Category.ADVERSARIAL_BENIGN, "inject", HARMFUL, False, True),
        (Category.ADVERSARIAL_BENIGN, "inject", SAFE, False, False),
        (Category.ADVERSARIAL_BENIGN, "disguise", SAFE, False, True),
        (Category.ADVERSARIAL_BENIGN, "disguise", SAFE, True, False),
        (Category.ADVERSARIAL_BENIGN, "disguise", HARMFUL, False, False),
        (Category.VANILLA_BENIGN, "inject", None, True, True),
        (Category.VANILLA_HARMFUL, "disguise", HARMFUL, False, False),
        (Category.ADVERSARIAL_BENIGN, "inject", ABSTAIN, False, False),
        (Category.ADVERSARIAL_BENIGN, "disguise", None, False, False),
        # the judge may say more than Safe or Harmful
        (Category.ADVERSARIAL_BENIGN, "inject", Label("ok", Truth.SAFE, error_present=True), False, True),
        (Category.ADVERSARIAL_BENIGN, "disguise", Label("ok", Truth.HARMFUL, error_present=False), False, True),
    ],
)
def test_faithful(category, goal, label, is_copy, expected):
    assert faithful(category, goal, label, is_copy=is_copy) is expected
