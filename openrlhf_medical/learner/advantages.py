"""Role-wise advantages: what upstream computes for one role, computed for each role apart.

In a zero-sum game the two roles' rewards add up to nothing: whitened together, each role's baseline
would be the other's mistake. Self-RedTeam (arXiv 2506.07468) whitens each role on its own; so do we,
in every mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MIN_VARIANCE = 1e-8
"""Upstream's floor (RemoteExperienceMaker): equal rewards give advantages near 0, not infinite ones."""


def discounted_returns(rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """(B, A) returns G_t = r_t + γ G_{t+1} over action tokens; REINFORCE++ uses γ = 1."""
    rewards = rewards * action_mask
    returns = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + gamma * running
        returns[:, t] = running
    return returns * action_mask


def whiten_by_role(
    values: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], roles: Sequence[Sequence[str]]
) -> list[torch.Tensor]:
    """Whiten token values to mean 0 and standard deviation 1 over each role's own action tokens.

    ``values[i]`` and ``masks[i]`` are (B_i, A_i) batches, ``roles[i]`` the B_i roles of their rows.
    Returns tensors of the same shapes, 0 where the mask is 0. The variance is the population's, as
    upstream's. Moments are taken in float64: with thousands of tokens, float32 sums lose digits.
    """
    whitened = [torch.zeros_like(value) for value in values]
    for role in sorted({role for rows in roles for role in rows}):
        rows = [torch.tensor([r == role for r in own], dtype=torch.bool) for own in roles]
        tokens = torch.cat(
            [value[row][mask[row].bool()] for value, mask, row in zip(values, masks, rows, strict=True)]
        ).double()
        if not len(tokens):
            continue
        mean = tokens.mean()
        scale = (tokens - mean).pow(2).mean().clamp(min=MIN_VARIANCE).rsqrt()
        for value, mask, row, out in zip(values, masks, rows, whitened, strict=True):
            out[row] = (((value[row].double() - mean) * scale) * mask[row]).to(out.dtype)
    return whitened
