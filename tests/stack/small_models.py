"""Models that are made for one test in seconds: a vocabulary of its own, and taught what the test needs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from openrlhf_medical.game.players import Prompt
from openrlhf_medical.rollout.engine_player import prompt_ids

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Reply: {% endif %}"
)
END = "<|end|>"


def small_tokenizer(texts: Sequence[str], vocabulary: int = 512) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted to ``texts``: gives every text back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, bos_token=END)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def taught_model(
    folder: Path,
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    *,
    steps: int = 150,
    lr: float = 3e-3,
    seed: int = 0,
) -> str:
    """A two-layer Llama that answers any of ``prompts`` with any of ``replies``, at random. Returns its folder."""
    tokenizer = small_tokenizer([m["content"] for p in prompts for m in p.messages] + [*replies, "Reply: <answer>"])
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    asked = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    answers = [tokenizer(r, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for r in replies]
    rng = random.Random(seed)
    for _ in range(steps):
        rows = [(rng.choice(asked), rng.choice(answers)) for _ in range(16)]
        width = max(len(p) + len(a) for p, a in rows)
        ids = torch.tensor([[*p, *a] + [0] * (width - len(p) - len(a)) for p, a in rows])
        labels = torch.tensor([[-100] * len(p) + [*a] + [-100] * (width - len(p) - len(a)) for p, a in rows])
        logits = model(ids).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
