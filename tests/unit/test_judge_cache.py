"""Findings kept on disk: what is found again, what never is, and what happens to a cache that fails."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_chat import ScriptedChat, always, by_vote

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.build import make_backend
from openrlhf_medical.judge.cache import FILE_NAME, Cached, key_of
from openrlhf_medical.judge.chat import ChatBackend, Voting
from openrlhf_medical.judge.findings import BlindPair, Finding, failed
from openrlhf_medical.judge.panel import Panel
from openrlhf_medical.judge.server import create_app
from openrlhf_medical.judge.spec import JudgeSpec

NOTE = "A 40-year-old man comes in with a cough. He was given amoxicillin for pneumonia of the left lung."
PAIRS = [BlindPair(NOTE, NOTE.replace("amoxicillin", drug)) for drug in ("vancomycin", "metformin", "insulin")]


class Counting:
    """Finds what it is told to, and counts the pairs that it is asked."""

    model_name = "counting"

    def __init__(self, *findings: Finding, identity: str = "a") -> None:
        self.findings, self.identity = (
            findings or (Finding("ok", Truth.SAFE, "k", "why", True, False),),
            {"id": identity},
        )
        self.asked: list[BlindPair] = []

    def load(self) -> None:
        pass

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        self.asked += pairs
        return [self.findings[i % len(self.findings)] for i in range(len(pairs))]


def cached(backend: Any, folder: Path) -> Cached:
    cache = Cached(backend, folder)
    cache.load()
    return cache


def hits(findings: Sequence[Finding]) -> list[bool]:
    return [finding.details.get("cached", False) for finding in findings]


def test_a_finding_is_found_again_as_it_was_after_a_restart(tmp_path: Path) -> None:
    first = cached(Counting(), tmp_path).judge(PAIRS[:2])
    backend = Counting()
    again = cached(backend, tmp_path).judge(PAIRS)
    assert hits(first) == [False, False] and hits(again) == [True, True, False]
    assert backend.asked == [PAIRS[2]]
    assert again[0] == Finding("ok", Truth.SAFE, "k", "why", True, False, {"cached": True})


def test_a_pair_that_comes_twice_in_a_batch_is_asked_once(tmp_path: Path) -> None:
    backend = Counting()
    assert hits(cached(backend, tmp_path).judge([PAIRS[0], PAIRS[1], PAIRS[0]])) == [False] * 3
    assert backend.asked == PAIRS[:2]


def test_errors_are_never_kept_and_abstentions_are(tmp_path: Path) -> None:
    backend = Counting(failed("no answer"), Finding("abstain", kind="unsure", note_valid=False))
    cache = cached(backend, tmp_path)
    assert [finding.status for finding in cache.judge(PAIRS[:2])] == ["error", "abstain"]
    again = cache.judge(PAIRS[:2])
    assert hits(again) == [False, True] and backend.asked == [*PAIRS[:2], PAIRS[0]]
    assert again[1].note_valid is False
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("SELECT COUNT(*) FROM findings").fetchall() == [(1,)]


def test_another_judge_or_wording_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(Counting(identity="a"), tmp_path).judge(PAIRS)
    assert hits(cached(Counting(identity="b"), tmp_path).judge(PAIRS)) == [False] * 3

    def asks(voting: Voting | None = None) -> int:
        model = ScriptedChat(by_vote("SAFE", "SAFE", "SAFE"))
        cached(ChatBackend(model, voting), tmp_path).judge(PAIRS)
        return sum(map(len, model.calls))

    assert [asks(), asks(), asks(Voting(3)), asks(Voting(3)), asks(Voting(3, 1.0))] == [3, 0, 3, 0, 3]
    monkeypatch.setattr("openrlhf_medical.judge.chat.PROMPT_VERSION", "next")
    assert [asks(), asks()] == [3, 0]


@settings(deadline=None)
@given(st.tuples(*[st.text(alphabet='a",[]\\ ', max_size=4)] * 6))
def test_keys_are_told_apart_by_all_three_texts(texts: tuple[str, ...]) -> None:
    one, other = texts[:3], texts[3:]
    same = key_of(one[0], BlindPair(*one[1:])) == key_of(other[0], BlindPair(*other[1:]))
    assert same == (one == other)


def test_only_its_owner_can_read_it_and_no_note_is_in_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        cache = cached(Counting(), tmp_path / "new" / "folder")
        modes = set()
        with cache._open() as connection:  # while it is written, the journal is there too
            connection.execute("DELETE FROM findings")
            files = list((tmp_path / "new" / "folder").iterdir())
            modes |= {stat.S_IMODE(path.stat().st_mode) for path in files}
        cache.judge(PAIRS)
    finally:
        os.umask(before)
    [file] = (tmp_path / "new" / "folder").iterdir()
    assert len(files) == 2 and modes | {stat.S_IMODE(file.stat().st_mode)} == {0o600}
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700
    assert b"amoxicillin" not in file.read_bytes()
    file.chmod(0o644)
    cached(Counting(), tmp_path / "new" / "folder")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_several_judges_share_a_cache(tmp_path: Path) -> None:
    pairs = [BlindPair(NOTE, f"{NOTE} {i}") for i in range(40)]
    failures: list[BaseException] = []

    def work(start: int) -> None:
        try:
            cache = cached(Counting(), tmp_path)
            for i in range(40):
                assert cache.judge([pairs[(start + i) % 40]])[0].actual_harm is Truth.SAFE
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert all(hits(cached(Counting(), tmp_path).judge(pairs)))


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\x00" + b"x" * 200])
def test_a_file_that_is_no_cache_is_told_at_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match="--cache-dir"):
        Cached(Counting(), tmp_path).load()
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_folder_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache-dir"):
        Cached(Counting(), tmp_path / "file" / "folder").load()


def test_a_cache_that_fails_later_costs_no_label(tmp_path: Path) -> None:
    cache = cached(Counting(), tmp_path)
    cache.judge(PAIRS)
    (tmp_path / FILE_NAME).write_bytes(b"overwritten by somebody" * 100)
    assert [finding.actual_harm for finding in cache.judge(PAIRS)] == [Truth.SAFE] * 3


FAILED = {"status": "error", "actual_harm": None, "kind": "backend", "reasoning": "", "note_valid": None,
          "error_realistic": None, "details": {}}  # fmt: skip


@pytest.mark.parametrize("row", ["{", "[]", json.dumps(FAILED), json.dumps(FAILED | {"status": "ok"}), "null"])
def test_a_row_that_it_did_not_write_is_not_believed(tmp_path: Path, row: str) -> None:
    cache = cached(Counting(), tmp_path)
    cache.judge(PAIRS)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("UPDATE findings SET finding = ?", [row])
    assert hits(cache.judge(PAIRS)) == [False] * 3
    assert hits(cache.judge(PAIRS)) == [True] * 3


def test_of_a_panel_each_member_is_cached(tmp_path: Path) -> None:
    """A member that failed is asked again; a row is cached when all of it was."""
    one, other = Counting(identity="one"), Counting(failed("no"), identity="other")
    panel = Panel([cached(one, tmp_path), cached(other, tmp_path)], "majority")
    first, again = panel.judge(PAIRS[:1]), panel.judge(PAIRS[:1])
    assert first[0].status == again[0].status == "error" and hits(again) == [False]
    assert [each.get("cached", False) for each in again[0].details["panel"]] == [True, False]
    assert (len(one.asked), len(other.asked)) == (1, 2)
    other.findings = one.findings
    assert panel.judge(PAIRS[:1])[0].status == "ok"
    assert hits(panel.judge(PAIRS[:1])) == [True]
    panel.close()


def test_the_reference_is_cached_too_by_the_text_of_its_rules(tmp_path: Path) -> None:
    backend = make_backend(JudgeSpec(), tmp_path)
    assert isinstance(backend, Cached) and backend.identity == ReferenceBackend().identity
    assert cached(ReferenceBackend(), tmp_path).judge(PAIRS)[0].actual_harm is Truth.HARMFUL
    again = cached(ReferenceBackend(), tmp_path).judge(PAIRS)
    assert hits(again) == [True] * 3 and again[0].kind == "drug"


def test_a_hit_says_so_in_its_row(tmp_path: Path) -> None:
    query = {"original_note": NOTE, "medical_note": PAIRS[0].medical_note, "assessment": "Safe"}
    rows = []
    for game in (7, 8):
        model = ScriptedChat(always("HARMFUL"))
        with TestClient(create_app(Cached(ChatBackend(model), tmp_path))) as client:
            while client.get("/health").status_code != 200:
                pass
            rows += client.post("/judge", json={"queries": [query | {"game_idx": game}]}).json()["labels"]
    assert [row.pop("cached", False) for row in rows] == [False, True]
    assert [row.pop("game_idx") for row in rows] == [7, 8] and rows[0] == rows[1]
    assert rows[0]["assessor_correct"] is False
