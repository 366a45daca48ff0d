"""A chat model behind any endpoint that speaks OpenAI's protocol (``POST …/chat/completions``).

Retries, back-off and Retry-After are the ``openai`` library's. Whatever goes wrong with a question is an error of that
question alone, told without the endpoint's own words, which may quote the key or a note.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.chat import Answer, ChatReply, NoReply

logger = logging.getLogger(__name__)

_CHECK_S = 10.0
_LONGEST_PAUSE_S = 8.0  # of the library, between two tries
_NO_KEY = "none"  # the library insists on one; servers without keys ignore it
_TOO_LONG = re.compile(r"context.?(?:length|window)|maximum.{0,20}(?:tokens|length)|too (?:long|many tokens)", re.I)
_CODE = re.compile(r"[\w.-]{1,60}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    Attributes:
        base: ``https://host/v1``.
        key: never shown.
        key_from: where the key is from, for messages.
        timeout_s: of one try.
        retries: further tries of a question, where the endpoint is not there, is full or fails.
        concurrency: questions under way at a time.
    """

    base: str
    key: str | None = field(default=None, repr=False)
    key_from: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    retries: int = 2
    concurrency: int = 16


class OpenAIModel:
    """A ``ChatModel``.

    Args:
        max_new_tokens: of one reply, thoughts included.
    """

    def __init__(self, name: str, endpoint: Endpoint, *, temperature: float, max_new_tokens: int) -> None:
        self.name = name
        self._endpoint = endpoint
        self._temperature = temperature
        self._max_new_tokens = max_new_tokens
        self._task: asyncio.Task[Any] | None = None
        # One loop for good: kept connections belong to it.
        self._runner: asyncio.Runner | None = None
        self._client: Any = None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "backend": "openai",
            "model": self.name,
            "api_base": self._endpoint.base,
            "temperature": self._temperature,
            "max_new_tokens": self._max_new_tokens,
        }

    def load(self) -> None:
        """Raises UserError where the endpoint cannot be reached or refuses the key."""
        try:
            import openai
        except ImportError:
            raise UserError("the backend openai needs the package openai: run launch/setup.sh, or pip install openai") \
                from None  # fmt: skip
        for name in ("openai", "httpx", "httpx2"):  # a line for each request; at debug level, notes
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = openai.AsyncOpenAI(
            base_url=self._endpoint.base,
            api_key=self._endpoint.key or _NO_KEY,
            timeout=self._endpoint.timeout_s,
            max_retries=self._endpoint.retries,
            # Notes go where they were meant to go, and not on from there.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._runner = asyncio.Runner()
        self._run(self._check())

    def answers(self, prompts: Sequence[str], count: int) -> list[list[Answer]]:
        flat = self._run(self._ask_all([prompt for prompt in prompts for _ in range(count)]))
        return [flat[i : i + count] for i in range(0, len(flat), count)]

    def close(self) -> None:
        """From any thread; questions under way are given up."""
        if self._runner is not None and (task := self._task) is not None:
            self._runner.get_loop().call_soon_threadsafe(task.cancel)

    def _run(self, work: Any) -> Any:
        if self._runner is None:
            raise RuntimeError("not loaded")

        async def kept() -> Any:
            self._task = asyncio.current_task()
            try:
                return await work
            finally:
                self._task = None

        return self._runner.run(kept())

    async def _check(self) -> None:
        """Asks for the models: what a wrong address or key would make of every question is told at the start."""
        import openai

        base = self._endpoint.base
        try:
            async with asyncio.timeout(2 * _CHECK_S):
                listed = await self._client.with_options(timeout=_CHECK_S, max_retries=1).models.list()
                names = sorted(str(model.id) for model in listed.data)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            given = f"the key in {self._endpoint.key_from}" if self._endpoint.key else "questions without a key"
            raise UserError(f"{base} refuses {given} (HTTP {error.status_code}): set {self._endpoint.key_from} to a "
                            "key that it knows, or name another variable with --api-key-env") from None  # fmt: skip
        except (openai.APIConnectionError, TimeoutError):
            raise UserError(f"nobody answers at {base}: start the endpoint, or correct --api-base "
                            "(it usually ends with /v1)") from None  # fmt: skip
        except Exception as error:  # endpoints need not have this list; the questions will tell
            logger.warning("%s does not list its models: %s", base, _told(error, base))
            return
        if self.name not in names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            logger.warning("%s does not list a model %s; it has: %s", base, self.name, shown or "none")

    async def _ask_all(self, prompts: Sequence[str]) -> list[Answer]:
        room = asyncio.Semaphore(self._endpoint.concurrency)

        async def ask(prompt: str) -> Answer:
            async with room:
                return await self._ask(prompt)

        return list(await asyncio.gather(*map(ask, prompts)))

    async def _ask(self, prompt: str) -> Answer:
        endpoint = self._endpoint
        # The library's own limit is on each read; this one is on the whole, however slowly it drips.
        limit_s = (endpoint.retries + 1) * endpoint.timeout_s + endpoint.retries * _LONGEST_PAUSE_S
        try:
            async with asyncio.timeout(limit_s):
                said = await self._client.chat.completions.create(
                    model=self.name,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=self._temperature,
                    max_completion_tokens=self._max_new_tokens,
                )
            return _reply(said.choices[0])
        except Exception as error:
            if _is_too_long(error):
                return NoReply("abstain", "too_long", "the notes are longer than the model's context")
            return NoReply("error", "backend", _told(error, endpoint.base))


def _reply(choice: Any) -> ChatReply:
    message = choice.message
    if getattr(message, "refusal", None):
        return ChatReply("", "refusal")
    return ChatReply(message.content if isinstance(message.content, str) else "", choice.finish_reason)


def _is_too_long(error: Exception) -> bool:
    import openai

    if not isinstance(error, openai.APIStatusError) or error.status_code not in (400, 413, 422):
        return False
    return bool(_TOO_LONG.search(f"{error.code} {error.message}"))


def _told(error: Exception, base: str) -> str:
    """In our own words: an endpoint's may quote the key or a note."""
    import openai

    match error:
        case openai.APIStatusError():
            code = f" ({error.code})" if error.code and _CODE.fullmatch(error.code) else ""
            return f"{base} answered HTTP {error.status_code}{code}"
        case openai.APITimeoutError() | TimeoutError():
            return f"no answer from {base} in time"
        case openai.APIConnectionError():
            return f"no connection to {base}"
        case _:
            return f"an answer of {base} that cannot be read ({type(error).__name__})"
