"""Gold probes in training: what is asked, what the figures say, and that nothing ever waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Query, Truth
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.health import HealthLimits
from openrlhf_medical.judge.audit.disguise import disguise_warning
from openrlhf_medical.judge.audit.gold_watch import CATEGORY, GoldWatch, figures_of
from openrlhf_medical.judge.transport import Health

H, S = Truth.HARMFUL, Truth.SAFE
OK = {truth: Label("ok", truth) for truth in Truth}
ABSTAIN, ERROR = Label("abstain", None), Label("error", None)


def seed_of(number: int, category: Category) -> Seed:
    reference = f"A {20 + number}-year-old man has gout. He takes colchicine for it."
    note = reference.replace("colchicine", "warfarin") if category.is_harmful else reference
    origin = "error" if category.is_harmful else "clean"
    return Seed(f"s{number}", category, f"n{number}", f"v{number}", origin, note, reference)


SEEDS = [seed_of(i, list(Category)[i % 4]) for i in range(24)]


@dataclass
class ScriptedJudge:
    answer: Callable[[Query], Label]
    asked: list[Query] = field(default_factory=list)

    async def label(self, query: Query) -> Label:
        self.asked.append(query)
        return self.answer(query)


def oracle(query: Query) -> Label:
    return OK[S if "colchicine" in query.medical_note.casefold() else H]


def watch(answer: Callable[[Query], Label] = oracle, **options: int) -> tuple[GoldWatch, ScriptedJudge]:
    judge = ScriptedJudge(answer)
    return GoldWatch(judge, SEEDS, **({"every": 2, "count": 8, "seed": 0} | options)), judge


def finished(gold: GoldWatch) -> dict[str, float]:
    """The figures, once they are there."""
    end = time.monotonic() + 5
    while not (figures := gold.finished()) and time.monotonic() < end:
        time.sleep(0.005)
    return figures


def test_half_are_error_notes_against_their_references_the_rest_say_the_same():
    gold, _ = watch(count=12)
    pairs = gold.pairs(0)
    harmful = [pair for pair in pairs if pair[0] is H]
    safe = [pair for pair in pairs if pair[0] is S]
    assert len(harmful) == len(safe) == 6
    own = {(seed.reference_note, seed.seed_note) for seed in SEEDS if seed.category.is_harmful}
    assert {pair[1:] for pair in harmful} <= own and len({pair[1] for pair in harmful}) == 6
    assert sum(reference == note for _, reference, note in safe) == 3
    assert not any("warfarin" in note.casefold() for _, _, note in safe)


def test_a_judge_to_which_any_difference_is_harmful_is_an_alarm_in_every_round():
    gold, _ = watch(lambda query: OK[S if query.medical_note == query.original_note else H], count=12)
    for step in range(0, 40, 2):
        gold.begin(step)
        assert finished(gold)["judge/gold_balanced_accuracy"] == 0.75 < HealthLimits().gold_accuracy_share


def test_rounds_differ_and_come_again_with_the_seed():
    gold, _ = watch()
    assert gold.pairs(0) == watch()[0].pairs(0) != gold.pairs(2)
    assert watch(seed=1)[0].pairs(0) != gold.pairs(0)


def test_probes_are_told_apart_from_games():
    gold, judge = watch()
    gold.begin(0)
    assert finished(gold)
    assert sorted(query.game_idx for query in judge.asked) == list(range(-8, 0))
    assert {query.game_category for query in judge.asked} == {CATEGORY} and CATEGORY not in list(Category)
    assert {query.assessment for query in judge.asked} == {""}


def test_an_oracle_is_right_and_its_figures_come_once():
    gold, _ = watch()
    assert gold.finished() == {}
    gold.begin(0)
    assert finished(gold) == {
        "judge/gold_balanced_accuracy": 1.0, "judge/gold_abstain_rate": 0.0, "judge/gold_error_rate": 0.0
    }  # fmt: skip
    assert gold.finished() == {}


def test_rounds_come_every_few_steps():
    gold, judge = watch(every=3)
    for step, asked in ((0, 8), (1, 8), (2, 8), (3, 16), (4, 16)):
        gold.begin(step)
        assert bool(finished(gold) if step % 3 == 0 else gold.finished()) is (step % 3 == 0)
        assert len(judge.asked) == asked


def test_nothing_waits_for_a_judge_that_hangs_and_rounds_do_not_pile_up():
    held = threading.Event()

    def slow(query: Query) -> Label:
        held.wait(5)
        return oracle(query)

    gold, judge = watch(slow, every=1)
    began = time.monotonic()
    for step in range(5):
        gold.begin(step)
        assert gold.finished() == {}
    assert time.monotonic() - began < 1 and len(judge.asked) <= 8
    held.set()
    assert finished(gold)["judge/gold_balanced_accuracy"] == 1
    assert len(judge.asked) == 8


def test_a_judge_that_breaks_its_promise_not_to_raise_is_an_error():
    def broken(query: Query) -> Label:
        raise RuntimeError("no")

    gold, _ = watch(broken)
    gold.begin(0)
    assert finished(gold) == {"judge/gold_error_rate": 1.0}
    gold.begin(2)
    assert finished(gold) == {"judge/gold_error_rate": 1.0}


def test_figures_by_hand():
    # Harmful: 2 of 3 decided right; Safe: 1 of 2; 1 abstention and 2 errors of 8.
    answers = [(H, OK[H]), (H, OK[H]), (H, OK[S]), (H, ABSTAIN), (S, OK[S]), (S, OK[H]), (S, ERROR), (S, ERROR)]
    assert figures_of(answers) == {
        "judge/gold_balanced_accuracy": pytest.approx((2 / 3 + 1 / 2) / 2),
        "judge/gold_abstain_rate": 1 / 8,
        "judge/gold_error_rate": 2 / 8,
    }


@pytest.mark.parametrize("answers", [[(H, ABSTAIN), (S, OK[S])], [(H, OK[H]), (S, ERROR)], [(H, ABSTAIN), (S, ERROR)]])
def test_without_a_decided_one_on_either_side_there_is_no_accuracy(answers):
    assert "judge/gold_balanced_accuracy" not in figures_of(answers)


def test_seeds_without_errors_are_a_users_mistake():
    clean = [seed for seed in SEEDS if not seed.category.is_harmful]
    with pytest.raises(UserError, match=r"judge\.probe_every needs training seeds with an error"):
        GoldWatch(ScriptedJudge(oracle), clean, every=1, count=4, seed=0)


# ── Disguise ──


def test_disguise_by_rules_warns_with_what_was_measured():
    health = {"http://a": Health(True, "reference")}
    warning = disguise_warning("disguise", 0.25, health)
    assert warning is not None and "abstains on 38%" in warning and "not measured in this run" in warning
    assert disguise_warning("inject", 0.25, health) is None
    assert disguise_warning("disguise", 0.0, health) is None
    assert disguise_warning("disguise", 0.25, {"http://a": Health(True, "google/medgemma-4b-it")}) is None
    assert disguise_warning("disguise", 0.25, {"http://a": Health(False, "reference")}) is None


def test_a_round_that_is_under_way_is_asked_again_by_a_resumed_run():
    hold = threading.Event()

    def waits(query: Query) -> Label:
        hold.wait(5)
        return oracle(query)

    before, _ = watch(waits)
    before.begin(4)
    state = before.state()
    hold.set()
    assert state == {"asked_in": 4}
    after, judge = watch()
    after.load(state)
    figures = finished(after)
    assert figures == finished(before) and len(judge.asked) == 8
    assert {query.medical_note for query in judge.asked} == {note for _, _, note in after.pairs(4)}
    assert after.state() == {"asked_in": None}
    after.load({"asked_in": None})
    assert after.finished() == {}
