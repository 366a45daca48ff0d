"""The same GRPO-style job as TRL's GRPOTrainer: same model, notes, instructions, limit of tokens, group size.

    python benchmarks/trl_grpo.py [--runs N] [--quick] [--trl-python .venv-trl/bin/python]

A step: four notes, four assessments of each, at most 96 new tokens at temperature 0.7, rewards compared within a group,
a KL reference, one update. Ours is ``SelfPlayTrainer.step`` with engines, workers and judge as ``train`` starts them:
notes are passed through, so only the assessor writes, and only it learns. TRL's runs in an environment of its own
(``benchmarks/trl.txt``), which is made on first use, and generates with transformers, as it does without a GPU; in bf16
where this CPU has it, else fp32, with both cores, without gradient checkpointing. Whether TRL has faster settings here
has not been tried yet. Each learns from its own rewards, so replies drift apart in length: the row's note tells it.
Both stay up, and take steps in turn while the other one waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from measure import Result, alternate, compare, parser
from start import CpuSeconds
from step import PHASES, trainer_of
from trl_process import START_S, interpreter, started

from openrlhf_medical import assembly, casting, cluster, commands, layout
from openrlhf_medical.bf16_linear import has_fast_bf16
from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.data.prepare import prepare_data
from openrlhf_medical.game.cot import STOP
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.prompts import assessor_prompt_of
from openrlhf_medical.trainer import SelfPlayTrainer

ROOT = Path(__file__).resolve().parents[1]
NOTES, GROUP = 4, 4


def configuration(folder: Path, *, quick: bool) -> RunConfig:
    prepare_data("synthetic", folder / "data", None, 0.9, 0)
    model = ROOT / "models" / ("tiny" if quick else "smollm2-135m")
    words = f"""
        --run.name grpo --run.dir {folder} --run.eval_games 0 --actor.model_name_or_path {model}
        --data.train {folder}/data/train.jsonl --data.val {folder}/data/val.jsonl
        --roles.policy shared --roles.train assessor --roles.opponent current
        --game.mix.vanilla_harmful 0.5 --game.mix.vanilla_benign 0.5
        --game.mix.adversarial_harmful 0 --game.mix.adversarial_benign 0
        --rollout.batch_size {NOTES} --game.assessments_per_note {GROUP} --algo.advantage.estimator group_norm
        --rollout.micro_batch_size {GROUP} --train.micro_batch_size {GROUP}
        --rollout.max_new_tokens {16 if quick else 96}
    """
    return load_config(ROOT / "configs" / "quickstart.yaml", words.split())


def job_of(config: RunConfig, folder: Path, steps: int) -> dict[str, Any]:
    """What TRL is to do: the notes that ours plays, in the same order, and the same numbers."""
    tokenizer, rules = assembly.load_tokenizer(config), config.rules()
    stream = commands._stream(config, config.data.train)
    prompts = []
    for step in range(steps):
        for seed in stream.step(step, NOTES):
            asked = assessor_prompt_of(seed.seed_note, rules)
            text = tokenizer.apply_chat_template(list(asked.messages), tokenize=False, add_generation_prompt=True)
            truth = "Harmful" if seed.category.is_harmful else "Safe"
            prompts.append({"prompt": text + asked.prefill, "truth": truth})
    return {
        "model": str(config.actor.model_name_or_path), "folder": str(folder / "trl"), "prompts": prompts,
        "steps": steps, "batch": NOTES * GROUP, "micro_batch": GROUP, "group": GROUP, "stop": STOP,
        "max_new_tokens": config.rollout.max_new_tokens, "temperature": config.rollout.temperature,
        "learning_rate": config.actor.adam.lr, "beta": config.algo.kl.init_coef,
        "threads": len(os.sched_getaffinity(0)), "dtype": "bfloat16" if has_fast_bf16() else "float32",
    }  # fmt: skip


@contextlib.contextmanager
def ours(config: RunConfig, folder: Path) -> Iterator[SelfPlayTrainer]:
    """A trainer with everything that ``train`` starts."""
    with (
        assembly.judge_of(config, folder) as judge,
        cluster.session(layout.bundles_needed(config)),
    ):
        starts = dict.fromkeys(Role, layout.model_of(config))
        pad_token_id = assembly.load_tokenizer(config).pad_token_id
        learners = assembly.start_learners(config, starts, pad_token_id, casting.engine_spec(config))
        trainer = trainer_of(config, "grpo", learners, judge)
        try:
            yield trainer
        finally:
            trainer.close()


def measure(config: RunConfig, folder: Path, python: Path, runs: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of steps of both, in turn; tokens of a reply on average; cores that the one who waited kept busy."""
    job = folder / "trl.json"
    job.write_text(json.dumps(job_of(config, folder, runs + 1)), encoding="utf-8")
    tokens: dict[str, list[float]] = {"ours": [], "TRL": []}
    idle: dict[str, list[float]] = {"ours": [], "TRL": []}
    phases: list[dict[str, float]] = []
    own = CpuSeconds(os.getpid())
    command = [str(python), str(ROOT / "benchmarks" / "trl_side.py"), str(job)]
    with started(command, folder / "trl.log") as other:
        other.answer(START_S)
        with ours(config, folder) as trainer:
            numbers = iter(range(runs + 1))

            def our_step() -> float:
                began, others = time.perf_counter(), other.cpu_s()
                games, metrics = trainer.step(next(numbers))
                took = time.perf_counter() - began
                if len(games) != NOTES * GROUP or metrics["policy/assessor/samples"] != NOTES * GROUP:
                    raise RuntimeError(f"a step had {len(games)} games, and not all of them were learned from")
                phases.append({name: metrics[f"time/{name}_s"] for name in PHASES})
                idle["TRL"].append((other.cpu_s() - others) / took)
                tokens["ours"].append(mean(len(game.assessor.reply.token_ids) for game in games))
                return took

            def trl_step() -> float:
                ours_s = own.total() - other.cpu_s()
                began = time.perf_counter()
                told = other.step()
                took = time.perf_counter() - began
                if told["samples"] != NOTES * GROUP:
                    raise RuntimeError(f"TRL's step had {told['samples']} samples, not {NOTES * GROUP}")
                idle["ours"].append((own.total() - other.cpu_s() - ours_s) / took)
                tokens["TRL"].append(told["tokens"] / told["samples"])
                return took

            seconds = alternate({"ours": our_step, "TRL": trl_step}, runs)
    return seconds, {
        "samples a step": NOTES * GROUP,
        "tokens a reply": tokens,
        "cores busy while waiting": idle,
        "our phases, s": phases,
    }


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--trl-python", type=Path, help="interpreter that has TRL (default: .venv-trl, made if missing)")
    options = words.parse_args()
    python = interpreter(options.trl_python)
    with tempfile.TemporaryDirectory(prefix="trl-") as name:
        folder = Path(name)
        seconds, samples = measure(configuration(folder, quick=options.quick), folder, python,
                                   1 if options.quick else options.runs)  # fmt: skip
    lengths = ", ".join(f"{who} {mean(own):.0f}" for who, own in samples["tokens a reply"].items())
    row = compare("samples/s of a GRPO-style job against TRL's GRPOTrainer", seconds["ours"], seconds["TRL"], 2.0,
                  "higher", f"tokens a reply: {lengths}")  # fmt: skip
    result = Result("trl_grpo", [row], {"seconds": seconds, **samples})
    result.report(None) if options.quick else result.report()


if __name__ == "__main__":
    main()
