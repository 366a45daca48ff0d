"""One step of every file in configs/ablations, with a tiny model, as a user runs it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from openrlhf_medical import layout
from openrlhf_medical.config import RunConfig, load_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "tiny"
FILES = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))

# What makes a file for GPUs small enough for two CPU cores, and nothing that an ablation is about.
ON_A_CPU = [
    *("--run.steps", "1", "--run.eval_games", "0", "--ckpt.save_steps", "-1"),
    *("--actor.model_name_or_path", str(TINY)),
    *("--actor.num_nodes", "1", "--actor.num_gpus_per_node", "1"),
    *("--ref.num_nodes", "1", "--ref.num_gpus_per_node", "1"),
    *("--critic.num_nodes", "1", "--critic.num_gpus_per_node", "1"),
    *("--vllm.num_engines", "1", "--vllm.tensor_parallel_size", "1", "--vllm.enable_prefix_caching", "false"),
    *("--ds.attn_implementation", "auto", "--ds.packing_samples", "false", "--ds.zero_stage", "2"),
    *("--ds.tensor_parallel_size", "1", "--train.dynamic_batch_enable", "false"),
    *("--train.colocate_all", "false", "--train.colocate_actor_ref", "false"),
    # as configs/tiny.yaml: one step visibly moves the weights, a reply fits in one sentence
    *("--actor.adam.lr", "1e-3", "--actor.lr_scheduler", "constant", "--actor.lr_warmup_ratio", "0"),
    *("--game.edit", "sentence", "--data.max_len", "1024", "--rollout.max_new_tokens", "24"),
    *("--rollout.micro_batch_size", "4", "--train.batch_size", "8", "--train.micro_batch_size", "4"),
    *("--train.sft_batch_size", "4"),
]
GAMES = 16
RANK = 8
"""vLLM takes 1, 8, 16, 32 and more as the largest rank."""


def overrides(path: Path) -> list[str]:
    config = load_config(path)
    per_seed = config.game.attacks_per_seed * config.game.assessments_per_note
    words = [*ON_A_CPU, "--rollout.batch_size", str(max(4, GAMES // per_seed))]  # at least one seed of each category
    if config.ds.lora.rank:
        words += ["--ds.lora.rank", str(RANK)]
    if config.train.sft_warmup_steps:
        words += ["--train.sft_warmup_steps", "2"]
    return words


def run(*words: str, timeout_s: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_medical", *words], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    run("prepare-data", "--output-dir", str(folder), "--num-samples", "400", timeout_s=300)
    return ["--data.train", str(folder / "train.jsonl"), "--data.val", str(folder / "val.jsonl")]


def why_no_gradient(row: dict[str, float], role: str) -> str:
    """What excuses a role whose games taught nothing in this one step; "" if nothing does."""
    if not row.get(f"policy/{role}/samples"):
        return "no samples"
    return "all rewards compared are equal" if row[f"policy/{role}/equal_reward_share"] == 1 else ""


def largest_change(folder: Path, config: RunConfig) -> float:
    """Of a weight; an adapter's second matrices start at 0. Raises where the checkpoint is not there."""
    if config.ds.lora.rank:
        weights = load_file(folder / "adapter_model.safetensors")
        assert any("lora_B" in name for name in weights)
        return max(w.float().abs().max().item() for name, w in weights.items() if "lora_B" in name)
    before, after = load_file(TINY / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in after.values())
    return max((after[name].float() - before[name].float()).abs().max().item() for name in before)


def check_losses(row: dict[str, float], role: str, config: RunConfig) -> None:
    """Those that the configuration asks for are there, and finite."""
    if config.train.sft_coef:
        assert 0 < row[f"policy/{role}/sft_loss"] < math.inf
    if config.algo.advantage.estimator == "gae" and row.get(f"policy/{role}/samples"):
        assert 0 <= row[f"policy/{role}/value_loss"] < math.inf
        assert 0 < row[f"policy/{role}/critic_grad_norm"] < math.inf


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_step(path, data, tiny_model, tmp_path):
    words = [*overrides(path), *data]
    config = load_config(path, words)
    file = str(path.relative_to(ROOT))
    run("train", "--config", file, "--run.dir", str(tmp_path), *words, timeout_s=600)
    folder = tmp_path / config.run.name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    [row] = [row for row in rows if "time/step_s" in row]
    assert row["step"] == 0
    assert all(math.isfinite(value) for name, value in row.items() if name.startswith(("policy/", "sync/")))

    policies = layout.policies_of(config)
    assert {role for own in policies.values() for role in own} == config.trained_roles
    for policy, roles in policies.items():
        change = largest_change(folder / "checkpoints" / "final" / policy, config)
        excuses = [why_no_gradient(row, role) for role in roles]
        for role in roles:
            check_losses(row, role, config)
        if not all(excuses):
            assert all(row[f"policy/{role}/grad_norm"] > 0 for role in roles)
            assert change > 0, f"a gradient, but {policy} is as before"
    untrained = {"attacker", "assessor"} - set(config.trained_roles)
    assert not [name for name in row if name.startswith(tuple(f"policy/{role}/" for role in untrained))]
