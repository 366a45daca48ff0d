"""Three processes of this machine, and what they are sent through shared memory."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from broadcast_member import member

from openrlhf_medical.host_broadcast import _open


@pytest.mark.parametrize(("reachable", "expected"), [(True, [True] * 3), (False, [None] * 3)])
def test_all_bytes_arrive_or_all_go_another_way(reachable: bool, expected: list[bool | None], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    started = [
        context.Process(target=member, args=(rank, str(tmp_path / "store"), reachable, answers)) for rank in range(3)
    ]
    for process in started:
        process.start()
    try:
        assert [answers.get(timeout=120) for _ in started] == expected
    finally:
        for process in started:
            process.join(20)
            process.kill()


@pytest.mark.parametrize("hello", ["", "1 2", "999999999 3 6 secret", "not a number ."])
def test_what_is_not_here_is_not_opened(hello: str) -> None:
    assert _open(hello) is None


@pytest.mark.parametrize(("size", "secret", "found"), [(6, "secret", True), (6, "other!", False), (7, "secret", False)])
def test_only_the_memory_that_was_meant_is_opened(size: int, secret: str, found: bool, tmp_path: Path) -> None:
    with (tmp_path / "memory").open("w+b", buffering=0) as memory:
        memory.write(b"secret")
        opened = _open(f"{os.getpid()} {memory.fileno()} {size} {secret}")
    assert (opened is not None) == found
    if opened is not None:
        os.close(opened)
