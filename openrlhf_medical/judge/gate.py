"""What every POST has to pass before its queries are looked at: the token, the time it has, room in the queue, a
body of sane size that fits its model.

The cheap checks come first: a request that is refused for want of room costs no reading and no parsing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import math
import time
from collections.abc import AsyncIterator
from typing import Generic, NamedTuple, TypeVar

from fastapi import HTTPException, Request
from pydantic import BaseModel, ValidationError

from openrlhf_medical.judge.judging import Judging
from openrlhf_medical.judge.limits import BodyMemory, Limits, too_intricate
from openrlhf_medical.judge.schema import TIMEOUT_HEADER, explain

_Body = TypeVar("_Body", bound=BaseModel)


class Admitted(NamedTuple, Generic[_Body]):
    """A request that passed. ``deadline`` is of ``time.monotonic``; ``gone`` is done once the client is gone."""

    asked: _Body
    deadline: float
    gone: asyncio.Future[None]


class Gate:
    def __init__(self, judging: Judging, token: str | None, limits: Limits) -> None:
        self._judging = judging
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._limits = limits
        self._memory = BodyMemory(limits.max_memory_bytes)
        self._parsing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def enter(self, request: Request, model: type[_Body]) -> AsyncIterator[Admitted[_Body]]:
        """The request's body, and its memory held until the answer is there.

        Raises:
            HTTPException: 401, 408, 413, 422, 503.
            Busy, Stopping, NoMemory: no room now.
            ClientDisconnect: in the middle of the body.
        """
        self._check_token(request)
        self.check_available()
        deadline = time.monotonic() + self._timeout_s(request)
        self._judging.queue.check_room(deadline)
        body, held = bytearray(), 0
        try:
            try:
                await self._read(request, body, deadline)
                asked = await self._parse(body, model)
            finally:
                held = len(body)
                body.clear()  # what is made of it takes its place
            gone = asyncio.ensure_future(_gone(request))
            try:
                yield Admitted(asked, deadline, gone)
            finally:
                gone.cancel()
        finally:
            self._memory.give_back(held)

    def check_available(self) -> None:
        if reason := self._judging.unavailable():
            raise HTTPException(503, reason, headers={"Retry-After": "1"})

    def _check_token(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})

    def _timeout_s(self, request: Request) -> float:
        given = request.headers.get(TIMEOUT_HEADER)
        if given is None:
            return self._limits.request_timeout_s
        try:
            seconds = float(given)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise HTTPException(422, f"{TIMEOUT_HEADER}: must be a number of seconds above 0")
        return min(seconds, self._limits.request_timeout_s)

    async def _read(self, request: Request, body: bytearray, deadline: float) -> None:
        most = self._limits.max_body_bytes
        too_large = HTTPException(413, f"body: more than {most} bytes; send fewer queries")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > most:
                        raise too_large
                    self._memory.take(len(chunk))
                    body += chunk
        except TimeoutError:
            raise HTTPException(408, "body: did not come in time") from None

    async def _parse(self, body: bytearray, model: type[_Body]) -> _Body:
        # One at a time, and the loop has its turn before the next: a parser holds the whole process up.
        async with self._parsing:
            if too_intricate(body):
                raise HTTPException(413, "body: more strings or numbers than the most queries have; send fewer")
            try:
                return model.model_validate_json(body)
            except ValidationError as error:
                raise HTTPException(422, explain(error)) from None
            finally:
                await asyncio.sleep(0)


async def _gone(request: Request) -> None:
    """Returns when the client is gone. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
