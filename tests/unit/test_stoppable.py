"""What runs on other threads ends when it is told to."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from openrlhf_medical.errors import RunError
from openrlhf_medical.stoppable import Stoppable


async def answer() -> int:
    await asyncio.sleep(0)
    return 7


async def hang(begun: threading.Event, cleaned: list[str]) -> None:
    begun.set()
    try:
        await asyncio.sleep(60)
    finally:
        cleaned.append("up")


def test_it_runs_and_pauses_like_any_other() -> None:
    work = Stoppable()
    assert work.run(answer()) == 7
    began = time.monotonic()
    work.pause(0.05)
    assert time.monotonic() - began >= 0.05
    with pytest.raises(ZeroDivisionError):
        work.run(_fails())


async def _fails() -> None:
    raise ZeroDivisionError


def test_stop_ends_all_that_is_under_way_and_what_comes_after() -> None:
    work, begun, cleaned = Stoppable(), [threading.Event() for _ in range(2)], []
    with ThreadPoolExecutor(3) as threads:
        hung = [threads.submit(work.run, hang(event, cleaned)) for event in begun]
        paused = threads.submit(work.pause, 60)
        assert all(event.wait(10) for event in begun)
        began = time.monotonic()
        work.stop()
        for each in hung:
            with pytest.raises((CancelledError, asyncio.CancelledError)):
                each.result()
        with pytest.raises(RunError, match="the run ends"):
            paused.result()
    assert time.monotonic() - began < 10 and cleaned == ["up", "up"]
    with pytest.raises(asyncio.CancelledError):
        work.run(hang(threading.Event(), cleaned))
    work.stop()
