"""How much a judge server takes at a time, so that no client can make it slow for others or end it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.schema import MAX_BODY_BYTES, MAX_QUERIES


@dataclass(frozen=True, slots=True)
class Limits:
    """
    Attributes:
        max_queue: queries that wait for the backend; above it new ones are refused (429).
        max_batch: queries that the backend is given at once, of however many requests.
        request_timeout_s: the longest that a request is worked on; a client may ask for less.
        grace_s: time to finish what was taken when the server is told to stop.
        max_body_bytes: of one request (413 above it).
        max_memory_bytes: bodies of all requests under way together (429 above it).

    Raises:
        UserError: one that is not positive.
    """

    max_queue: int = 4096
    max_batch: int = 64
    request_timeout_s: float = 120.0
    grace_s: float = 5.0
    max_body_bytes: int = MAX_BODY_BYTES
    max_memory_bytes: int = 8 * MAX_BODY_BYTES

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; it must be a number above 0")


class NoMemory(Exception):
    """The bodies of the requests under way are as many bytes as are allowed together."""


class BodyMemory:
    """Counts the bytes of bodies held by the server. For one thread, the event loop's."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0

    @property
    def held(self) -> int:
        return self._held

    def take(self, count: int) -> None:
        """Raises NoMemory, and then nothing is taken."""
        if self._held + count > self._limit:
            raise NoMemory
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count


# --- what a parser would choke on -----------------------------------------------------------------------

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_MAX_STRINGS = 32 * MAX_QUERIES
_MAX_OUTSIDE_BYTES = 256 * MAX_QUERIES


def too_intricate(body: bytes | bytearray) -> bool:
    """Whether JSON has far more structure than the largest request needs.

    Megabytes of ``[],[],`` take a parser a second, and 40 times their size in memory, where as many bytes of
    notes take milliseconds. So strings, and the bytes outside of them, are counted first, and the count
    stops at the limit. Linear whatever is sent: the pattern never goes back, and an open string ends the text.
    """
    end = outside = 0
    for count, string in enumerate(_STRING.finditer(body)):
        outside += string.start() - end
        end = string.end()
        if count >= _MAX_STRINGS or outside > _MAX_OUTSIDE_BYTES:
            return True
    return outside + len(body) - end > _MAX_OUTSIDE_BYTES
