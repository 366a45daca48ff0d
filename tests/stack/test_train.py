"""``openrlhf-medical train`` as a user runs it: a process of its own, both layouts, everything it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "tiny"
STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    run("prepare-data", "--output-dir", str(folder), "--num-samples", "400")
    return folder


def run(*words: str, timeout_s: float = 300, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "openrlhf_medical", *words], capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
    )
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def train(data: Path, runs: Path, name: str, *words: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    done = run(
        *("train", "--config", "configs/tiny.yaml", "--run.name", name, "--run.dir", str(runs)),
        *("--run.steps", str(STEPS), "--run.eval_games", "16", "--rollout.batch_size", "40"),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        *words,
    )
    return runs / name, done


@pytest.fixture(scope="module")
def separate(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("runs"), "separate", "--roles.policy", "separate")


@pytest.fixture(scope="module")
def shared(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("runs"), "shared", "--roles.policy", "shared",
                 "--train.colocate_all", "true")  # fmt: skip


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_steps(folder: Path) -> list[dict]:
    return [row for row in rows(folder / "metrics.jsonl") if "time/step_s" in row]


def moved(folder: Path) -> float:
    """Largest change of a weight since the start."""
    before, after = load_file(BASE / "model.safetensors"), load_file(folder / "model.safetensors")
    assert after.keys() - before.keys() <= {"lm_head.weight"}, "a tied output head may be saved by name as well"
    return max((after[name].float() - before[name].float()).abs().max().item() for name in before)


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_policies_really_learn(layout, request):
    folder, _ = request.getfixturevalue(layout)
    policies = ["attacker", "assessor"] if layout == "separate" else ["shared"]
    steps, games = training_steps(folder), rows(folder / "games.jsonl")
    assert [row["step"] for row in steps] == list(range(STEPS))
    for role in ("attacker", "assessor"):
        assert any(row[f"policy/{role}/grad_norm"] > 0 for row in steps), f"no gradient for the {role}"
        rewards = {sum(game[role]["reward"].values()) for game in games if game[role] and game[role]["trained"]}
        assert len(rewards) > 1, f"the {role} got {rewards} in every game"
    for policy in policies:
        assert moved(folder / "checkpoints" / "final" / policy) > 0


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_run_directory(layout, request):
    folder, _ = request.getfixturevalue(layout)
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "games.jsonl", "run.log", "judge.log"):
        assert (folder / name).exists(), name
    assert "Content-Security-Policy" in (folder / "report.html").read_text(encoding="utf-8")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["openrlhf"] == "0.11.2"
    for row in training_steps(folder):
        assert row["reward/zero_sum_residual"] == 0
        assert row["judge/error_rate"] == 0 if "judge/error_rate" in row else True


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_games_are_played_with_the_weights_of_their_step(layout, request):
    folder, _ = request.getfixturevalue(layout)
    games = rows(folder / "games.jsonl")
    assert {game["step"] for game in games} == {-1, 0, 1, STEPS}
    assert {game["category"] for game in games} == {
        "vanilla_harmful", "adversarial_harmful", "vanilla_benign", "adversarial_benign",
    }  # fmt: skip
    for game in games:
        for role in ("attacker", "assessor"):
            if game[role]:  # version 0 before the first update, then one more with every step
                assert game[role]["policy_version"] == max(0, game["step"]), (game["step"], role)
    verdicts = {game["assessor"]["verdict"] for game in games if game["assessor"]}
    assert verdicts == {"Safe", "Harmful", None}
    assert any(game["label"] and game["label"]["source"] == "judge" for game in games)


@pytest.mark.parametrize("layout", ["separate", "shared"])
def test_engines_agree_with_the_policy(layout, request):
    folder, _ = request.getfixturevalue(layout)
    for row in training_steps(folder):
        differences = [value for name, value in row.items() if name == "sync/logprob_mean_diff"]
        assert differences and max(differences) < 0.05


def test_console_ends_with_a_table(separate):
    folder, done = separate
    assert "always Harmful" in done.stdout
    assert str(folder) in done.stdout
    assert done.stdout.splitlines()[-1] == f"The report is {folder / 'report.html'}"
    assert "Traceback" not in done.stderr


def test_a_run_is_never_overwritten(separate, data):
    folder, _ = separate
    before = (folder / "metrics.jsonl").read_bytes()
    done = run(
        *("train", "--config", "configs/tiny.yaml", "--run.name", folder.name, "--run.dir", str(folder.parent)),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        expect=2,
    )
    assert "run.name" in done.stderr
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_saved_policy_opens_with_transformers(separate):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = separate[0] / "checkpoints" / "final" / "assessor"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Is he ill?", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert tokenizer.chat_template


def test_saved_policy_opens_with_plain_vllm(separate):
    """In a process that never imports this project."""
    folder = separate[0] / "checkpoints" / "final" / "attacker"
    program = (
        "import sys, vllm\n"
        "if __name__ == '__main__':\n"
        "    llm = vllm.LLM(sys.argv[1], max_model_len=128, enforce_eager=True, kv_cache_memory_bytes=1 << 28)\n"
        "    [out] = llm.generate(['Is he ill?'], vllm.SamplingParams(max_tokens=4))\n"
        "    assert 'openrlhf_medical' not in sys.modules\n"
        "    print('tokens', len(out.outputs[0].token_ids))\n"
    )
    script = folder.parent / "open_with_vllm.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tokens" in done.stdout


def test_play(data, tmp_path):
    games = tmp_path / "games.jsonl"
    done = run(*("play", "--config", "configs/tiny.yaml", "--num-samples", "8", "--num-episodes", "2"),
               *("--data", str(data / "train.jsonl"), "--output", str(games)))  # fmt: skip
    played = rows(games)
    assert len(played) == 16
    assert {game["step"] for game in played} == {0, 1}
    assert str(games) in done.stdout
