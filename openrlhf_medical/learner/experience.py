"""Upstream's experience maker, for any number of samples of two roles."""

from __future__ import annotations

from typing import Any

import torch

from openrlhf_medical import devices
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.advantages import discounted_returns, whiten_by_role
from openrlhf_medical.learner.batches import Item, plan_micro_batches
from openrlhf_medical.rollout.trajectories import Trajectory, masked_experience, to_experience

devices.prepare_process()

from openrlhf.models.utils import compute_reward  # noqa: E402  (after prepare_process)
from openrlhf.trainer.ppo_utils.experience import (  # noqa: E402
    Experience,
    remove_padding_in_sequences,
    split_experience_batch,
)
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402


class SelfPlayExperienceMaker(RemoteExperienceMaker):
    """Upstream's experience maker with batches planned for any number of samples, and role-wise advantages."""

    def __init__(self, *args: Any, pad_token_id: int, **kwargs: Any) -> None:
        super().__init__(*args, tokenizer=None, **kwargs)
        self._pad_token_id = pad_token_id
        self._ranks = data_parallel_ranks(self.args)
        self._roles: list[Role] = []

    def prepare(self, trajectories: list[Trajectory]) -> list[Experience]:
        """One Experience per trajectory, in order, with log-probabilities, advantages and returns."""
        self._roles = [trajectory.role for trajectory in trajectories]
        batches = self.make_experience_batch([to_experience(t, i) for i, t in enumerate(trajectories)])
        singles: dict[int, Experience] = {}
        for batch in batches:
            index = batch.index  # splitting drops it
            for i, single in zip(index, remove_padding_in_sequences(split_experience_batch(batch)), strict=True):
                if i >= 0:
                    singles[i] = single
        return [singles[i] for i in range(len(trajectories))]

    def split_rollout_samples(self, rollout_samples: list[Experience]) -> list[Experience]:
        """Batches for the forward passes: similar lengths together, equal counts on all ranks, rank by rank."""
        items = [Item("any", int(sample.total_length.item())) for sample in rollout_samples]
        plan = plan_micro_batches(items, range(len(items)), self.args.rollout.micro_batch_size, self._ranks)
        masked = masked_experience(self._pad_token_id)
        return [
            Experience.concat_experiences([rollout_samples[i] for i in batch] or [masked], self._pad_token_id)
            for own in plan
            for batch in own
        ]

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """REINFORCE++ for each role apart: reward at the last token, KL penalty at every token, γ-returns,
        whitened over the role's action tokens of the whole step."""
        for experience in experiences:
            token_rewards = compute_reward(
                experience.rewards.float(),
                self.kl_ctl.value,
                experience.kl,
                action_mask=experience.action_mask,
                reward_clip_range=self.args.reward.clip_range,
            )
            experience.info["return"] = (token_rewards * experience.action_mask).sum(-1)
            experience.returns = discounted_returns(
                token_rewards, experience.action_mask, self.args.algo.advantage.gamma
            )
            experience.kl = None
        whitened = whiten_by_role(
            [e.returns for e in experiences],
            [e.action_mask for e in experiences],
            [[self._roles[i].value if i >= 0 else "" for i in e.index] for e in experiences],
        )
        for experience, advantages in zip(experiences, whitened, strict=True):
            experience.advantages = advantages
        return experiences


def data_parallel_ranks(args: Any) -> int:
    """Ranks that see different samples; the others are copies for ring attention or tensor parallelism."""
    world = args.actor.num_nodes * args.actor.num_gpus_per_node
    return world // (args.ds.ring_attn_size * args.ds.tensor_parallel_size)
