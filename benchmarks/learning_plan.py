"""What a run will cost and what it could show at all, reckoned before anything is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from learning_data import PARTS
from learning_matches import ATTACKS, MATCHES, NOTES

from openrlhf_medical.config import RunConfig
from openrlhf_medical.data.sft import SftExample, note_examples, sft_set
from openrlhf_medical.evaluation.intervals import detectable_difference
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.seeds import Seed

# Measured for SmolLM2-135M in bf16 on 2 cores of an AMD EPYC without a GPU.
FORWARD_TOKENS_PER_S = 994
UPDATE_TOKENS_PER_S = 257
NEW_TOKENS_PER_S = 200

DISCORDANCES = (0.2, 0.3, 0.5)
MATCH_START_S = 45


@dataclass(frozen=True, slots=True)
class Sample:
    """Mean tokens of one role's prompt and reply."""

    prompt: float
    reply: float

    @property
    def both(self) -> float:
        return self.prompt + self.reply


@dataclass(frozen=True, slots=True)
class Budget:
    """Samples a step and minutes by phase."""

    attacker: Sample
    assessor: Sample
    attacks: float
    assessments: float
    step_s: dict[str, float]
    warm_start_s: float
    steps: int

    @property
    def minutes(self) -> float:
        return (self.warm_start_s + self.steps * sum(self.step_s.values())) / 60


def token_counter(config: RunConfig) -> Callable[[Any], int]:
    """Counts the tokens of a Prompt or of a text, as the model's tokenizer has them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.actor.model_name_or_path)

    def count(what: Any) -> int:
        text = what
        if not isinstance(what, str):  # the same text that rollout.engines.prompt_ids makes
            messages = list(what.messages)
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + what.prefill
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def budget(config: RunConfig, seeds: Sequence[Seed], count: Callable[[Any], int]) -> Budget:
    """Reckoned from the examples of the warm start: a model that rambles up to ``rollout.max_new_tokens``
    costs more."""
    rules = config.rules()
    mix = config.game.mix
    examples = sft_set(seeds, rules, config.train.sft_thoughts).examples
    attacker, assessor = (_mean(examples[role], count) for role in Role)
    drawn = config.rollout.batch_size
    attacks = drawn * (mix.adversarial_harmful + mix.adversarial_benign) * rules.attacks_per_seed
    assessments = drawn * rules.attacks_per_seed * rules.assessments_per_note
    trained = attacks * attacker.both + assessments * assessor.both
    # A batch is half attacker, half assessor where they share a policy; else each policy has one of its own.
    share = 0.5 if config.roles.policy == "shared" else 1.0
    supervised = share * config.train.sft_batch_size * (attacker.both + assessor.both)
    notes = 2 * share * config.train.sft_batch_size * fmean(_sample(e, count).both for e in note_examples(seeds))
    mixed_in = math.ceil(assessments / config.train.batch_size) * supervised if config.train.sft_coef else 0
    forwards = 2 if config.algo.kl.init_coef > 0 else 1  # policy, and the KL reference
    step_s = {
        "games": _playing_s(attacks, attacker, assessments, assessor),
        "log-probabilities": forwards * trained / FORWARD_TOKENS_PER_S,
        "update": (trained + mixed_in) * config.train.max_epochs / UPDATE_TOKENS_PER_S,
    }
    taught = config.train.sft_note_steps * notes + config.train.sft_warmup_steps * supervised
    warm_start_s = taught / UPDATE_TOKENS_PER_S
    return Budget(attacker, assessor, attacks, assessments, step_s, warm_start_s, config.run.steps)


def plan(config: RunConfig, seeds: Sequence[Seed], count: Callable[[Any], int], notes: int, attacked: int) -> str:
    """``notes`` and ``attacked`` are the held-out vanilla and adversarial seeds of one part."""
    found = budget(config, seeds, count)
    step = sum(found.step_s.values())
    on_notes, on_attacks = (len(PARTS) * size * sum(match.seeds == kind for match in MATCHES)
                            for kind, size in ((NOTES, notes), (ATTACKS, attacked)))  # fmt: skip
    measuring = _playing_s(on_attacks, found.attacker, on_notes + on_attacks, found.assessor)
    measuring += len(MATCHES) * MATCH_START_S
    lines = [
        "## Budget of one seed",
        f"Speeds (measured, 2 CPU cores): forward {FORWARD_TOKENS_PER_S}, forward and backward {UPDATE_TOKENS_PER_S}, "
        f"generation {NEW_TOKENS_PER_S} tokens/s. Prompts and replies: the mean of the warm start's examples.",
        "",
        "| | prompt tokens | reply tokens | samples a step |",
        "| --- | --- | --- | --- |",
        f"| attacker | {found.attacker.prompt:.0f} | {found.attacker.reply:.0f} | {found.attacks:g} |",
        f"| assessor | {found.assessor.prompt:.0f} | {found.assessor.reply:.0f} | {found.assessments:g} |",
        "",
        f"- warm start: {config.train.sft_note_steps} steps of writing right notes and "
        f"{config.train.sft_warmup_steps} of play, {config.train.sft_batch_size} examples each, "
        f"{found.warm_start_s / 60:.0f} min",
        f"- one step: {step:.0f} s (" + ", ".join(f"{name} {s:.0f} s" for name, s in found.step_s.items()) + ")",
        f"- {found.steps} steps: {found.steps * step / 60:.0f} min; **together {found.minutes:.0f} min a seed**, "
        "without starting, saving and the run's own held-out games",
        f"- measuring: {len(MATCHES)} matches, {on_notes} games on notes and {on_attacks} attacks, "
        f"about {measuring / 60:.0f} min a seed, {MATCH_START_S} s of it to start each match",
        "",
        *detectable_lines(notes, attacked),
    ]
    return "\n".join(lines)


def detectable_lines(notes: int, attacked: int) -> list[str]:
    """What one part of the held-out seeds could show, for several assumptions."""
    header = " | ".join(f"discordance {share:g}" for share in DISCORDANCES)
    lines = [
        "## Smallest difference that could be shown",
        "At 80 % power, two-sided 5 %, paired (McNemar, Connor 1987). Discordance is an assumption: the share of pairs "
        "on which exactly one of the two players is right. Balanced accuracy over two halves of equal discordance has "
        "the same variance. Between the rows: twins of a vignette are neither independent nor the same.",
        "",
        f"| one part of the held-out seeds | {header} |",
        "| --- |" + " --- |" * len(DISCORDANCES),
    ]
    for what, n in (
        (f"{notes} notes, were they independent", notes),
        (f"{notes // 2} vignettes, were twins always alike", notes // 2),
        (f"{attacked} attacks, were they independent", attacked),
        (f"{attacked // 2} vignettes under attack, were twins always alike", attacked // 2),
    ):
        found = [detectable_difference(n, share) if n else None for share in DISCORDANCES]
        lines.append(f"| {what} | " + " | ".join("none" if d is None else f"{d:.3f}" for d in found) + " |")
    return lines


def _playing_s(attacks: float, attacker: Sample, assessments: float, assessor: Sample) -> float:
    read = attacks * attacker.prompt + assessments * assessor.prompt
    written = attacks * attacker.reply + assessments * assessor.reply
    return read / FORWARD_TOKENS_PER_S + written / NEW_TOKENS_PER_S


def _mean(examples: Sequence[SftExample], count: Callable[[Any], int]) -> Sample:
    samples = [_sample(example, count) for example in examples]
    return Sample(fmean(s.prompt for s in samples), fmean(s.reply for s in samples))


def _sample(example: SftExample, count: Callable[[Any], int]) -> Sample:
    return Sample(count(example.prompt), count(example.reply))
