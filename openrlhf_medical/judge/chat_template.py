"""One user message as token ids, such that nothing in it can be a control token of the model's chat template.

Only the template's own text is read for control tokens. The message is tokenised as plain text, where ``<end_of_turn>``
is a handful of ordinary tokens; ``prompts.plain`` does the same by spelling, for servers that tokenise themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openrlhf_medical.errors import UserError

_MESSAGE, _REPLY = "5fd1c7a0message", "5fd1c7a0reply"  # stand-ins that no template has in its own text


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Token ids before and after the message, up to where the reply starts; and those that end a reply."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    end_of_turn: tuple[int, ...]

    def prompt_ids(self, tokenizer: Any, message: str) -> list[int]:
        """(T_p,) ids."""
        plain = tokenizer(message, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*self.before, *plain, *self.after]


def read_template(tokenizer: Any, model: str) -> ChatTemplate:
    """Takes the model's chat template apart. All is in the user's turn: some templates know no system role.

    Args:
        tokenizer: of transformers.
        model: for messages.

    Raises:
        UserError: a model without a chat template, or with one that does not show the message once.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{model} has no chat template, so it cannot be asked anything: give an instruction-tuned "
                        "model with --model")  # fmt: skip
    asked = _rendered(tokenizer, [{"role": "user", "content": _MESSAGE}], generation=True)
    parts = asked.split(_MESSAGE)
    if len(parts) != 2:
        raise UserError(f"the chat template of {model} shows a user's message {len(parts) - 1} times, not once: "
                        "give another --model")  # fmt: skip
    before, after = (tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in parts)
    return ChatTemplate(before, after, _end_of_turn(tokenizer))


def _end_of_turn(tokenizer: Any) -> tuple[int, ...]:
    """The end of text, and the control token that the template closes a reply with (gemma: ``<end_of_turn>``)."""
    messages = [{"role": "user", "content": _MESSAGE}, {"role": "assistant", "content": _REPLY}]
    closing = _rendered(tokenizer, messages, generation=False).rpartition(_REPLY)[2]
    control = set(tokenizer.all_special_ids)
    closers = [i for i in tokenizer(closing, add_special_tokens=False)["input_ids"] if i in control]
    ends = {tokenizer.eos_token_id, *closers[:1]} - {None}
    return tuple(sorted(ends))


def _rendered(tokenizer: Any, messages: list[dict[str, str]], *, generation: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
