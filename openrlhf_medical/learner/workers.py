"""Upstream's policy and reference workers, with the three things that they lack here.

An update that takes any number of samples, a weight sync that is packed and verified, and threads
for machines without a GPU. Everything else is upstream's.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import ray
import torch

from openrlhf_medical import devices
from openrlhf_medical.learner.weight_sync import WeightSender
from openrlhf_medical.rollout.weights import WeightStamp

devices.prepare_process()

from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402  (after prepare_process)
from openrlhf.trainer.ray.launcher import ReferenceModelActor  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402
from openrlhf.utils.loss_utils import get_loss_batch_info  # noqa: E402

RoleBatch = tuple[str, Experience]
"""A micro-batch of one role; the role is ``""`` for a masked one."""

_TRAINING_METRICS = {"ppo_clip_ratio": "clip_fraction", "ppo_kl": "update_kl"}
"""Upstream's name: ours. Its ``policy_loss`` is left out: a micro-batch's is a share of the whole step's
loss, scaled by the number of ranks, and on-policy it only says that advantages have mean 0."""


class SelfPlayStrategy(DeepspeedStrategy):
    """Upstream's strategy where the trainer, not a fixed count, says when a gradient is complete.

    Upstream fixes the number of micro-batches per optimizer step in DeepSpeed's configuration; our
    steps have as many as there are samples. So accumulation is 1 in the configuration (DeepSpeed
    scales no loss) and the worker marks the boundary.
    """

    def __init__(self, *args: Any, policies: int = 1, **kwargs: Any) -> None:
        """``policies``: how many learn at the same time, each with workers of its own."""
        super().__init__(*args, **kwargs)
        self.policies = policies

    def get_ds_train_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._own_batching(super().get_ds_train_config(*args, **kwargs))

    def get_ds_eval_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._own_batching(super().get_ds_eval_config(*args, **kwargs))

    def _own_batching(self, config: dict[str, Any]) -> dict[str, Any]:
        config.pop("train_batch_size")
        return {**config, "train_micro_batch_size_per_gpu": self.micro_train_batch_size,
                "gradient_accumulation_steps": 1}  # fmt: skip


class _PolicyWorker(PolicyModelActor.__ray_metadata__.modified_class):
    def init_model_from_pretrained(
        self, strategy: Any, pretrain: str, max_steps: int | None = None, vllm_engines: Any = None
    ) -> None:
        """As upstream's, without its weight sync: ``join_weight_group`` sets up ours."""
        _fit_to_machine(strategy, self._world_size)
        super().init_model_from_pretrained(strategy, pretrain, max_steps, None)

    def join_weight_group(
        self, engines: list[Any], engine_tensor_parallel_size: int, bucket_bytes: int, shares_gpu: bool
    ) -> None:
        self._sender = WeightSender(
            self.actor.model.module,
            zero_stage=self.strategy.args.ds.zero_stage,
            tensor_parallel_size=self.strategy.args.ds.tensor_parallel_size,
            bucket_bytes=bucket_bytes,
        )
        address, port = self._get_current_node_ip(), self._get_free_port()
        self._sender.join(engines, engine_tensor_parallel_size, address, port, shares_gpu=shares_gpu)

    def send_weights(self, version: int) -> WeightStamp | None:
        return self._sender.send(version)

    def update(self, steps: list[list[RoleBatch]], kl_coefficient: float) -> dict[str, dict[str, float]]:
        """Run optimizer steps, each a list of this rank's micro-batches (equal counts on all ranks).

        Returns ``{role: {metric: token-weighted mean over this rank, "tokens": count}}`` with the
        last step's learning rate and the mean gradient norm (before clipping) under role ``""``.
        """
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        grad_norms: list[float] = []
        last: dict[str, Any] = {}
        for step, micro_batches in enumerate(steps):
            normalizers = self._loss_normalizers(micro_batches)
            for i, (role, experience) in enumerate(micro_batches):
                self.actor.model.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
                experience.to_device(torch.cuda.current_device())
                status = self.trainer.training_step(experience, kl_coefficient, step, normalizers)
                last = status["metrics"]
                tokens = status["num_action_tokens"]
                if tokens:  # a masked micro-batch has means of nothing
                    for theirs, ours in _TRAINING_METRICS.items():
                        sums[role][ours] += float(last[theirs]) * tokens
                    sums[role]["tokens"] += tokens
            grad_norms.append(last["actor_grad_norm"])
        means = {
            role: {name: total / own["tokens"] if name != "tokens" else total for name, total in own.items()}
            for role, own in sums.items()
        }
        return {**means, "": {"grad_norm": sum(grad_norms) / len(grad_norms), "learning_rate": last["actor_lr"]}}

    def _loss_normalizers(self, micro_batches: list[RoleBatch]) -> dict[str, Any]:
        """Token and sample counts of the whole optimizer step over all ranks: upstream's, on joined masks."""
        masks = [experience.action_mask for _, experience in micro_batches]
        width = max(mask.shape[1] for mask in masks)
        joined = torch.cat([torch.nn.functional.pad(mask, (0, width - mask.shape[1])) for mask in masks])
        return get_loss_batch_info(self.strategy, joined.to(torch.cuda.current_device()))

    def save_to(self, folder: str) -> None:
        """A Hugging Face folder; all ranks must call it, rank 0 writes."""
        self.strategy.save_model(self.actor, self.tokenizer, folder)

    def perturb(self, scale: float, seed: int) -> None:
        """Add Gaussian noise of ``scale`` × each tensor's own standard deviation: a large, deliberate
        change, for parity checks (one ordinary update is smaller than bf16 noise)."""
        import deepspeed

        parameters = list(self.actor.model.module.parameters())
        with torch.no_grad(), deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.data.add_(noise * parameter.data.float().std().clamp(min=1e-3).to(parameter) * scale)


class _ReferenceWorker(ReferenceModelActor.__ray_metadata__.modified_class):
    def init_model_from_pretrained(self, strategy: Any, pretrain: str) -> None:
        _fit_to_machine(strategy, self._world_size)
        super().init_model_from_pretrained(strategy, pretrain)


def _fit_to_machine(strategy: SelfPlayStrategy, world_size: int) -> None:
    """What depends on this worker's machine; the driver's may have no GPU."""
    devices.use_cores(processes=world_size * strategy.policies)
    strategy.args.ds.attn_implementation = devices.attention(strategy.args.ds.attn_implementation)


PolicyWorker = ray.remote(num_gpus=1)(_PolicyWorker)
ReferenceWorker = ray.remote(num_gpus=1)(_ReferenceWorker)
