"""Every file under configs/: accepted, runnable on the hardware that its header asks for, and ablations that differ
from their base in nothing but what they ablate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from openrlhf_medical.config import RunConfig, check_hardware, dump_config, load_config
from openrlhf_medical.errors import UserError

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.yaml"))
BASE = ROOT / "configs" / "ablations" / "selfplay_rl.yaml"

# What each ablation changes beside its name.
CHANGES: dict[str, set[str]] = {
    "selfplay_rl": set(),
    "selfplay_sft": {"train.sft_coef"},
    "no_cot": {"game.cot"},
    "assessor_only": {"roles.train", "roles.opponent"},
    "attacker_only": {"roles.train", "roles.opponent"},
    "separate": {"roles.policy"},
    "adapters": {"roles.policy", "ds.lora.rank", "ds.lora.alpha", "actor.adam.lr"},  # adapters want another rate
    "general_sum": {"game.rewards.scheme"},
    "disguise": {"game.benign_goal"},
    "pool": {"roles.opponent"},
    "grpo": {  # as many games from fewer seeds
        *("algo.advantage.estimator", "game.attacks_per_seed", "game.assessments_per_note", "rollout.batch_size"),
    },
    "critic": {"algo.advantage.estimator", "critic.num_gpus_per_node"},  # as many workers as the policy's
}

# Files that a script or a benchmark runs, so that their headers give no command.
NO_COMMAND = {"quickstart": "launch/quickstart.sh", "learn_cpu": "benchmarks/", "tiny": "tests"}

GPU_ONLY = {"selfplay_8b_multinode": {"ds.packing_samples"}}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def header(path: Path) -> str:
    """The comment that the file begins with."""
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def games_per_step(config: RunConfig) -> int:
    return config.rollout.batch_size * config.game.attacks_per_seed * config.game.assessments_per_note


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every_ablation = pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
every_with_command = pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem not in NO_COMMAND], ids=lambda path: path.stem
)


def test_all_files_are_here() -> None:
    assert {"quickstart", "tiny", "learn_cpu", "selfplay_4b_single_gpu", "selfplay_8b_multinode"} <= {
        path.stem for path in FILES
    }
    assert {path.stem for path in ABLATIONS} == set(CHANGES)


@every_file
def test_accepted_and_written_back(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    check_hardware(config, has_gpu=True)
    assert path.stem.startswith(config.run.name), "a run is named after its file"
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config


@every_file
def test_without_a_gpu_only_gpu_keys_are_refused(path: Path) -> None:
    """And a file is as good as any other on a CPU once those are back at their defaults."""
    refused: set[str] = set()
    try:
        check_hardware(load_config(path), has_gpu=False)
    except UserError as error:
        refused = set(re.findall(r"([a-z_]+\.[a-z_.]+) \(", str(error)))
    assert refused == GPU_ONLY.get(path.stem, set())
    check_hardware(load_config(path, [word for key in sorted(refused) for word in (f"--{key}", "false")]), False)


@every_with_command
def test_the_command_of_a_header_names_its_file(path: Path) -> None:
    [named] = re.findall(r"openrlhf-medical train --config (\S+)", header(path))
    assert named == str(path.relative_to(ROOT))


@pytest.mark.parametrize("stem", sorted(NO_COMMAND))
def test_files_without_a_command_say_what_runs_them(stem: str) -> None:
    text = header(ROOT / "configs" / f"{stem}.yaml")
    assert "--config" not in text
    assert NO_COMMAND[stem] in text


@every_with_command
def test_headers_say_how_many_gpus(path: Path) -> None:
    from openrlhf_medical.layout import bundles_needed

    [gpus] = re.findall(r"^# Needs: (\d+) GPUs?\b", header(path), re.MULTILINE)
    assert int(gpus) == bundles_needed(load_config(path))


def test_turns_in_flight_fill_every_engine() -> None:
    from openrlhf_medical.layout import turns_at_once

    base = ["--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "2"]
    found = {
        words: turns_at_once(load_config(BASE, [*base, *words.split()]))
        for words in (
            "--roles.policy shared --roles.opponent current",
            "--roles.policy separate --roles.opponent current",
            "--roles.policy separate --roles.train assessor --roles.opponent base",
        )
    }
    assert list(found.values()) == [512, 1024, 1024]


@every_ablation
def test_ablations_differ_from_their_base_in_what_they_ablate(path: Path) -> None:
    base, own = (flat(load_config(file).model_dump()) for file in (BASE, path))
    different = {key for key in base if base[key] != own[key]}
    assert different - {"run.name"} == CHANGES[path.stem]


@every_ablation
def test_ablations_play_equally_many_games_on_one_machine(path: Path) -> None:
    from openrlhf_medical.layout import bundles_needed

    config = load_config(path)
    assert games_per_step(config) == games_per_step(load_config(BASE))
    assert bundles_needed(config) <= 8, "a common machine has 8 GPUs"


def test_the_papers_hyper_parameters() -> None:
    """Self-RedTeam's script (arXiv 2506.07468); the reward table is ours."""
    config = load_config(ROOT / "configs" / "selfplay_8b_multinode.yaml")
    found = flat(config.model_dump())
    paper = {
        "actor.adam.lr": 5e-7, "algo.kl.init_coef": 0.01, "algo.kl.use_loss": False, "actor.eps_clip": 0.2,
        "rollout.batch_size": 128, "train.batch_size": 32, "rollout.temperature": 1, "rollout.top_p": 1,
        "rollout.max_new_tokens": 2048, "data.max_len": 4096, "ds.zero_stage": 3, "run.steps": 200,
        "roles.policy": "shared", "algo.advantage.estimator": "reinforce", "game.rewards.scheme": "zero_sum",
    }  # fmt: skip
    assert {key: found[key] for key in paper} == paper
