"""Asks a judge about pairs through the client that training uses, a few at a time, and times each query."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from openrlhf_medical.errors import RunError
from openrlhf_medical.game.players import Label, Query
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import PROGRAM, start_judge_process

READY_S = 10.0
"""How long a named judge may take to say that it is ready."""
MAX_WAIT_S = 0.01
"""How long a query waits for others to share its request; part of its latency."""
_DOCUMENT_BYTES = 2**20

Pair = tuple[str, str]
"""The clean reference, and the note in question."""


@contextlib.contextmanager
def own_judge(backend: str, model: str | None, start_timeout_s: float) -> Iterator[str]:
    """A judge server that lives as long as the block. Gives its url.

    Raises:
        UserError: no such backend, or one that has no model.
        RunError: it did not come up; the message holds the end of its log.
    """
    from openrlhf_medical.judge.build import make_backend  # the clients of models: only where a judge is started
    from openrlhf_medical.judge.spec import JudgeSpec

    make_backend(JudgeSpec(backend=backend, model=model))  # not loaded: a mistake is told here, not in the server's log
    program = [*PROGRAM, *(["--model", model] if model else [])]
    with tempfile.TemporaryDirectory(prefix="judge-audit-") as folder, contextlib.ExitStack() as stack:
        try:
            judge = start_judge_process(
                log_file=Path(folder) / "judge.log", backend=backend, program=program, deadline_s=start_timeout_s
            )
        except RuntimeError as error:
            raise RunError(str(error)) from None
        yield stack.enter_context(judge).url


def wait_until_reachable(client: JudgeClient, ready_s: float = READY_S) -> dict[str, dict[str, str]]:
    """``model`` and ``version`` of each replica that is ready, by url. Blocks.

    Raises:
        RunError: none is ready in time. UserError: they are ready and refuse our requests.
    """
    deadline = time.monotonic() + ready_s
    while True:
        health = client.health()
        if models := {url: each.said for url, each in health.items() if each.ready}:
            break
        if time.monotonic() > deadline:
            said = "; ".join(f"{url}: {each.said}" for url, each in health.items())
            raise RunError(
                f"no judge was ready within {ready_s:g} s ({said}); start one with "
                "`openrlhf-medical serve-judge`, or correct --judge-url"
            )
        time.sleep(0.1)
    client.wait_ready(ready_s)  # and takes our token
    return {url: {"model": model, "version": _version(url)} for url, model in models.items()}


def _version(url: str) -> str:
    """Of the server's program, as its OpenAPI document gives it; for the record only."""
    try:
        with requests.Session() as session:
            session.trust_env = False
            with session.get(f"{url}/openapi.json", timeout=5, allow_redirects=False, stream=True) as response:
                return str(json.loads(response.raw.read(_DOCUMENT_BYTES))["info"]["version"])[:80]
    except (requests.RequestException, HTTPError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return "(unknown version)"


def ask(
    client: JudgeClient, pairs: Sequence[Pair], *, concurrency: int, on_answer: Callable[[], object] = lambda: None
) -> list[tuple[Label, float]]:
    """The judge's label for each pair, in their order, and the seconds it took.

    Args:
        concurrency: queries under way at the same time; above what the judge does at once they wait, and the
            latency shows it.
        on_answer: called after every answer.

    Raises:
        RunError: the judge went away, and all that is asked fails.
    """
    return asyncio.run(_ask(client, pairs, concurrency, on_answer))


async def _ask(
    client: JudgeClient, pairs: Sequence[Pair], concurrency: int, on_answer: Callable[[], object]
) -> list[tuple[Label, float]]:
    found: dict[int, tuple[Label, float]] = {}
    failed_in_a_row = 0
    left = iter(enumerate(pairs))

    async def work() -> None:
        nonlocal failed_in_a_row
        for key, (reference, note) in left:
            began = time.monotonic()
            label = await client.label(Query(key, reference, note, "", None, "audit"))
            found[key] = (label, time.monotonic() - began)
            on_answer()
            failed_in_a_row = failed_in_a_row + 1 if label.status == "error" else 0
            many = failed_in_a_row > 0 and failed_in_a_row % concurrency == 0
            if many and not await asyncio.to_thread(_is_there, client):
                raise RunError(f"the judge went away after {len(found) - failed_in_a_row} of {len(pairs)} answers: "
                               f"{label.reason}")  # fmt: skip

    workers = [asyncio.ensure_future(work()) for _ in range(min(concurrency, len(pairs)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return [found[key] for key in range(len(pairs))]


def _is_there(client: JudgeClient) -> bool:
    return any(each.ready for each in client.health().values())
