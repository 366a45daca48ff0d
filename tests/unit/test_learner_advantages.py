"""Role-wise advantages, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from openrlhf_medical.learner.advantages import (
    GROUP_ESTIMATORS,
    discounted_returns,
    equal_reward_share,
    shape_by_group,
    thinned,
    whiten_by_role,
)


def test_returns_by_hand():
    """Rewards 0, 0, 2 (the last is padding) with γ = ½: G = (0 + ½·1, 1)."""
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    mask = torch.tensor([[1, 1, 0]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[0.5, 1.0, 0.0]]


def test_returns_with_gamma_one_spread_the_last_reward_over_all_tokens():
    rewards = torch.tensor([[0.0, 0.0, 3.0], [0.0, -1.0, 0.0]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    assert discounted_returns(rewards, mask).tolist() == [[0.0, 3.0, 3.0], [-1.0, -1.0, 0.0]]


def test_whitening_by_hand():
    """Attacker tokens 1, 1, 3: mean 5/3, variance 8/9. Assessor tokens -2, 2: mean 0, deviation 2."""
    values = [torch.tensor([[1.0, 1.0, 9.0], [-2.0, 2.0, 9.0]]), torch.tensor([[3.0, 9.0]])]
    masks = [torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.tensor([[1, 0]])]
    roles = [["attacker", "assessor"], ["attacker"]]
    first, second = whiten_by_role(values, masks, roles)
    low, high = -(2 / 3) / math.sqrt(8 / 9), (4 / 3) / math.sqrt(8 / 9)
    assert first[0].tolist() == pytest.approx([low, low, 0.0])
    assert first[1].tolist() == pytest.approx([-1.0, 1.0, 0.0])
    assert second[0].tolist() == pytest.approx([high, 0.0])


def mixed_batch(shift: float):
    """Two roles with opposite rewards, as in a zero-sum game that one side is winning by ``shift``."""
    torch.manual_seed(0)
    noise = torch.randn(8, 20)
    values = noise + torch.tensor([shift] * 4 + [-shift] * 4)[:, None]
    mask = (torch.arange(20)[None] < torch.randint(3, 20, (8, 1))).long()
    return values, mask, ["attacker"] * 4 + ["assessor"] * 4


def test_each_role_has_mean_zero_and_deviation_one():
    values, mask, roles = mixed_batch(shift=5.0)
    [whitened] = whiten_by_role([values], [mask], [roles])
    for role, rows in (("attacker", slice(0, 4)), ("assessor", slice(4, 8))):
        tokens = whitened[rows][mask[rows].bool()]
        assert tokens.mean().item() == pytest.approx(0, abs=1e-5), role
        assert tokens.pow(2).mean().sqrt().item() == pytest.approx(1, abs=1e-4), role


def test_whitening_the_roles_together_would_be_seen():
    """The check above fails on the mistake that it is there for."""
    values, mask, _ = mixed_batch(shift=5.0)
    [together] = whiten_by_role([values], [mask], [["everyone"] * 8])
    assert together[:4][mask[:4].bool()].mean() > 0.5


def test_equal_rewards_give_no_advantage():
    [whitened] = whiten_by_role([torch.full((2, 3), 0.7)], [torch.ones(2, 3)], [["attacker"] * 2])
    assert whitened.abs().max() < 1e-3


def test_rows_without_tokens_stay_zero():
    [whitened] = whiten_by_role([torch.tensor([[1.0], [5.0]])], [torch.tensor([[0], [1]])], [["", "assessor"]])
    assert whitened.tolist() == [[0.0], [0.0]]


# Group "a" has rewards 1, 2, 6 and group "b" has 10, 0, in between each other.
KEYS = ["a", "b", "a", "b", "a"]
REWARDS = [1.0, 10.0, 2.0, 0.0, 6.0]


def shaped(estimator: str, rewards: list[float] = REWARDS, keys: list[str] = KEYS) -> list[float]:
    return shape_by_group(estimator, torch.tensor(rewards), keys).tolist()


def test_group_mean_by_hand():
    """Means: a 9/3 = 3, b 10/2 = 5."""
    assert shaped("reinforce_baseline") == pytest.approx([-2, 5, -1, -5, 3])


def test_leave_one_out_by_hand():
    """Means of the others: a (2+6)/2 = 4, (1+6)/2 = 3.5, (1+2)/2 = 1.5; b 0 and 10."""
    assert shaped("rloo") == pytest.approx([1 - 4, 10 - 0, 2 - 3.5, 0 - 10, 6 - 1.5])


def test_group_norm_by_hand():
    """Unbiased variances: a (4 + 1 + 9)/2 = 7, b (25 + 25)/1 = 50."""
    a, b = math.sqrt(7), math.sqrt(50)
    assert shaped("group_norm") == pytest.approx([-2 / a, 5 / b, -1 / a, -5 / b, 3 / a])


@pytest.mark.parametrize("estimator", ["reinforce", "gae"])
def test_others_leave_rewards_as_they_are(estimator):
    assert shaped(estimator) == REWARDS


@pytest.mark.parametrize("estimator", sorted(GROUP_ESTIMATORS))
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_in_a_group_are_exactly_zero(estimator, size):
    """0.1 is not a binary fraction: in float32 a mean of equal rewards can differ from each of them, and
    group_norm would divide that rounding by almost nothing."""
    assert shaped(estimator, [0.1] * size, ["a"] * size) == [0.0] * size


def test_upstreams_group_norm_makes_advantages_of_rounding():
    """The mistake that the check above is there for; should this fail, upstream has mended it."""
    groups = [torch.full((size,), 0.1) for size in range(2, 33)]
    assert any(((own - own.mean()) / (own.std() + 1e-9)).abs().max() > 0.5 for own in groups)


@pytest.mark.parametrize("estimator", sorted(GROUP_ESTIMATORS))
def test_a_group_of_one_is_thinned_and_refused(estimator):
    assert thinned(estimator, ["a", "b", "a", "c"]) == {1, 3}
    assert thinned(estimator, KEYS) == set()
    with pytest.raises(ValueError, match=r"\[1, 3\] are alone"):
        shaped(estimator, [1.0] * 4, ["a", "b", "a", "c"])


@pytest.mark.parametrize("estimator", ["reinforce", "gae"])
def test_nothing_is_thinned_where_nothing_is_compared(estimator):
    assert thinned(estimator, ["a", "b"]) == set()


def test_equal_reward_share_by_hand():
    """Of a (1, 1), b (1, 2), c (3): a of the two with 2 samples or more. As one group: not equal."""
    rewards, keys = torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0]), ["a", "a", "b", "b", "c"]
    assert equal_reward_share(rewards, keys) == 0.5
    assert equal_reward_share(rewards, [""] * 5) == 0.0
    assert equal_reward_share(torch.ones(5), [""] * 5) == 1.0
    assert equal_reward_share(rewards[4:], ["c"]) == 0.0
