"""The judge as an HTTP server: FastAPI over one backend.

    request ─► body read (limited), checked ─► the judging thread (backend) ─► rows, keyed by game_idx

Judging runs on a thread of its own, so that /health and /metrics answer while it works. Logs hold no text
of any note: neither bodies nor the messages of exceptions are written.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, ValidationError

from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.backends import Backend, make_backend
from openrlhf_medical.judge.findings import BlindPair, Finding, failed, row_of
from openrlhf_medical.judge.listen import bind, run_until_stopped, watch_parent, write_port
from openrlhf_medical.judge.metrics import CONTENT_TYPE, ServerMetrics
from openrlhf_medical.judge.schema import (
    MAX_BODY_BYTES,
    EvaluateResponse,
    JudgeQuery,
    JudgeRequest,
    JudgeResponse,
    LabelRow,
    RewardRequest,
    explain,
)

logger = logging.getLogger(__name__)

_Body = TypeVar("_Body", bound=BaseModel)
_GRACE_S = 5


class Judging:
    """The backend and the one thread that it runs on."""

    def __init__(self, backend: Backend, metrics: ServerMetrics) -> None:
        self.backend = backend
        self.metrics = metrics
        self.ready = False
        self.failure: str | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judging")

    async def load(self) -> None:
        """Sets ``ready`` or ``failure``; never raises."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.backend.load)
        except Exception as error:  # whatever a model loader may raise
            self.failure = f"{type(error).__name__}: {error}"
            logger.error("the backend cannot be loaded: %s", self.failure)
            return
        self.ready = True
        self.metrics.ready.set(1)

    async def rows(self, queries: Sequence[JudgeQuery]) -> list[LabelRow]:
        """One row for each query. What failed is a row with status ``error``."""
        self.metrics.in_flight.inc(len(queries))
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, queries)
        finally:
            self.metrics.in_flight.dec(len(queries))
        self.metrics.labelled(row.status for row in rows)
        return rows

    def _judge(self, queries: Sequence[JudgeQuery]) -> list[LabelRow]:
        pairs = [BlindPair(query.original_note, query.medical_note) for query in queries]
        try:
            findings: Sequence[Finding] = self.backend.judge(pairs)
        except Exception as error:  # one bad batch must not end the server
            where = traceback.extract_tb(error.__traceback__)[-1]
            # The message is left out: it may quote a note.
            logger.error("the backend failed with %s at %s:%s", type(error).__name__, where.filename, where.lineno)
            findings = [failed(f"the backend failed with {type(error).__name__}")] * len(pairs)
        if len(findings) != len(pairs):
            logger.error("the backend gave %d findings for %d notes", len(findings), len(pairs))
            findings = [failed("the backend gave findings that cannot be told apart")] * len(pairs)
        return [row_of(query, finding) for query, finding in zip(queries, findings, strict=True)]

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def create_app(
    backend: Backend,
    *,
    model_name: str | None = None,
    token: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    on_loaded: Callable[[Judging], None] | None = None,
) -> FastAPI:
    """The app. The backend is loaded in the background; until then all but /metrics answer 503.

    Args:
        model_name: what answers give as ``model``; the backend's own name by default.
        token: bearer token that every POST must carry, if any.
        on_loaded: called once when loading has ended, well or not.
    """
    metrics = ServerMetrics()
    judging = Judging(backend, metrics)

    async def load() -> None:
        await judging.load()
        if on_loaded is not None:
            on_loaded(judging)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        try:
            yield
        finally:
            loading.cancel()
            judging.close()

    app = FastAPI(title="openrlhf_medical judge", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.judging = judging
    _add_metrics(app, metrics)
    _add_endpoints(app, judging, model_name or backend.model_name, _Gate(judging, token, max_body_bytes))
    return app


class _Gate:
    """What every POST has to pass: the token, a ready backend, a body of sane size that fits its model."""

    def __init__(self, judging: Judging, token: str | None, max_body_bytes: int) -> None:
        self._judging = judging
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._max_body_bytes = max_body_bytes

    async def read(self, request: Request, model: type[_Body]) -> _Body:
        given = request.headers.get("authorization", "").encode()
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            raise HTTPException(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        self.check_ready()
        body = await self._body(request)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise HTTPException(422, explain(error)) from None

    def check_ready(self) -> None:
        if not self._judging.ready:
            raise HTTPException(503, self._judging.failure or "the backend is loading", headers={"Retry-After": "1"})

    async def _body(self, request: Request) -> bytes:
        too_large = HTTPException(413, f"body: more than {self._max_body_bytes} bytes; send fewer queries")
        declared = request.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise too_large
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                raise too_large
        return bytes(body)


def _add_metrics(app: FastAPI, metrics: ServerMetrics) -> None:
    @app.middleware("http")
    async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        code = 500
        try:
            response = await call_next(request)
            code = response.status_code
            return response
        finally:
            metrics.answered(request.url.path, code, time.perf_counter() - start)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _add_endpoints(app: FastAPI, judging: Judging, model: str, gate: _Gate) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        gate.check_ready()
        return {"status": "ok", "model": model}

    @app.post("/judge")
    async def judge(request: Request) -> Response:
        asked = await gate.read(request, JudgeRequest)
        return _json(JudgeResponse(labels=await judging.rows(asked.queries), model=model))

    @app.post("/evaluate")
    async def evaluate(request: Request) -> Response:
        query = await gate.read(request, JudgeQuery)
        return _json(EvaluateResponse(label=(await judging.rows([query]))[0], model=model))

    @app.post("/get_reward")
    async def get_reward(request: Request) -> Response:
        from openrlhf_medical.judge import reward

        asked = await gate.read(request, RewardRequest)
        try:
            entries = reward.read_request(asked)
        except reward.RewardInputError as error:
            raise HTTPException(422, str(error)) from None
        answer = reward.rewards_of(entries, await judging.rows([entry.query for entry in entries]))
        if answer is None:
            raise HTTPException(503, "no label can be given for one of the entries, so there is no reward")
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
    exit_with_parent: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT, then returns.

    Args:
        port: 0 takes a free one; ``port_file`` then tells which, once the backend is ready.
        exit_with_parent: also stop when the process that started this one ends.

    Raises:
        UserError: a port or host that cannot be listened on, an unknown backend, a backend that does not load.
    """
    if exit_with_parent:
        watch_parent()
    listener = bind(host, port)
    judge = make_backend(backend, model=model, device=device)
    import uvicorn

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def loaded(judging: Judging) -> None:
        if judging.failure is not None:
            server.should_exit = True
            return
        bound = listener.getsockname()[1]
        if port_file is not None:
            write_port(port_file, bound)
        logger.info("judge %s ready on http://%s:%d", judge.model_name, host, bound)

    app = create_app(judge, token=token, on_loaded=loaded)
    config = uvicorn.Config(app, access_log=False, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
    server = uvicorn.Server(config)
    run_until_stopped(server, listener)
    failure: str | None = app.state.judging.failure
    if failure is not None:
        raise UserError(f"the judge backend {backend!r} cannot be loaded: {failure}")
