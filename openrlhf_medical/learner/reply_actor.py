"""Upstream's Actor, with logits of replies only, and on a CPU each prompt only once.

Over a vocabulary of 50,000 the logits of a prompt, which no loss sees, cost a quarter of a pass of SmolLM2-135M, and
as many fp32 numbers in memory as its activations. Where all samples of a micro-batch answer the same prompt, as the
assessments of one note do, the prompt and all replies are one sequence in which no reply sees another.
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
        own.takes_masks = own.leaves_out and _takes_masks(actor.model)
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
        if self.takes_masks and (shared := shared_prompt(sequences, action_mask, attention_mask)) is not None:
            log_probs, output = self._after_one_prompt(*shared, sequences, return_entropy=return_entropy)
            log_probs = log_probs * action_mask.float()
            return (log_probs, output) if return_output else log_probs
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

    def _after_one_prompt(
        self, prompt: int, lengths: list[int], sequences: torch.Tensor, *, return_entropy: bool
    ) -> tuple[torch.Tensor, Any]:
        """(B, T - 1) log-probabilities of replies of ``lengths`` tokens that all follow the first row's ``prompt``."""
        tokens, positions, reply = one_sequence(sequences, prompt, lengths)
        output = self.model(
            tokens[None],
            attention_mask=seen_by(reply, next(self.model.parameters()).dtype),
            position_ids=positions[None],
            logits_to_keep=torch.arange(prompt - 1, len(tokens), device=tokens.device),
        )
        # The last token of the prompt speaks of every first token; each token of a reply of the one after it.
        row = torch.repeat_interleave(torch.tensor(lengths))
        column = torch.cat([torch.arange(length) for length in lengths]) + prompt - 1
        speaker = torch.arange(len(row)).masked_fill(column == prompt - 1, 0)
        logits = output["logits"][0, speaker].to(torch.float32)
        if self.temperature != 1.0:
            logits = logits.div_(self.temperature)
        output["logits"] = logits

        def over_all(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(len(sequences), sequences.shape[1] - 1).index_put((row, column), values)

        if return_entropy:
            output.entropy = over_all(compute_entropy(logits))
        return over_all(_log_probs(logits[None], sequences[row, column + 1][None])[0]), output


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


def shared_prompt(
    sequences: torch.Tensor, action_mask: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[int, list[int]] | None:
    """Length of the prompt that all of (B, T) rows begin with, and of their replies; None where they do not, or where
    it is so short that less is saved than a larger attention costs."""
    first = int(action_mask[0].argmax())
    begins = action_mask.argmax(1).eq(first).all() and action_mask[:, first].all()
    if len(sequences) == 1 or not begins or not attention_mask[:, 0].all():
        return None
    prompt = first + 1
    lengths = [int(each) - prompt for each in attention_mask.sum(1)]
    same = bool(sequences[:, :prompt].eq(sequences[0, :prompt]).all())
    return (prompt, lengths) if same and prompt * (len(sequences) - 1) >= sum(lengths) else None


def one_sequence(
    sequences: torch.Tensor, prompt: int, lengths: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(L,) tokens of the prompt and, one after another, of all replies; their positions, which begin again for each
    reply; and which reply each belongs to, 0 for the prompt."""
    tokens = [sequences[0, :prompt], *(row[prompt : prompt + n] for row, n in zip(sequences, lengths, strict=True))]
    positions = [torch.arange(prompt), *(torch.arange(prompt, prompt + n) for n in lengths)]
    reply = torch.repeat_interleave(torch.arange(len(lengths) + 1), torch.tensor([prompt, *lengths]))
    return torch.cat(tokens), torch.cat(positions), reply


def seen_by(reply: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, L, L) to add to attention's scores: 0 where a token sees what is before it in the prompt or in its own
    reply, minus infinity elsewhere."""
    before = torch.ones(len(reply), len(reply), dtype=torch.bool).tril()
    seen = before & ((reply == 0)[None] | (reply[:, None] == reply[None]))
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)[None, None]


def _base(model: Any) -> Any:
    """``model``: a transformers model, perhaps inside peft's, perhaps inside a DeepSpeed engine."""
    module = getattr(model, "module", model)
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _can_leave_out(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(_base(model).forward).parameters


def _takes_masks(model: Any) -> bool:
    """On a GPU it is FlashAttention that computes, which has no such masks. Where a token sees only those just before
    it, in some layers or in all, there is more than one mask."""
    config = getattr(_base(model), "config", None)
    layers = getattr(config, "layer_types", None)
    sees_all = set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None
    return (
        sees_all
        and getattr(config, "_attn_implementation", "") in ("sdpa", "eager")
        and next(_base(model).parameters()).device.type == "cpu"
    )
