"""Work on threads of its own that another thread can bring to an end: games that are played ahead, and pauses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from openrlhf_medical.errors import RunError

T = TypeVar("T")


class Stoppable:
    """Thread-safe. Whatever it runs ends with ``stop``, and nothing begins after that."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._under_way: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}
        self._lock = threading.RLock()  # a signal's handler may call ``stop`` in the middle of ``run``

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """``asyncio.run``. Raises CancelledError where it was stopped."""

        async def noted() -> T:
            task = asyncio.current_task()
            assert task is not None
            with self._lock:
                self._under_way[task] = asyncio.get_running_loop()
                if self._stopping.is_set():
                    task.cancel()
            try:
                return await work
            finally:
                with self._lock:  # held while ``stop`` calls the loop, which is open until we are through here
                    del self._under_way[task]

        return asyncio.run(noted())

    def pause(self, seconds: float) -> None:
        """``time.sleep``. Raises RunError where it was stopped."""
        if self._stopping.wait(seconds):
            raise RunError("the run ends")

    def stop(self) -> None:
        """May be called again."""
        with self._lock:
            self._stopping.set()
            for task, loop in self._under_way.items():
                loop.call_soon_threadsafe(task.cancel)
