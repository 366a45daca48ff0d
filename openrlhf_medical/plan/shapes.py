"""The dimensions of a model, read as JSON from its folder: no torch, no transformers, no network."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrlhf_medical.plan.known_models import KNOWN_MODELS

CONFIG = "config.json"
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_BIASED = ("qwen2",)
"""Model types with biases on query, key and value, though no key of their configuration says so."""
_NORMED_HEADS = ("qwen3",)


class UnknownShape(ValueError):
    """The dimensions cannot be had; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder with gated MLPs (Llama, Mistral, Qwen2, Qwen3 and their kin)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    biased: bool = False
    normed_heads: bool = False
    counted: int | None = None
    """Parameters counted in the weight files; None where they are not here."""
    source: str = ""
    """Where this was read, for people."""

    @property
    def parameters(self) -> int:
        return self.counted if self.counted is not None else self.parameters_by_formula

    @property
    def parameters_by_formula(self) -> int:
        """Embeddings, attention, gated MLP and norms, summed as transformers' LlamaForCausalLM defines them."""
        per_layer = sum(rows * columns for rows, columns in self.linear_layers()) + 2 * self.hidden
        if self.biased:
            per_layer += (self.heads + 2 * self.kv_heads) * self.head_dim
        if self.normed_heads:
            per_layer += 2 * self.head_dim
        embeddings = self.embedding * (1 if self.tied else 2)
        return embeddings + self.layers * per_layer + self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def in_linear_layers(self) -> int:
        """Parameters of the layers that adapters and 4-bit loading are about: all linear ones but the head."""
        return self.layers * sum(rows * columns for rows, columns in self.linear_layers())

    def linear_layers(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear layer of a block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (
            (self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden),
            (self.hidden, self.intermediate), (self.hidden, self.intermediate), (self.intermediate, self.hidden),
        )  # fmt: skip

    def adapter_parameters(self, rank: int) -> int:
        """Of one LoRA adapter on all linear layers: rank × (in + out) each (arXiv 2106.09685, section 4.1)."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.linear_layers())


def shape_of(model: str) -> ModelShape:
    """Of a local folder, of a model that we know by name, or of one in the Hugging Face cache.

    Raises:
        UnknownShape: none of these, a file that is no such configuration, or a mixture of experts.
    """
    folder = Path(model)
    if not folder.is_dir():
        if model in KNOWN_MODELS:
            return shape_from(KNOWN_MODELS[model], source="its published configuration")
        found = _cached(model)
        if found is None:
            raise UnknownShape(f"{model} is neither on this machine nor known by name: its folder has its dimensions")
        folder = found
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnknownShape(f"{folder / CONFIG} cannot be read: {error}") from None
    return shape_from(config, counted=count_parameters(folder), source=str(folder / CONFIG))


def shape_from(config: Mapping[str, Any], *, counted: int | None = None, source: str = "") -> ModelShape:
    """From a configuration as transformers writes it.

    Raises:
        UnknownShape: a key is missing, or the model is a mixture of experts.
    """
    text = {**config, **config.get("text_config", {})}
    if experts := next((text[key] for key in _EXPERTS if text.get(key)), None):
        raise UnknownShape(f"a mixture of {experts} experts: what it needs depends on routing, which is not estimated")
    if missing := [key for key in _NEEDED if not isinstance(text.get(key), int)]:
        raise UnknownShape(f"{source or 'the configuration'} does not say {', '.join(missing)}")
    heads, kind = text["num_attention_heads"], text.get("model_type", "")
    return ModelShape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        intermediate=text.get("intermediate_size") or 4 * text["hidden_size"],
        vocabulary=text["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        biased=kind in _BIASED or bool(text.get("attention_bias")),
        normed_heads=kind in _NORMED_HEADS,
        counted=counted,
        source=source,
    )


def count_parameters(folder: Path) -> int | None:
    """Parameters in a folder's safetensors files, from their headers (8 bytes of length, then JSON); None where
    there are no such files.

    Raises:
        UnknownShape: a file that is none.
    """
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    raise ValueError(f"a header of {length} bytes")
                header = json.loads(file.read(length))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (OSError, struct.error, ValueError, TypeError, KeyError) as error:
            raise UnknownShape(f"{path} is no safetensors file: {error}") from None
    return total or None


def _cached(model: str) -> Path | None:
    """Its folder in the Hugging Face cache, if it was downloaded before."""
    try:
        from openrlhf_medical.judge.hub import downloaded

        return downloaded(model)
    except (ImportError, ValueError):  # no such package here, or no name that a hub could have
        return None
