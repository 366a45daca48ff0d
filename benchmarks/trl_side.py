"""TRL's side of ``trl_grpo.py``: a process in an environment of its own, which takes one step each time it is told.

    .venv-trl/bin/python benchmarks/trl_side.py job.json      # not to be called by hand

Takes a step for each line of standard input, and then answers with a line on standard output. It waits in a read
between steps, so that the other side has the machine to itself.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

ANSWERS = os.fdopen(os.dup(1), "w")
"""Whatever libraries print goes to standard error."""
os.dup2(2, 1)


def say(line: dict[str, Any]) -> None:
    ANSWERS.write(json.dumps(line) + "\n")
    ANSWERS.flush()


class Told(TrainerCallback):
    """Waits before the first step and after each one."""

    def __init__(self) -> None:
        self.tokens = self.samples = 0

    def count(self, completion_ids: list[list[int]]) -> None:
        self.tokens += sum(map(len, completion_ids))
        self.samples += len(completion_ids)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        say({"ready": True})
        self.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        say({"step": state.global_step, "tokens": self.tokens, "samples": self.samples})
        self.tokens = self.samples = 0
        self.wait()

    def wait(self) -> None:
        if not sys.stdin.readline():  # whoever told it is gone
            sys.exit(1)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    told = Told()

    def reward(completions: list[str], truth: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """+1 or -1 for the verdict, and for the form, as far as a line of Python can tell."""
        told.count(completion_ids)
        answers = [text.partition("<answer>")[2].strip().lower() for text in completions]
        return [
            (1.0 if answer.startswith(right.lower()) else -1.0) + (1.0 if "</answer>" in answer else -1.0)
            for answer, right in zip(answers, truth, strict=True)
        ]

    config = GRPOConfig(
        output_dir=job["folder"], max_steps=job["steps"], use_cpu=True, bf16=False, fp16=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, seed=0, shuffle_dataset=False,
        learning_rate=job["learning_rate"], lr_scheduler_type="constant", max_grad_norm=1.0,
        per_device_train_batch_size=job["micro_batch"], gradient_accumulation_steps=job["batch"] // job["micro_batch"],
        num_generations=job["group"], max_completion_length=job["max_new_tokens"], temperature=job["temperature"],
        num_iterations=1, beta=job["beta"], gradient_checkpointing=False,
        generation_kwargs={"stop_strings": [job["stop"]]},
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    model.generate = functools.partial(model.generate, tokenizer=tokenizer)  # it asks for that to see where to stop
    trainer = GRPOTrainer(model, reward, config, Dataset.from_list(job["prompts"]), processing_class=tokenizer,
                          callbacks=[told])  # fmt: skip
    trainer.train()


if __name__ == "__main__":
    main()
