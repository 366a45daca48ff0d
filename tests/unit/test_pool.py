"""The pool of past opponents: who is kept, who plays, what is remembered."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.scoring import Attack, score
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.game.turns import UNASSESSABLE, read_assessment, read_attack
from openrlhf_medical.rollout.pool import Member, OpponentPool, hardness, superfluous, wins_of

ATTACKER, ASSESSOR = Role.ATTACKER, Role.ASSESSOR


def member(step):
    return Member(f"step_{step}", step, f"/run/checkpoints/step_{step}", step)


def pool_of(*steps, size=4, every=1, sampling="uniform", seed=0):
    pool = OpponentPool(size, every, sampling, seed)
    for step in steps:
        pool.add(member(step))
    return pool


def steps_in(pool):
    return [m.step for m in pool.members]


def shares(pool, role=ATTACKER, draws=20_000):
    counts = Counter(pool.sample(step, role).step for step in range(draws))
    return {step: count / draws for step, count in counts.items()}


# ── Who is in ──


def test_the_start_and_every_nth_step_are_wanted():
    pool = OpponentPool(4, 3, "latest", 0)
    wanted = []
    for steps_done in range(10):
        if pool.wants(steps_done):
            wanted.append(steps_done)
            pool.add(member(steps_done))
    assert wanted == [0, 3, 6, 9] == steps_in(pool)


def test_what_is_in_or_was_in_is_not_wanted_again():
    pool = pool_of(0, 2, 4, size=2, every=2)
    assert steps_in(pool) == [0, 4]
    assert not any(map(pool.wants, (0, 2, 4))) and pool.wants(6)


def test_a_spread_over_the_run_is_kept_with_the_start_and_the_newest():
    pool = OpponentPool(4, 1, "latest", 0)
    evicted = [left.step if (left := pool.add(member(step))) else None for step in range(9)]
    # by hand: 0123 +4 → gaps of 1, 2, 3 are 2, 2, 2: 1 goes; 0234 +5 → 3, 2, 2: 3; 0245 +6 → 4, 3, 2: 5;
    # 0246 +7 → 4, 4, 3: 6; 0247 +8 → 4, 5, 4: 2
    assert evicted == [None, None, None, None, 1, 3, 5, 6, 2]
    assert steps_in(pool) == [0, 4, 7, 8]


@pytest.mark.parametrize("size, expected", [(1, [9]), (2, [0, 9])])
def test_the_smallest_pools(size, expected):
    assert steps_in(pool_of(*range(10), size=size)) == expected


@given(st.integers(2, 8), st.integers(1, 60))
def test_a_long_run_stays_spread(size, last):
    pool = OpponentPool(size, 1, "latest", 0)
    present = set()
    for step in range(last + 1):
        present.add(step)
        left = pool.add(member(step))
        present -= {left.step} if left else set()
        assert present == set(steps_in(pool))
    assert len(pool.members) == min(size, last + 1)
    assert steps_in(pool)[0] == 0 and steps_in(pool)[-1] == last == max(steps_in(pool))
    if size > 2 and last >= size:  # no gap is more than three times an even one
        assert max(b - a for a, b in itertools.pairwise(steps_in(pool))) <= 3 * last / (size - 1)


def test_eviction_forgets_results():
    pool = pool_of(0, 1, 2, size=3, sampling="hardest")
    pool.record("step_1", ATTACKER, 3, 4)
    assert pool.add(member(3)) == member(1)
    assert "step_1" not in json.dumps(pool.state())
    assert pool.win_rate("step_1", ATTACKER) is None
    with pytest.raises(ValueError, match="step_1 is no member"):
        pool.record("step_1", ATTACKER, 1, 1)


def test_superfluous_takes_the_oldest_of_equals():
    assert superfluous([0, 10, 20, 30]) == 1
    assert superfluous([0, 10, 12, 30]) == 1
    assert superfluous([0, 10, 28, 30]) == 2
    assert superfluous([0, 30]) == 0


@pytest.mark.parametrize("late", [member(4), Member("other", 2, "f", 2), Member("step_4", 9, "f", 9)])
def test_only_a_newer_member_with_a_new_name_comes_in(late):
    with pytest.raises(ValueError, match="step_4"):
        pool_of(0, 4).add(late)


# ── Who plays ──


def test_latest_is_the_newest():
    pool = pool_of(0, 1, 2, sampling="latest")
    assert shares(pool, draws=200) == {2: 1.0}


def test_uniform_is_uniform():
    assert shares(pool_of(0, 1, 2, 3)) == pytest.approx(dict.fromkeys(range(4), 0.25), abs=0.02)


def test_steps_roles_and_seeds_draw_on_their_own():
    one, other = pool_of(0, 1, 2, 3), pool_of(0, 1, 2, 3, seed=1)
    drawn = [[pool.sample(step, role).step for step in range(200)] for pool in (one, other) for role in Role]
    assert all(0.1 < sum(x == y for x, y in zip(a, b, strict=True)) / 200 < 0.4
               for a, b in itertools.combinations(drawn, 2))  # fmt: skip


def test_draws_are_the_same_in_every_process():
    """Fixed for good: another draw would be another run after a resume."""
    drawn = [pool_of(0, 1, 2, 3).sample(step, ATTACKER).step for step in range(12)]
    assert drawn == [1, 0, 3, 3, 3, 3, 1, 3, 0, 0, 0, 1]


def test_hardest_meets_the_unplayed_first():
    pool = pool_of(0, 1, 2, 3, sampling="hardest")
    pool.record("step_0", ATTACKER, 10, 10)
    pool.record("step_2", ATTACKER, 0, 10)
    assert shares(pool) == pytest.approx({1: 0.5, 3: 0.5}, abs=0.02)
    assert set(shares(pool, ASSESSOR, 500)) == {0, 1, 2, 3}  # results are of a role


def test_hardest_weighs_by_the_square_of_the_smoothed_win_rate():
    pool = pool_of(0, 1, 2, sampling="hardest")
    for step, wins in ((0, 0), (1, 5), (2, 8)):  # of 8: (0+1)/10, (5+1)/10, (8+1)/10
        pool.record(f"step_{step}", ATTACKER, wins, 8)
    total = 1 + 36 + 81
    assert shares(pool) == pytest.approx({0: 1 / total, 1: 36 / total, 2: 81 / total}, abs=0.02)


def test_hardness_by_hand():
    assert hardness([(0, 0), (3, 4)]) == [1.0, 0.0]
    assert hardness([(0, 2), (2, 2)]) == pytest.approx([1 / 16, 9 / 16])


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1)), min_size=1))
def test_nobody_who_played_is_left_out(played):
    weights = hardness([(share * games, games) for games, share in played])
    assert all(0 < weight < 1 for weight in weights)


def test_an_empty_pool_has_nobody():
    with pytest.raises(ValueError, match="no member"):
        OpponentPool(4, 1, "uniform", 0).sample(0, ATTACKER)


# ── How they fare ──


def test_win_rates_weigh_recent_results_more():
    pool = pool_of(0)
    assert pool.win_rate("step_0", ATTACKER) is None
    pool.record("step_0", ATTACKER, 0, 0)
    assert pool.win_rate("step_0", ATTACKER) is None
    pool.record("step_0", ATTACKER, 10, 10)
    assert pool.win_rate("step_0", ATTACKER) == 1.0
    pool.record("step_0", ATTACKER, 0, 10)
    assert pool.win_rate("step_0", ATTACKER) == pytest.approx(8 / 18)  # 0.8 · 10 of 0.8 · 10 + 10
    assert pool.win_rate("step_0", ASSESSOR) is None


@pytest.mark.parametrize("wins, games", [(-1, 4), (5, 4), (0, -1)])
def test_impossible_results_are_refused(wins, games):
    with pytest.raises(ValueError, match="cannot have won"):
        pool_of(0).record("step_0", ATTACKER, wins, games)


# ── Resuming ──


actions = st.lists(
    st.one_of(
        st.just("add"), st.tuples(st.integers(0, 9), st.sampled_from(list(Role)), st.integers(0, 8))
    ),
    max_size=20,
)  # fmt: skip


def act(pool, action, clock):
    """One addition or one recorded result; ``clock`` counts additions. Returns who plays next."""
    if action == "add":
        pool.add(member(next(clock)))
    elif pool.members:
        index, role, wins = action
        pool.record(pool.members[index % len(pool.members)].name, role, wins, 8)
    return [pool.sample(7, role) for role in Role] if pool.members else []


@settings(deadline=None)
@given(actions, st.integers(0, 20), st.sampled_from(["latest", "uniform", "hardest"]), st.integers(1, 4))
def test_a_resumed_pool_plays_the_same(drawn, cut, sampling, size):
    whole, before, after = (OpponentPool(size, 1, sampling, 5) for _ in range(3))
    clocks = itertools.count(), itertools.count()
    expected = [act(whole, action, clocks[0]) for action in drawn]
    found = [act(before, action, clocks[1]) for action in drawn[:cut]]
    after.load(json.loads(json.dumps(before.state())))
    found += [act(after, action, clocks[1]) for action in drawn[cut:]]
    assert found == expected and after.state() == whole.state() and after.members == whole.members


def test_state_is_a_copy():
    pool = pool_of(0)
    pool.record("step_0", ATTACKER, 1, 2)
    state = pool.state()
    state["results"]["step_0"]["attacker"][0] = 99
    state["members"].clear()
    assert pool.win_rate("step_0", ATTACKER) == 0.5 and len(pool.members) == 1


def test_a_pool_that_no_longer_fits_is_refused():
    with pytest.raises(UserError, match=r"roles\.pool\.size is 2, but the checkpoint's pool has 3"):
        OpponentPool(2, 1, "latest", 0).load(pool_of(0, 1, 2).state())


@pytest.mark.parametrize(
    "key, value", [("size", 0), ("size", True), ("every", -1), ("every", 1.5), ("sampling", "best")]
)
def test_a_bad_value_is_named(key, value):
    given_values = {"size": 4, "every": 1, "sampling": "latest", "seed": 0, key: value}
    with pytest.raises(UserError, match=rf"roles\.pool\.{key} is {value!r}; allowed: "):
        OpponentPool(**given_values)


# ── What a win is ──


NOTE, WORSE = "He takes colchicine for gout.", "He takes warfarin for gout."
HARMFUL, SAFE = Label("ok", Truth.HARMFUL, error_present=True), Label("ok", Truth.SAFE, error_present=False)


def game(said, text=WORSE, label=HARMFUL):
    """A benign note into which the attacker was to bring an error; ``text`` None: nobody rewrote it."""
    category = Category.VANILLA_BENIGN if text is None else Category.ADVERSARIAL_BENIGN
    seed = Seed("s", category, "n", "v", "clean", NOTE, NOTE)
    one = Attack(0, 0, 0, seed, [None], presented_note=NOTE, label=label)
    if text is not None:
        one.attacker, one.presented_note = read_attack(seed, Reply(f"</think><answer>{text}</answer>"), GameRules())
    if one.presented_note is not None:
        one.assessors = [read_assessment(Reply(f"</think><answer>{said}</answer>"), cot=True)]
    return score(one, GameRules())[0]


@pytest.mark.parametrize("played, attacker, assessor", [
    (game("Safe"), (1, 1), (0, 1)),  # fooled by an error
    (game("Harmful"), (0, 1), (1, 1)),  # found it
    (game("Harmful", NOTE, SAFE), (0, 1), (0, 1)),  # wrong, but the attacker did nothing for it
    (game("Safe", NOTE, SAFE), (0, 1), (1, 1)),
    (game("I refuse."), (0, 1), (0, 1)),
    (game("?!"), (0, 1), (0, 1)),
    (game("", "x"), (0, 1), (0, 0)),  # a forfeit
    (game("Safe", label=Label("abstain", None)), (0, 0), (0, 0)),
    (game("Safe", label=Label("error", None)), (0, 0), (0, 0)),
    (game("Safe", None, SAFE), (0, 0), (0, 0)),  # nobody rewrote this note
    (game("Safe", None, UNASSESSABLE), (0, 0), (0, 0)),
])  # fmt: skip
def test_wins_by_hand(played, attacker, assessor):
    assert wins_of([played], ATTACKER) == attacker
    assert wins_of([played], ASSESSOR) == assessor


def test_wins_add_up_over_games():
    games = [game("Safe"), game("Safe"), game("Harmful"), game("", "x")]
    assert wins_of(games, ATTACKER) == (2, 4) and wins_of(games, ASSESSOR) == (1, 3)
    assert wins_of([], ATTACKER) == (0, 0)
