"""``openrlhf-medical evaluate``: predictions from a model or a file, their figures, what is shown and written.

texts ─► a predictions file ────────────────────────────┐
  └────► prompts ─► engines or endpoint ─► answers.jsonl ┴► predictions ─► figures ─► table, JSON, submission
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from tqdm import tqdm

from openrlhf_medical.data.files import write_files
from openrlhf_medical.errors import UserError
from openrlhf_medical.evaluation.answer_file import Answer, AnswerFile, answer_key
from openrlhf_medical.evaluation.answers import Outcome, prediction_of, read_chat, read_reply
from openrlhf_medical.evaluation.learned_scores import learned_scores
from openrlhf_medical.evaluation.medec import corrected
from openrlhf_medical.evaluation.result import Side, result_of
from openrlhf_medical.evaluation.submission import Prediction, check_ids, read_submission, write_submission
from openrlhf_medical.evaluation.table import closing_lines, tables
from openrlhf_medical.evaluation.texts import Texts, load_texts
from openrlhf_medical.game.cot import check_note_text
from openrlhf_medical.game.notes import Note
from openrlhf_medical.game.players import Prompt
from openrlhf_medical.game.prompts import assessor_prompt_of
from openrlhf_medical.run_directory import environment

if TYPE_CHECKING:
    from openrlhf_medical.config import RunConfig


@dataclass(frozen=True, slots=True)
class Question:
    """One note as it is put to a model."""

    key: str
    note: Note
    prompt: Prompt


class Listener(Protocol):
    def begins(self) -> None:
        """Everything is started, and the first question is put."""

    def answered(self, answer: Answer) -> None:
        """An answer has come."""


AskAll = Callable[[Sequence[Question], Listener], None]
"""Puts the questions, and hands each answer over as it comes. Raises RunError where some got none."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to ask: ``asked`` is all that its answers depend on, ``starting`` what takes time before the first."""

    asked: dict[str, Any]
    ask_all: AskAll
    starting: str
    is_chat: bool


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What the command line asks for. ``model`` or ``predictions``; ``config`` goes with a model: its rules say how
    the assessor is asked. ``json`` and ``answers`` are set where a model is asked."""

    data: str
    name: str
    predictions: Path | None = None
    compare: Path | None = None
    model: Model | None = None
    config: RunConfig | None = None
    json: Path | None = None
    answers: Path | None = None
    write_predictions: Path | None = None
    limit: int | None = None
    seed: int = 0


def evaluate(plan: EvaluationPlan, command: Sequence[str]) -> dict[str, Any]:
    """Score one side, compare it with another where asked to, show tables, write files. Returns the result.

    Raises:
        UserError: data, predictions or options that cannot be used. RunError: texts that got no answer.
    """
    start = time.monotonic()
    texts = load_texts(plan.data, plan.limit, plan.seed)
    for what, count in texts.remarks.items():
        tell(f"{plan.data}: {count} {what}")
    if plan.write_predictions:
        check_ids(note.note_id for note in texts.notes)
    other = _from_file(plan.compare, texts) if plan.compare else None  # its mistakes are told before a model starts
    side = _from_file(plan.predictions, texts) if plan.predictions else _from_model(plan, texts)
    side.name = plan.name
    for one in (side, other):
        if one is not None:
            one.learned, one.learned_told = learned_scores(corrected(texts.notes, one.predictions))
    result = result_of(texts, side, other)
    result |= {
        "command": list(command),
        "environment": environment(),
        "seconds": round(time.monotonic() - start, 1),
    }
    if plan.write_predictions:
        write_submission(plan.write_predictions, side.predictions)
    if plan.json:
        write_files({plan.json: _as_json(result)})
    _show(result, plan)
    return result


def _as_json(result: dict[str, Any]) -> bytes:
    import json

    return (json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _show(result: dict[str, Any], plan: EvaluationPlan) -> None:
    console = Console(highlight=False)
    for table in tables(result):
        console.print(table)
    for line in closing_lines(result):
        console.print(line, markup=False)
    for what, path in (("result", plan.json), ("predictions", plan.write_predictions), ("answers", plan.answers)):
        if path:
            print(f"The {what} {'is' if what == 'result' else 'are'} in {path}")


def tell(message: str) -> None:
    tqdm.write(message, file=sys.stderr)


# --- From a file -----------------------------------------------------------------------------------


def _from_file(path: Path, texts: Texts) -> Side:
    found = read_submission(path, texts.ids)
    wanted = {note.note_id for note in texts.notes}  # fewer than the data's with --limit
    found.predictions = {text_id: said for text_id, said in found.predictions.items() if text_id in wanted}
    found.missing = [text_id for text_id in found.missing if text_id in wanted]
    if not found.predictions:
        raise UserError(f"{path}: no prediction for any of the {len(wanted)} texts that --limit left: raise it")
    for warning in found.warnings():
        tell(f"warning: {path}: {warning}")
    asked = {"how": "predictions", "file": str(path)}
    return Side(path.stem, found.predictions, asked, submission=found)


# --- From a model ----------------------------------------------------------------------------------


def _from_model(plan: EvaluationPlan, texts: Texts) -> Side:
    model, config = plan.model, plan.config
    assert model is not None and config is not None and plan.answers is not None
    rules = config.rules()
    questions = []
    for note in texts.notes:
        check_note_text(note.text, f"{texts.source}, text {note.note_id}")
        prompt = assessor_prompt_of(note.text, rules)
        questions.append(Question(answer_key(model.asked, note.note_id, prompt), note, prompt))
    with AnswerFile(plan.answers) as file:
        if file.unreadable:
            tell(f"warning: {file.path}: {file.unreadable} lines cannot be read; what they answered is asked again")
        todo = [question for question in questions if question.key not in file.known]
        if len(todo) < len(questions):
            tell(f"{len(questions) - len(todo)} of {len(questions)} texts were answered before ({file.path})")
        if todo:
            tell(model.starting)
            with Progress(len(todo), file) as progress:
                model.ask_all(todo, progress)
        answers = {question.note.note_id: file.known[question.key] for question in questions}
    return _side_of(plan.name, texts.notes, answers, model, cot=rules.cot)


def _side_of(name: str, notes: Sequence[Note], answers: dict[str, Answer], model: Model, *, cot: bool) -> Side:
    outcomes: Counter[Outcome] = Counter()
    said: dict[str, Prediction] = {}
    read = read_chat if model.is_chat else read_reply
    for note in notes:
        answer = answers[note.note_id]
        if answer.reply is None:
            outcomes[Outcome.TOO_LONG] += 1
            continue
        assessment = read(answer.reply, cot=cot, truncated=answer.truncated)
        outcomes[Outcome(assessment.status)] += 1
        if (prediction := prediction_of(note, assessment)) is not None:
            said[note.note_id] = prediction
    cut = sum(answer.truncated for answer in answers.values())
    return Side(name, said, model.asked, outcomes, cut)


class Progress:
    """Keeps answers as they come, and shows a bar with the time left; where nobody watches, a line for each tenth."""

    def __init__(self, total: int, file: AnswerFile) -> None:
        self._total, self._done, self._start = total, 0, 0.0
        self._file = file
        self._bar = tqdm(total=total, unit="text", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def begins(self) -> None:
        """The time left is estimated from here on: starting up is no answer."""
        self._start = time.monotonic()
        self._bar.reset()

    def answered(self, answer: Answer) -> None:
        self._file.add(answer)
        self._done += 1
        self._bar.update()
        if self._bar.disable and (self._done % max(1, self._total // 10) == 0 or self._done == self._total):
            left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
            tell(f"{self._done} of {self._total} texts answered, {left / 60:.1f} min left")
