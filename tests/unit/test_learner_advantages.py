"""Role-wise advantages, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from openrlhf_medical.learner.advantages import discounted_returns, whiten_by_role


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
