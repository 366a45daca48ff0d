"""Trajectories: one role's tokens with what they earned, and their form as upstream's Experience."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from openrlhf_medical import devices
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.records import Game, turns_of

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402  (after prepare_process)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One role's turn in one game, ready to be trained on.

    ``prompt_ids`` (T_p,), ``token_ids`` (T_a,) and ``logprobs`` (T_a,) are the engine's own;
    ``group`` names the samples that a group estimator may compare; ``reward`` is the sum of
    ``reward_parts``.
    """

    role: Role
    game_idx: int
    group: str
    category: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reward: float
    reward_parts: dict[str, float] = field(default_factory=dict)
    policy_version: int = 0
    truncated: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)


def trajectories_of(games: Iterable[Game]) -> list[Trajectory]:
    """One trajectory for every turn that is trained: attackers first, each in the games' order."""
    games = list(games)
    return [
        Trajectory(
            role=role,
            game_idx=game.game_idx,
            group=f"{game.step}/{game.group(role)}",
            category=game.seed.category.value,
            prompt_ids=turn.reply.prompt_ids,
            token_ids=turn.reply.token_ids,
            logprobs=turn.reply.logprobs,
            reward=turn.total,
            reward_parts=turn.reward,
            policy_version=turn.reply.policy_version,
            truncated=turn.reply.truncated,
        )
        for role in Role
        for game, turn in turns_of(games, role)
        if turn.trained
    ]


def to_experience(trajectory: Trajectory, index: int) -> Experience:
    """Upstream's Experience of one sample: sequences (1, T), masks and log-probabilities (1, T-1).

    Position t of the (1, T-1) tensors speaks of token t+1, as upstream's Actor does.
    """
    prompt, actions = len(trajectory.prompt_ids), len(trajectory.token_ids)
    if not prompt or not actions:
        raise ValueError(f"the {trajectory.role} of game {trajectory.game_idx} has no tokens to train on")
    sequences = torch.tensor([trajectory.prompt_ids + trajectory.token_ids], dtype=torch.long)
    rollout_log_probs = torch.zeros(1, prompt + actions - 1)
    rollout_log_probs[0, prompt - 1 :] = torch.tensor(trajectory.logprobs)
    action_mask = torch.zeros(1, prompt + actions - 1, dtype=torch.long)
    action_mask[0, prompt - 1 :] = 1
    return Experience(
        sequences=sequences,
        attention_mask=torch.ones_like(sequences),
        action_mask=action_mask,
        rollout_log_probs=rollout_log_probs,
        rewards=torch.tensor([trajectory.reward]),
        response_length=torch.tensor([float(actions)]),
        truncated=torch.tensor([float(trajectory.truncated)]),
        total_length=torch.tensor([float(trajectory.length)]),
        index=[index],
        info={"reward": torch.tensor([trajectory.reward])},
    )


def masked_experience(pad_token_id: int) -> Experience:
    """A sample of two tokens that no loss and no metric sees; fills ranks up to equal counts."""
    sequences = torch.full((1, 2), pad_token_id, dtype=torch.long)
    return Experience(
        sequences=sequences,
        attention_mask=torch.ones_like(sequences),
        action_mask=torch.zeros(1, 1, dtype=torch.long),
        rollout_log_probs=torch.zeros(1, 1),
        rewards=torch.zeros(1),
        response_length=torch.zeros(1),
        truncated=torch.zeros(1),
        total_length=torch.full((1,), 2.0),
        index=[-1],
        info={"reward": torch.zeros(1)},
    )
