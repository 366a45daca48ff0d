"""Broadcast between processes of one machine: through memory that all of them have mapped.

gloo alone sends through the machine's network stack, into fresh memory at every end. Here rank 0 writes where the
others read, always in the same place, and gloo only says when.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from typing import Any

import torch

_HELLO = 80
"""Bytes that say where the memory is: process id, file descriptor, size, and a secret that it begins with."""


class HostBroadcast:
    """A gloo process group and memory that all of its ranks have mapped."""

    def __init__(self, group: Any, memory: mmap.mmap) -> None:
        self._group = group
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)

    def packet(self, start: int, size: int) -> torch.Tensor:
        """(size,) uint8: bytes ``start`` to ``start + size`` of the memory."""
        assert start + size <= len(self._memory), (start, size, len(self._memory))
        return self._memory[start : start + size]

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        """What rank 0 wrote into ``tensor``, a ``packet``, is there for all when this returns; a collective call.

        Rank 0 may write the next packet meanwhile, but this one again only when it has heard that everybody is done
        with it. ``src`` is 0, and ``stream`` is that of other groups and has no meaning here."""
        self._group.barrier().wait()


def host_broadcast(group: Any, rank: int, size: int) -> HostBroadcast | None:
    """None where not all ranks of the gloo ``group`` can map the same memory, as on several machines; a collective
    call. ``size``: bytes, rank 0's counts.

    The memory has no name, so nothing is left of it whoever is killed: the others open it as a file of rank 0's.
    """
    hello = torch.zeros(_HELLO, dtype=torch.uint8)
    own = -1
    if rank == 0:
        secret = secrets.token_hex(16)
        with contextlib.suppress(OSError, AttributeError):  # some builds of Python have no memfd_create
            own = os.memfd_create("weights")
            os.ftruncate(own, size)
            os.pwrite(own, secret.encode(), 0)
            words = f"{os.getpid()} {own} {size} {secret}".ljust(_HELLO).encode()
            hello = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    group.broadcast(hello, 0).wait()
    file = _open(bytes(hello.tolist()).decode())
    everybody = torch.tensor([int(file is not None)])
    group.allreduce([everybody], op=torch.distributed.ReduceOp.MIN).wait()
    if own >= 0:
        os.close(own)  # all who could have opened theirs
    if file is None:
        return None
    try:  # only now are there pages behind it: on several machines nothing is taken
        return HostBroadcast(group, mmap.mmap(file, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE)) if int(everybody) else None
    finally:
        os.close(file)


def _open(hello: str) -> int | None:
    """A descriptor of the memory that rank 0 speaks of; None if it is not on this machine, or not to be seen from
    here."""
    with contextlib.suppress(OSError, ValueError):
        pid, descriptor, size, secret = hello.split()
        file = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR)
        with contextlib.suppress(OSError):
            if os.pread(file, len(secret), 0) == secret.encode() and os.fstat(file).st_size == int(size):
                return file
        os.close(file)
    return None
