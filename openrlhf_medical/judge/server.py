"""The judge as an HTTP server: FastAPI over one backend.

    request ─► gate (token, time, room, body) ─► queue ─► the judging thread (backend) ─► rows, keyed by game_idx

Judging runs on a thread of its own, so that /health, /metrics and refusals are answered while it works. Logs
hold no text of any note, unless asked for: neither bodies nor the messages of exceptions are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from openrlhf_medical import __version__
from openrlhf_medical.errors import UserError
from openrlhf_medical.judge import openapi, reward
from openrlhf_medical.judge.admission import Busy, Stopping
from openrlhf_medical.judge.backends import Backend, make_backend
from openrlhf_medical.judge.gate import Gate
from openrlhf_medical.judge.judging import ClientGone, Judging
from openrlhf_medical.judge.limits import Limits, NoMemory
from openrlhf_medical.judge.listen import bind, check_exposure, make_server, run_until_stopped, watch_parent, write_port
from openrlhf_medical.judge.metrics import CONTENT_TYPE, ServerMetrics
from openrlhf_medical.judge.middleware import Outermost
from openrlhf_medical.judge.own_process import OwnProcess
from openrlhf_medical.judge.schema import (
    EvaluateResponse,
    Health,
    JudgeQuery,
    JudgeRequest,
    JudgeResponse,
    Problem,
    RewardRequest,
    RewardResponse,
)

logger = logging.getLogger(__name__)

_NOBODY_IS_THERE = 499  # never sent: what nginx calls a client that left
_SWITCH_S = 0.0005  # a thread that judges hands over to the event loop this often; Python's own is 5 ms
_CLOSE_S = 2.0


def create_app(
    backend: Backend,
    *,
    model_name: str | None = None,
    token: str | None = None,
    limits: Limits | None = None,
    log_text: bool = False,
    on_loaded: Callable[[Judging], None] | None = None,
) -> FastAPI:
    """The app. The backend is loaded in the background; until then /health and every POST answer 503.

    Args:
        model_name: what answers give as ``model``; the backend's own name by default.
        token: bearer token that every POST must carry, if any.
        log_text: notes may be written to the log.
        on_loaded: called once when loading has ended, well or not.
    """
    metrics = ServerMetrics()
    limits = limits or Limits()
    judging = Judging(backend, metrics, limits, log_text=log_text)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        judging.start(lambda: on_loaded(judging) if on_loaded is not None else None)
        yield
        judging.queue.close()

    app = FastAPI(
        title="openrlhf_medical judge",
        version=__version__,
        description="Decides, blind, whether a clinical note is Safe or Harmful against its clean reference.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.judging = judging
    app.openapi = lambda: openapi.document(app, with_token=token is not None)  # type: ignore[method-assign]
    app.add_middleware(Outermost, metrics=metrics, log_text=log_text)
    _add_refusals(app, metrics)
    _add_status(app, judging, metrics, model_name or backend.model_name)
    _add_posts(app, judging, model_name or backend.model_name, Gate(judging, token, limits))
    return app


def _add_refusals(app: FastAPI, metrics: ServerMetrics) -> None:
    def refused(code: int, detail: str, retry_after_s: int = 1) -> Response:
        return JSONResponse(Problem(detail=detail).model_dump(), code, {"Retry-After": str(retry_after_s)})

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> Response:
        metrics.refused.labels("queue").inc()
        return refused(429, str(error), error.retry_after_s)

    @app.exception_handler(NoMemory)
    async def no_memory(_: Request, error: NoMemory) -> Response:
        metrics.refused.labels("memory").inc()
        return refused(429, "too many bytes are under way")

    @app.exception_handler(Stopping)
    async def stopping(_: Request, error: Stopping) -> Response:
        return refused(503, "the judge is stopping")

    @app.exception_handler(ClientGone)
    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=_NOBODY_IS_THERE)


def _add_status(app: FastAPI, judging: Judging, metrics: ServerMetrics, model: str) -> None:
    @app.get("/health", responses=openapi.health_responses())
    async def health() -> Response:
        """200 when queries are taken and judged."""
        if reason := judging.trouble():
            raise HTTPException(503, reason, headers={"Retry-After": "1"})
        return _json(Health(status="ok", model=model))

    @app.get("/metrics", response_class=PlainTextResponse, responses=openapi.text_responses("text/plain"))
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _add_posts(app: FastAPI, judging: Judging, model: str, gate: Gate) -> None:
    @app.post("/judge", responses=openapi.post_responses(JudgeResponse), openapi_extra=openapi.post_extra(JudgeRequest))
    async def judge(request: Request) -> Response:
        """What is true of each note: one row for each query, keyed by game_idx."""
        async with gate.enter(request, JudgeRequest) as (asked, deadline, gone):
            rows = await judging.rows(asked.queries, deadline, gone)
            return _json(JudgeResponse(labels=rows, model=model))

    @app.post(
        "/evaluate", responses=openapi.post_responses(EvaluateResponse), openapi_extra=openapi.post_extra(JudgeQuery)
    )
    async def evaluate(request: Request) -> Response:
        """One query, one row."""
        async with gate.enter(request, JudgeQuery) as (query, deadline, gone):
            [row] = await judging.rows([query], deadline, gone)
            return _json(EvaluateResponse(label=row, model=model))

    @app.post(
        "/get_reward", responses=openapi.post_responses(RewardResponse), openapi_extra=openapi.post_extra(RewardRequest)
    )
    async def get_reward(request: Request) -> Response:
        """OpenRLHF's remote reward: the assessor's total for each reply. 503 where one has no label."""
        async with gate.enter(request, RewardRequest) as (asked, deadline, gone):
            try:
                entries = await asyncio.to_thread(reward.read_request, asked)
            except reward.RewardInputError as error:
                raise HTTPException(422, str(error)) from None
            rows = await judging.rows([entry.query for entry in entries], deadline, gone)
            answer = reward.rewards_of(entries, rows)
            if answer is None:
                detail = "no label can be given for one of the entries, so there is no reward"
                raise HTTPException(503, detail, headers={"Retry-After": "1"})
            return _json(answer)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def serve(
    *,
    backend: str = "reference",
    model: str | None = None,
    device: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    port_file: Path | None = None,
    token: str | None = None,
    limits: Limits | None = None,
    log_text: bool = False,
    exit_with_parent: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT, finishes what it has, and returns.

    Where the backend is still at work after the grace time the process ends here, with exit code 0: a thread
    that is inside a model's own code cannot be ended otherwise.

    Args:
        port: 0 takes a free one; ``port_file`` then tells which, once the backend is ready.
        log_text: write notes and the messages of exceptions to the log. Clinical text is sensitive.
        exit_with_parent: also stop when the process that started this one ends.

    Raises:
        UserError: a port or host that cannot be listened on, or is public without a token; an unknown backend,
            one that does not load.
    """
    if exit_with_parent:
        watch_parent()
    limits = limits or Limits()
    check_exposure(host, token)
    judge = make_backend(backend, model=model, device=device)
    if getattr(judge, "own_process", False):
        judge = OwnProcess(judge)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(_SWITCH_S)

    def loaded(judging: Judging) -> None:
        if judging.failure is not None:
            server.should_exit = True
            return
        bound = listener.getsockname()[1]
        if port_file is not None:
            write_port(port_file, bound)
        logger.info("judge %s ready on http://%s:%d", judge.model_name, host, bound)

    app = create_app(judge, token=token, limits=limits, log_text=log_text, on_loaded=loaded)
    judging: Judging = app.state.judging
    server = make_server(app, judging.stop, limits.grace_s)
    listener = bind(host, port)  # last: what listens is answered at once
    try:
        run_until_stopped(server, listener)
    finally:
        ended = judging.close(_CLOSE_S)
    if judging.failure is not None:
        raise UserError(f"the judge backend {backend!r} cannot be loaded: {judging.failure}")
    if not ended:
        logger.warning("the backend is still at work: ending without it")
        logging.shutdown()
        os._exit(0)
