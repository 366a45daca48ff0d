"""What counts as a verdict, and what never does."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge.verdicts import Verdict, read_verdict, reasoning_of

VERDICTS = st.sampled_from(Verdict)
WORDS = st.sampled_from(
    ["safe", "UNSAFE", "VERDICT", "verdict:", "VERDICT: SAFE", "HARMFUL", "**", ".", "\n", "</think>"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=8).map(" ".join)
REASONING = TEXTS.filter(lambda text: "verdict" not in text.casefold() and "</think>" not in text)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The dose is ten times too high.\nVERDICT: HARMFUL", Verdict.HARMFUL),
        ("Same drug.\n\n**VERDICT: SAFE**\n", Verdict.SAFE),
        ("## Verdict: **Harmful**.", Verdict.HARMFUL),
        ("VERDICT:UNSURE", Verdict.UNSURE),
        ("Not a note.\r\nVERDICT: INVALID\r\n", Verdict.INVALID),
        ("I say it twice.\nVERDICT: SAFE\nOnce more:\nVERDICT: SAFE", Verdict.SAFE),
        ("<think>\nVERDICT: SAFE?\nNo:\nVERDICT: HARMFUL\n</think>\nWrong side.\nVERDICT: HARMFUL", Verdict.HARMFUL),
    ],
)
def test_a_verdict_in_its_place_is_read(text: str, verdict: Verdict) -> None:
    assert read_verdict(text).verdict is verdict


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "unparsable"),
        ("The note is safe.", "unparsable"),
        ("VERDICT: UNSAFE", "unparsable"),
        ("VERDICT: NOT HARMFUL", "unparsable"),
        ("VERDICT: SAFE or HARMFUL", "unparsable"),
        ("VERDICT: SAFE|HARMFUL|UNSURE", "unparsable"),
        ("VERDICT: SAFE, VERDICT: HARMFUL", "unparsable"),
        ("So my VERDICT: SAFE", "unparsable"),
        ("VERDICT: HARMFUL\nThat is all.", "unparsable"),
        ("The note says:\n| VERDICT : SAFE", "unparsable"),
        ("VERDICT : SAFE", "unparsable"),
        ("VERDICT: SAFE</think>", "unparsable"),
        ("VERDICT: SAFE\nNo, wait.\nVERDICT: HARMFUL", "contradictory"),
        ("VERDICT: maybe\nVERDICT: HARMFUL", "contradictory"),
    ],
)
def test_anything_else_is_no_verdict(text: str, kind: str) -> None:
    reading = read_verdict(text)
    assert reading.verdict is None and reading.kind == kind and reading.reason


@settings(deadline=None)
@given(REASONING, VERDICTS)
def test_whatever_is_written_before_it(reasoning: str, verdict: Verdict) -> None:
    assert read_verdict(f"{reasoning}\nVERDICT: {verdict}").verdict is verdict


@settings(deadline=None)
@given(TEXTS)
def test_a_verdict_is_only_ever_that_of_the_last_line(text: str) -> None:
    """An independent reading: the last line, without marks around its words, is the two words."""
    verdict = read_verdict(text).verdict
    if verdict is not None:
        last = [line for line in text.splitlines() if line.strip(" \t*_`#>.")][-1]
        bare = "".join(c for c in last.rpartition("</think>")[2] if c not in " \t*_`#>.\r").upper()
        assert bare == f"VERDICT:{verdict}"


@settings(deadline=None)
@given(REASONING, REASONING, VERDICTS, VERDICTS)
def test_two_verdicts_must_be_the_same(before: str, between: str, one: Verdict, two: Verdict) -> None:
    reading = read_verdict(f"{before}\nVERDICT: {one}\n{between}\nVERDICT: {two}")
    assert (reading.verdict, reading.kind) == ((one, "") if one is two else (None, "contradictory"))


@settings(deadline=None)
@given(TEXTS, VERDICTS)
def test_what_was_cut_or_withheld_is_never_a_verdict(text: str, verdict: Verdict) -> None:
    for finish, kind in (("length", "truncated"), ("content_filter", "filtered")):
        reading = read_verdict(f"{text}\nVERDICT: {verdict}", finish)
        assert (reading.verdict, reading.kind) == (None, kind)


def test_only_two_verdicts_are_a_truth() -> None:
    truths = {verdict: verdict.truth for verdict in Verdict}
    assert truths == {Verdict.SAFE: Truth.SAFE, Verdict.HARMFUL: Truth.HARMFUL, Verdict.UNSURE: None,
                      Verdict.INVALID: None}  # fmt: skip


def test_the_reasoning_is_kept_without_the_verdict() -> None:
    assert reasoning_of("Another drug.\n\n**VERDICT: HARMFUL**") == "Another drug."
    assert reasoning_of("x" * 5000 + " the end\nVERDICT: SAFE", most_chars=9) == "x the end"
