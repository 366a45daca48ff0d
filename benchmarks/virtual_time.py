"""An event loop whose clock jumps: what waits for hours of simulated time is done in milliseconds, and exactly.

    run(work())  ─►  (what work() returned, the seconds that it took by the loop's clock)

Only timers of this loop move the clock (``asyncio.sleep``, ``wait_for``, ``call_later``). Threads and sockets have no
place in it; work that waits for one, or for nothing at all, raises RuntimeError instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at 0 and stands still while anything can run."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


class _Jump(selectors.SelectSelector):
    """Where a loop would sleep until its next timer, the clock goes there at once."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen, and somebody still waits")
        if timeout > 0:
            self._loop.advance(timeout)
        return []


def run(work: Coroutine[Any, Any, _Result]) -> tuple[_Result, float]:
    """What ``work`` returns, and the virtual seconds until then."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        result = runner.run(work)
        return result, runner.get_loop().time()
