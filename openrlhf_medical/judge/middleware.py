"""The outermost layer of the app: counts and times every answer, and turns a defect into a plain 500."""

from __future__ import annotations

import logging
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openrlhf_medical.judge.discretion import shown
from openrlhf_medical.judge.metrics import ServerMetrics
from openrlhf_medical.judge.schema import Problem

logger = logging.getLogger(__name__)


class Outermost:
    """Written for ASGI itself: Starlette's BaseHTTPMiddleware hides from a handler that its client has gone."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics, log_text: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log_text = log_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        code: int | None = None

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # uvicorn would log the whole traceback, whose messages may quote a note
            logger.error("a defect at %s: %s", scope["path"], shown(error, whole=self._log_text))
            if code is None:
                answer = JSONResponse(Problem(detail="a defect of the judge; its log says where").model_dump(), 500)
                await answer(scope, receive, noted)
        finally:
            self._metrics.answered(scope["path"], code or 500, time.perf_counter() - start)
