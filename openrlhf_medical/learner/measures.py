"""What an update says in metrics.jsonl: pure functions over samples and workers' answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openrlhf_medical import devices
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout.trajectories import Trajectory

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402  (after prepare_process)


def sample_metrics(
    roles: Sequence[Role], trajectories: Sequence[Trajectory], experiences: Sequence[Experience], *, has_reference: bool
) -> dict[str, float]:
    """``sync/…`` over all samples, and for each role ``entropy``, ``tokens``, ``samples`` and ``kl``."""
    gaps = torch.cat([(e.action_log_probs - e.rollout_log_probs)[e.action_mask.bool()].abs() for e in experiences])
    metrics = {"sync/logprob_max_diff": gaps.max().item(), "sync/logprob_mean_diff": gaps.mean().item()}
    for role in roles:
        own = [e for t, e in zip(trajectories, experiences, strict=True) if t.role is role]
        tokens = sum(int(e.action_mask.sum()) for e in own)
        if not tokens:
            continue
        log_probs = sum(float((e.action_log_probs * e.action_mask).sum()) for e in own)
        metrics[f"policy/{role}/entropy"] = -log_probs / tokens
        metrics[f"policy/{role}/tokens"] = float(tokens)
        metrics[f"policy/{role}/samples"] = float(len(own))
        if has_reference:
            metrics[f"policy/{role}/kl"] = sum(map(kl_of, own)) / tokens
    return metrics


def kl_of(experience: Experience) -> float:
    """Sum over action tokens of the k1 estimate. With KL as a loss upstream leaves ``info["kl"]`` at zero
    and keeps the reference's log-probabilities instead."""
    if experience.base_action_log_probs is not None:
        gap = experience.action_log_probs - experience.base_action_log_probs
        return float((gap * experience.action_mask).sum())
    return float(experience.info["kl"]) * int(experience.action_mask.sum())


def merge_ranks(results: list[dict[str, dict[str, float]]]) -> dict[str, float]:
    """``{"role/metric": value}``: token-weighted means over ranks; role "" is equal on all."""
    merged = {f"/{name}": value for name, value in results[0][""].items()}
    for role in {role for result in results for role in result} - {""}:
        own = [result[role] for result in results if role in result]
        tokens = sum(part["tokens"] for part in own)
        for name in own[0]:
            if name != "tokens":
                merged[f"{role}/{name}"] = sum(part[name] * part["tokens"] for part in own) / tokens
    return merged


def named_by_role(merged: dict[str, float], roles: Sequence[Role]) -> dict[str, float]:
    """``policy/<role>/<metric>`` for every role of the policy. The gradient is the policy's: with a shared
    policy both roles show the same norm."""
    named: dict[str, float] = {}
    for key, value in merged.items():
        owner, metric = key.removeprefix("sft/").split("/", 1)
        named |= {f"policy/{role}/{metric}": value for role in roles if owner in ("", role.value)}
    return named
