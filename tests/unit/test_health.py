"""Collapse is found within three steps, and nothing is found on a healthy run."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import data_label, read_assessment, read_attack
from openrlhf_medical.health import HealthLimits, HealthMonitor, Kind

NOTE = "He takes colchicine for gout."
WORSE = "He takes warfarin for gout."
LIMITS = HealthLimits()
RULES = GameRules()
OTHER = {"Safe": "Harmful", "Harmful": "Safe"}


def vanilla(truth, said, seed_idx=0, frozen=False):
    """A passed-on note of that truth, assessed with ``said``."""
    category = Category.VANILLA_HARMFUL if truth == "Harmful" else Category.VANILLA_BENIGN
    one = Attack(0, seed_idx, 0, Seed("s", category, "n", "v", "clean", NOTE, NOTE), [None], presented_note=NOTE)
    one.label = data_label(category, NOTE, NOTE)
    one.assessors = [read_assessment(Reply(f"</think><answer>{said}</answer>", frozen=frozen), cot=True)]
    return score(one, RULES)[0]


def attack(text, seed_idx=0, category=Category.ADVERSARIAL_BENIGN, rules=RULES, assessments=("Safe",), label=None):
    """Games whose attacker's answer is ``text``; None: a reply out of form."""
    seed = Seed("s", category, "n", "v", "clean", NOTE, NOTE)
    one = Attack(0, seed_idx, 0, seed, [None] * len(assessments))
    reply = Reply("no form at all" if text is None else f"t </think> <answer>{text}</answer>")
    one.attacker, one.presented_note = read_attack(seed, reply, rules)
    if one.presented_note is not None:
        one.label = label or Label("ok", Truth.HARMFUL, error_present=True)
        one.assessors = [read_assessment(Reply(f"</think><answer>{said}</answer>"), cot=True) for said in assessments]
    return score(one, rules)


def attacks(*texts, **options):
    return [game for i, text in enumerate(texts) for game in attack(text, 1000 + i, **options)]


def assessed(truths, said, **options):
    """One game for each truth; ``said`` maps a truth to the verdict, or is the verdict."""
    say = said if callable(said) else lambda truth: said
    return [vanilla(truth, say(truth), i, **options) for i, truth in enumerate(truths)]


MIXED = ["Harmful", "Safe"] * 16


def kinds(findings):
    return [finding.kind for finding in findings]


def run(steps, monitor=None, first=0):
    """Kinds told after each step; a step is (games, metrics)."""
    monitor = monitor or HealthMonitor(LIMITS, Role)
    return [kinds(monitor.check(first + i, games, metrics)) for i, (games, metrics) in enumerate(steps)]


# ── One verdict, whatever the note ──


@pytest.mark.parametrize("verdict", ["Harmful", "Safe"])
def test_one_verdict_for_all_is_told_at_the_third_step_and_once(verdict):
    kind = f"always_{verdict.lower()}"
    assert run([(assessed(MIXED, verdict), {})] * 5) == [[], [], [kind], [], []]


def test_evidence_has_figures_and_steps():
    games = assessed(["Harmful"] * 33 + ["Safe"] * 31, "Harmful")
    games[0], games[1] = vanilla("Harmful", "Safe", 0), vanilla("Safe", "Safe", 1)  # 62 of 64 Harmful; 32 are
    monitor = HealthMonitor(LIMITS, Role)
    (finding,) = [found for step in range(4, 7) for found in monitor.check(step, games, {})]
    assert (finding.kind, finding.role) == ("always_harmful", "assessor")
    assert finding.evidence == (
        "97 % of 64 verdicts were Harmful, while 50 % of their notes were, at step 6, the last of 3 such steps (4 to 6)"
    )


def test_a_healthy_mixed_run_is_not_suspected():
    rng = random.Random(0)
    monitor = HealthMonitor(LIMITS, Role)
    for step in range(50):  # right in 70 % of the games, attackers that mostly rewrite
        games = assessed(MIXED, lambda truth: truth if rng.random() < 0.7 else OTHER[truth])
        games += attacks(*rng.choices([WORSE, NOTE, None], [7, 2, 1], k=16))
        metrics = {f"policy/{role}/{name}": value for role in Role
                   for name, value in {"entropy": 0.4, "kl": 0.01, "equal_reward_share": 0.6}.items()}  # fmt: skip
        assert monitor.check(step, games, metrics | {"sync/logprob_mean_diff": 0.02}) == []
        assert not monitor.suspicious


@pytest.mark.parametrize("safe_notes", [0, 1, 3])  # of 32
def test_one_verdict_is_right_where_the_truth_is_one_sided(safe_notes):
    games = assessed(["Harmful"] * (32 - safe_notes) + ["Safe"] * safe_notes, "Harmful")
    assert run([(games, {})] * 5) == [[]] * 5


@pytest.mark.parametrize("harmful, told", [(19, True), (18, False)])  # of 20 verdicts; the limit is 95 %
def test_nearly_always_is_always(harmful, told):
    games = [vanilla(MIXED[i], "Harmful" if i < harmful else "Safe", i) for i in range(20)]
    assert run([(games, {})] * 3)[2] == [Kind.ALWAYS_HARMFUL] * told


def test_too_few_verdicts_say_nothing():
    assert run([(assessed(MIXED[:7], "Harmful"), {})] * 5) == [[]] * 5
    assert run([(assessed(MIXED[:8], "Harmful"), {})] * 3)[2] == [Kind.ALWAYS_HARMFUL]


def test_unparsable_replies_and_refusals_are_no_verdicts():
    games = assessed(MIXED, "Harmful") + [vanilla("Safe", said, 100 + i) for i, said in enumerate(["?!", "I refuse."])]
    (finding,) = HealthMonitor(HealthLimits(window=1), Role).check(0, games, {})
    assert finding.evidence.startswith("100 % of 32 verdicts")


def test_verdicts_on_undecided_notes_do_not_count():
    undecided = [game for i in range(20) for game in attack(WORSE, i, label=Label("abstain", None))]
    assert run([(undecided, {})] * 4) == [[]] * 4


def test_a_faultless_assessor_is_never_suspected_whatever_the_mix():
    for harmful in range(33):
        games = assessed(["Harmful"] * harmful + ["Safe"] * (32 - harmful), lambda truth: truth)
        assert run([(games, {})] * 3) == [[]] * 3


# ── Streaks ──


SICK, WELL, MUTE = assessed(MIXED, "Harmful"), assessed(MIXED, lambda truth: truth), []


def test_a_step_that_is_well_ends_the_streak():
    told = run([(games, {}) for games in (SICK, SICK, WELL, SICK, SICK, SICK)])
    assert told == [[], [], [], [], [], [Kind.ALWAYS_HARMFUL]]


def test_a_finding_is_told_again_once_it_has_cleared():
    told = run([(games, {}) for games in (SICK,) * 4 + (WELL,) + (SICK,) * 4])
    assert [i for i, found in enumerate(told) if found] == [2, 7]


def test_a_step_that_cannot_tell_neither_lengthens_nor_ends_a_streak():
    monitor = HealthMonitor(LIMITS, Role)
    told = [monitor.check(i, games, {}) for i, games in enumerate((SICK, SICK, MUTE, MUTE, SICK))]
    assert kinds(itertools.chain(*told)) == [Kind.ALWAYS_HARMFUL] == kinds(told[-1])
    assert told[-1][0].evidence.endswith("at step 4, the last of 3 such steps (0, 1, 4)")


def test_suspicious_from_the_first_step_that_is_sick_until_one_is_well():
    monitor = HealthMonitor(LIMITS, Role)
    seen = []
    for step, games in enumerate((WELL, SICK, MUTE, WELL)):
        monitor.check(step, games, {})
        seen.append(monitor.suspicious)
    assert seen == [False, True, True, False]


def test_the_window_is_a_limit():
    assert run([(SICK, {})] * 3, HealthMonitor(HealthLimits(window=1), Role))[0] == [Kind.ALWAYS_HARMFUL]
    assert run([(SICK, {})] * 5, HealthMonitor(HealthLimits(window=5), Role)) == [[]] * 4 + [[Kind.ALWAYS_HARMFUL]]


# A step in a few letters: how the assessor, the attacker and the metrics are.
steps = st.lists(
    st.tuples(
        st.sampled_from([SICK, WELL, MUTE]),
        st.sampled_from([attacks(*[text] * 8) for text in (WORSE, NOTE, None)] + [[]]),
        st.sampled_from([{}, {"policy/attacker/entropy": 0.0}, {"policy/attacker/entropy": 0.5},
                         {"policy/attacker/kl": math.nan}, {"sync/logprob_mean_diff": 0.5}]),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(0, 12), st.integers(1, 4))
def test_a_resumed_monitor_tells_the_same(drawn, cut, window):
    limits = HealthLimits(window=window)
    whole, before, after = (HealthMonitor(limits, Role) for _ in range(3))
    expected = [whole.check(i, [*a, *b], m) for i, (a, b, m) in enumerate(drawn)]
    found = [before.check(i, [*a, *b], m) for i, (a, b, m) in enumerate(drawn[:cut])]
    after.load(json.loads(json.dumps(before.state())))
    assert after.suspicious == before.suspicious
    found += [after.check(i, [*a, *b], m) for i, (a, b, m) in enumerate(drawn) if i >= cut]
    assert found == expected and after.state() == whole.state()
    assert all(len(streak) <= window for streak in whole.state()["streaks"].values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("sw?"), max_size=15), st.integers(1, 4))
def test_told_exactly_when_a_streak_reaches_the_window(letters, window):
    monitor = HealthMonitor(HealthLimits(window=window), Role)
    streak, expected, told = 0, [], []
    for step, letter in enumerate(letters):
        streak = {"s": streak + 1, "w": 0, "?": streak}[letter]
        expected.append(letter == "s" and streak == window)
        told.append(bool(monitor.check(step, {"s": SICK, "w": WELL, "?": MUTE}[letter], {})))
        assert monitor.suspicious == (streak > 0)
    assert told == expected


# ── Form and forfeits: abilities that are lost ──


def form(violations, of=16):
    """Assessors of which so many are out of form; truths alternate and verdicts are right."""
    return [vanilla(MIXED[i], "?!" if i < violations else MIXED[i], i) for i in range(of)]


def test_lost_form_is_told_for_a_role_that_had_it():
    assert run([(form(4), {}), *[(form(8), {})] * 4]) == [[], [], [], [Kind.FORMAT_COLLAPSE], []]


def test_a_weak_model_that_starts_out_of_form_has_lost_nothing():
    # 12, 9 and 7 of 16 hover around the limit (8); 5 is below it, yet not the quarter that shows ability
    monitor = HealthMonitor(LIMITS, Role)
    assert run([(form(n), {}) for n in (12, 9, 7, 9, 5, 16, 16, 16)], monitor) == [[]] * 8
    assert not monitor.suspicious
    assert run([(form(n), {}) for n in (4, 16, 16, 16)], monitor)[3] == [Kind.FORMAT_COLLAPSE]


def test_form_is_of_each_role():
    able = attacks(*[WORSE] * 8) + form(0)
    monitor = HealthMonitor(LIMITS, Role)
    monitor.check(0, able, {})
    found = [f for step in range(1, 4) for f in monitor.check(step, attacks(*[None] * 8) + form(0), {})]
    assert {(f.kind, f.role) for f in found} == {("format_collapse", "attacker"), ("no_note", "attacker")}
    assert {f.evidence.split(" at step")[0] for f in found} == {
        "100 % of 8 attacker replies were out of form",
        "100 % of 8 attackers wrote no note",
    }


def test_no_note_counts_forfeits_in_good_form():
    too_short = [(attacks(*["x"] * 8), {})] * 3
    assert run([(attacks(*[WORSE] * 8), {}), *too_short])[3] == [Kind.NO_NOTE]
    assert run(too_short) == [[]] * 3  # never wrote one


def test_an_attackers_turn_counts_once_for_its_assessments():
    twice = {"rules": GameRules(assessments_per_note=2), "assessments": ("Safe", "Harmful")}
    monitor = HealthMonitor(HealthLimits(window=1), [Role.ATTACKER])
    assert monitor.check(0, attacks(*[NOTE] * 7, **twice), {}) == []  # 14 games, 7 turns: too few
    (finding,) = monitor.check(1, attacks(*[NOTE] * 8, **twice), {})
    assert finding.evidence.startswith("100 % of 8 adversarial notes")


# ── Copies ──


def test_attackers_that_copy_are_told():
    games = attacks(*[NOTE] * 13, *[WORSE] * 3)  # 81 %
    assert run([(games, {})] * 3) == [[], [], [Kind.COPIES_SEED]]
    assert run([(attacks(*[NOTE] * 12, *[WORSE] * 4), {})] * 3) == [[]] * 3  # 75 %


def test_forfeits_are_no_notes_to_copy():
    assert run([(attacks(*[NOTE] * 7, *[None] * 9), {})] * 3) == [[]] * 3


def test_white_space_is_no_rewriting():
    assert run([(attacks(*[NOTE.replace(" ", "  ")] * 8), {})] * 3)[2] == [Kind.COPIES_SEED]


def test_a_vanilla_turn_is_to_be_a_copy():
    rules = GameRules(vanilla_turn="generate")
    safe = Label("ok", Truth.SAFE, source="data", error_present=False)
    games = attacks(*[NOTE] * 16, category=Category.VANILLA_BENIGN, rules=rules, label=safe)
    assert run([(games, {})] * 4) == [[]] * 4


# ── Metrics ──


@pytest.mark.parametrize("name, bad, good, kind, role", [
    ("policy/attacker/entropy", 0.019, 0.02, Kind.ENTROPY_VANISHED, "attacker"),
    ("policy/assessor/entropy", 0.0, 1.0, Kind.ENTROPY_VANISHED, "assessor"),
    ("policy/assessor/equal_reward_share", 0.98, 0.97, Kind.EQUAL_REWARDS, "assessor"),
    ("policy/attacker/equal_reward_share", 1.0, 0.0, Kind.EQUAL_REWARDS, "attacker"),
    ("sync/logprob_mean_diff", 0.21, 0.2, Kind.SYNC_MISMATCH, None),
])  # fmt: skip
def test_a_metric_beyond_its_limit_is_told_at_the_third_step(name, bad, good, kind, role):
    monitor = HealthMonitor(LIMITS, Role)
    found = [monitor.check(step, [], {name: bad}) for step in range(4)]
    assert [kinds(f) for f in found] == [[], [], [kind], []]
    assert found[2][0].role == role and "at step 2" in found[2][0].evidence
    assert run([([], {name: good})] * 4) == [[]] * 4


@pytest.mark.parametrize("name, role", [("policy/attacker/grad_norm", "attacker"), ("sync/logprob_max_diff", None)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_told_at_once(name, role, value):
    monitor = HealthMonitor(LIMITS, Role)
    (finding,) = monitor.check(7, [], {name: value, "policy/attacker/kl": 0.0, "sync/logprob_mean_diff": 0.0})
    assert (finding.kind, finding.role) == (Kind.NOT_FINITE, role)
    assert finding.evidence == f"{name} was {value} at step 7"
    assert monitor.check(8, [], {name: value}) == []


def test_a_nan_entropy_is_told_as_nan_alone():
    assert run([([], {"policy/attacker/entropy": math.nan})] * 3) == [[Kind.NOT_FINITE], [], []]


def test_a_judge_that_abstains_on_most_gold_probes_is_told_at_once():
    rate, right = "judge/gold_abstain_rate", "judge/gold_balanced_accuracy"
    steps = [{rate: 0.4, right: 1.0}, {rate: 0.5}, {}, {rate: 0.9, right: 1.0}, {rate: 0.0, right: 1.0}, {rate: 1.0}]
    assert run([([], metrics) for metrics in steps]) == [[], [Kind.JUDGE_DRIFT], [], [], [], [Kind.JUDGE_DRIFT]]
    [finding] = HealthMonitor(HealthLimits(), Role).check(4, [], {rate: 0.75, right: 1.0})
    assert finding.evidence == "the judge abstained on 75 % of the gold probes at step 4"


def test_a_judge_that_errs_on_gold_probes_is_told_at_once():
    name = "judge/gold_balanced_accuracy"
    assert run([([], {name: 0.8}), ([], {name: 0.79}), ([], {}), ([], {name: 0.5}), ([], {name: 1.0})]) == [
        [], [Kind.JUDGE_DRIFT], [], [], []
    ]  # fmt: skip
    monitor = HealthMonitor(HealthLimits(gold_accuracy_share=0.95), Role)
    (finding,) = monitor.check(4, [], {name: 0.9})
    assert (
        finding.evidence == "the judge's balanced accuracy on gold probes was 0.90 (judge.probe_alarm 0.95) at step 4"
    )
    assert finding.role is None and monitor.suspicious


def test_nothing_is_said_of_what_is_absent():
    monitor = HealthMonitor(LIMITS, Role)
    assert run([([], {})] * 5, monitor) == [[]] * 5
    assert not monitor.suspicious and monitor.state() == {"streaks": {}, "told": [], "able": []}


# ── Who is looked at ──


def test_a_role_that_is_not_trained_is_not_looked_at():
    copies = attacks(*[NOTE] * 16)
    metrics = {"policy/assessor/entropy": 0.0, "policy/assessor/kl": math.nan}
    steps = [(SICK + copies, metrics)] * 3
    assert run(steps, HealthMonitor(LIMITS, [Role.ATTACKER])) == [[], [], [Kind.COPIES_SEED]]
    assert Kind.COPIES_SEED not in run(steps, HealthMonitor(LIMITS, [Role.ASSESSOR]))[2]


def test_a_frozen_opponents_turns_do_not_count():
    past = assessed(MIXED, "Harmful", frozen=True)
    assert run([(past, {})] * 4) == [[]] * 4
    own = [vanilla(truth, truth, 500 + i) for i, truth in enumerate(MIXED)]
    assert run([(past + own, {})] * 4) == [[]] * 4
    own = [vanilla(truth, "Harmful", 500 + i) for i, truth in enumerate(MIXED)]
    assert run([(past + own, {})] * 3)[2] == [Kind.ALWAYS_HARMFUL]


# ── Limits ──


@pytest.mark.parametrize("name, value", [
    ("window", 0), ("window", 2.0), ("window", True), ("min_turns", -1), ("copy_share", 0), ("copy_share", 1.1),
    ("violation_share", math.nan), ("entropy_nats", -0.1), ("sync_nats", math.inf), ("sync_nats", "much"),
])  # fmt: skip
def test_a_bad_limit_is_named(name, value):
    with pytest.raises(UserError, match=rf"health\.{name} is {value!r}; allowed: "):
        HealthLimits(**{name: value})


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="more than 1"):
        HealthLimits(one_sided_share=0.8)
    with pytest.raises(UserError, match=r"health\.able_share"):
        HealthLimits(able_share=0.5)
