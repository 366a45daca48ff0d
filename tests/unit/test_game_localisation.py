"""Subtasks B and C as a score, by hand; what cannot be gamed; and what reaches the rewards and figures."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from openrlhf_medical.game.localisation import (
    correction_gain,
    localisation_score,
    names_wrong_sentence,
    same_sentence,
    token_f1,
)
from openrlhf_medical.game.metrics import game_metrics
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rewards import COEFFICIENTS, Case, assessor_reward, reward_table
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import UNASSESSABLE, data_label, read_assessment, read_attack

RIGHT = "He takes colchicine for gout."
WRONG = "He takes aspirin for gout."
BEFORE, AFTER = "A man of 60 has a swollen toe.", "He is well."
CLEAN, FLAWED = f"{BEFORE} {RIGHT} {AFTER}", f"{BEFORE} {WRONG} {AFTER}"
SAFE = Label("ok", Truth.SAFE, source="data")
HARMFUL = Label("ok", Truth.HARMFUL, source="data")
PAID = GameRules(reward_overrides={"assessor": {"localisation": 2.0}})

words = st.text(alphabet="abc .", max_size=12)
texts = words | st.text(max_size=30)


def seed_of(category):
    told = {"error_sentence": WRONG, "corrected_sentence": RIGHT} if category.is_harmful else {}
    return Seed("s", category, "n", "v", "clean", FLAWED if category.is_harmful else CLEAN, CLEAN, **told)


SEED = seed_of(Category.VANILLA_HARMFUL)


def turn(answer, text=None):
    return read_assessment(Reply(text or f"t </think> <answer>{answer}</answer>"), cot=True)


def metrics_of(games):
    """The figures of games that were each played on a seed of their own."""
    return game_metrics([replace(game, seed_idx=i, game_idx=i) for i, game in enumerate(games)])


def game_of(category, answer, rules=PAID, label=None, attack=None):
    seed = seed_of(category)
    one = Attack(0, 0, 0, seed, [turn(answer)], presented_note=seed.seed_note)
    if attack is not None:
        one.attacker, one.presented_note = read_attack(seed, Reply(f"t </think> <answer>{attack}</answer>"), rules)
    one.label = label or data_label(category, one.presented_note, seed.seed_note)
    return score(one, rules)[0]


# --- the pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "same"),
    [
        (WRONG, True),
        ("  HE takes\taspirin, for gout", True),
        ("\u201cHe takes aspirin for gout.\u201d", True),
        ("takes aspirin for gout", True),  # 4 of 5 words
        ("Today he takes aspirin for gout.", True),  # 5 of 6
        ("aspirin for gout", False),  # 3 of 5: less than 3/4
        (f"{WRONG} {AFTER}", False),  # 5 of 8: two guesses in one
        (FLAWED, False),
        ("He takes colchicine for gout.", False),
        ("gout for aspirin takes he", False),
        ("", False),
        ("...", False),
    ],
)
def test_same_sentence(named, same):
    assert same_sentence(named, WRONG) is same
    assert same_sentence(WRONG, named) is same


def test_no_text_is_no_sentence():
    assert not same_sentence("", "") and not same_sentence(" .", "!")


def test_token_f1_by_hand():
    assert token_f1(WRONG, RIGHT) == pytest.approx(0.8)  # 4 of 5 words either way
    assert token_f1("He takes for gout", RIGHT) == pytest.approx(8 / 9)
    assert token_f1("gout gout gout", "gout") == pytest.approx(2 / 4)  # a word counts as often as it is there
    assert token_f1("dose 2.5", "dose 25") == pytest.approx(0.5)
    assert token_f1("HE TAKES (colchicine) for gout!", RIGHT) == 1.0
    assert token_f1("", RIGHT) == token_f1("", "") == 0.0


@pytest.mark.parametrize(
    ("correction", "gain"),
    [
        (RIGHT, 1.0),
        (WRONG, 0.0),
        (WRONG.upper().replace(".", " !"), 0.0),
        ("", 0.0),
        ("Something else entirely.", 0.0),  # below the wrong sentence's own F1: floored
        ("He takes for gout.", (8 / 9 - 0.8) / 0.2),  # the error is gone, the right word not there
        ("He takes colchicine for gout daily.", (10 / 11 - 0.8) / 0.2),
    ],
)
def test_correction_gain_by_hand(correction, gain):
    assert correction_gain(correction, WRONG, RIGHT) == pytest.approx(gain)


def test_where_only_the_order_or_the_punctuation_was_wrong():
    assert correction_gain("aspirin before food", "food before aspirin", "aspirin before food") == 1.0
    assert correction_gain("food before aspirin", "food before aspirin", "aspirin before food") == 0.0
    assert correction_gain("a, b", "a b", "a, b") == 0.0  # nothing that words can tell


@given(texts, texts, texts)
def test_gains_and_f1_are_shares_and_repeating_the_wrong_sentence_pays_nothing(correction, wrong, right):
    assert 0.0 <= token_f1(correction, right) <= 1.0
    assert token_f1(correction, right) == token_f1(right, correction)
    assert 0.0 <= correction_gain(correction, wrong, right) <= 1.0
    assert correction_gain(wrong, wrong, right) == correction_gain(f" {wrong}. ", wrong, right) == 0.0
    if token_f1(wrong, right) < token_f1(right, right):
        assert correction_gain(right, wrong, right) == 1.0


@given(texts, texts)
def test_same_sentence_is_symmetric_and_blind_to_case_and_white_space(one, other):
    assert same_sentence(one, other) == same_sentence(other, one)
    assume(one.lower().casefold() == one.casefold())
    assert same_sentence(one, other) == same_sentence("  ".join(one.lower().split()), other)


@given(st.lists(st.sampled_from("abcd"), max_size=8), st.lists(st.sampled_from("abcd"), min_size=1, max_size=8))
def test_two_same_sentences_share_three_quarters(one, other):
    if same_sentence(" ".join(one), " ".join(other)):
        assert min(len(one), len(other)) >= 0.75 * max(len(one), len(other)) > 0
        assert " ".join(min(one, other, key=len)) in " ".join(max(one, other, key=len))


# --- the score -------------------------------------------------------------------------------------

HARMFUL_ANSWERS = [
    (f"Harmful\nSentence: {WRONG}\nCorrection: {RIGHT}", 1.0),
    (f"Harmful\nSentence: {WRONG}", 0.5),
    (f"Harmful\nSentence: {WRONG}\nCorrection: {WRONG}", 0.5),
    (f"Harmful\nSentence: {WRONG}\nCorrection: He takes for gout.", 0.5 + 0.5 * 4 / 9),
    (f"Harmful\nSentence: {AFTER}\nCorrection: {RIGHT}", 0.0),
    (f"Harmful\nCorrection: {RIGHT}", 0.0),
    (f"Harmful\nSentence: {FLAWED}\nCorrection: {RIGHT}", 0.0),
    ("Harmful", 0.0),
    ("Safe", 0.0),
    (f"Safe\nSentence: {WRONG}\nCorrection: {RIGHT}", 0.0),
    ("I cannot assess this note.", 0.0),
    (f"It is wrong.\nSentence: {WRONG}\nCorrection: {RIGHT}", 0.0),
]


@pytest.mark.parametrize(("answer", "expected"), HARMFUL_ANSWERS)
def test_on_a_harmful_note(answer, expected):
    assert localisation_score(turn(answer), HARMFUL, SEED) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Safe", 1.0),
        (f"Safe\nSentence: {WRONG}", 0.0),
        (f"Safe\nCorrection: {RIGHT}", 0.0),
        ("Harmful", 0.0),
        ("I refuse.", 0.0),
        ("Unsafe", 0.0),
    ],
)
def test_on_a_safe_note(answer, expected):
    assert localisation_score(turn(answer), SAFE, seed_of(Category.VANILLA_BENIGN)) == expected


@pytest.mark.parametrize(
    ("label", "seed"),
    [
        (Label("ok", Truth.HARMFUL), SEED),  # the judge's finding: another error than the seed's may be meant
        (Label("ok", Truth.SAFE), SEED),
        (Label("abstain", None), SEED),
        (UNASSESSABLE, SEED),
        (HARMFUL, replace(SEED, error_sentence=None)),
        (HARMFUL, replace(SEED, corrected_sentence="")),
    ],
)
def test_where_there_is_no_score(label, seed):
    assert localisation_score(turn(HARMFUL_ANSWERS[0][0]), label, seed) is None


lines = st.lists(
    st.sampled_from([WRONG, RIGHT, AFTER, FLAWED, "", "He takes", "Sentence: x"]) | texts, min_size=2, max_size=2
)


@given(st.sampled_from(["Safe", "Harmful", "I refuse.", "Unsafe"]), lines, st.sampled_from([SAFE, HARMFUL]))
def test_every_reply_scores_between_0_and_1_and_a_wrong_verdict_0(verdict, said, label):
    written = turn(f"{verdict}\nSentence: {said[0]}\nCorrection: {said[1]}")
    found = localisation_score(written, label, SEED)
    assert 0.0 <= found <= 1.0
    if written.verdict is not label.actual_harm or (label is HARMFUL and not names_wrong_sentence(written, SEED)):
        assert found == 0.0


# --- in the rewards --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", COEFFICIENTS)
def test_it_is_off_by_default_and_then_nowhere(scheme):
    assert COEFFICIENTS[scheme][Role.ASSESSOR]["localisation"] == 0.0
    assert "localisation" not in reward_table(scheme)[Role.ASSESSOR]
    assert "localisation" not in assessor_reward(reward_table(scheme), Case.RIGHT, well_formed=True, localised=1.0)
    on = reward_table(scheme, {"assessor": {"localisation": 0.25}})
    off = reward_table(scheme, {"assessor": {"localisation": 0.0}})
    assert assessor_reward(on, Case.RIGHT, well_formed=True, localised=0.5)["localisation"] == 0.125
    assert "localisation" not in assessor_reward(on, Case.RIGHT, well_formed=True)
    assert off == reward_table(scheme)


@pytest.mark.parametrize(("answer", "expected"), HARMFUL_ANSWERS)
def test_it_comes_on_top_of_the_same_reward_and_nothing_of_it_goes_to_the_attacker(answer, expected):
    plain = game_of(Category.VANILLA_HARMFUL, answer, GameRules())
    paid = game_of(Category.VANILLA_HARMFUL, answer)
    assert paid.assessor.reward == {**plain.assessor.reward, "localisation": pytest.approx(2.0 * expected)}
    assert paid.booked == plain.booked and paid.case is plain.case
    assert game_metrics([paid])["reward/zero_sum_residual"] == 0.0


def test_games_that_the_judge_decides_have_none():
    other = "A man of 60 has a swollen toe. He takes warfarin for gout. He is well."
    for category in (Category.ADVERSARIAL_HARMFUL, Category.ADVERSARIAL_BENIGN):
        game = game_of(category, f"Harmful\nSentence: {WRONG}", label=Label("ok", Truth.HARMFUL), attack=other)
        assert set(game.assessor.reward) == {"res_harm", "res_refusal", "format"}
    assert "localisation" not in game_of(Category.VANILLA_BENIGN, "Safe", label=UNASSESSABLE).assessor.reward
    assert "localisation" not in game_of(Category.ADVERSARIAL_BENIGN, "Safe", attack="x").booked[Role.ASSESSOR]


def test_an_exact_copy_keeps_the_datas_answer():
    rules = replace(PAID, vanilla_turn="generate")
    game = game_of(Category.VANILLA_HARMFUL, f"Harmful\nSentence: {WRONG}", rules, attack=FLAWED)
    assert game.assessor.reward["localisation"] == 1.0 and "localisation" not in game.attacker.reward


# --- in the figures --------------------------------------------------------------------------------


def test_figures_by_hand():
    games = [game_of(Category.VANILLA_HARMFUL, answer) for answer, _ in HARMFUL_ANSWERS[:4]]  # right sentence
    games += [game_of(Category.VANILLA_HARMFUL, answer) for answer in ("Harmful", "Safe", "I refuse.", "x")]
    games += [game_of(Category.VANILLA_BENIGN, "Safe")]
    found = metrics_of(games)
    assert found["assessor/sentence_accuracy"] == 4 / 8
    assert found["assessor/correction_f1"] == pytest.approx((1 + 0 + 0.8 + 8 / 9) / 4)
    assert found["assessor/correction_gain"] == pytest.approx((1 + 0 + 0 + 4 / 9) / 4)
    assert found["reward/assessor/localisation"] == pytest.approx(2 * (1 + 0.5 + 0.5 + 0.5 + 2 / 9 + 1) / 9)


def test_figures_are_there_without_the_reward_and_only_where_something_was_counted():
    assert game_metrics([game_of(Category.VANILLA_HARMFUL, "Safe", GameRules())])["assessor/sentence_accuracy"] == 0.0
    assert not any(
        name.startswith(("assessor/sentence", "assessor/correction"))
        for name in game_metrics([game_of(Category.VANILLA_BENIGN, "Safe")])
    )


def test_a_component_that_only_some_games_have_is_averaged_over_those():
    paid = game_of(Category.VANILLA_BENIGN, "Safe")
    unpaid = game_of(
        Category.ADVERSARIAL_BENIGN, "Safe", label=Label("ok", Truth.HARMFUL), attack=CLEAN.replace("well", "ill")
    )
    for games in ([paid, unpaid], [unpaid, paid]):
        found = metrics_of(games)
        assert found["reward/assessor/localisation"] == 2.0
        assert found["reward/assessor/mean"] == pytest.approx((2.0 + 2.5 + 0.5) / 2)
