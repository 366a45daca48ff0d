"""Receiving new weights inside vLLM's worker, and the packing that both ends agree on.

One sync is: a plan (names, types, shapes, in buckets), then one broadcast of bytes per bucket, then
one answer with a version stamp and a checksum of the bytes that arrived. vLLM is given everything in
one ``reload_weights`` call fed by a generator, so it loads one bucket while the next is packed;
several calls would refill half-received fused layers (qkv, gate_up) from uninitialised memory.

vLLM imports this module in its worker process through ``worker_extension_cls``.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from openrlhf_medical import devices, shared_memory
from openrlhf_medical.host_broadcast import HostBroadcast
from openrlhf_medical.rollout.core_turns import take_turns

devices.prepare_process()

ALIGNMENT = 16_384
"""Bytes. Buckets end on a multiple of this, so that a checksum can fold them into equal rows."""

PARENT_CHECK_S = 0.5


@dataclass(frozen=True, slots=True)
class TensorSpec:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * int(torch.Size(self.shape).numel())


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """What one sync will send: ``buckets`` in order, each one broadcast of ``bucket_bytes(bucket)`` bytes."""

    version: int
    buckets: tuple[tuple[TensorSpec, ...], ...]


@dataclass(frozen=True, slots=True)
class WeightStamp:
    """Which weights a holder has: the policy's version, and a checksum of the bytes it was sent as."""

    version: int
    checksum: str


def plan_buckets(specs: list[TensorSpec], version: int, target_bytes: int) -> WeightPlan:
    """Fill buckets in order up to ``target_bytes`` each; a larger tensor gets a bucket to itself."""
    buckets: list[list[TensorSpec]] = []
    size = target_bytes
    for spec in specs:
        if size + spec.num_bytes > target_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(spec)
        size += spec.num_bytes
    return WeightPlan(version, tuple(map(tuple, buckets)))


def bucket_bytes(bucket: tuple[TensorSpec, ...]) -> int:
    total = sum(spec.num_bytes for spec in bucket)
    return -(-total // ALIGNMENT) * ALIGNMENT


def packets(plan: WeightPlan, group: Any, device: Any) -> Iterator[tuple[tuple[TensorSpec, ...], torch.Tensor]]:
    """Each bucket, and the memory that its bytes travel in, for both ends: on ``device``, or where the ranks of
    ``group`` all see it."""
    start = 0
    for bucket in plan.buckets:
        size = bucket_bytes(bucket)
        shared = isinstance(group, HostBroadcast)
        yield bucket, group.packet(start, size) if shared else torch.empty(size, dtype=torch.uint8, device=device)
        start += size


def pack(bucket: tuple[TensorSpec, ...], tensors: list[torch.Tensor], buffer: torch.Tensor) -> None:
    """Into (bucket_bytes,) uint8; the padding is zero."""
    offset = 0
    for spec, tensor in zip(bucket, tensors, strict=True):
        buffer[offset : offset + spec.num_bytes].view(spec.dtype).copy_(tensor.detach().reshape(-1))
        offset += spec.num_bytes
    buffer[offset:] = 0


def unpack(bucket: tuple[TensorSpec, ...], buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Views into ``buffer``; the caller must not reuse it while they live."""
    offset = 0
    for spec in bucket:
        yield spec.name, buffer[offset : offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
        offset += spec.num_bytes


class Checksum:
    """A fingerprint of all buckets of a sync, cheap on CPU and GPU alike: sums of rows of 64-bit words, which
    wrap around, then BLAKE2."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, buffer: torch.Tensor) -> None:
        rows = buffer.view(torch.int64).view(-1, ALIGNMENT // 8).sum(1)
        self._hash.update(rows.cpu().numpy().tobytes())

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _folder_tensors(folder: str, checksum: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a folder's safetensors files, in the order of their names; ``checksum`` sees the bytes."""
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no safetensors files")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                checksum.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
                yield name, tensor


class WeightReceiver:
    """Methods added to vLLM's worker (``self`` is that worker). Called through ``collective_rpc``."""

    device: torch.device
    model_runner: Any

    def end_with(self, actor: int) -> None:
        """End this worker once the engine's actor, of that process id, or anything between the two has ended.

        vLLM's engine process would outlive an actor that is killed, and hold its memory for ever; it ends in turn
        when its worker does. A tensor-parallel worker that Ray started, here or elsewhere, ends with its parent.
        """
        this = psutil.Process()
        above = this.parents()
        pids = [process.pid for process in above]
        watched = above[: pids.index(actor) + 1] if actor in pids else above[:1]
        # All ends of the queues are open by now. Without a name nothing can be left, whoever is killed.
        shared_memory.remove(shared_memory.segments_of([this, *watched]))
        devices.give_back_memory()  # loading took the weights several times
        if devices.cores_to_compute_on() is not None and torch.distributed.get_world_size() == 1:
            take_turns(self)

        def watch() -> None:
            while all(each.is_running() and "zombie" not in str(each) for each in watched):
                time.sleep(PARENT_CHECK_S)
            os._exit(1)

        threading.Thread(target=watch, name="end-with-actor", daemon=True).start()

    def join_weight_group(self, address: str, port: int, rank_offset: int, world_size: int, shares_gpu: bool) -> None:
        rank = torch.distributed.get_rank() + rank_offset
        self._weight_group: Any = None  # what the last one took is let go of first
        self._weight_group, self._weight_device = devices.weight_group(
            address, port, rank, world_size, self.device, shares_gpu=shares_gpu
        )

    def receive_weights(self, pickled_plan: bytes) -> tuple[int, str]:
        """``pickled_plan`` is a WeightPlan: vLLM's own messages turn dataclasses into dicts."""
        plan: WeightPlan = pickle.loads(pickled_plan)
        checksum = Checksum()
        stream = torch.cuda.current_stream() if self.device.type == "cuda" else None

        def arriving() -> Iterator[tuple[str, torch.Tensor]]:
            for bucket, buffer in packets(plan, self._weight_group, self._weight_device):
                self._weight_group.broadcast(buffer, src=0, stream=stream)
                checksum.add(buffer)
                yield from unpack(bucket, buffer.to(self.device))

        self._weight_stamp = None  # a sync that dies half-way must not leave the old stamp behind
        tensors = arriving()
        try:
            self.model_runner.reload_weights(weights_iterator=tensors)
        finally:
            for _ in tensors:  # whatever went wrong here, the sender must not wait for us for ever
                pass
        devices.repack_output_head(self.model_runner.get_model())
        self._weight_stamp = WeightStamp(plan.version, checksum.hexdigest())
        return self.weight_stamp()  # type: ignore[return-value]  # set one line above

    def load_folder(self, folder: str, version: int) -> tuple[int, str]:
        """Take over the weights of a Hugging Face folder: how a past version comes back to play."""
        self._weight_stamp = None
        checksum = hashlib.blake2b(digest_size=16)
        self.model_runner.reload_weights(weights_iterator=_folder_tensors(folder, checksum))
        devices.repack_output_head(self.model_runner.get_model())
        self._weight_stamp = WeightStamp(version, checksum.hexdigest())
        return self.weight_stamp()  # type: ignore[return-value]  # set one line above

    def weight_stamp(self) -> tuple[int, str] | None:
        stamp: WeightStamp | None = getattr(self, "_weight_stamp", None)
        return (stamp.version, stamp.checksum) if stamp else None
