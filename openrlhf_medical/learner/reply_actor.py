"""Upstream's Actor, with logits of replies only.

Over a vocabulary of 50,000 the logits of a prompt, which no loss sees, cost a quarter of a pass of SmolLM2-135M, and
as many fp32 numbers in memory as its activations.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from openrlhf_medical import devices

devices.prepare_process()

from openrlhf.models import Actor  # noqa: E402  (after prepare_process)
from openrlhf.models.utils import compute_entropy, log_probs_from_logits  # noqa: E402


class ReplyActor(Actor):
    """Same answers as upstream's where the mask is 1, and 0 elsewhere; upstream's own code where samples are packed
    or have images, or the model cannot leave logits out."""

    @classmethod
    def of(cls, actor: Actor) -> ReplyActor:
        """Over the same model (or DeepSpeed engine); ``actor`` must not be used beside it."""
        own = cls(actor.model)
        own.temperature, own.packing_samples = actor.temperature, actor.packing_samples
        own.is_vlm = getattr(actor, "is_vlm", False)
        own.leaves_out = not own.packing_samples and not own.is_vlm and _can_leave_out(actor.model)
        return own

    def forward(
        self,
        sequences: torch.Tensor,
        action_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_output: bool = False,
        return_entropy: bool = False,
        **options: Any,
    ) -> Any:
        """(B, T) tokens and their (B, T - 1) action mask -> (B, T - 1) log-probabilities, the k-th of token k + 1."""
        if not self.leaves_out or action_mask is None or action_mask.shape[1] != sequences.shape[1] - 1:
            return super().forward(
                sequences, action_mask, attention_mask, return_output, return_entropy=return_entropy, **options
            )
        assert attention_mask is not None
        kept = kept_positions(action_mask)
        positions = attention_mask.long().cumsum(-1) - 1
        positions.masked_fill_(attention_mask == 0, 1)
        output = self.model(sequences, attention_mask=attention_mask, position_ids=positions, logits_to_keep=kept)
        logits = output["logits"].to(torch.float32)
        if self.temperature != 1.0:
            logits = logits.div_(self.temperature)
        output["logits"] = logits

        def over_all(values: torch.Tensor) -> torch.Tensor:
            left = int(kept[0])
            return torch.nn.functional.pad(values, (left, action_mask.shape[1] - left - len(kept)))

        if return_entropy:
            output.entropy = over_all(compute_entropy(logits))
        log_probs = over_all(_log_probs(logits, sequences[:, kept + 1])) * action_mask.float()
        return (log_probs, output) if return_output else log_probs


def _log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B, K, V) fp32 and (B, K) -> (B, K). Upstream's has FlashAttention's kernel on a GPU; on a CPU torch's own is
    four times faster than what it does there."""
    if logits.device.type != "cpu":
        return log_probs_from_logits(logits, labels)
    return -torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def kept_positions(action_mask: torch.Tensor) -> torch.Tensor:
    """(K,) positions from the first that any of (B, A) rows acts at to the last; one where none does."""
    acting = action_mask.any(0).nonzero().flatten()
    first, last = (int(acting[0]), int(acting[-1])) if len(acting) else (0, 0)
    return torch.arange(first, last + 1, device=action_mask.device)


def _can_leave_out(model: Any) -> bool:
    """``model``: a transformers model, perhaps inside peft's, perhaps inside a DeepSpeed engine."""
    module = getattr(model, "module", model)
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    return "logits_to_keep" in inspect.signature(base.forward).parameters
