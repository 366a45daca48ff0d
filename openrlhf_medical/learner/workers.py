"""Upstream's policy and reference workers, with the things that they lack here.

An update that takes any number of samples and mixes supervised ones in, several adapters on one base,
a weight sync that is packed and verified, and threads for machines without a GPU. Everything else is
upstream's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from openrlhf_medical import devices
from openrlhf_medical.layout import PIECE_ELEMENTS
from openrlhf_medical.learner.adapters import AdapterFiles, Trainee, adapter_files, add_adapter, merge, save_adapter
from openrlhf_medical.learner.bias_correction import forget_steps
from openrlhf_medical.learner.compilation import outlive_killed_compilers
from openrlhf_medical.learner.normalizers import loss_normalizers, mean_of_own_tokens
from openrlhf_medical.learner.random_states import load_random_states, save_random_states
from openrlhf_medical.learner.reply_actor import ReplyActor
from openrlhf_medical.learner.shared_cores import OnSharedCores, SharedCores, on_shared_cores
from openrlhf_medical.learner.weight_sync import WeightSender
from openrlhf_medical.rollout.weights import WeightStamp

devices.prepare_process()

from openrlhf.models.loss import aggregate_loss  # noqa: E402  (after prepare_process)
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.launcher import ReferenceModelActor  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import PolicyModelActor  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402

RoleBatch = tuple[str, Experience]
"""A micro-batch of one role; the role is ``""`` for a masked one, ``sft/<role>`` for a supervised one."""

SUPERVISED = "sft/"

_TRAINING_METRICS = {
    "ppo_clip_ratio": "clip_fraction",
    "ppo_kl": "update_kl",
    "is_filter_ratio": "is_filtered",
    "entropy_loss": "token_entropy",
}
"""Upstream's name: ours. Its ``policy_loss`` is left out: a micro-batch's is a share of the whole step's
loss, scaled by the number of ranks, and on-policy it only says that advantages have mean 0."""


class SelfPlayStrategy(DeepspeedStrategy):
    """Upstream's strategy where the trainer, not a fixed count, says when a gradient is complete.

    Upstream fixes the number of micro-batches per optimizer step in DeepSpeed's configuration; our
    steps have as many as there are samples. So accumulation is 1 in the configuration (DeepSpeed
    scales no loss) and the worker marks the boundary.
    """

    def __init__(self, *args: Any, policies: int = 1, adapters: tuple[str, ...] = (), **kwargs: Any) -> None:
        """``policies``: how many models learn at the same time, each with workers of its own. ``adapters``: names
        of the LoRA adapters on this base, where it has any."""
        super().__init__(*args, **kwargs)
        self.policies, self.adapters = policies, adapters

    def setup_distributed(self, *args: Any, **kwargs: Any) -> None:
        outlive_killed_compilers()
        super().setup_distributed(*args, **kwargs)
        self.accumulated_gradient = 1

    def moving_average(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Once for every optimizer step; upstream counts micro-batches."""
        if model.model.is_gradient_accumulation_boundary():
            super().moving_average(model, *args, **kwargs)

    def optimizer_step(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        forget_steps(optimizer)
        super().optimizer_step(optimizer, *args, **kwargs)

    def get_ds_train_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        config = self._own_batching(super().get_ds_train_config(*args, **kwargs))
        if self._is_alone():
            # One rank has nothing to shard, and nobody to add gradients with. Stage 2 copies all of them four times
            # after every micro-batch; stage 1 lets them add up where they are, in the same number format. The sum over
            # ranks, which is still asked for once, then goes over pieces that stay in the processor's cache.
            config["zero_optimization"] |= {
                "stage": 1, "contiguous_gradients": False, "reduce_bucket_size": PIECE_ELEMENTS
            }  # fmt: skip
        return config

    def _get_model_parameters(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        model, groups = super()._get_model_parameters(*args, **kwargs)
        if self._is_alone() and isinstance(groups[0], dict):  # Muon's are no groups
            # DeepSpeed takes one group after another, and makes a flat copy of its gradients, then one in fp32.
            groups = [
                {**group, "params": piece} for group in groups for piece in pieces(group["params"], PIECE_ELEMENTS)
            ]
        return model, groups

    def _is_alone(self) -> bool:
        return bool(self.world_size == 1 and self.stage == 2 and not self.adam_offload)

    def get_ds_eval_config(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self._own_batching(super().get_ds_eval_config(*args, **kwargs))

    def _own_batching(self, config: dict[str, Any]) -> dict[str, Any]:
        config.pop("train_batch_size")
        return {**config, "train_micro_batch_size_per_gpu": self.micro_train_batch_size,
                "gradient_accumulation_steps": 1}  # fmt: skip


class _PolicyWorker(OnSharedCores, PolicyModelActor.__ray_metadata__.modified_class):
    actor: Any
    trainer: Any

    def init_model_from_pretrained(
        self, strategy: Any, pretrain: str, max_steps: int | None = None, vllm_engines: Any = None
    ) -> None:
        """As upstream's, without its weight sync (``join_weight_group`` sets up ours); with adapters, one
        optimizer for each of them on the same base."""
        self._cores = _fit_to_machine(strategy, self._world_size)
        super().init_model_from_pretrained(strategy, pretrain, max_steps, None)
        self.actor = self.trainer.actor = ReplyActor.of(self.actor)
        self._base = pretrain
        self._trainees: dict[str, Trainee] = {}
        for name in strategy.adapters:
            self._trainees[name] = (
                Trainee("default", self.actor, self.trainer)
                if not self._trainees
                else add_adapter(name, self.actor, self.tokenizer, strategy, max_steps)
            )
        if self._trainees:
            self.select(strategy.adapters[0])
        devices.give_back_memory()

    def select(self, adapter: str) -> None:
        """The adapter that the following calls are about."""
        trainee = self._trainees[adapter]
        self.actor, self.trainer = trainee.actor, trainee.trainer
        self.actor_optim, self.actor_scheduler = self.trainer.actor_optim, self.trainer.actor_scheduler
        self.actor.model.module.set_adapter(trainee.peft_name)
        self._selected = trainee

    def computes_on_cores(self) -> bool:
        """Whether this worker has no device of its own."""
        return next(self.actor.model.module.parameters()).device.type == "cpu"

    def reference_log_probs(self, **inputs: Any) -> torch.Tensor:
        """As ``forward``, with every adapter off: the frozen base is the KL reference."""
        with self.actor.model.module.disable_adapter():
            return self.forward(**inputs)

    def adapter_files(self) -> AdapterFiles | None:
        """The selected adapter as peft would write it; None on all ranks but the first."""
        return adapter_files(self.actor.model.module, self._selected.peft_name, self._base)

    def join_weight_group(
        self,
        engines: dict[str, Any],
        engine_tensor_parallel_size: int,
        bucket_bytes: int,
        shares_gpu: bool,
        timeout_s: float,
    ) -> None:
        self._sender = WeightSender(
            self.actor.model.module,
            zero_stage=self.strategy.args.ds.zero_stage,
            tensor_parallel_size=self.strategy.args.ds.tensor_parallel_size,
            bucket_bytes=bucket_bytes,
        )
        address, port = self._get_current_node_ip(), self._get_free_port()
        self._sender.join(
            engines, engine_tensor_parallel_size, address, port, shares_gpu=shares_gpu, timeout_s=timeout_s
        )

    def send_weights(self, version: int, timeout_s: float) -> WeightStamp | None:
        return self._sender.send(version, timeout_s)

    @on_shared_cores
    def update(
        self, steps: list[list[RoleBatch]], kl_coefficient: float, sft_coefficient: float = 1.0
    ) -> dict[str, dict[str, float]]:
        """Run optimizer steps, each a list of this rank's micro-batches (equal counts on all ranks).

        Returns ``{role: {metric: token-weighted mean over this rank, "tokens": count}}`` with the
        last step's learning rate and the mean gradient norm (before clipping) under role ``""``.
        """
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        grad_norms: list[float] = []
        for step, micro_batches in enumerate(steps):
            # A step's games and its supervised examples are two means: each has its own number of tokens.
            normalizers = {
                supervised: loss_normalizers(self.strategy, masks)
                for supervised in (False, True)
                if (masks := [batch[1].action_mask for batch in micro_batches if _is_supervised(batch) == supervised])
            }
            for i, batch in enumerate(micro_batches):
                role, experience = batch
                self._cores.take()
                self.actor.model.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
                experience.to_device(torch.cuda.current_device())
                if _is_supervised(batch):
                    metrics, tokens = self._supervised_step(experience, sft_coefficient, normalizers[True])
                else:
                    status = self.trainer.training_step(experience, kl_coefficient, step, normalizers[False])
                    tokens = status["num_action_tokens"]
                    metrics = _renamed(status["metrics"], normalizers[False], tokens) if tokens else {}
                if tokens:  # a masked micro-batch has means of nothing
                    for name, value in metrics.items():
                        sums[role][name] += value * tokens
                    sums[role]["tokens"] += tokens
            grad_norms.append(self.strategy.get_grad_norm(self.actor))
        means = {
            role: {name: total / own["tokens"] if name != "tokens" else total for name, total in own.items()}
            for role, own in sums.items()
        }
        learning_rate = self.actor_scheduler.get_last_lr()[0]
        return {**means, "": {"grad_norm": sum(grad_norms) / len(grad_norms), "learning_rate": learning_rate}}

    def _supervised_step(
        self, experience: Experience, coefficient: float, normalizers: dict[str, Any]
    ) -> tuple[dict[str, float], float]:
        """Cross-entropy of the reply's tokens, under the tempered distribution that games sample from.

        Logits are computed from the first reply token on: over a vocabulary of 50,000 those of the prompt
        would cost a third of the step. Not through upstream's Actor, which computes all of them.
        """
        self.actor.train()
        sequences, mask = experience.sequences, experience.action_mask
        tokens = float(mask.sum())
        kept = int(sequences.shape[1] - mask.argmax(1).min()) if tokens else 1
        positions = (experience.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self.actor.model(
            sequences, attention_mask=experience.attention_mask, position_ids=positions, logits_to_keep=kept
        )
        logits = output["logits"][:, :-1].float() / self.actor.temperature
        mask = mask[:, mask.shape[1] - kept + 1 :]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), sequences[:, sequences.shape[1] - kept + 1 :].flatten(), reduction="none"
        ).view(mask.shape)
        loss = aggregate_loss(losses, mask, **normalizers) * coefficient
        self.strategy.backward(loss, self.actor, self.actor_optim)
        self.strategy.optimizer_step(self.actor_optim, self.actor, self.actor_scheduler, name="actor")
        return {"sft_loss": float((losses.detach() * mask).sum()) / tokens if tokens else 0.0}, tokens

    def save_to(self, folder: str, merged: bool = False) -> None:
        """A Hugging Face folder; all ranks must call it, rank 0 writes. ``merged``: with an adapter, the
        base with the adapter folded in, after which this worker can only be ended."""
        if self._trainees and not merged:
            save_adapter(self.actor.model.module, self._selected.peft_name, self._base, self.tokenizer, folder)
        elif self._trainees:
            merge(self.actor.model.module, self.tokenizer, folder)
        else:
            model = self.ema_model if self.strategy.args.train.enable_ema else self.actor
            self.strategy.save_model(model, self.tokenizer, folder)
        torch.distributed.barrier()

    def save_state(self, folder: str) -> None:
        """Weights, optimizer and schedule as DeepSpeed writes them, the moving average of the weights where there
        is one, and each rank's random states; all ranks must call it."""
        self.actor.model.save_checkpoint(folder, tag="state", exclude_frozen_parameters=bool(self._trainees))
        own = Path(folder) / rank_file(torch.distributed.get_rank())
        save_random_states(own)
        if self.ema_model is not None:
            torch.save([_held_here(p).cpu() for p in self.ema_model.parameters()], own.with_suffix(".average"))

    def load_state(self, folder: str) -> None:
        self.actor.model.load_checkpoint(folder, tag="state", load_module_strict=not self._trainees)
        own = Path(folder) / rank_file(torch.distributed.get_rank())
        if self.ema_model is not None:
            for parameter, saved in zip(
                self.ema_model.parameters(), torch.load(own.with_suffix(".average")), strict=True
            ):
                _held_here(parameter).copy_(saved)
        load_random_states(own)

    def perturb(self, scale: float, seed: int) -> None:
        """Add Gaussian noise of ``scale`` × each tensor's own standard deviation: a large, deliberate
        change, for parity checks (one ordinary update is smaller than bf16 noise)."""
        import deepspeed

        module = self.actor.model.module
        parameters = [p for p in module.parameters() if p.requires_grad or not self._trainees]
        with torch.no_grad(), deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.data.add_(noise * parameter.data.float().std().clamp(min=1e-3).to(parameter) * scale)


def pieces(parameters: Sequence[torch.nn.Parameter], elements: int) -> list[list[torch.nn.Parameter]]:
    """In order, each with at most ``elements`` elements or a single parameter; one empty piece if there are none."""
    made: list[list[torch.nn.Parameter]] = [[]]
    size = 0
    for parameter in parameters:
        if made[-1] and size + parameter.numel() > elements:
            made.append([])
            size = 0
        made[-1].append(parameter)
        size += parameter.numel()
    return made


def rank_file(rank: int) -> str:
    """Name of the file in a state that is written by one rank alone, whatever DeepSpeed writes."""
    return f"rank_{rank}.random"


def _held_here(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this rank keeps: with ZeRO-3 a shard, else all."""
    return getattr(parameter, "ds_tensor", parameter).data


def _is_supervised(batch: RoleBatch) -> bool:
    return batch[0].startswith(SUPERVISED)


def _renamed(metrics: dict[str, Any], normalizers: dict[str, Any], tokens: float) -> dict[str, float]:
    """Upstream's training metrics that we report, under our names, as means over a micro-batch's tokens."""
    named = {ours: float(metrics[theirs]) for theirs, ours in _TRAINING_METRICS.items() if theirs in metrics}
    if "token_entropy" in named:  # a term of the loss, so of the same form as policy_loss
        named["token_entropy"] = mean_of_own_tokens(named["token_entropy"], normalizers, tokens)
    return named


class _ReferenceWorker(OnSharedCores, ReferenceModelActor.__ray_metadata__.modified_class):
    model: Any

    def init_model_from_pretrained(self, strategy: Any, pretrain: str) -> None:
        self._cores = _fit_to_machine(strategy, self._world_size)
        super().init_model_from_pretrained(strategy, pretrain)
        self.model = ReplyActor.of(self.model)
        devices.give_back_memory()


def _fit_to_machine(strategy: SelfPlayStrategy, world_size: int) -> SharedCores:
    """What depends on this worker's machine; the driver's may have no GPU."""
    devices.use_cores(processes=world_size * strategy.policies)
    strategy.args.ds.attn_implementation = devices.attention(strategy.args.ds.attn_implementation)
    return SharedCores(None if strategy.full_determinism else devices.cores_to_compute_on())


PolicyWorker = ray.remote(num_gpus=1)(_PolicyWorker)
ReferenceWorker = ray.remote(num_gpus=1)(_ReferenceWorker)
