"""How samples become optimizer steps, ranks and micro-batches."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.learner.batches import MASKED, Item, plan_micro_batches, plan_update

items = st.lists(
    st.builds(Item, st.sampled_from(["attacker", "assessor"]), st.integers(2, 900), st.sampled_from([None, "a", "b"])),
    max_size=60,
)


@given(items, st.integers(1, 20), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_every_sample_once_and_ranks_in_step(items, batch_size, micro_batch_size, ranks, seed):
    steps = plan_update(items, batch_size, micro_batch_size, ranks, random.Random(seed))
    planned = [i for step in steps for rank in step for batch in rank for i in batch]
    assert sorted(planned) == list(range(len(items)))
    for step in steps:
        assert len(step) == ranks
        assert len({len(rank) for rank in step}) == 1, "a rank with less to do would hang the others"
        assert sum(len(batch) for rank in step for batch in rank) <= batch_size
        for batch in (b for rank in step for b in rank if b != MASKED):
            assert len(batch) <= micro_batch_size
            assert len({items[i].kind for i in batch}) == 1


@given(items, st.integers(1, 20), st.integers(0, 5))
def test_which_samples_share_a_step_does_not_depend_on_ranks(items, batch_size, seed):
    def members(ranks):
        steps = plan_update(items, batch_size, 2, ranks, random.Random(seed))
        return [sorted(i for rank in step for batch in rank for i in batch) for step in steps]

    assert members(1) == members(2) == members(3)


def test_answers_to_one_prompt_stay_together():
    items = [Item("a", 10 + i, "xyz"[i % 3]) for i in range(9)] + [Item("a", 30)]
    plan = plan_micro_batches(items, range(10), 4, 1)
    assert plan == [[(9, 8, 5, 2), (7, 4, 1), (6, 3, 0)]]
    [plan] = plan_micro_batches([Item("a", 5, "x")] * 5, range(5), 2, 1)
    assert plan == [(0, 1), (2, 3), (4,)]


def test_five_and_eight_on_two_ranks():
    items = [Item("attacker", 100)] * 5 + [Item("assessor", 60)] * 8
    [step] = plan_update(items, 128, 4, 2, random.Random(0))
    assert [len(rank) for rank in step] == [2, 2]
    sizes = sorted(len(batch) for rank in step for batch in rank)
    assert sizes == [1, 4, 4, 4]


def test_steps_are_even():
    """13 samples in steps of at most 4 are 4 steps of 3 or 4, not 3 full ones and one of a single sample."""
    steps = plan_update([Item("a", 1)] * 13, 4, 8, 1, random.Random(0))
    assert sorted(sum(map(len, step[0])) for step in steps) == [3, 3, 3, 4]


def test_a_rank_without_work_is_filled_up():
    plan = plan_micro_batches([Item("a", 5)], [0], 4, 3)
    assert sorted(plan) == [[MASKED], [MASKED], [(0,)]]


def test_nothing_to_do():
    assert plan_update([], 4, 2, 2, random.Random(0)) == []
