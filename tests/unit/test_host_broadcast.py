"""Three processes of this machine, and what they are sent through shared memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from broadcast_member import member

from openrlhf_medical.host_broadcast import _map


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


@pytest.mark.parametrize("hello", ["", "1 2", "999999999 3 secret", "not a number"])
def test_what_is_not_here_is_not_mapped(hello: str) -> None:
    assert _map(hello) is None
