"""Role-wise advantages: what upstream computes for one role, computed for each role apart.

In a zero-sum game the two roles' rewards add up to nothing: whitened together, each role's baseline
would be the other's mistake. Self-RedTeam (arXiv 2506.07468) whitens each role on its own; so do we,
in every mode. Groups are named, not implied by order: upstream reshapes to (prompts, samples per
prompt), which needs every group to have the same size; games drop out of ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch

Estimator = Literal["reinforce", "reinforce_baseline", "rloo", "group_norm", "gae"]

GROUP_ESTIMATORS = frozenset({"reinforce_baseline", "rloo", "group_norm"})
"""Compare a reward with others of its group; a group needs at least 2 samples."""

WHITENING_ESTIMATORS = frozenset({"reinforce", "reinforce_baseline", "gae"})
"""Whiten advantages over a role's action tokens; the others leave the group's own scale."""

MIN_VARIANCE = 1e-8
"""Upstream's floor (RemoteExperienceMaker): equal rewards give advantages near 0, not infinite ones."""

MIN_DEVIATION = 1e-9
"""Upstream's addend to a group's standard deviation."""

_WITHIN_GROUP: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    # REINFORCE++-baseline (arXiv 2501.03262).
    "reinforce_baseline": lambda group: group - group.mean(),
    # RLOO (arXiv 2402.14740): the baseline is the mean of the others.
    "rloo": lambda group: group - (group.sum() - group) / (len(group) - 1),
    # GRPO (arXiv 2402.03300), with the unbiased deviation, as upstream.
    "group_norm": lambda group: (group - group.mean()) / (group.std() + MIN_DEVIATION),
}


def members(keys: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Which samples carry each key, in their order."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        found[key].append(i)
    return dict(found)


def thinned(estimator: str, keys: Sequence[Hashable]) -> set[int]:
    """Samples that are alone in their group where the estimator compares within one: nothing to learn from."""
    if estimator not in GROUP_ESTIMATORS:
        return set()
    return {group[0] for group in members(keys).values() if len(group) < 2}


def shape_by_group(estimator: str, rewards: torch.Tensor, keys: Sequence[Hashable]) -> torch.Tensor:
    """(N,) rewards as the estimator wants them before they become token rewards; (N,) of the same type.

    ``keys[i]`` names what sample i may be compared with, role included. Estimators that do not compare
    within a group leave rewards as they are.

    Raises:
        ValueError: a group of one, where the estimator compares (``thinned`` names them beforehand).
    """
    if estimator not in GROUP_ESTIMATORS:
        return rewards
    if alone := thinned(estimator, keys):
        raise ValueError(f"{estimator} compares within a group, but {sorted(alone)} are alone in theirs: drop them")
    shaped = torch.zeros(len(rewards), dtype=torch.float64)
    for group in members(keys).values():
        own = rewards[group].double()
        # A shift changes none of the three, and makes equal rewards exactly 0. In upstream's float32 the
        # mean of equal rewards can be a rounding off, which group_norm divides by almost nothing.
        shaped[group] = _WITHIN_GROUP[estimator](own - own.min())
    return shaped.to(rewards.dtype)


def equal_reward_share(rewards: torch.Tensor, keys: Sequence[Hashable]) -> float:
    """Share of the groups of at least 2 samples whose (N,) rewards are all equal: they teach nothing.

    With roles as keys the whole batch of a role is one group. 0 where no group has 2 samples.
    """
    groups = [rewards[group] for group in members(keys).values() if len(group) >= 2]
    return sum(bool((group == group[0]).all()) for group in groups) / len(groups) if groups else 0.0


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
