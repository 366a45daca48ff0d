"""Sending a policy's weights to its engines: the trainer's end of ``rollout.weights``."""

from __future__ import annotations

import contextlib
from typing import Any

import deepspeed
import torch

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather
from openrlhf_medical.rollout.weights import (
    Checksum,
    TensorSpec,
    WeightPlan,
    WeightStamp,
    bucket_bytes,
    pack,
    packets,
    plan_buckets,
)


class WeightSender:
    """Lives in every rank of a policy; rank 0 talks to the engines, the others help to gather.

    ``model`` is the unwrapped module inside the DeepSpeed engine. With ZeRO-3 a bucket's parameters
    are gathered, packed and let go again: no more than those of a bucket are gathered at a time.
    """

    def __init__(self, model: torch.nn.Module, *, zero_stage: int, tensor_parallel_size: int, bucket_bytes: int):
        self._model = model
        self._zero_stage = zero_stage
        self._tensor_parallel_size = tensor_parallel_size
        self._bucket_bytes = bucket_bytes
        self._is_sender = torch.distributed.get_rank() == 0
        self._engines: dict[str, Any] = {}
        self._group: Any = None
        self._device: Any = None

    def join(
        self,
        engines: dict[str, Any],
        engine_tensor_parallel_size: int,
        address: str,
        port: int,
        *,
        shares_gpu: bool,
        timeout_s: float,
    ) -> None:
        """Form the group {rank 0 of the policy, every worker of every engine}. Other ranks do nothing.

        A worker that is stuck inside the group's own code, on either side, is found by the caller's deadline."""
        if not self._is_sender:
            return
        world_size = len(engines) * engine_tensor_parallel_size + 1
        joining = [
            engine.join_weight_group.remote(address, port, i * engine_tensor_parallel_size + 1, world_size, shares_gpu)
            for i, engine in enumerate(engines.values())
        ]
        self._group = None  # what the last one took is let go of first
        self._group, self._device = devices.weight_group(
            address, port, 0, world_size, torch.cuda.current_device(), shares_gpu=shares_gpu,
            size=sum(map(bucket_bytes, self._plan(0).buckets)),
        )  # fmt: skip
        gather(dict(zip(engines, joining, strict=True)), timeout_s, "joining the group for weights")
        self._engines = engines

    def send(self, version: int, timeout_s: float) -> WeightStamp | None:
        """Send every parameter; all ranks must call it. Rank 0 returns what it sent, the others None.

        Raises RuntimeError if an engine reports other bytes than were sent, StuckError if one reports nothing.
        """
        plan = self._plan(version)
        receiving = {name: engine.receive_weights.remote(plan) for name, engine in self._engines.items()}
        checksum = self._broadcast(plan)
        torch.distributed.barrier()
        if not self._is_sender:
            return None
        sent = WeightStamp(version, checksum.hexdigest())
        for name, received in gather(receiving, timeout_s, "receiving weights").items():
            if received != sent:
                raise RuntimeError(f"weight sync: {name} holds {received}, the policy sent {sent}")
        return sent

    def _plan(self, version: int) -> WeightPlan:
        parameters = self._model.named_parameters()
        specs = [TensorSpec(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in parameters]
        return plan_buckets(specs, version, self._bucket_bytes)

    def _broadcast(self, plan: WeightPlan) -> Checksum:
        parameters = dict(self._model.named_parameters())
        checksum = Checksum()
        stream = torch.cuda.current_stream()
        if not self._is_sender:
            for bucket in plan.buckets:
                with self._gathered([parameters[spec.name] for spec in bucket]):
                    pass  # to gather is a collective call; only rank 0 sends
            return checksum
        with devices.on_one_thread():  # the engines have more to do, on the same cores where there is no GPU
            for bucket, buffer in packets(plan, self._group, self._device):
                tensors = [parameters[spec.name] for spec in bucket]
                with self._gathered(tensors):
                    pack(bucket, [tensor.data for tensor in tensors], buffer)
                self._group.broadcast(buffer, src=0, stream=stream)
                checksum.add(buffer)
        return checksum

    def _gathered(self, tensors: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
        """Whole tensors on this rank, as upstream's ``_gather_params_ctx`` does for one."""
        if self._tensor_parallel_size > 1:
            return deepspeed.module_inject.layers.GatherReplacedLayerParams(tensors, self._model, enabled=True)
        return deepspeed.zero.GatheredParameters(tensors, enabled=self._zero_stage == 3)
