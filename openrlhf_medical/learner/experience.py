"""Upstream's experience maker, for any number of samples of two roles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, get_args

import torch

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner.advantages import (
    GROUP_ESTIMATORS,
    WHITENING_ESTIMATORS,
    Estimator,
    discounted_returns,
    equal_reward_share,
    shape_by_group,
    thinned,
    whiten_by_role,
)
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

    def __init__(
        self,
        *args: Any,
        pad_token_id: int,
        timeout_s: float,
        max_tokens: int | None = None,
        policy: str = "",
        **kwargs: Any,
    ) -> None:
        """As upstream's; ``pad_token_id`` is all that is needed of the tokenizer. ``timeout_s``: deadline of
        all forward passes of a step; ``max_tokens``: of one of them, None to count samples instead; ``policy``: its
        name, for messages.

        Raises:
            ValueError: an estimator that is upstream's but not ours, or gae without a critic.
        """
        super().__init__(*args, tokenizer=None, **kwargs)
        if self.advantage_estimator not in get_args(Estimator):
            raise ValueError(f"estimator {self.advantage_estimator!r} is none of {get_args(Estimator)}")
        if self.advantage_estimator == "gae" and self.critic_model_group is None:
            raise ValueError("estimator gae needs a critic")
        self._pad_token_id, self._timeout_s, self._max_tokens = pad_token_id, timeout_s, max_tokens
        self._ranks = data_parallel_ranks(self.args)
        self._policy = policy
        self._asked: dict[Any, str] = {}  # who was asked for what is waited for
        self._takes_turns: bool | None = None
        self._trajectories: list[Trajectory] = []

    def prepare(self, trajectories: list[Trajectory]) -> list[Experience]:
        """One Experience per trajectory, in order, with log-probabilities, advantages and returns (and
        values, with a critic). Estimators that compare within a group want ``drop_thinned`` first."""
        self._trajectories = trajectories
        self._asked.clear()
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
        lengths = [int(sample.total_length.item()) for sample in rollout_samples]
        prompts = self.prompts([self._trajectories[sample.index[0]] for sample in rollout_samples])
        items = [Item("any", length, prompt) for length, prompt in zip(lengths, prompts, strict=True)]
        size = self.args.rollout.micro_batch_size
        plan = plan_micro_batches(items, range(len(items)), size, self._ranks, self._max_tokens)
        masked = masked_experience(self._pad_token_id)
        return [
            Experience.concat_experiences([rollout_samples[i] for i in batch] or [masked], self._pad_token_id)
            for own in plan
            for batch in own
        ]

    def _dispatch_forward(self, group: Any, sync_condition: bool, **inputs: Any) -> list[Any]:
        """Upstream's, with a deadline where workers that share a GPU, or all cores of a machine, take turns."""
        kinds = {id(self.critic_model_group): "critic", id(self.initial_model_group): "reference"}
        kind = kinds.get(id(group), "policy")
        references = group.async_run_method_batch(method_name="forward", **inputs)
        self._asked |= {reference: f"{self._policy} {kind} rank {i}" for i, reference in enumerate(references)}
        if sync_condition or self._share_cores():
            self._gather(references)
        if sync_condition:
            emptied = group.async_run_method(method_name="empty_cache")
            self._asked |= {reference: f"{self._policy} {kind} rank {i}" for i, reference in enumerate(emptied)}
            self._gather(emptied)
        return references

    def prompts(self, trajectories: Sequence[Trajectory]) -> list[Hashable]:
        """What each answers, for micro-batches that ``ReplyActor`` computes as one sequence; None on GPUs, where it
        does not and they had better be full."""
        return [t.prompt_ids if self._share_cores() else None for t in trajectories]

    def _share_cores(self) -> bool:
        """Whether these workers compute on the same cores: at the same time, with threads for all of them each, two
        take longer than one after the other."""
        if self._takes_turns is None:
            asked = self.actor_model_group.async_run_method(method_name="computes_on_cores")
            self._asked |= {reference: f"{self._policy} policy rank {i}" for i, reference in enumerate(asked)}
            self._takes_turns = any(self._gather(asked))
        return self._takes_turns

    def _flatten_results(self, references: list[Any], duplicate_factor: int) -> list[Any]:
        """Upstream's, with a deadline; what stands for an absent model is an object of Ray's, no list."""
        if not isinstance(references, list):
            return super()._flatten_results(references, duplicate_factor)
        return list(itertools.chain.from_iterable(self._gather(references)[::duplicate_factor]))

    def _gather(self, references: list[Any]) -> list[Any]:
        named = {self._asked[reference]: reference for reference in references}
        return list(gather(named, self._timeout_s, "log-probabilities").values())

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """Upstream's estimators for each role apart: rewards compared within their group, clipped and put on
        the last token, a KL penalty on every token, returns; whitened over the role's action tokens of
        the whole step where the estimator whitens."""
        for experience, rewards in zip(experiences, self._shaped_rewards(experiences), strict=True):
            token_rewards = compute_reward(
                rewards,
                self.kl_ctl.value,
                experience.kl,
                action_mask=experience.action_mask,
                reward_clip_range=self.args.reward.clip_range,
            )
            experience.info["return"] = (token_rewards * experience.action_mask).sum(-1)
            experience.advantages, experience.returns = self._estimate(experience, token_rewards)
            experience.kl = None
        if self.advantage_estimator in WHITENING_ESTIMATORS:
            whitened = whiten_by_role(
                [e.advantages for e in experiences],
                [e.action_mask for e in experiences],
                [[self._trajectories[i].role.value if i >= 0 else "" for i in e.index] for e in experiences],
            )
            for experience, advantages in zip(experiences, whitened, strict=True):
                experience.advantages = advantages
        return experiences

    def _shaped_rewards(self, experiences: list[Experience]) -> list[torch.Tensor]:
        """(B_i,) rewards of each batch after comparison within groups; 0 for masked samples."""
        keys = [(t.role, t.group) for t in self._trajectories]
        rewards = torch.tensor([t.reward for t in self._trajectories], dtype=torch.float32)
        shaped = shape_by_group(self.advantage_estimator, rewards, keys)
        padded = torch.cat([shaped, torch.zeros(1)])  # a masked sample's index -1 takes the last
        return [padded[e.index] for e in experiences]

    def _estimate(self, experience: Experience, token_rewards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, A) advantages before whitening, and (B, A) returns."""
        options, mask = self.args.algo.advantage, experience.action_mask
        if self.advantage_estimator == "gae":
            return generalized_advantages(experience.values, token_rewards, mask, options.gamma, options.lambd)
        # Upstream too discounts for reinforce alone.
        gamma = options.gamma if self.advantage_estimator == "reinforce" else 1.0
        returns = discounted_returns(token_rewards, mask, gamma)
        return returns.clone(), returns


def generalized_advantages(
    values: torch.Tensor, rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float, lambd: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (arXiv 1506.02438): (B, A) advantages A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t, and
    returns A_t + V_t; both 0 outside the mask.

    Upstream's, whose method reads nothing of its object. The action tokens of a row are one run: then V
    is 0 after the last, and what upstream puts on prompt tokens flows into no action token.
    """
    advantages, returns = RemoteExperienceMaker.get_advantages_and_returns(
        None, values, rewards, action_mask, gamma, lambd
    )
    return advantages * action_mask, returns * action_mask


def drop_thinned(trajectories: Sequence[Trajectory], estimator: str) -> tuple[list[Trajectory], Counter[Role]]:
    """What the estimator can learn from, in order, and how many samples of each role were left out because they
    are alone in their group. Before the forward passes: nothing is computed for those."""
    alone = thinned(estimator, [(t.role, t.group) for t in trajectories])
    kept = [t for i, t in enumerate(trajectories) if i not in alone]
    return kept, Counter(trajectories[i].role for i in alone)


def equal_reward_shares(trajectories: Sequence[Trajectory], estimator: str) -> dict[Role, float]:
    """For each role, the share of what the estimator compares whose rewards are all equal: groups, or the
    role's whole batch (then 0 or 1). At 1 the rewards teach nothing; what advantages still hold is the KL
    penalty, which whitening scales up, and with gae the critic's error."""
    shares = {}
    for role in sorted({t.role for t in trajectories}):
        own = [t for t in trajectories if t.role is role]
        keys = [t.group if estimator in GROUP_ESTIMATORS else "" for t in own]
        shares[role] = equal_reward_share(torch.tensor([t.reward for t in own]), keys)
    return shares


def data_parallel_ranks(args: Any) -> int:
    """Ranks that see different samples; the others are copies for ring attention or tensor parallelism."""
    world = args.actor.num_nodes * args.actor.num_gpus_per_node
    return world // (args.ds.ring_attn_size * args.ds.tensor_parallel_size)
