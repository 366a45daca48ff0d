"""A process that is sent tensors through shared memory: for tests/unit/test_host_broadcast.py."""

from __future__ import annotations

from typing import Any

import torch

from openrlhf_medical import host_broadcast
from openrlhf_medical.host_broadcast import SLOT_BYTES

SIZES = (1, 1000, SLOT_BYTES, 2 * SLOT_BYTES + 3, 5)


def sent(number: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def member(rank: int, store: str, reachable: bool, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    if not reachable and rank == 2:
        host_broadcast._map = lambda hello: None
    group = host_broadcast.host_broadcast(torch.distributed.group.WORLD, rank)
    if group is None:
        answers.put(None)
        return
    right = True
    for number, size in enumerate(SIZES):
        tensor = sent(number, size) if rank == 0 else torch.zeros(size, dtype=torch.uint8)
        group.broadcast(tensor, src=0)
        right = right and torch.equal(tensor, sent(number, size))
    answers.put(right)
