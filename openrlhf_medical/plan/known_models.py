"""Dimensions of public models that are often named but not on this machine, from their config.json on the Hugging
Face hub (https://huggingface.co/NAME/raw/main/config.json; text part only where a model has several)."""

from __future__ import annotations

from typing import Any

_LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
_QWEN25_1_5B: dict[str, Any] = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "head_dim": 128, "intermediate_size": 8960, "vocab_size": 151936,
    "tie_word_embeddings": True,
}  # fmt: skip
_SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip

KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-4B-Instruct-2507": _QWEN3_4B,
    "Qwen/Qwen2.5-1.5B": _QWEN25_1_5B,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN25_1_5B,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2_135M,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
}
"""Published counts of parameters that the tests compare with: Llama 3.1 8B 8,030,261,248; Qwen3 4B 4,022,468,096;
Qwen2.5 1.5B 1,543,714,304; SmolLM2 135M 134,515,008."""
