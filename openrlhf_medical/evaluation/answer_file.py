"""Answers as they come, one a line: what a model has said once it is not asked again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.players import Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One line. ``key`` stands for the text, what was asked, who was asked and how; ``reply`` is what was written
    after the prefill, null where the text is too long to be asked about."""

    key: str
    text_id: str
    reply: str | None
    truncated: bool = False


def answer_key(asked: Mapping[str, Any], text_id: str, prompt: Prompt) -> str:
    """``asked``: who, with which weights, sampling and limits. Another word in the prompts is another key."""
    parts = json.dumps([asked, text_id, prompt.messages, prompt.prefill], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class AnswerFile:
    """A context manager around the file; ``known`` holds what it had, by key. A line that is cut off or is no
    answer is counted in ``unreadable`` and asked again.

    Raises:
        UserError: the file can be neither read nor written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Answer] = {}
        self.unreadable = 0
        self._file: TextIO | None = None

    def __enter__(self) -> AnswerFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.exists() else b""
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path}: answers cannot be kept there ({error.strerror}); give --answers FILE") \
                from None  # fmt: skip
        for line in before.split(b"\n"):
            if line.strip():
                self._take(line)
        if before and not before.endswith(b"\n"):
            self._file.write("\n")  # what follows a line that was cut off is a line of its own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        assert self._file is not None, "used as a context manager"
        self._file.write(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
        self._file.flush()
        self.known[answer.key] = answer

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line.decode("utf-8"))
            answer = Answer(**row)
        except (ValueError, TypeError, RecursionError):
            self.unreadable += 1
            return
        whole = isinstance(answer.key, str) and isinstance(answer.truncated, bool)
        if whole and (answer.reply is None or isinstance(answer.reply, str)):
            self.known[answer.key] = answer
        else:
            self.unreadable += 1
