"""Sending a policy's weights to its engines: the trainer's end of ``rollout.weights``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch

from openrlhf_medical import devices
from openrlhf_medical.cluster import gather
from openrlhf_medical.rollout.weights import Checksum, TensorSpec, WeightPlan, WeightStamp, ahead, pack, plan_buckets


class WeightSender:
    """Lives in every rank of a policy; rank 0 talks to the engines, the others help to gather.

    ``model`` is the unwrapped module inside the DeepSpeed engine. With ZeRO-3 a bucket's parameters
    are gathered, packed and let go again, so that no more than a bucket is ever whole.
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
        self._group, self._device = devices.weight_group(
            address, port, 0, world_size, torch.cuda.current_device(), shares_gpu=shares_gpu
        )
        gather(dict(zip(engines, joining, strict=True)), timeout_s, "joining the group for weights")
        self._engines = engines

    def send(self, version: int, timeout_s: float) -> WeightStamp | None:
        """Send every parameter; all ranks must call it. Rank 0 returns what it sent, the others None.

        Raises RuntimeError if an engine reports other bytes than were sent, StuckError if one reports nothing.
        """
        parameters = dict(self._model.named_parameters())
        plan = plan_buckets(
            [TensorSpec(name, p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p in parameters.items()],
            version,
            self._bucket_bytes,
        )
        receiving = {name: engine.receive_weights.remote(plan) for name, engine in self._engines.items()}
        checksum = self._broadcast(plan, parameters)
        torch.distributed.barrier()
        if not self._is_sender:
            return None
        sent = WeightStamp(version, checksum.hexdigest())
        for name, received in gather(receiving, timeout_s, "receiving weights").items():
            if received != sent:
                raise RuntimeError(f"weight sync: {name} holds {received}, the policy sent {sent}")
        return sent

    def _broadcast(self, plan: WeightPlan, parameters: dict[str, torch.nn.Parameter]) -> Checksum:
        checksum = Checksum()
        stream = torch.cuda.current_stream()

        def packets() -> Iterator[torch.Tensor]:
            for bucket in plan.buckets:
                tensors = [parameters[spec.name] for spec in bucket]
                with self._gathered(tensors):
                    buffer = pack(bucket, [t.data for t in tensors]).to(self._device) if self._is_sender else None
                if buffer is not None:
                    checksum.add(buffer)
                    yield buffer

        whole = self._zero_stage < 3 and self._tensor_parallel_size == 1  # else ranks gather, in one thread's order
        on_cpu = all(p.device.type == "cpu" for p in parameters.values())
        for buffer in ahead(packets()) if whole and on_cpu and self._is_sender else packets():
            self._group.broadcast(buffer, src=0, stream=stream)
        return checksum

    def _gathered(self, tensors: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
        """Whole tensors on this rank, as upstream's ``_gather_params_ctx`` does for one."""
        if self._tensor_parallel_size > 1:
            return deepspeed.module_inject.layers.GatherReplacedLayerParams(tensors, self._model, enabled=True)
        return deepspeed.zero.GatheredParameters(tensors, enabled=self._zero_stage == 3)
