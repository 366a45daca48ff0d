"""Upstream's critic worker for estimator gae, with an update that takes any number of samples.

The critic sees the plan that the policy sees: the same samples in the same optimizer steps, so it
has as many ranks as the policy.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import ray
import torch

from openrlhf_medical import devices
from openrlhf_medical.learner.normalizers import loss_normalizers, mean_of_own_tokens
from openrlhf_medical.learner.shared_cores import OnSharedCores, on_shared_cores
from openrlhf_medical.learner.workers import RoleBatch, _fit_to_machine

devices.prepare_process()

from openrlhf.trainer.ray.ppo_critic import CriticModelActor  # noqa: E402  (after prepare_process)
from openrlhf.utils import get_tokenizer  # noqa: E402


class _CriticWorker(OnSharedCores, CriticModelActor.__ray_metadata__.modified_class):
    def init_model_from_pretrained(self, strategy: Any, pretrain: str, max_steps: int | None = None) -> None:
        """As upstream's, and with a tokenizer: upstream's loads one only where it saves the critic itself."""
        self._cores = _fit_to_machine(strategy, self._world_size)
        super().init_model_from_pretrained(strategy, pretrain, max_steps)
        use_fast = not strategy.args.data.disable_fast_tokenizer
        self.tokenizer = get_tokenizer(pretrain, self.critic.module, "left", strategy, use_fast=use_fast)

    @on_shared_cores
    def update(self, steps: list[list[RoleBatch]]) -> dict[str, dict[str, float]]:
        """Run optimizer steps on the values' loss; ``steps`` as for the policy's update, without supervised
        micro-batches: those have no returns.

        Returns ``{role: {"value_loss", "value_mean": means over this rank's tokens, "tokens": count}}``
        with the last step's learning rate and the mean gradient norm (before clipping) under role ``""``.
        """
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        grad_norms: list[float] = []
        status: dict[str, float] = {}
        for step, micro_batches in enumerate(steps):
            normalizers = loss_normalizers(self.strategy, [experience.action_mask for _, experience in micro_batches])
            for i, (role, experience) in enumerate(micro_batches):
                self._cores.take()
                self.critic.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
                experience.to_device(torch.cuda.current_device())
                status = self.trainer.training_step(experience, step, normalizers)
                tokens = int(experience.action_mask.sum())
                if tokens:  # of a masked micro-batch upstream reports 0 / 0
                    sums[role]["value_loss"] += tokens * mean_of_own_tokens(status["critic_loss"], normalizers, tokens)
                    sums[role]["value_mean"] += status["values"] * tokens
                    sums[role]["tokens"] += tokens
            grad_norms.append(status["critic_grad_norm"])
        means = {
            role: {name: total / own["tokens"] if name != "tokens" else total for name, total in own.items()}
            for role, own in sums.items()
        }
        shared = {
            "critic_grad_norm": sum(grad_norms) / len(grad_norms),
            "critic_learning_rate": status["critic_lr"],
        }
        return {**means, "": shared}

    def save_to(self, folder: str) -> None:
        """A Hugging Face folder with the value head; all ranks must call it, rank 0 writes."""
        self.strategy.save_model(self.critic, self.tokenizer, folder)

    def save_state(self, folder: str) -> None:
        """Weights, optimizer and schedule as DeepSpeed writes them; all ranks must call it."""
        self.critic.save_checkpoint(folder, tag="state")

    def load_state(self, folder: str) -> None:
        self.critic.load_checkpoint(folder, tag="state")


CriticWorker = ray.remote(num_gpus=1)(_CriticWorker)
