"""The submission format of MEDIQA-CORR 2024, read as its official scorer reads it, and written.

One line a text: ``text-id flag sentence-id "corrected sentence or NA"``, such as::

    ms-test-7 1 4 "He takes ibuprofen."
    ms-test-8 0 -1 NA

What the scorer passes over in silence is told here, with its line: malformed lines, texts that come twice,
texts that the data does not have. What it makes of them stays: a malformed line and an unknown text are
ignored, of a text that comes twice the last line counts, and a text without a line counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from openrlhf_medical.data.files import decode_utf8, read_bytes, write_files
from openrlhf_medical.errors import UserError

NA = "NA"
NO_ERROR = "-1"
"""The sentence ID of a text without an error."""

FORM = 'text-id flag sentence-id "corrected sentence or NA"'
_ID = re.compile(r"[a-z0-9-]+")
_LINE = re.compile(rf"({_ID.pattern})\s([0-9]+)\s(-?[0-9]+)\s(.+)")
_SHOWN = 40  # characters of a bad line: enough to find it, little of a note


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said of one text: flag ``1`` (an error) or ``0``, the number of the wrong sentence, its correction.

    Texts, not numbers: the scorer compares them letter by letter.
    """

    flag: str
    sentence_id: str = NO_ERROR
    correction: str = NA


@dataclass(frozen=True, slots=True)
class Problem:
    """One line of a file that does not count as it stands, or not at all."""

    line: int
    found: str


@dataclass
class Submission:
    """Predictions by text ID, and what was odd about their file. ``missing`` are IDs of the data without a line."""

    predictions: dict[str, Prediction] = field(default_factory=dict)
    malformed: list[Problem] = field(default_factory=list)
    duplicates: list[Problem] = field(default_factory=list)
    unknown: list[Problem] = field(default_factory=list)
    odd: list[Problem] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def warnings(self, shown: int = 3) -> list[str]:
        """One sentence for each kind of problem, with the first ``shown`` of them."""
        kinds = (
            (self.malformed, f"malformed, ignored (a line is: {FORM})"),
            (self.duplicates, "again a text that has a line already; the last one counts"),
            (self.unknown, "of texts that the data does not have, ignored"),
            (self.odd, "odd"),
        )
        told = []
        for problems, what in kinds:
            if problems:
                listed = "; ".join(f"line {problem.line}: {problem.found}" for problem in problems[:shown])
                told.append(f"{_lines(len(problems))} {what}: {listed}{_and_more(len(problems), shown)}")
        if self.missing:
            listed = ", ".join(self.missing[:shown])
            count = len(self.missing)
            texts = f"{count} text{'s have' if count > 1 else ' has'} no valid line and count{'' if count > 1 else 's'}"
            told.append(f"{texts} as wrong: {listed}{_and_more(count, shown)}")
        return told

    def to_json(self) -> dict[str, object]:
        """Line numbers and IDs; of bad lines nothing is repeated, as they may hold clinical text."""
        kinds = {"malformed": self.malformed, "duplicates": self.duplicates, "unknown": self.unknown, "odd": self.odd}
        lines = {f"{name}_lines": [problem.line for problem in problems] for name, problems in kinds.items()}
        return {**lines, "missing_ids": self.missing}


def read_submission(path: Path, text_ids: Collection[str]) -> Submission:
    """Read a file of predictions for the texts ``text_ids``.

    Raises:
        UserError: the file cannot be read, has no valid line, or none of its texts is in the data.
    """
    data = read_bytes(path, f"a file of predictions, one line a text: {FORM}")
    found = parse_submission(decode_utf8(data, path), text_ids)
    if not found.predictions:
        if found.unknown:
            raise UserError(
                f"{path}: none of its {len(found.unknown)} texts is in the data ({found.unknown[0].found}). "
                "Give the predictions for this --data, or the --data of these predictions."
            )
        first = f"; line {found.malformed[0].line}: {found.malformed[0].found}" if found.malformed else ""
        raise UserError(f"{path}: no valid line{first}. Every line is: {FORM}")
    return found


def parse_submission(text: str, text_ids: Collection[str]) -> Submission:
    """What ``read_submission`` makes of a file's text; it may hold no prediction at all. Never raises."""
    found, line_of, known = Submission(), {}, set(text_ids)  # type: ignore[var-annotated]
    for number, raw in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        line = raw.strip()
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            found.malformed.append(Problem(number, _what_is_wrong(line)))
            continue
        text_id, flag, sentence_id, rest = match.groups()
        if text_id not in known:
            found.unknown.append(Problem(number, text_id))
            continue
        if text_id in line_of:
            found.duplicates.append(Problem(number, f"{text_id}, first in line {line_of[text_id]}"))
        line_of.setdefault(text_id, number)
        found.predictions[text_id] = _prediction(flag, sentence_id, rest)
        if oddity := _oddity(found.predictions[text_id], rest):
            found.odd.append(Problem(number, oddity))
    found.missing = [text_id for text_id in text_ids if text_id not in found.predictions]
    return found


def write_submission(path: Path, predictions: Mapping[str, Prediction]) -> None:
    """Write predictions in the order given, whole or not at all.

    Raises:
        UserError: a text ID that the format cannot carry, or a file that cannot be written.
    """
    lines = "".join(f"{submission_line(text_id, said)}\n" for text_id, said in predictions.items())
    write_files({path: lines.encode("utf-8")})


def submission_line(text_id: str, said: Prediction) -> str:
    """One line, the correction by ``one_line``. Raises UserError on a text ID that the format cannot carry."""
    check_ids([text_id])
    correction = one_line(said.correction)
    correction = NA if correction == NA else f'"{correction}"'
    return f"{text_id} {said.flag} {said.sentence_id} {correction}"


def check_ids(text_ids: Iterable[str]) -> None:
    """Raises UserError on a text ID that the format cannot carry."""
    for text_id in text_ids:
        if not _ID.fullmatch(text_id):
            raise UserError(
                f"the text ID {text_id!r} cannot be written: the official format allows a-z, 0-9 and '-'. "
                "Rename the text, or leave out --write-predictions."
            )


def one_line(correction: str) -> str:
    """A correction as a line of a submission can carry it; ``NA`` for one without a word.

    White space becomes single blanks, quotes at the ends go (the scorer takes them for its own), and a
    backslash, on which the official script fails, becomes a slash.
    """
    return " ".join(correction.split()).replace("\\", "/").strip('" ') or NA


def _prediction(flag: str, sentence_id: str, rest: str) -> Prediction:
    correction = " ".join(rest.split())
    # The scorer keeps one sign of what is nothing but quotes, and whatever blanks stand inside of the quotes.
    while correction.startswith('"') and len(correction) > 1:
        correction = correction[1:]
    while correction.endswith('"') and len(correction) > 1:
        correction = correction[:-1]
    return Prediction(flag, sentence_id, NA if flag == "0" else correction)


def _oddity(said: Prediction, rest: str) -> str:
    if said.flag not in ("0", "1"):
        return f"the flag is {said.flag[:_SHOWN]}, which is never right (allowed: 0, 1)"
    if said.flag == "0" and rest.strip().strip('"').strip() != NA:
        return "flag 0 with a correction, which is taken for NA"
    if said.flag == "0" and said.sentence_id != NO_ERROR:
        return f"flag 0 with the sentence {said.sentence_id[:_SHOWN]}, where {NO_ERROR} is meant"
    return ""


def _what_is_wrong(line: str) -> str:
    """The first field that breaks the form. The scorer wants exactly one sign of white space between them."""
    fields = re.split(r"\s", line, maxsplit=3)
    checks = (
        (_ID, "the text ID", "a-z, 0-9 and '-'"),
        (re.compile("[0-9]+"), "the flag", "0 or 1"),
        (re.compile("-?[0-9]+"), "the sentence ID", "a whole number"),
    )
    for value, (pattern, what, allowed) in zip(fields, checks, strict=False):
        if not pattern.fullmatch(value):
            return f"{what} is {value[:_SHOWN]!r}; allowed: {allowed}, and one blank between fields"
    return f"{len(fields)} of 4 fields"


def _lines(count: int) -> str:
    return f"{count} line{'s' if count > 1 else ''}"


def _and_more(count: int, shown: int) -> str:
    return f" and {count - shown} more" if count > shown else ""
