"""One HTTP exchange with one judge, and what its answer is worth. Never raises for what a server does."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Any, Self

import requests
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from openrlhf_medical.game.players import Label
from openrlhf_medical.judge.schema import MAX_ANSWER_BYTES, LabelRow, explain
from openrlhf_medical.judge.waiting import Pending

_CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 65536
_REASON_CHARS = 300


class Outcome(Enum):
    """ANSWERED: rows came. FAILED: worth another try (no connection, 5xx, 429, garbage). REFUSED: a 4xx."""

    ANSWERED = auto()
    FAILED = auto()
    REFUSED = auto()


@dataclass(slots=True)
class Answer:
    """``labels``, ``invalid`` (a row, but no label) and ``problems`` (no row to be trusted) by wire id.

    ``about_body``: the server refused this very body (413, 422).
    """

    outcome: Outcome
    reason: str = ""
    labels: dict[int, Label] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    retry_after_s: float | None = None
    about_body: bool = False


class Transport:
    """One pooled session; for one thread. A context manager."""

    def __init__(self, token: str | None) -> None:
        self._session = requests.Session()
        # No proxies and no .netrc from the environment: judges are named by configuration alone.
        self._session.trust_env = False
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def health(self, url: str, timeout_s: float) -> str | None:
        """None when ready, else what came instead."""
        try:
            response = self._session.get(f"{url}/health", timeout=timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            return type(error).__name__
        return None if response.status_code == 200 else f"HTTP {response.status_code} {_short(response.text)}"

    def judge(self, url: str, batch: Sequence[Pending], timeout_s: float) -> Answer:
        """Asks for the labels of a batch. ``timeout_s`` is for the whole exchange, however slowly it drips."""
        deadline = time.monotonic() + timeout_s
        body = json.dumps({"queries": [_wire(pending) for pending in batch], "score_key": "labels"}).encode()
        try:
            with self._session.post(
                f"{url}/judge",
                data=body,
                headers={"Content-Type": "application/json"},
                timeout=(min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read(response, deadline)
        except (requests.RequestException, HTTPError, TimeoutError, OSError) as error:
            return Answer(Outcome.FAILED, f"{type(error).__name__}: {_short(str(error))}")
        if response.status_code == 200:
            return read_rows(content, batch)
        reason = f"HTTP {response.status_code} {_short(content.decode(errors='replace'))}"
        if response.status_code == 429 or response.status_code >= 500:
            return Answer(Outcome.FAILED, reason, retry_after_s=_retry_after_s(response))
        return Answer(Outcome.REFUSED, reason, about_body=response.status_code in (413, 422))


def _wire(pending: Pending) -> dict[str, Any]:
    query = pending.query
    return {
        "game_idx": pending.wire_id,
        "original_note": query.original_note,
        "medical_note": query.medical_note,
        "assessment": query.assessment,
        "error_type": query.error_type,
        "game_category": query.game_category,
    }


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body. ``requests`` limits the time between two pieces only, not the whole."""
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        content += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the answer came too slowly")
        if len(content) > MAX_ANSWER_BYTES:
            raise TimeoutError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def read_rows(content: bytes, batch: Sequence[Pending]) -> Answer:
    """Joins the rows of an answer to a batch by key. A row that comes twice, or does not validate, is none."""
    try:
        rows = json.loads(content)["labels"]
        if not isinstance(rows, list):
            raise TypeError("labels is not a list")
    except (ValueError, KeyError, TypeError, RecursionError):
        return Answer(Outcome.FAILED, "the answer is not an object with a list of labels")
    asked = {pending.wire_id: pending for pending in batch}
    keys = [row.get("game_idx") if isinstance(row, dict) else None for row in rows]
    times = Counter(key for key in keys if type(key) is int)
    answer = Answer(Outcome.ANSWERED)
    for key, row in zip(keys, rows, strict=True):
        if type(key) is not int or key not in asked:
            continue  # an answer to something that was not asked; the query it should have been stays open
        if times[key] > 1:
            answer.problems[key] = f"{times[key]} rows for one query"
            continue
        try:
            answer.labels[key] = _label(LabelRow.model_validate(row), asked[key])
        except ValidationError as error:
            answer.invalid[key] = f"a row that is no label ({_short(explain(error))})"
    unknown = sum(count for key, count in times.items() if key not in asked) + keys.count(None)
    for key in asked.keys() - answer.labels.keys() - answer.invalid.keys() - answer.problems.keys():
        answer.problems[key] = "no row for the query" + (f", but {unknown} that nobody asked for" if unknown else "")
    return answer


def _label(row: LabelRow, pending: Pending) -> Label:
    extra = row.model_dump(mode="json") | {"game_idx": pending.query.game_idx}
    return Label(
        status=row.status,
        actual_harm=row.actual_harm,
        error_present=row.error_present,
        reason=row.judge_reasoning,
        extra=extra,
    )


def _retry_after_s(response: requests.Response) -> float | None:
    """Seconds, as our server says it; the date form is left to the client's own pause."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 3600 else None


def _short(text: str) -> str:
    return " ".join(text.split())[:_REASON_CHARS]
