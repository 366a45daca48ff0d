"""Many games through replicas that fail in every way at once: no label is wrong, none is lost.

The same with 10,000 games and a judge process that is killed is in ``tests/stack/test_judge_faults.py``.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psutil
from faulty_judge import FAULTS, FaultyJudge, faults_now_and_then, flapping
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_storm import check, queries, storm

from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import kept_running
from openrlhf_medical.judge.replicas import FAULTS_TO_OPEN, LONGEST_PAUSE_S, Breaker, State, Verdict

GAMES = 2_000


def test_no_label_is_wrong_and_none_is_lost() -> None:
    asked = queries(GAMES, seed=1)
    with ExitStack() as stack:
        judges = [stack.enter_context(FaultyJudge(faults_now_and_then(0.3, seed))) for seed in range(3)]
        client = JudgeClient([judge.url for judge in judges], batch_size=4, max_wait_s=0.01, timeout_s=60,
                             attempt_timeout_s=0.5)  # fmt: skip
        stack.enter_context(client)
        with flapping(judges[2], up_s=0.5, down_s=0.2):
            ended = check(asked, storm(client, asked))
    served = sum((judge.served for judge in judges), Counter())
    assert len(served.keys() & FAULTS.keys()) > 0.8 * len(FAULTS), served
    assert ended["error"] < 0.02 * GAMES, "what can be mended by asking again was not"


def test_where_all_replicas_are_gone_every_game_ends_as_an_error_in_time() -> None:
    asked = queries(300, seed=2)
    with FaultyJudge() as judge, JudgeClient([judge.url], timeout_s=1.0) as client:
        judge.stop()
        labels = storm(client, asked)
    assert check(asked, labels) == {"error": 300}
    assert all("ConnectionError" in label.reason for label in labels)


def test_a_judge_process_that_is_killed_comes_back_and_costs_no_game(tmp_path: Path) -> None:
    """A real one, of the kind that a run starts for itself."""
    with kept_running(tmp_path / "judge.log", deadline_s=120) as url, JudgeClient([url], timeout_s=300) as client:
        asked = queries(200, seed=3, abstain=False)
        assert check(asked, storm(client, asked)) == {"ok": 200}
        [judge] = [child for child in psutil.Process().children() if "serve-judge" in child.cmdline()]
        judge.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 200
        while not ((tmp_path / "judge-2.log").exists() and client.snapshot()["retries"]):
            assert check(asked, storm(client, asked)) == {"ok": 200}
            assert time.monotonic() < deadline
        assert check(asked, storm(client, asked)) == {"ok": 200}


# --- the breaker, by rule --------------------------------------------------------------------------------

events = st.lists(
    st.one_of(
        st.just("enter"),
        st.tuples(st.sampled_from(Verdict), st.integers(0, 9), st.sampled_from([None, 0.0, 3.0])),
        st.floats(0, 10),
    ),
    max_size=60,
)


@given(events)
@settings(max_examples=300, deadline=None)
def test_the_breaker(script: list) -> None:
    """Any order of beginnings, ends and time that passes."""
    breaker, now, under_way = Breaker(), 0.0, []
    for event in script:
        was = breaker.state
        if event == "enter":
            if breaker.free_at() <= now:
                under_way.append(breaker.enter())
                assert under_way[-1] is (was is State.OPEN)
        elif isinstance(event, float):
            now += event
        elif under_way:
            verdict, which, pause_s = event
            trial = under_way.pop(which % len(under_way))
            faults, free_at = breaker.faults, breaker.free_at()
            breaker.leave(verdict, now, trial=trial, pause_s=pause_s)
            if was is not State.CLOSED and not trial:
                assert breaker.state is was, "old news"
            elif verdict in (Verdict.WORKS, Verdict.FULL):
                assert breaker.state is State.CLOSED
            elif trial or verdict is Verdict.GONE or faults + 1 == FAULTS_TO_OPEN:
                assert breaker.state is State.OPEN
                assert now <= breaker.free_at() <= now + max(pause_s or 0, LONGEST_PAUSE_S)
            else:
                assert breaker.state is State.CLOSED and breaker.free_at() == free_at
        assert sum(under_way) == (breaker.state is State.HALF_OPEN), "one trial at a time, and only then"
        assert (breaker.free_at() == math.inf) is (breaker.state is State.HALF_OPEN)


def test_pauses_grow_until_it_works_again() -> None:
    breaker, now, pauses = Breaker(), 0.0, []
    for _ in range(12):
        trial = breaker.enter()
        breaker.leave(Verdict.GONE, now, trial=trial)
        pauses.append(breaker.free_at() - now)
        now = breaker.free_at()
    assert pauses[0] <= 0.1 and pauses[3] > pauses[0] and 2.5 <= pauses[-1] <= 5
    breaker.leave(Verdict.WORKS, now, trial=breaker.enter())
    breaker.leave(Verdict.GONE, now, trial=breaker.enter())
    assert breaker.free_at() - now <= 0.1
