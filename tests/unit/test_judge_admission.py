"""Who is let in, what is judged together, and what a parser is kept from: rules without a socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.judge import admission
from openrlhf_medical.judge.admission import Busy, Job, Queue, Stopping
from openrlhf_medical.judge.limits import BodyMemory, Limits, NoMemory, too_intricate
from openrlhf_medical.judge.schema import MAX_BODY_BYTES, MAX_QUERIES, MAX_TEXT_CHARS, JudgeQuery


def job(queries: int, first: int = 0, left_s: float = 60) -> Job:
    asked = [JudgeQuery(game_idx=first + i, original_note="a", medical_note="b") for i in range(queries)]
    return Job(asked, time.monotonic() + left_s)


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@on_loop
async def test_a_batch_holds_queries_of_many_requests_and_a_large_request_is_split() -> None:
    queue = Queue(max_queue=100, max_batch=4)
    for count, first in ((3, 0), (6, 10), (1, 20)):
        queue.put(job(count, first))
    batches = []
    for _ in range(3):
        batches.append([query.game_idx for piece in queue.take() for query in piece.queries])
        queue.judged()
    assert batches == [[0, 1, 2, 10], [11, 12, 13, 14], [15, 20]] and queue.waiting == 0


@on_loop
async def test_a_full_queue_refuses_and_has_room_again_once_some_are_taken() -> None:
    queue = Queue(max_queue=10, max_batch=4)
    queue.put(job(8))
    with pytest.raises(Busy) as refused:
        queue.put(job(3))
    assert refused.value.retry_after_s >= 1 and queue.waiting == 8
    queue.put(job(2))
    queue.take()
    queue.put(job(3))
    assert queue.waiting == 9


@on_loop
async def test_an_empty_queue_takes_a_request_that_is_larger_than_the_queue() -> None:
    queue = Queue(max_queue=10, max_batch=4)
    queue.put(job(11))
    with pytest.raises(Busy):
        queue.check_room(time.monotonic() + 60)


@on_loop
async def test_what_is_withdrawn_is_never_taken() -> None:
    queue = Queue(max_queue=100, max_batch=2)
    first, gone, last = job(2, 0), job(3, 10), job(1, 20)
    for each in (first, gone, last):
        queue.put(each)
    assert queue.withdraw(gone) == 3 and queue.withdraw(gone) == 0 and queue.waiting == 3
    assert [piece.job for piece in queue.take()] == [first]
    assert [piece.job for piece in queue.take()] == [last]
    assert queue.withdraw(first) == 0


@on_loop
async def test_half_a_request_can_be_withdrawn() -> None:
    queue = Queue(max_queue=100, max_batch=2)
    large = job(5)
    queue.put(large)
    queue.take()
    assert queue.withdraw(large) == 3 and queue.waiting == 0


def test_who_would_wait_longer_than_there_is_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(admission.time, "monotonic", lambda: now[0])

    async def play() -> None:
        queue = Queue(max_queue=1000, max_batch=10)
        queue.put(job(10))
        queue.take()
        now[0] += 2.0  # a batch takes two seconds
        queue.judged()
        queue.put(job(10, left_s=1))  # nothing waits: let in, if only to learn how fast the backend is now
        queue.put(job(10, left_s=4.1))  # second in line
        with pytest.raises(Busy) as refused:
            queue.put(job(10, left_s=5.9))  # third
        assert refused.value.retry_after_s == 2
        queue.put(job(10, left_s=6.1))
        queue.take()
        now[0] += 50.0  # it hangs: whoever comes now would wait at least as long again
        with pytest.raises(Busy):
            queue.put(job(1, left_s=60))

    asyncio.run(play())


@on_loop
async def test_closed_it_lets_nobody_in_and_empties() -> None:
    queue = Queue(max_queue=100, max_batch=2)
    queue.put(job(1))
    queue.close()
    with pytest.raises(Stopping):
        queue.put(job(1))
    assert len(queue.take()) == 1 and queue.take() == []


def test_the_memory_of_bodies_is_bounded() -> None:
    memory = BodyMemory(100)
    memory.take(60)
    with pytest.raises(NoMemory):
        memory.take(41)
    memory.give_back(20)
    memory.take(41)
    assert memory.held == 81


@pytest.mark.parametrize("field", ["max_queue", "max_batch", "request_timeout_s", "grace_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_limits_nothing_is_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=field):
        Limits(**{field: value})


# --- what a parser is kept from ------------------------------------------------------------------------------


def test_the_largest_request_is_not_too_intricate() -> None:
    note = 'He said: "no {fever}, [none], 1,2,3" \\ \u00e9\n' * 20
    query = {
        "original_note": note,
        "medical_note": note,
        "assessment": "Safe",
        "error_type": None,
        "game_category": "x",
    }
    body = {"queries": [{"game_idx": i, **query} for i in range(MAX_QUERIES)], "score_key": "labels"}
    for indent in (None, 4):
        assert not too_intricate(json.dumps(body, indent=indent).encode())
    assert not too_intricate(json.dumps(body, ensure_ascii=False).encode())


@given(st.text(max_size=200), st.text(alphabet='"\\{}[],: x', max_size=60))
def test_no_single_query_is_too_intricate(note: str, other: str) -> None:
    query = {"game_idx": 1, "original_note": note, "medical_note": other}
    assert not too_intricate(json.dumps({"queries": [query]}).encode())


HOSTILE = {
    "lists": b"[],",
    "objects": b"{},",
    "numbers": b"0,",
    "strings": b'"",',
    "keys": b'"a":0,',
    "spaces": b" ",
    "quotes": b'"',
    "open list": b"[",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_megabytes_of_structure_are_too_intricate(unit: bytes) -> None:
    assert too_intricate(b'{"queries":[' + unit * (MAX_BODY_BYTES // len(unit)))


@pytest.mark.parametrize("unit", [b'\\"', b"\\", b"\\\\", b"a"])
def test_one_endless_string_is_read_once(unit: bytes) -> None:
    body = b'"' + unit * (MAX_BODY_BYTES // len(unit))
    start = time.thread_time()
    assert not too_intricate(body)
    assert time.thread_time() - start < 1.0  # a pattern that goes back needs hours


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(body: bytes) -> None:
    assert too_intricate(body) is False


def test_the_longest_note_fits_a_body() -> None:
    assert 2 * MAX_TEXT_CHARS * len(json.dumps("é")) < MAX_BODY_BYTES
