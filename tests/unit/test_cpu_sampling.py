"""Tokens are drawn from the softmax of their logits (openrlhf_medical/cpu_sampling.py)."""

import pytest
import torch

from openrlhf_medical.cpu_sampling import random_sample


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_each_row_from_its_own_softmax():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0], [3.0, 0.0, 0.0, -2.0]])
    rows = 40_000
    drawn = random_sample(logits.repeat_interleave(rows, dim=0)).view(2, rows)
    for row, expected in zip(drawn, logits.softmax(-1), strict=True):
        found = torch.bincount(row, minlength=4) / rows
        # Five standard deviations of a share of 40,000 draws.
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / rows).sqrt()).all(), (found, expected)


def test_the_tail_of_a_large_vocabulary_is_drawn():
    """Half of the weight is one token, the other half is spread over 49,151 of 1e-5 each."""
    logits = torch.zeros(4000, 49_152)
    logits[:, 0] = torch.tensor(49_151.0).log()
    drawn = random_sample(logits)
    assert abs((drawn == 0).float().mean() - 0.5) < 0.04
    assert abs(drawn[drawn > 0].float().mean() / 49_151 - 0.5) < 0.04


def test_what_is_masked_is_never_drawn(monkeypatch):
    masked = torch.full((5, 8), -torch.inf)
    masked[:, 2] = masked[:, 5] = 0.0
    for number, expected in ((0.0, 2), (0.499, 2), (0.5, 5), (1 - 2**-53, 5)):  # all that rand may answer
        monkeypatch.setattr(torch, "rand", lambda shape, number=number, **options: torch.full(shape, number, **options))
        assert random_sample(masked).tolist() == [expected] * 5


def test_only_one_can_be_drawn():
    logits = torch.full((3, 100), -torch.inf)
    logits[torch.arange(3), torch.tensor([0, 50, 99])] = 1.0
    assert random_sample(logits).tolist() == [0, 50, 99]
    assert random_sample(logits).dtype is torch.int64
