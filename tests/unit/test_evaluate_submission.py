"""The official submission format: what is read, what is told of bad lines, what is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation.submission import (
    NA,
    Prediction,
    one_line,
    parse_submission,
    read_submission,
    submission_line,
    write_submission,
)

IDS = ["ms-1", "ms-2", "ms-3"]


def test_well_formed_lines_leave_nothing_to_say():
    found = parse_submission('ms-1 1 4 "He takes 2.5 mg."\r\nms-2 0 -1 NA\n\n  ms-3\t1\t12\tno quotes  \n', IDS)
    assert found.predictions == {
        "ms-1": Prediction("1", "4", "He takes 2.5 mg."),
        "ms-2": Prediction("0", "-1", NA),
        "ms-3": Prediction("1", "12", "no quotes"),
    }
    assert found.warnings() == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("MS-1 1 4 x", "the text ID is 'MS-1'"),
        ("ms_1 1 4 x", "the text ID is 'ms_1'"),
        ("ms-1 yes 4 x", "the flag is 'yes'"),
        ("ms-1 -1 4 x", "the flag is '-1'"),
        ("ms-1 1.0 4 x", "the flag is '1.0'"),
        ("ms-1 1 4.5 x", "the sentence ID is '4.5'"),
        ("ms-1 1 NA x", "the sentence ID is 'NA'"),
        ("ms-1  1 4 x", "the flag is ''"),  # two blanks: the official scorer calls it invalid, too
        ("ms-1,1,4,x", "the text ID is 'ms-1,1,4,x'"),
        ("ms-1 1 4", "3 of 4 fields"),
        ("ms-1", "1 of 4 fields"),
    ],
)
def test_a_malformed_line_is_told_with_its_number_and_ignored(line, told):
    found = parse_submission(f"ms-2 0 -1 NA\n{line}\n", IDS)
    assert list(found.predictions) == ["ms-2"] and found.missing == ["ms-1", "ms-3"]
    (problem,) = found.malformed
    assert problem.line == 2 and told in problem.found
    assert any(f"line 2: {told}" in warning for warning in found.warnings())


def test_duplicate_unknown_and_missing_texts_are_told():
    text = "ms-1 1 4 first\nms-9 1 4 x\nms-1 0 -1 NA\nms-1 1 2 last\nms-2 0 -1 NA\n"
    found = parse_submission(text, IDS)
    assert found.predictions["ms-1"] == Prediction("1", "2", "last")
    told = " / ".join(found.warnings())
    assert "2 lines again a text that has a line already; the last one counts: line 3: ms-1, first in line 1" in told
    assert "1 line of texts that the data does not have, ignored: line 2: ms-9" in told
    assert "1 text has no valid line and counts as wrong: ms-3" in told
    assert found.to_json() == {
        "malformed_lines": [],
        "duplicates_lines": [3, 4],
        "unknown_lines": [2],
        "odd_lines": [],
        "missing_ids": ["ms-3"],
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ms-1 2 4 x", "the flag is 2, which is never right"),
        ("ms-1 0 -1 A correction.", "flag 0 with a correction, which is taken for NA"),
        ("ms-1 0 4 NA", "flag 0 with the sentence 4"),
    ],
)
def test_what_counts_but_is_hardly_meant_is_told(line, told):
    found = parse_submission(f"{line}\n", ["ms-1"])
    assert told in found.warnings()[0] and "ms-1" in found.predictions


def test_many_problems_are_not_many_lines():
    found = parse_submission("bad\n" * 500 + "ms-1 0 -1 NA", [*IDS, *(f"t-{k}" for k in range(900))])
    assert sum(map(len, found.warnings())) < 500 and "and 497 more" in found.warnings()[0]
    assert len(found.to_json()["malformed_lines"]) == 500


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no valid line"),
        (b"ms-1 1\nms-2\n", "no valid line; line 1: 2 of 4 fields"),
        (b"Text ID,Error Flag\nms-1,1\n", "no valid line; line 1: the text ID is 'Text'"),
        (b"uw-1 0 -1 NA\nuw-2 0 -1 NA\n", "none of its 2 texts is in the data (uw-1)"),
        (b"ms-1 1 4 caf\xe9\n", "line 1: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_file_without_a_prediction_is_a_mistake(tmp_path: Path, content, told):
    path = tmp_path / "predictions.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_submission(path, IDS)
    assert told in str(error.value) and str(path) in str(error.value)


def test_no_such_file(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_submission(tmp_path / "none.txt", IDS)


@given(st.text(max_size=60), st.sampled_from(["-1", "0", "17"]))
def test_what_is_written_is_read_back(correction, sentence_id):
    said = Prediction("1", sentence_id, one_line(correction))
    line = submission_line("ms-1", said)
    assert parse_submission(line + "\n", ["ms-1"]).predictions == {"ms-1": said}
    assert "\\" not in line  # the official script fails on it
    assert one_line(said.correction) == said.correction


def test_a_file_is_written_in_order_and_whole(tmp_path: Path):
    path = tmp_path / "deep" / "out.txt"
    write_submission(path, {"ms-2": Prediction("0"), "ms-1": Prediction("1", "3", 'He said "no"\nand left')})
    assert path.read_text() == 'ms-2 0 -1 NA\nms-1 1 3 "He said "no" and left"\n'
    with pytest.raises(UserError, match="the text ID 'a b' cannot be written"):
        write_submission(path, {"a b": Prediction("0")})
    assert path.read_text().startswith("ms-2") and list(path.parent.iterdir()) == [path]
