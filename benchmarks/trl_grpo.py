"""The same GRPO-style job as TRL's GRPOTrainer: same model, notes, instructions, lengths, group size.

    python benchmarks/trl_grpo.py [--runs N] [--quick] [--trl-python .venv-trl/bin/python]

A step: four notes, four assessments of each, at most 96 new tokens at temperature 0.7, rewards compared within a group,
a KL reference, one update. Ours is ``SelfPlayTrainer.step`` with engines, workers and judge as ``train`` starts them:
notes are passed through, so only the assessor writes, and only it learns. TRL's runs in an environment of its own
(``benchmarks/trl.txt``), which is made on first use, and generates with transformers, as it does without a GPU; in the
number format that is the faster one here, with both cores, without gradient checkpointing. Both stay up, and take
steps in turn while the other one waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from measure import Result, alternate, compare, parser
from step import trainer_of

from openrlhf_medical import assembly, casting, cluster, commands, layout
from openrlhf_medical.bf16_linear import has_fast_bf16
from openrlhf_medical.config import RunConfig, load_config
from openrlhf_medical.data.prepare import prepare_data
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.prompts import assessor_prompt_of
from openrlhf_medical.trainer import SelfPlayTrainer

ROOT = Path(__file__).resolve().parents[1]
NOTES, GROUP = 4, 4
START_S, STEP_S = 300.0, 600.0


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
        --rollout.max_new_tokens {16 if quick else 96}
    """
    return load_config(ROOT / "configs" / "quickstart.yaml", words.split())


def trl_python(chosen: Path | None) -> Path:
    """The interpreter with TRL in it, made where there is none.

    Raises:
        SystemExit: it cannot be made.
    """
    python = chosen or ROOT / ".venv-trl" / "bin" / "python"
    if not python.exists() and chosen is None:
        print(f"  making {python.parents[1]} (some minutes)", file=sys.stderr, flush=True)
        pins = ROOT / "benchmarks" / "trl.txt"
        for command in (
            [sys.executable, "-m", "venv", str(python.parents[1])],
            [str(python), "-m", "pip", "install", "-q", "-r", str(pins)],
        ):
            if subprocess.call(command, stdout=sys.stderr):
                sys.exit(f"the environment for TRL could not be made: {' '.join(command)} failed")
    found = subprocess.run([str(python), "-c", "import trl"], capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{python} has no TRL: {found.stderr.strip()[-300:]}\nremove that environment, and it is made anew")
    return python


@dataclass(slots=True)
class Trl:
    """A started ``trl_side.py``."""

    process: subprocess.Popen[str]
    tokens: list[float]

    def step(self) -> float:
        """Seconds of one step.

        Raises:
            RuntimeError: TRL ended.
        """
        assert self.process.stdin is not None
        began = time.perf_counter()
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        told = self.answer()
        took = time.perf_counter() - began
        if told["samples"] != NOTES * GROUP:
            raise RuntimeError(f"TRL's step had {told['samples']} samples, not {NOTES * GROUP}")
        self.tokens.append(told["tokens"] / told["samples"])
        return took

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL's process ended with code {self.process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def trl(python: Path, config: RunConfig, folder: Path, steps: int) -> Iterator[Trl]:
    """TRL, up and waiting for its first step, on the notes that ours plays."""
    tokenizer, rules = assembly.load_tokenizer(config), config.rules()
    stream = commands._stream(config, config.data.train)
    prompts = []
    for step in range(steps):
        for seed in stream.step(step, NOTES):
            asked = assessor_prompt_of(seed.seed_note, rules)
            text = tokenizer.apply_chat_template(list(asked.messages), tokenize=False, add_generation_prompt=True)
            truth = "Harmful" if seed.category.value == "vanilla_harmful" else "Safe"
            prompts.append({"prompt": text + asked.prefill, "truth": truth})
    job = {
        "model": str(config.actor.model_name_or_path), "folder": str(folder / "trl"), "prompts": prompts,
        "steps": steps, "batch": NOTES * GROUP, "micro_batch": GROUP, "group": GROUP,
        "max_new_tokens": config.rollout.max_new_tokens, "temperature": config.rollout.temperature,
        "learning_rate": config.actor.adam.lr, "beta": config.algo.kl.init_coef,
        "threads": len(os.sched_getaffinity(0)), "dtype": "bfloat16" if has_fast_bf16() else "float32",
    }  # fmt: skip
    file = folder / "trl.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    with (folder / "trl.log").open("w") as log, subprocess.Popen(
        [str(python), str(ROOT / "benchmarks" / "trl_side.py"), str(file)], env=env, text=True, stderr=log,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            side = Trl(process, [])
            try:
                side.answer()
                yield side
            except RuntimeError:
                print((folder / "trl.log").read_text()[-2000:], file=sys.stderr)
                raise
        finally:
            process.kill()


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
    """Seconds of steps of both, in turn; and tokens of a reply on average."""
    tokens: dict[str, list[float]] = {"ours": []}
    with trl(python, config, folder, runs + 1) as other, ours(config, folder) as trainer:
        numbers = iter(range(runs + 1))

        def step() -> float:
            began = time.perf_counter()
            games, metrics = trainer.step(next(numbers))
            took = time.perf_counter() - began
            if len(games) != NOTES * GROUP or metrics["policy/assessor/samples"] != NOTES * GROUP:
                raise RuntimeError(f"a step had {len(games)} games, and not all of them were learned from")
            tokens["ours"].append(mean(len(game.assessor.reply.token_ids) for game in games))
            return took

        seconds = alternate({"ours": step, "TRL": other.step}, runs)
        return seconds, {"tokens a reply": tokens | {"TRL": other.tokens}, "samples a step": NOTES * GROUP}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--trl-python", type=Path, help="interpreter that has TRL (default: .venv-trl, made if missing)")
    options = words.parse_args()
    python = trl_python(options.trl_python)
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
