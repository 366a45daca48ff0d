"""Logits of replies only give upstream's numbers, gradients included. No Ray, a model of a few thousand weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from openrlhf_medical import devices
from openrlhf_medical.learner.reply_actor import ReplyActor, kept_positions, shared_prompt

devices.prepare_process()

from openrlhf.models import Actor  # noqa: E402  (after prepare_process)


@pytest.fixture
def upstream() -> Actor:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64)  # fmt: skip
    actor = Actor(LlamaForCausalLM(config))
    actor.temperature, actor.packing_samples, actor.is_vlm = 0.7, False, False
    return actor


def batch(*turns: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples of (prompt, reply) tokens, padded on the right: tokens, action mask, attention mask."""
    width = max(prompt + reply for prompt, reply in turns)
    tokens = torch.randint(1, 50, (len(turns), width), generator=torch.Generator().manual_seed(1))
    acted, attended = torch.zeros(len(turns), width - 1, dtype=torch.long), torch.zeros_like(tokens)
    for i, (prompt, reply) in enumerate(turns):
        acted[i, prompt - 1 : prompt + reply - 1] = 1
        attended[i, : prompt + reply] = 1
    return tokens, acted, attended


def gradients(actor: Actor, tokens: torch.Tensor, acted: torch.Tensor, attended: torch.Tensor):
    """Log-probabilities and entropy where the mask is 1, and the gradient of a loss of both."""
    actor.model.zero_grad()
    log_probs, output = actor(tokens, acted, attended, return_output=True, return_entropy=True)
    entropy = output.entropy[:, -acted.shape[1] :]
    weights = torch.arange(acted.numel()).view(acted.shape) % 7 - 3.0
    ((log_probs * weights + 0.1 * entropy) * acted).sum().backward()
    flat = torch.cat([p.grad.flatten() for p in actor.model.parameters()])
    return log_probs.detach(), (entropy * acted).detach(), flat


@pytest.mark.parametrize("turns", [[(9, 4)], [(9, 4), (3, 12), (1, 2)], [(2, 1), (2, 1)]])
def test_the_same_numbers_as_upstream(upstream: Actor, turns: list[tuple[int, int]]) -> None:
    given = batch(*turns)
    expected = gradients(upstream, *given)
    ours = ReplyActor.of(upstream)
    assert ours.leaves_out
    for got, wanted in zip(gradients(ours, *given), expected, strict=True):
        assert got.shape == wanted.shape and wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def to_one_prompt(prompt: int, *replies: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``batch``, with the same prompt in all rows."""
    tokens, acted, attended = batch(*((prompt, reply) for reply in replies))
    tokens[:, :prompt] = tokens[0, :prompt].clone()
    return tokens, acted, attended


@pytest.mark.parametrize(("prompt", "replies"), [(9, (4, 4)), (20, (3, 12, 1)), (12, (1, 1, 1, 1)), (30, (7,))])
def test_replies_to_one_prompt_get_the_same_numbers_from_one_sequence(
    upstream: Actor, prompt: int, replies: tuple[int, ...]
) -> None:
    given = to_one_prompt(prompt, *replies)
    expected = gradients(upstream, *given)
    ours = ReplyActor.of(upstream)
    asked = []
    forward = upstream.model.forward
    upstream.model.forward = lambda tokens, **options: asked.append(tuple(tokens.shape)) or forward(tokens, **options)
    for got, wanted in zip(gradients(ours, *given), expected, strict=True):
        assert got.shape == wanted.shape and wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert asked == [(1, prompt + sum(replies))]


def test_only_what_lies_between_the_first_and_the_last_action_is_computed(upstream: Actor) -> None:
    tokens, acted, attended = batch((9, 4), (6, 5))
    _, output = ReplyActor.of(upstream)(tokens, acted, attended, return_output=True)
    assert kept_positions(acted).tolist() == list(range(5, 12)) and output["logits"].shape == (2, 7, 50)


def test_a_masked_sample_takes_part_and_moves_nothing(upstream: Actor) -> None:
    tokens, acted, attended = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 1), torch.ones(1, 2)
    log_probs, _, moved = gradients(ReplyActor.of(upstream), tokens, acted, attended)
    assert log_probs.tolist() == [[0.0]] and not moved.any()


def test_a_model_that_computes_all_logits_is_asked_as_upstream_asks(upstream: Actor) -> None:
    class Whole(torch.nn.Module):
        def __init__(self, model: LlamaForCausalLM) -> None:
            super().__init__()
            self.model = model

        def forward(self, sequences, attention_mask=None, position_ids=None):
            return self.model(sequences, attention_mask=attention_mask, position_ids=position_ids)

    given = batch((9, 4), (3, 2))
    expected = upstream(*given)
    upstream.model = Whole(upstream.model)
    ours = ReplyActor.of(upstream)
    assert not ours.leaves_out
    torch.testing.assert_close(ours(*given), expected)


def test_when_a_prompt_is_shared() -> None:
    tokens, acted, attended = to_one_prompt(9, 4, 2)
    assert shared_prompt(tokens, acted, attended) == (9, [4, 2])
    assert shared_prompt(tokens[:1], acted[:1], attended[:1]) is None, "one sample has nothing to share"
    assert shared_prompt(*to_one_prompt(9, 8, 2)) is None, "10 tokens of replies, 9 saved"
    assert shared_prompt(*batch((9, 4), (9, 4))) is None, "other tokens"
    other = acted.clone()
    other[1, 8] = 0
    assert shared_prompt(tokens, other, attended) is None, "another length"
    assert shared_prompt(tokens, acted * 0, attended) is None, "masked"
    attended = attended.clone()
    attended[1, 0] = 0
    assert shared_prompt(tokens, acted, attended) is None, "padded on the left"


@pytest.mark.parametrize("setting", [{"layer_types": ["full_attention", "sliding_attention"]}, {"sliding_window": 6}])
def test_a_model_with_a_sliding_window_gets_each_sample_by_itself(upstream: Actor, setting: dict) -> None:
    assert ReplyActor.of(upstream).takes_masks
    upstream.model.config.update(setting)
    assert not ReplyActor.of(upstream).takes_masks
