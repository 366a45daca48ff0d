"""A process that is sent tensors through shared memory: for tests/unit/test_host_broadcast.py."""

from __future__ import annotations

from typing import Any

import torch

from openrlhf_medical import host_broadcast

SIZES = (1, 1000, 1 << 20, 5)
ROUNDS = 3


def sent(number: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def member(rank: int, store: str, reachable: bool, answers: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    if not reachable and rank == 2:
        host_broadcast._open = lambda hello: None
    group = host_broadcast.host_broadcast(torch.distributed.group.WORLD, rank, sum(SIZES) if rank == 0 else 0)
    if group is None:
        answers.put(None)
        return
    right = True
    for turn in range(ROUNDS):
        start = 0
        for size in SIZES:
            packet = group.packet(start, size)
            if rank == 0:
                packet.copy_(sent(turn, size))
            group.broadcast(packet, src=0)
            right = right and torch.equal(packet, sent(turn, size))
            start += size
        torch.distributed.barrier()  # all are done with it
    answers.put(right)
