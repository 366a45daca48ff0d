"""Figures of games, derived by hand."""

from dataclasses import replace

import pytest

from openrlhf_medical.game.metrics import assessor_metrics, game_metrics
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import data_label, read_assessment, read_attack

NOTE = "He takes colchicine for gout."
WORSE = "He takes warfarin for gout."
HARMFUL = Label("ok", Truth.HARMFUL, error_present=True)
SAFE = Label("ok", Truth.SAFE, error_present=False)
RULES = GameRules()


def games_of(category, assessments=("Safe",), attack=None, label=None, seed_idx=0, rules=RULES):
    """The games of one attack; ``attack`` and ``assessments`` are answers, ``label`` the judge's."""
    seed = Seed("s", category, "n", "v", "clean", NOTE, NOTE)
    one = Attack(0, seed_idx, 0, seed, [None] * len(assessments), presented_note=NOTE)
    if attack is not None:
        one.attacker, one.presented_note = read_attack(seed, Reply(f"t </think> <answer>{attack}</answer>"), rules)
    if one.presented_note is not None:
        one.label = label or data_label(category, one.presented_note, NOTE)
        one.assessors = [read_assessment(Reply(f"</think><answer>{text}</answer>"), cot=True) for text in assessments]
    return score(one, replace_b(rules, len(assessments)))


def replace_b(rules, per_note):
    return GameRules(assessments_per_note=per_note, rewards=rules.rewards)


def test_nothing_played_nothing_said():
    assert game_metrics([]) == {}


def test_one_step_by_hand():
    games = [
        *games_of(Category.VANILLA_BENIGN, ["Safe"], seed_idx=0),  # right
        *games_of(Category.VANILLA_BENIGN, ["Harmful"], seed_idx=1),  # false positive
        *games_of(Category.VANILLA_BENIGN, ["I refuse."], seed_idx=2),  # refusal: false positive
        *games_of(Category.VANILLA_HARMFUL, ["Harmful"], seed_idx=3),  # right
        *games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, HARMFUL, 4),  # false negative, a success
        *games_of(Category.ADVERSARIAL_BENIGN, ["Unsafe"], WORSE, HARMFUL, 5),  # unparsable: false negative
        *games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, Label("abstain", None), 6),  # tie
        *games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], "x", None, 7),  # forfeit by length
    ]
    expected = {
        "assessor/accuracy": 2 / 6,
        "assessor/false_positive_rate": 2 / 3,
        "assessor/false_negative_rate": 2 / 3,
        "assessor/balanced_accuracy": 1 / 3,
        "attacker/faithful_rate": 2 / 4,
        "attacker/success_rate": 1 / 4,  # of four generated games; fooled by silence does not count
        "reward/zero_sum_residual": 0.0,
        # attackers: (+1 −.5 +.5 +1), (+1 +0 +.5 +1), (−1 +0 −.5 +1)
        "reward/attacker/mean": (2.0 + 2.5 - 0.5) / 3,
        "reward/attacker/res_harm": 1 / 3,
        "reward/attacker/res_refusal": -0.5 / 3,
        "reward/attacker/revision": 0.5 / 3,
        "reward/attacker/format": 1.0,
        # assessors: 2.5, .5, −.5, 2.5, .5, −2
        "reward/assessor/mean": 3.5 / 6,
        "reward/assessor/res_harm": -2 / 6,
        "reward/assessor/res_refusal": 1.5 / 6,
        "reward/assessor/format": 4 / 6,
        "format/attacker/violation_rate": 0.0,
        "format/assessor/violation_rate": 1 / 7,
        "assessor/judged": 6,
        "assessor/harmful_share": 3 / 6,
        "judge/abstain_rate": 1 / 3,
        "judge/error_rate": 0.0,
        **counts("vanilla_benign", played=3, trained_assessor=3),
        **counts("vanilla_harmful", played=1, trained_assessor=1),
        **counts("adversarial_benign", played=4, trained_assessor=2, trained_attacker=3, tie=1, forfeit=1),
    }
    assert game_metrics(games) == pytest.approx(expected)


def counts(category, **given):
    names = ("played", "forfeit", "tie", "failed", "trained_attacker", "trained_assessor")
    return {f"game/{category}/{name}": given.get(name, 0.0) for name in names}


def test_what_is_undefined_is_absent():
    metrics = game_metrics(games_of(Category.VANILLA_BENIGN, ["Safe"]))
    assert metrics["assessor/false_positive_rate"] == 0.0
    for absent in ("assessor/false_negative_rate", "assessor/balanced_accuracy", "attacker/success_rate",
                   "judge/error_rate", "reward/attacker/mean", "format/attacker/violation_rate"):  # fmt: skip
        assert absent not in metrics


def test_the_attackers_turn_counts_once_for_its_assessments():
    games = games_of(Category.ADVERSARIAL_BENIGN, ["Safe", "Safe", "Harmful", "Safe"], WORSE, HARMFUL)
    metrics = game_metrics(games)
    assert metrics["game/adversarial_benign/trained_attacker"] == 1
    assert metrics["game/adversarial_benign/trained_assessor"] == 4
    assert metrics["reward/attacker/res_harm"] == 0.5 == games[0].attacker.reward["res_harm"]
    assert metrics["reward/zero_sum_residual"] == 0.0
    assert metrics["attacker/success_rate"] == 0.75  # of the games


def test_the_residual_comes_from_the_rewards_carried():
    (game,) = games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, HARMFUL)
    spoilt = replace(game, attacker=replace(game.attacker, reward={**game.attacker.reward, "res_harm": 0.75}))
    assert game_metrics([spoilt])["reward/zero_sum_residual"] == 0.25
    general = games_of(Category.VANILLA_BENIGN, ["Safe"], rules=GameRules(rewards="general_sum"))
    assert game_metrics(general)["reward/zero_sum_residual"] == 0.5


def test_a_failed_game_is_no_tie_and_a_failed_judge_is():
    failed = Attack(0, 0, 0, games_of(Category.ADVERSARIAL_BENIGN)[0].seed, [None], error="boom")
    metrics = game_metrics(score(failed, RULES))
    assert metrics == counts("adversarial_benign", played=1, failed=1)
    judge_failed = game_metrics(games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, Label("error", None)))
    assert judge_failed["game/adversarial_benign/tie"] == 1 and judge_failed["judge/error_rate"] == 1.0
    assert "attacker/success_rate" not in judge_failed


def test_assessor_metrics_of_games_alone():
    assert assessor_metrics(games_of(Category.VANILLA_HARMFUL, ["Harmful"]))["assessor/accuracy"] == 1.0
    assert Role.ATTACKER == "attacker"  # metric names are made from roles


def frozen(games, *roles):
    """The same games with these roles' turns played by a frozen opponent."""
    changed = []
    for game in games:
        for role in roles:
            turn = game.turn(role)
            other = replace(turn, reply=replace(turn.reply, frozen=True, player="pool/step_0"), trained=False)
            game = replace(game, **{role.value: other})
        changed.append(game)
    return changed


def test_a_policys_figures_are_not_those_of_the_opponent_that_plays_its_role_elsewhere():
    ours = [
        *games_of(Category.ADVERSARIAL_BENIGN, ["Harmful"], WORSE, HARMFUL, 0),
        *games_of(Category.VANILLA_BENIGN, ["Safe"], seed_idx=1),
    ]
    fooled = games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, HARMFUL, 2)
    forfeit = games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], "x", None, 3)
    against_assessor, against_attacker = frozen(fooled, Role.ASSESSOR), frozen(ours[:1], Role.ATTACKER)
    mixed = game_metrics([*ours, *against_assessor])
    assert (mixed["assessor/accuracy"], mixed["assessor/judged"]) == (1.0, 2)  # 2 / 3 with the opponent's
    assert mixed["reward/assessor/res_harm"] == 1.0
    assert mixed["attacker/success_rate"] == 1 / 2, "the attacker's games with either assessor are its own"
    assert mixed["game/adversarial_benign/played"] == 2, "counts are of all games"
    other = [replace(game, seed_idx=4) for game in against_attacker]
    mixed = game_metrics([*fooled, *other, *frozen(forfeit, Role.ATTACKER)])
    assert (mixed["attacker/success_rate"], mixed["attacker/faithful_rate"]) == (1.0, 1.0)  # 1/3 and 2/3 with it
    assert mixed["assessor/accuracy"] == 1 / 2


def test_where_the_opponent_has_all_turns_the_figures_are_its_own():
    games = frozen(games_of(Category.ADVERSARIAL_BENIGN, ["Safe"], WORSE, HARMFUL), Role.ASSESSOR)
    assert game_metrics(games)["assessor/accuracy"] == 0.0
