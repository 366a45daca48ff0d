"""Bare transformers in a process of its own: what an update and log-probabilities cost with nothing around them.

    python benchmarks/learner_bare.py MODEL THREADS

Reads one JSON object a line and answers each with one: ``{"samples": [[tokens of the prompt, [ids]], …]}`` first, then
``{"do": "update" | "forward", "size": samples a micro-batch}`` -> ``{"seconds": …}``.

What it is spared beside a learner's update: master weights in fp32, clipping, metrics, Ray, DeepSpeed. What it has of
ours: linear layers in fp32 where the CPU has no fast bf16 (``devices``), logits of replies only.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from openrlhf_medical import devices

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(B, T) tokens, their attention mask, and the (B, T - 1) mask of those that are replies, one place earlier."""


def batches(samples: list[tuple[int, list[int]]], size: int) -> list[Batch]:
    """Longest first, ``size`` together, padded on the right."""
    ordered = sorted(samples, key=lambda sample: -len(sample[1]))
    made = []
    for start in range(0, len(ordered), size):
        rows = ordered[start : start + size]
        width = len(rows[0][1])
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        attended, acted = torch.zeros_like(tokens), torch.zeros(len(rows), width - 1)
        for i, (prompt, ids) in enumerate(rows):
            tokens[i, : len(ids)] = torch.tensor(ids)
            attended[i, : len(ids)] = 1
            acted[i, prompt - 1 : len(ids) - 1] = 1
        made.append((tokens, attended, acted))
    return made


class Bare:
    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.model.config.use_cache = False
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.samples: list[tuple[int, list[int]]] = []

    def log_probs(self, batch: Batch) -> torch.Tensor:
        """Of the replies' tokens, and of what lies between the first and the last of them."""
        tokens, attended, acted = batch
        kept = acted.any(0).nonzero().flatten()
        kept = torch.arange(int(kept[0]), int(kept[-1]) + 1)
        # One sample needs no mask: the kernels have a faster way without.
        mask = attended if len(tokens) > 1 else None
        logits = self.model(tokens, attention_mask=mask, logits_to_keep=kept).logits.float()
        losses = cross_entropy(logits.flatten(0, 1), tokens[:, kept + 1].flatten(), reduction="none")
        return -losses.view(len(tokens), -1) * acted[:, kept]

    def update(self, size: int) -> None:
        """REINFORCE with the advantage 1, as the mean over all replies' tokens."""
        made = batches(self.samples, size)
        total = sum(float(acted.sum()) for _, _, acted in made)
        for batch in made:
            log_probs = self.log_probs(batch)
            (-(log_probs - log_probs.detach()).exp().sum() / total).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def forward(self, size: int) -> None:
        for batch in batches(self.samples, size):
            self.log_probs(batch)


def main() -> None:
    folder, threads = sys.argv[1:]
    devices.prepare_process()
    torch.set_num_threads(int(threads))
    bare = Bare(folder)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        began = time.perf_counter()
        if "samples" in asked:
            bare.samples = [(prompt, ids) for prompt, ids in asked["samples"]]
        else:
            {"update": bare.update, "forward": bare.forward}[asked["do"]](asked["size"])
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
