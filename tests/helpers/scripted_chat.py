"""A chat model that answers by a function of the prompt, and keeps what it was shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from openrlhf_medical.judge.chat import Answer, ChatReply

Said = Callable[[str, int], Answer | str]
"""The answer to a prompt, by the number of the vote."""


def always(verdict: str) -> Said:
    return lambda prompt, vote: f"I compared them.\nVERDICT: {verdict}"


def by_vote(*verdicts: str) -> Said:
    return lambda prompt, vote: f"Vote {vote}.\nVERDICT: {verdicts[vote]}"


class ScriptedChat:
    """A ``ChatModel``. ``calls`` are the batches of prompts that it was given."""

    def __init__(self, said: Said, name: str = "scripted") -> None:
        self.name = name
        self.said = said
        self.calls: list[list[str]] = []
        self.loaded = self.closed = 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "scripted", "model": self.name}

    def load(self) -> None:
        self.loaded += 1

    def answers(self, prompts: Sequence[str], count: int) -> list[list[Answer]]:
        self.calls.append(list(prompts))
        return [[self._answer(prompt, vote) for vote in range(count)] for prompt in prompts]

    def close(self) -> None:
        self.closed += 1

    def _answer(self, prompt: str, vote: int) -> Answer:
        said = self.said(prompt, vote)
        return ChatReply(said) if isinstance(said, str) else said
