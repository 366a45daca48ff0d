"""One HTTP exchange with one judge, and what its answer is worth. Never raises for what a server does."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Self

import requests
from pydantic import ValidationError
from requests.adapters import HTTPAdapter
from urllib3.exceptions import DecodeError, HTTPError, ProtocolError

from openrlhf_medical.game.players import Label, Query
from openrlhf_medical.judge.schema import (
    BACKEND,
    EXPIRED,
    MAX_ANSWER_BYTES,
    STOPPED,
    TIMEOUT_HEADER,
    LabelRow,
    explain,
)

LONGEST_RETRY_AFTER_S = 30.0
"""A replica that asks to be left alone for longer is tried again after this: a Retry-After is a guess."""

_CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 65536
_REASON_CHARS = 300


class Outcome(Enum):
    """What came of a request.

    ANSWERED     a row for each query, keyed by it
    FAULTY       something else: a 5xx, half a body, garbage, rows for other queries
    FULL         429: it works, but not for us now
    UNAVAILABLE  no connection, no answer in time, 502 to 504
    UNFIT        413 or 422: the server works, and refuses this very body
    REFUSED      any other 4xx or a redirect: it would refuse any request of ours
    """

    ANSWERED = auto()
    FAULTY = auto()
    FULL = auto()
    UNAVAILABLE = auto()
    UNFIT = auto()
    REFUSED = auto()


@dataclass(slots=True)
class Answer:
    """``labels``, ``failed`` and ``invalid`` by the key that was sent; empty unless ANSWERED. ``failed``: labels that
    say that the backend failed. ``invalid``: a row that is no label, or that tells that no backend has seen the
    query."""

    outcome: Outcome
    reason: str = ""
    labels: dict[int, Label] = field(default_factory=dict)
    failed: dict[int, Label] = field(default_factory=dict)
    invalid: dict[int, str] = field(default_factory=dict)
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What GET /health said: the judge's model where it is ready, else what came instead."""

    ready: bool
    said: str


class Transport:
    """Pooled connections to all replicas. Thread-safe. A context manager.

    Args:
        token: sent as a bearer token.
        connections: kept open for each replica, at most.
    """

    def __init__(self, token: str | None, connections: int = 1) -> None:
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=64, pool_maxsize=connections))
        # Nothing of the environment (proxies, .netrc) and nothing of an answer may change later requests.
        self._session.trust_env = False
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers["Accept-Encoding"] = "identity"  # no body that grows when it is unpacked
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def health(self, url: str, timeout_s: float) -> Health:
        deadline = time.monotonic() + timeout_s
        try:
            with self._session.get(f"{url}/health", timeout=timeout_s, allow_redirects=False, stream=True) as response:
                content = _read(response, deadline)
        except (requests.RequestException, HTTPError, OSError) as error:
            return Health(False, _describe(error))
        if response.status_code != 200:
            return Health(False, _status_line(response, content))
        return Health(True, _model(content))

    def judge(self, url: str, queries: Mapping[int, Query], timeout_s: float) -> Answer:
        """Asks for a label for each query. The keys must be new ones: a late answer to another request must not
        fit. ``timeout_s`` is for the whole exchange, however slowly it drips."""
        deadline = time.monotonic() + timeout_s
        body = json.dumps({"queries": [_wire(k, query) for k, query in queries.items()], "score_key": "labels"})
        try:
            with self._session.post(
                f"{url}/judge",
                data=body.encode(),
                headers={"Content-Type": "application/json", TIMEOUT_HEADER: f"{timeout_s:.3f}"},
                timeout=(min(_CONNECT_TIMEOUT_S, timeout_s), timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = _read(response, deadline)
        except (requests.RequestException, HTTPError, OSError) as error:
            return Answer(_outcome_of(error), _describe(error))
        if response.status_code == 200:
            return read_rows(content, queries)
        outcome = _STATUS.get(response.status_code)
        if outcome is None:
            outcome = Outcome.FAULTY if response.status_code >= 500 else Outcome.REFUSED
        retry_after_s = retry_after(response.headers.get("Retry-After"))
        return Answer(outcome, _status_line(response, content), retry_after_s=retry_after_s)


_STATUS = {
    408: Outcome.UNAVAILABLE,
    413: Outcome.UNFIT,
    422: Outcome.UNFIT,
    429: Outcome.FULL,
    502: Outcome.UNAVAILABLE,
    503: Outcome.UNAVAILABLE,
    504: Outcome.UNAVAILABLE,
}


def _outcome_of(error: Exception) -> Outcome:
    """An answer that broke off, or was none, is a fault; else nobody answered (in time)."""
    cause = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else error
    return Outcome.FAULTY if isinstance(cause, (ProtocolError, DecodeError)) else Outcome.UNAVAILABLE


def _model(content: bytes) -> str:
    try:
        return _short(str(json.loads(content)["model"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return "unknown"


def _wire(key: int, query: Query) -> dict[str, Any]:
    return {
        "game_idx": key,
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
            raise ProtocolError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def read_rows(content: bytes, queries: Mapping[int, Query]) -> Answer:
    """Joins the rows of an answer to the queries by key.

    The keys must be exactly those that were sent, each once. Where one is missing, comes twice or is unknown,
    the answer does not know its own keys, and none of its rows is believed.
    """
    try:
        rows = json.loads(content)["labels"]
        keys = [row["game_idx"] for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Answer(Outcome.FAULTY, "the answer is not an object with a list of labels")
    if problem := _misfit(keys, queries):
        return Answer(Outcome.FAULTY, problem)
    answer = Answer(Outcome.ANSWERED)
    for key, row in zip(keys, rows, strict=True):
        try:
            read = LabelRow.model_validate(row)
            if read.status == "error" and read.kind in (EXPIRED, STOPPED):
                answer.invalid[key] = _short(read.judge_reasoning)
            else:
                found = answer.failed if (read.status, read.kind) == ("error", BACKEND) else answer.labels
                found[key] = _label(read, queries[key])
        except ValidationError as error:
            answer.invalid[key] = f"a row that is no label ({_short(explain(error))})"
        except ValueError:  # of _label; ValidationError is one too
            answer.invalid[key] = "a row that cannot be kept as JSON"
    return answer


def _misfit(keys: Sequence[object], queries: Mapping[int, Query]) -> str:
    known = [key for key in keys if type(key) is int and key in queries]
    missing, unknown = len(queries) - len(set(known)), len(keys) - len(known)
    twice = len(known) - len(set(known))
    if not (missing or unknown or twice):
        return ""
    return (
        f"{len(keys)} rows for {len(queries)} queries: {missing} without a row, {unknown} rows that nobody asked "
        f"for, {twice} too many"
    )


def _label(row: LabelRow, query: Query) -> Label:
    """Raises ValueError on halves of characters, which games.jsonl could not hold; NaN becomes null."""
    extra = row.model_dump(mode="json") | {"game_idx": query.game_idx}
    json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
    return Label(
        status=row.status,
        actual_harm=row.actual_harm,
        error_present=row.error_present,
        reason=row.judge_reasoning,
        extra=extra,
    )


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given in seconds or as a date; None where it says nothing. Capped."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_S) if seconds == seconds else None


def _status_line(response: requests.Response, content: bytes) -> str:
    return f"HTTP {response.status_code} {_short(content.decode(errors='replace'))}".strip()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(str(error))}"


def _short(text: str) -> str:
    return " ".join(text.split())[:_REASON_CHARS]
