"""A run that cannot fit is refused at once, by the real program and without torch or Ray."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from openrlhf_medical.cli import app
from openrlhf_medical.data.seed_files import seeds_to_jsonl
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.plan.known_models import KNOWN_MODELS

HEAVY = ("torch", "ray", "vllm", "openrlhf", "deepspeed", "transformers")
PROGRAM = (
    "import atexit, sys\n"
    f"atexit.register(lambda: print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr))\n"
    "from openrlhf_medical.cli import main\n"
    "main()"
)
SECONDS = 2.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run that is complete but for weights: a model folder with Llama's dimensions, one seed."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(KNOWN_MODELS["meta-llama/Llama-3.1-8B"]))
    (model / "tokenizer.json").write_text("{}")
    text = "The patient has a fever. He is given paracetamol."
    seed = Seed("train:0", Category.VANILLA_BENIGN, "n", "v", "clean", text, text, sentences=(text,))
    (tmp_path / "train.jsonl").write_bytes(seeds_to_jsonl([seed]))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{name: r, eval_games: 0, dir: {tmp_path}/runs}}\nactor.model_name_or_path: {model}\n"
        f"data.train: {tmp_path}/train.jsonl\n"
    )
    return path


def run(*words: str | Path, **more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process, and the CPU seconds that it took: others' load on the machine counts for nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | more
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, timeout=60, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--train.micro_batch_size", "4096"], "memory"),  # 4096 × 2048 × 128,256 logits: no machine has that
        (["--dry-run", "--train.micro_batch_size", "4096"], "memory"),
        (["--dry-run", "--on", "1x80GB"], "GPUs: 6 needed, 1 there"),
    ],
    ids=["train", "dry-run", "elsewhere"],
)
def test_refused_within_two_seconds(config: Path, words: list[str], part: str, tmp_path: Path) -> None:
    done, seconds = run("train", "--config", config, *words)
    assert done.returncode == 2
    *_, error, heavy = done.stderr.splitlines()
    assert error.startswith("error: the run does not fit on") and part in error and "What would help: " in error
    assert any("SHORT" in line for line in done.stderr.splitlines()), "the table marks the row"
    assert heavy == "heavy: []"
    assert seconds < SECONDS
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_what_fits_elsewhere_is_said_without_its_data_being_here() -> None:
    path = Path(__file__).parents[2] / "configs" / "selfplay_8b_single_node.yaml"
    done, seconds = run("train", "--config", path, "--dry-run", "--on", "8x80GB")
    assert done.returncode == 0, done.stderr
    assert "ok: keys and plan fit together" in done.stderr
    assert done.stdout.startswith("run:"), "what is on stdout can be loaded"
    assert seconds < SECONDS


def test_a_cluster_that_is_not_there_is_refused_before_ray_is_asked(config: Path) -> None:
    done, seconds = run("train", "--config", config, RAY_ADDRESS="127.0.0.1:1")
    error, heavy = done.stderr.splitlines()
    assert (done.returncode, heavy) == (2, "heavy: []")
    assert error.startswith("error: RAY_ADDRESS is 127.0.0.1:1, where nothing answers")
    assert seconds < SECONDS


def test_other_hardware_is_only_planned_for(config: Path) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(app, ["train", "--config", str(config), *words])
        assert result.exit_code == 2
        return result.stderr

    assert "add --dry-run" in said("--on", "8x80GB")
    assert "--judge-gpus goes with --on" in said("--dry-run", "--judge-gpus", "1")
