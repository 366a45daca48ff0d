"""From a spec to a backend that can be loaded: the backends by name, each in the wrappers that it needs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from openrlhf_medical.errors import UserError
from openrlhf_medical.judge.backends import Backend, ReferenceBackend
from openrlhf_medical.judge.cache import Cached
from openrlhf_medical.judge.chat import ChatBackend, ChatModel, Voting
from openrlhf_medical.judge.openai_model import Endpoint, OpenAIModel
from openrlhf_medical.judge.own_process import OwnProcess
from openrlhf_medical.judge.panel import Panel
from openrlhf_medical.judge.spec import DEFAULT_KEY_VARIABLE, DEFAULT_MODEL, JudgeSpec
from openrlhf_medical.judge.vllm_model import Sampling, VllmModel

MAX_NEW_TOKENS = 512
"""Of one reply: some sentences of reasoning. A model that thinks at length needs more (--max-new-tokens)."""


def make_backend(spec: JudgeSpec, cache_folder: Path | None = None) -> Backend:
    """A backend by its spec, not loaded yet. Of a panel each member has its own findings cached: a failure of one
    then costs the others nothing, and a new member finds theirs.

    Raises:
        UserError: an unknown name, options that do not go together, a key that is not there.
    """
    known = [*BACKENDS, "panel"]
    for name in (spec.backend, *(member.backend for member in spec.members or ())):
        if name not in known:
            raise UserError(f"unknown judge backend {name!r}; allowed: {', '.join(known)}")
    spec.check()
    if spec.backend == "panel":
        return Panel([_single(member, cache_folder) for member in spec.members or ()], spec.rule or "majority")
    return _single(spec, cache_folder)


def _single(spec: JudgeSpec, cache_folder: Path | None) -> Backend:
    backend = BACKENDS[spec.backend](spec)
    if getattr(backend, "own_process", False):
        backend = OwnProcess(backend)
    return backend if cache_folder is None else Cached(backend, cache_folder)


def _vllm(spec: JudgeSpec) -> Backend:
    model = VllmModel(
        spec.model or DEFAULT_MODEL,
        Sampling(spec.drawn_at, spec.max_new_tokens or MAX_NEW_TOKENS),
        device=spec.device,
        max_model_len=spec.max_model_len or 8192,
        gpu_memory_utilization=spec.gpu_memory_utilization or 0.9,
    )
    return _asking(model, spec)


def _openai(spec: JudgeSpec) -> Backend:
    assert spec.model is not None and spec.api_base is not None  # spec.check
    variable = spec.api_key_env or DEFAULT_KEY_VARIABLE
    endpoint = Endpoint(
        spec.api_base.rstrip("/"),
        _key(variable, asked_for=spec.api_key_env is not None),
        variable,
        spec.api_timeout_s or 60.0,
        2 if spec.api_retries is None else spec.api_retries,
        spec.api_concurrency or 16,
    )
    model = OpenAIModel(
        spec.model, endpoint, temperature=spec.drawn_at, max_new_tokens=spec.max_new_tokens or MAX_NEW_TOKENS
    )
    return _asking(model, spec)


def _asking(model: ChatModel, spec: JudgeSpec) -> Backend:
    return ChatBackend(model, Voting(spec.votes or 1, spec.agreement or 0.6, spec.order_swap or False))


def _key(variable: str, *, asked_for: bool) -> str | None:
    """The API key. Of what was given nothing is shown: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise UserError("--api-key-env takes the name of an environment variable that holds the key, not the key")
    key = os.environ.get(variable, "").strip()
    if asked_for and not key:
        raise UserError("the environment variable that --api-key-env names is not set, or is empty: export it, or "
                        "leave the option out for an endpoint that asks for no key")  # fmt: skip
    if re.search(r"\s|[^\x21-\x7e]", key):
        raise UserError(f"the key in {variable} has white space or letters that no header can carry")
    return key or None


BACKENDS: dict[str, Callable[[JudgeSpec], Backend]] = {
    "reference": lambda spec: ReferenceBackend(),
    "vllm": _vllm,
    "openai": _openai,
}
