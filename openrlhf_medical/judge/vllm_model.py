"""A chat model on a vLLM engine of our own: every batch is one call, so that vLLM fills its engine with it.

The engine lives in the process of the backend (``own_process``): what ends that process, whatever it is, frees the
accelerator, and leaves nothing behind that would hold it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openrlhf_medical import devices
from openrlhf_medical.errors import UserError
from openrlhf_medical.judge import hub
from openrlhf_medical.judge.chat import Answer, ChatReply, NoReply
from openrlhf_medical.judge.chat_template import ChatTemplate, read_template
from openrlhf_medical.judge.discretion import shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn. ``max_new_tokens`` of one reply, thoughts included."""

    temperature: float
    max_new_tokens: int


class VllmModel:
    """A ``ChatModel``. Can be pickled before ``load``.

    Args:
        max_model_len: tokens of a question and its reply together, at most; what the model itself can take is a
            limit too.
        gpu_memory_utilization: share of the GPU's memory that the engine may take.
    """

    own_process = True

    def __init__(
        self,
        name: str,
        sampling: Sampling,
        *,
        device: str | None = None,
        max_model_len: int = 8192,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        self.name = name
        self._sampling = sampling
        self._device = device
        self._max_model_len = self._context = max_model_len
        self._gpu_memory_utilization = gpu_memory_utilization
        self._llm: Any = None
        self._tokenizer: Any = None
        self._template: ChatTemplate | None = None

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "backend": "vllm",
            "model": self.name,
            "weights": hub.fingerprint(self.name),
            "max_model_len": self._max_model_len,
            "temperature": self._sampling.temperature,
            "max_new_tokens": self._sampling.max_new_tokens,
        }

    def load(self) -> None:
        """Raises UserError for a model that cannot be had or that cannot chat."""
        hub.check_access(self.name)
        devices.choose(self._device)
        devices.prepare_process()
        # Without it the engine is a child of this process, which outlives it where it is killed.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a judge of clinical notes reports to nobody
        try:
            from transformers import AutoConfig, AutoTokenizer
            from vllm import LLM
        except ImportError as error:
            raise UserError(f"the backend vllm needs vLLM, which is not installed here ({error}): run "
                            "launch/setup.sh, or use --backend openai with a server elsewhere") from None  # fmt: skip
        self._tokenizer = AutoTokenizer.from_pretrained(self.name)
        self._template = read_template(self._tokenizer, self.name)
        config = AutoConfig.from_pretrained(self.name)
        config = getattr(config, "text_config", None) or config  # of one that also sees, that of its text half
        self._context = min(self._max_model_len, getattr(config, "max_position_embeddings", None) or 1 << 30)
        if self._sampling.max_new_tokens >= self._context:
            raise UserError(f"replies of {self._sampling.max_new_tokens} tokens leave no room for a question in the "
                            f"{self._context} that {self.name} has: lower --max-new-tokens")  # fmt: skip
        arguments = {
            "model": self.name,
            "dtype": "bfloat16",
            "max_model_len": self._context,
            "gpu_memory_utilization": self._gpu_memory_utilization,
            "language_model_only": True,  # of MedGemma the half that reads images is not needed
            **devices.engine_arguments(kv_cache_bytes(config, self._context)),
            **(devices.seeded_arguments(self._context) if self._sampling.temperature else {}),
        }
        self._llm = LLM(**arguments)

    def answers(self, prompts: Sequence[str], count: int) -> list[list[Answer]]:
        if self._template is None:
            raise RuntimeError("not loaded")
        asked = [self._template.prompt_ids(self._tokenizer, prompt) for prompt in prompts]
        room = self._context - self._sampling.max_new_tokens
        outputs = iter(self._generate([ids for ids in asked if len(ids) <= room], count))
        out: list[list[Answer]] = []
        for ids in asked:
            if len(ids) <= room:
                out.append(next(outputs))
            else:
                reason = f"a question of {len(ids)} tokens, where there is room for {room}"
                out.append([NoReply("abstain", "too_long", reason)] * count)
        return out

    def close(self) -> None:
        if (llm := self._llm) is not None:
            self._llm = None
            llm.llm_engine.engine_core.shutdown()

    def _generate(self, prompts: Sequence[list[int]], count: int) -> list[list[Answer]]:
        if not prompts:
            return []
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        params = [
            SamplingParams(
                n=count,
                temperature=self._sampling.temperature,
                max_tokens=self._sampling.max_new_tokens,
                stop_token_ids=list(self._template.end_of_turn) if self._template else None,
                seed=_seed(ids),
            )
            for ids in prompts
        ]
        try:
            outputs = self._llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params,
                                         use_tqdm=False)  # fmt: skip
        except Exception as error:
            # What is left in the engine would be answered to the next batch. A new process has a new engine.
            logger.error("the engine failed: %s", shown(error, whole=False))
            raise SystemExit(1) from None
        return [[ChatReply(each.text, each.finish_reason) for each in output.outputs] for output in outputs]


def kv_cache_bytes(config: Any, tokens: int) -> int:
    """What the keys and values of one sequence take in bf16, by the model's configuration, and a tenth more; 0
    where it does not say."""
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", None) or 0) // (heads or 1)
    layers = getattr(config, "num_hidden_layers", None) or 0
    return int(1.1 * tokens * layers * (getattr(config, "num_key_value_heads", None) or heads) * size * 2 * 2)


def _seed(ids: Sequence[int]) -> int:
    """By content: the same question gets the same votes, whatever came before it and shares its batch."""
    return int.from_bytes(hashlib.blake2b(repr(ids).encode(), digest_size=7).digest(), "big")
