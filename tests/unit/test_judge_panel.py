"""Several judges: what they find together, and that the finding of each is kept."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_chat import ScriptedChat, always

from openrlhf_medical.game.players import Query, Truth
from openrlhf_medical.game.records import Game, GameStatus
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.backends import ReferenceBackend
from openrlhf_medical.judge.chat import ChatBackend
from openrlhf_medical.judge.findings import BlindPair, Finding, failed, row_of
from openrlhf_medical.judge.panel import Panel, Rule, decide
from openrlhf_medical.judge.schema import JudgeQuery
from openrlhf_medical.judge.server import create_app
from openrlhf_medical.judge.transport import read_rows

NOTE = "A 40-year-old man comes in with a cough. He was given amoxicillin for pneumonia of the left lung."
PAIR = BlindPair(NOTE, NOTE.replace("amoxicillin", "vancomycin"))
SAFE, HARMFUL = Finding("ok", Truth.SAFE), Finding("ok", Truth.HARMFUL)
ABSTAINS, FAILS = Finding("abstain", kind="unsure"), failed("no answer")
GARBAGE = Finding("abstain", kind="not a note", note_valid=False)


class Fixed:
    """Finds the same of every pair, or raises."""

    def __init__(self, finding: Finding | Exception, name: str = "fixed") -> None:
        self.model_name, self.finding = name, finding
        self.identity: dict[str, Any] = {"backend": name}
        self.threads: set[int] = set()
        self.closed = False

    def load(self) -> None:
        self.threads.add(threading.get_ident())

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        self.threads.add(threading.get_ident())
        if isinstance(self.finding, Exception):
            raise self.finding
        return [self.finding] * len(pairs)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("findings", "majority", "unanimous"),
    [
        ((SAFE, SAFE, SAFE), "Safe", "Safe"),
        ((SAFE, SAFE, HARMFUL), "Safe", "abstain"),
        ((HARMFUL, SAFE, HARMFUL), "Harmful", "abstain"),
        ((SAFE, HARMFUL), "abstain", "abstain"),
        ((SAFE, SAFE, HARMFUL, HARMFUL), "abstain", "abstain"),
        ((SAFE, SAFE, ABSTAINS), "Safe", "abstain"),
        ((SAFE, ABSTAINS), "abstain", "abstain"),
        ((SAFE, HARMFUL, ABSTAINS), "abstain", "abstain"),
        ((ABSTAINS, ABSTAINS), "abstain", "abstain"),
        ((SAFE, SAFE, FAILS), "Safe", "error"),
        ((SAFE, FAILS), "error", "error"),
        ((SAFE, FAILS, FAILS), "error", "error"),
        ((SAFE, HARMFUL, FAILS), "error", "abstain"),
        ((SAFE, ABSTAINS, ABSTAINS, FAILS), "abstain", "abstain"),
        ((GARBAGE, SAFE, FAILS), "error", "abstain"),
        ((ABSTAINS, FAILS), "abstain", "abstain"),
        ((FAILS, FAILS), "error", "error"),
        ((GARBAGE, GARBAGE, SAFE), "not a note", "abstain"),
        ((GARBAGE, GARBAGE), "not a note", "not a note"),
    ],
)
def test_the_rules(findings: tuple[Finding, ...], majority: str, unanimous: str) -> None:
    for rule, expected in (("majority", majority), ("unanimous", unanimous)):
        found = decide(findings, rule)  # type: ignore[arg-type]
        assert shown(found) == expected, rule
        assert shown(decide(findings[::-1], rule)) == expected  # type: ignore[arg-type]


def shown(finding: Finding) -> str:
    if finding.note_valid is False:
        return "not a note"
    return finding.status if finding.actual_harm is None else finding.actual_harm.value


@settings(deadline=None)
@given(st.lists(st.sampled_from([SAFE, HARMFUL, ABSTAINS, FAILS, GARBAGE]), min_size=2, max_size=7))
def test_a_truth_is_never_that_of_the_fewer_nor_of_a_failure(findings: list[Finding]) -> None:
    rules: tuple[Rule, Rule] = ("majority", "unanimous")
    majority, unanimous = (decide(findings, rule) for rule in rules)
    if majority.actual_harm is not None:
        same = sum(finding.actual_harm is majority.actual_harm for finding in findings)
        assert 2 * same > len(findings)
    if unanimous.actual_harm is not None:
        assert {finding.actual_harm for finding in findings} == {unanimous.actual_harm}
    # What was decided, or left undecided, is so whatever those that failed would have said.
    for instead in (SAFE, HARMFUL, ABSTAINS, GARBAGE):
        mended = [instead if finding is FAILS else finding for finding in findings]
        for rule in rules:
            if (found := decide(findings, rule)).status != "error":
                assert shown(decide(mended, rule)) == shown(found)


def test_the_finding_of_each_member_is_in_the_row() -> None:
    members = [
        ReferenceBackend(),
        ChatBackend(ScriptedChat(always("SAFE"), "weak")),
        ChatBackend(ScriptedChat(always("HARMFUL"), "strong")),
        Fixed(HARMFUL, "fourth"),
        Fixed(ValueError(f"no: {PAIR.medical_note}"), "broken"),
    ]
    panel = Panel(members, "majority")
    panel.load()
    [finding] = panel.judge([PAIR])
    row = row_of(JudgeQuery(game_idx=5, original_note="", medical_note=""), finding).model_dump(mode="json")
    assert (row["status"], row["actual_harm"]) == ("ok", "Harmful")
    assert [(each["model"], each["status"], each["actual_harm"]) for each in row["panel"]] == [
        *(("reference", "ok", "Harmful"), ("weak", "ok", "Safe"), ("strong", "ok", "Harmful")),
        ("fourth", "ok", "Harmful"),
        ("broken", "error", None),
    ]
    assert "amoxicillin" in row["panel"][0]["judge_reasoning"]
    assert "weak: Safe" in row["judge_reasoning"] and "broken: error" in row["judge_reasoning"]
    assert panel.model_name == "panel (majority): reference, weak, strong, fourth, broken"
    panel.close()


def test_what_the_members_found_reaches_games_jsonl() -> None:
    """Server, wire, client, game: as they hand it on."""
    members = [Fixed(SAFE, "one"), Fixed(HARMFUL, "two"), Fixed(SAFE, "three")]
    with TestClient(create_app(Panel(members, "majority"))) as client:
        while client.get("/health").status_code != 200:
            pass
        asked = {"game_idx": 5, "original_note": PAIR.original_note, "medical_note": PAIR.medical_note}
        content = client.post("/judge", json={"queries": [asked]}).content
    query = Query(3, PAIR.original_note, PAIR.medical_note, "", None, "")
    label = read_rows(content, {5: query}).labels[5]
    seed = Seed("s", Category.ADVERSARIAL_BENIGN, "n", "v", "clean", PAIR.original_note, PAIR.original_note)
    line = Game(0, 3, 0, 0, 0, seed, GameStatus.OK, PAIR.medical_note, None, None, label).to_json()["label"]
    assert line["actual_harm"] == "Safe" and line["kind"] == "panel" and line["game_idx"] == 3
    assert [(each["model"], each["actual_harm"]) for each in line["panel"]] == [
        *(("one", "Safe"), ("two", "Harmful"), ("three", "Safe"))
    ]


def test_each_member_is_loaded_and_asked_on_one_thread_and_closed_whatever_the_others_do() -> None:
    class Unclosable(Fixed):
        def close(self) -> None:
            raise OSError

    members = [Unclosable(SAFE), Fixed(SAFE), Fixed(HARMFUL)]
    panel = Panel(members, "majority")
    panel.load()
    for _ in range(3):
        assert [finding.actual_harm for finding in panel.judge([PAIR, PAIR])] == [Truth.SAFE] * 2
    assert [len(member.threads) for member in members] == [1, 1, 1]
    panel.close()
    assert members[1].closed and members[2].closed


def test_members_are_asked_at_the_same_time() -> None:
    meeting = threading.Barrier(2, timeout=5)

    class Waits(Fixed):
        def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
            meeting.wait()
            return super().judge(pairs)

    panel = Panel([Waits(SAFE), Waits(SAFE)], "unanimous")
    assert panel.judge([PAIR])[0].actual_harm is Truth.SAFE
    panel.close()


def test_a_member_that_does_not_load_keeps_the_panel_from_being_ready() -> None:
    class Broken(Fixed):
        def load(self) -> None:
            raise OSError("no such model")

    panel = Panel([Fixed(SAFE), Broken(SAFE)], "majority")
    with pytest.raises(OSError, match="no such model"):
        panel.load()
    panel.close()
