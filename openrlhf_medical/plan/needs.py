"""What the workers of one placement group need, from a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_medical import devices
from openrlhf_medical.layout import WEIGHT_BUCKET_BYTES, Place
from openrlhf_medical.plan.hardware import cpu_has_fast_bf16
from openrlhf_medical.plan.memory import (
    BF16,
    FP32,
    Need,
    Serving,
    Training,
    cache_bytes_per_token,
    engine_need,
    policy_need,
    reference_need,
)
from openrlhf_medical.plan.shapes import ModelShape

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig

ENGINE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM has room for (``rollout.engines`` holds the same, and needs Ray to be read)."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Of each kind of worker of a placement group, on one of its bundles."""

    workers: Mapping[str, Need]
    sequences: int | None = None
    """Sequences of data.max_len that the cache of one engine holds; None where there is none."""

    @property
    def device_bytes(self) -> int:
        return sum(need.device_bytes for need in self.workers.values())

    @property
    def host_bytes(self) -> int:
        return sum(need.host_bytes for need in self.workers.values())


def models_of(config: RunConfig, place: Place) -> dict[str, str]:
    """The model that each kind of worker of a placement group loads, as named in the configuration."""
    start = config.actor.model_name_or_path
    checkpoint = str(config.roles.checkpoint) if place.frozen and config.roles.checkpoint else start
    named = {"critic": config.critic.model_name_or_path or start, "engine": checkpoint}
    return {kind: named.get(kind, start) for kind in place.workers}


def needs_of(
    config: RunConfig, place: Place, shapes: Mapping[str, ModelShape], gpu_bytes: int | None, *, has_gpus: bool
) -> Needs:
    """``shapes``: of the model of each kind of worker. ``gpu_bytes``: of the smallest GPU among its places; where
    that is not known on a machine with GPUs, an engine's cache counts as nothing."""
    training = training_of(config, place, on_gpu=has_gpus)
    workers: dict[str, Need] = {}
    sequences = None
    for kind in place.workers:
        shape = shapes[kind]
        if kind == "policy":
            workers[kind] = policy_need(shape, training)
        elif kind == "reference":
            workers[kind] = reference_need(shape, training)
        elif kind == "critic":
            workers[kind] = policy_need(shape, training, vocabulary=0)
        else:
            serving = serving_of(config, place, shape)
            workers[kind], sequences = engine_need(shape, serving, gpu_bytes if has_gpus else None)
    return Needs(workers, sequences)


def training_of(config: RunConfig, place: Place, *, on_gpu: bool) -> Training:
    ds, train, actor, rollout = config.ds, config.train, config.actor, config.rollout
    longest = config.data.max_len

    def tokens(micro_batch: int, limit: int) -> int:
        """Of one pass: so many samples, or with dynamic batches so many tokens; a longer sample stays alone."""
        whole = max(limit, longest) if train.dynamic_batch_enable else micro_batch * longest
        return whole // ds.ring_attn_size

    return Training(
        ranks=place.bundles,
        zero_stage=ds.zero_stage,
        tokens=tokens(train.micro_batch_size, train.max_tokens_per_gpu),
        forward_tokens=tokens(rollout.micro_batch_size, rollout.max_tokens_per_gpu or train.max_tokens_per_gpu),
        checkpointing=actor.gradient_checkpointing_enable,
        adam_offload=ds.adam_offload,
        muon=actor.optim == "muon",
        gradient_bytes=FP32 if ds.grad_accum_dtype == "fp32" else BF16,
        overlap=ds.overlap_comm,
        adapters=place.trained_adapters,
        adapter_rank=ds.lora.rank,
        four_bit=ds.load_in_4bit,
        entropy=actor.entropy_coef is not None,
        average=train.enable_ema,
        reference_offload=config.ref.offload,
        on_gpu=on_gpu,
    )


def serving_of(config: RunConfig, place: Place, shape: ModelShape) -> Serving:
    vllm, rank = config.vllm, config.ds.lora.rank
    wide = BF16 if cpu_has_fast_bf16() else FP32
    least = cache_bytes_per_token(shape) * config.data.max_len
    return Serving(
        max_len=config.data.max_len,
        tensor_parallel_size=vllm.tensor_parallel_size,
        share=vllm.gpu_memory_utilization,
        adapters=place.played_adapters,
        adapter_rank=next((known for known in ENGINE_RANKS if known >= rank), rank),
        eager=vllm.enforce_eager,
        # Adapters travel as files. The largest tensor is the embedding.
        sync_bytes=0 if place.trained_adapters else max(WEIGHT_BUCKET_BYTES, BF16 * shape.embedding),
        cpu_cache=max(devices.KV_CACHE_BYTES_CPU, least * wide // BF16),
        cpu_bytes=wide,
    )
