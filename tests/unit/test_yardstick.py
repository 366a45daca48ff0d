"""Held-out figures while training: when, which is best, when it ends, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.config import load_config
from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.layout import bundles_needed, measured_against, measuring_engines
from openrlhf_medical.yardstick import HIGHER_IS_BETTER, Best, Yardstick

HIGHER, LOWER = "eval/assessor/accuracy", "eval/assessor/false_positive_rate"
REPO = Path(__file__).parents[2]


# ── The rule ──


@pytest.mark.parametrize("metric, values, best, stopped_after", [
    (HIGHER, [0.5, 0.6, 0.6, 0.4], [0, 1], 3),  # equal is no better
    (LOWER, [0.5, 0.6, 0.4, 0.4, 0.9], [0, 2], 4),
    (HIGHER, [0.5, 0.4, 0.6, 0.5], [0, 2], None),
    (HIGHER, [math.nan, 0.4, None, 0.3, math.nan, 0.3], [1], 5),  # what is undefined says nothing
])  # fmt: skip
def test_best_and_patience_by_hand(metric, values, best, stopped_after):
    yardstick, found, stopped = Yardstick(1, metric, patience=2), [], None
    for i, value in enumerate(values):
        if yardstick.note(i, {} if value is None else {metric: value}):
            found.append(i)
        if stopped is None and yardstick.exhausted:
            stopped = i
    assert (found, stopped) == (best, stopped_after)
    assert yardstick.best == Best(best[-1], values[best[-1]])


def test_why():
    yardstick = Yardstick(2, HIGHER, patience=1)
    for step, value in ((0, 0.5), (2, 0.75), (4, 0.25)):
        yardstick.note(step, {HIGHER: value})
    assert yardstick.why() == (
        f"stopped early after 4 steps: {HIGHER} was best after 2 (0.750), and 1 evaluations since were no better "
        "(run.early_stop_patience)"
    )


def test_due():
    assert [step for step in range(7) if Yardstick(3).due(step)] == [0, 3, 6]
    assert not any(Yardstick(0).due(step) for step in range(7))


def test_without_a_metric_nothing_is_chosen_and_nothing_stops():
    yardstick = Yardstick(1, None, 1)
    assert not any(yardstick.note(i, {HIGHER: 0.1}) for i in range(5)) and not yardstick.exhausted


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan])), st.integers(0, 5), st.sampled_from([HIGHER, LOWER]))
def test_a_resumed_yardstick_goes_on(values, cut, metric):
    whole, before, after = (Yardstick(1, metric, 2) for _ in range(3))
    expected = [(whole.note(i, {metric: v}), whole.exhausted) for i, v in enumerate(values)]
    found = [(before.note(i, {metric: v}), before.exhausted) for i, v in enumerate(values[:cut])]
    after.load(json.loads(json.dumps(before.state())))
    found += [(after.note(i, {metric: v}), after.exhausted) for i, v in enumerate(values[cut:], start=cut)]
    assert found == expected and after.state() == whole.state()


def test_another_figures_values_are_forgotten():
    old, new = Yardstick(1, HIGHER), Yardstick(1, LOWER)
    old.note(0, {HIGHER: 0.9})
    new.load(old.state())
    assert new.best is None and new.note(2, {LOWER: 0.5})


# ── Configuration ──


def config_of(*words):
    return load_config(REPO / "configs" / "tiny.yaml", ["--run.eval_games", "8", *words])


@pytest.mark.parametrize("words, message", [
    (["--run.eval_games", "0", "--run.eval_every", "2"], "run.eval_every is set, but it is read only with run.eval_ga"),
    (["--run.best_metric", HIGHER], "run.best_metric is set, but it is read only with run.eval_every above 0"),
    (["--run.eval_every", "1", "--run.early_stop_patience", "2"], "only with run.best_metric"),
    (["--run.eval_every", "1", "--run.best_metric", "eval/assessor/balanced"], "eval/assessor/balanced_accuracy"),
    (["--run.eval_every", "1", "--run.best_metric", "eval/frozen_attacker/assessor/accuracy"],
     "is measured only with run.eval_frozen true"),
    (["--run.eval_every", "1", "--run.best_metric", HIGHER, "--roles.train", "attacker"],
     "is a figure of the assessor, which roles.train attacker does not train"),
    (["--run.eval_frozen", "true", "--roles.train", "assessor"], "already meet a player that never changes"),
])  # fmt: skip
def test_keys_that_do_not_go_together(words, message):
    with pytest.raises(UserError) as error:
        config_of(*words)
    assert message in str(error.value)


def test_every_figure_can_be_chosen():
    for name in HIGHER_IS_BETTER:
        assert config_of("--run.eval_every", "1", "--run.eval_frozen", "true", "--run.best_metric", name)


LORA = ("--ds.lora.rank", "8")


@pytest.mark.parametrize("words, roles, engines", [
    ((), {Role.ATTACKER, Role.ASSESSOR}, 1),
    (("--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "4"), set(Role), 8),
    (("--roles.policy", "shared"), set(Role), 1),
    (LORA, set(Role), 0),  # the start is the base that the engines hold
    (("--roles.policy", "adapters", *LORA), set(Role), 0),
    (("--roles.policy", "shared", "--roles.train", "assessor", "--roles.opponent", "pool"), {Role.ATTACKER}, 1),
])  # fmt: skip
def test_places_of_the_start(words, roles, engines):
    config = config_of("--run.eval_frozen", "true", *words)
    assert set(measured_against(config)) == roles and measuring_engines(config) == engines
    assert bundles_needed(config) - bundles_needed(config_of(*words)) == engines
