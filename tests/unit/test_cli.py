"""The command line: what reaches the program behind it, exit codes, and that help is quick."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import openrlhf_medical
from openrlhf_medical import cluster
from openrlhf_medical.cli import app
from openrlhf_medical.config import load_config
from openrlhf_medical.data.seed_files import seeds_to_jsonl
from openrlhf_medical.errors import Interrupted, UserError
from openrlhf_medical.game.players import Role
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.spec import JudgeSpec

COMMANDS = (
    *("prepare-data", "serve-judge", "play", "train", "submit", "sweep", "judge-audit", "evaluate", "arena"),
    *("diversity", "report", "doctor"),
)


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A folder that passes for a model, one seed, and a configuration that names both."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    text = "The patient has a fever. He is given paracetamol."
    seed = Seed("train:0", Category.VANILLA_BENIGN, "n", "v", "clean", text, text, sentences=(text,))
    data = tmp_path / "train.jsonl"
    data.write_bytes(seeds_to_jsonl([seed]))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: {{name: r, eval_games: 0, dir: {tmp_path}/runs}}\n"
        f"actor.model_name_or_path: {model}\n"
        f"data.train: {data}\n"
    )
    return {"model": model, "data": data, "config": config}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the commands hand on: ``commands`` and ``judge.server`` are replaced by recorders."""
    seen: dict[str, Any] = {}
    commands = types.ModuleType("openrlhf_medical.commands")
    commands.train = lambda config, resume: seen.update(train=config, resume=resume)  # type: ignore[attr-defined]
    commands.play = lambda config, **options: seen.update(play=(config, options))  # type: ignore[attr-defined]
    server = types.ModuleType("openrlhf_medical.judge.server")
    server.serve = lambda spec, **options: seen.update(serve={"spec": spec, **options})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "openrlhf_medical.commands", commands)
    monkeypatch.setattr(openrlhf_medical, "commands", commands, raising=False)
    monkeypatch.setitem(sys.modules, "openrlhf_medical.judge.server", server)
    monkeypatch.setattr(cluster, "coming_up", lambda gpus: contextlib.nullcontext())  # no Ray
    return seen


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"openrlhf-medical {command}" in result.stdout.split("Example")[1]


def test_help_lists_every_command_in_well_under_a_second() -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        words = [sys.executable, "-m", "openrlhf_medical", "--help"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
    assert all(command in done.stdout for command in COMMANDS)
    assert min(seconds) < 0.7


def test_train_hands_on_the_file_and_the_dotted_options(inputs: dict[str, Path], calls: dict[str, Any]) -> None:
    dotted = ["--train.seed=7", "--reward.clip_range", "-1", "1", "--run.deterministic", "--algo.kl.init_coef", "1e-3"]
    result = run("train", "--config", inputs["config"], *dotted)
    assert result.exit_code == 0, result.output
    settings = calls["train"]
    assert (settings.train.seed, settings.reward.clip_range) == (7, (-1, 1))
    assert (settings.run.deterministic, settings.algo.kl.init_coef) == (True, 1e-3)
    assert calls["resume"] is None
    run("train", "--config", inputs["config"], "--resume", "auto")
    assert calls["resume"] == "auto"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_with_its_code_and_the_command_to_go_on(
    inputs: dict[str, Path], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def interrupted(config: Any, resume: str | None) -> None:
        raise Interrupted(number, "3 of 9 steps are done; their state is in runs/x")

    monkeypatch.setattr(sys.modules["openrlhf_medical.commands"], "train", interrupted)
    monkeypatch.setattr(sys, "argv", ["openrlhf-medical", "train", "--config", "a b.yaml", "--resume", "auto"])
    result = run("train", "--config", inputs["config"])
    assert result.exit_code == 128 + number
    assert result.stderr == (
        f"interrupted by {number.name}: 3 of 9 steps are done; their state is in runs/x; go on with: "
        "openrlhf-medical train --config 'a b.yaml' --resume auto\n"
    )


def test_dry_run_prints_what_can_be_loaded_and_starts_nothing(
    inputs: dict[str, Path], calls: dict[str, Any], tmp_path: Path
) -> None:
    result = run("train", "--config", inputs["config"], "--train.seed", "7", "--dry-run")
    assert result.exit_code == 0
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(result.stdout)
    assert load_config(resolved) == load_config(inputs["config"], ["--train.seed", "7"])
    assert "nothing was started" in result.stderr
    assert not calls and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("dotted", "part"),
    [
        (["--train.sed", "7"], "nearest: train.seed"),
        (["--data.train", "/none.jsonl"], "/none.jsonl"),
        (["--actor.model_name_or_path", "/none"], "no model at /none"),
        (["--run.eval_games", "4", "--data.val", "/none/val.jsonl"], "/none/val.jsonl"),
        (["hello"], "'hello'"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry-run"])
def test_mistakes_end_with_one_line_and_exit_code_2(
    inputs: dict[str, Path], calls: dict[str, Any], dotted: list[str], part: str, dry: list[str]
) -> None:
    result = run("train", "--config", inputs["config"], *dotted, *dry)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert part in result.stderr
    assert "train" not in calls


def test_all_wrong_inputs_are_named_at_once(inputs: dict[str, Path], calls: dict[str, Any]) -> None:
    result = run("train", "--config", inputs["config"], "--data.train=/a.jsonl", "--actor.model_name_or_path=/b")
    assert "/a.jsonl" in result.stderr and "/b" in result.stderr


def test_without_a_gpu_what_needs_one_is_refused(
    inputs: dict[str, Path], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from openrlhf_medical import devices

    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    result = run("train", "--config", inputs["config"], "--ds.packing_samples")
    assert result.exit_code == 2 and "ds.packing_samples (it needs FlashAttention)" in result.stderr
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 8)  # a bundle has a CPU, and Ray counts them
    assert run("train", "--config", inputs["config"], "--ds.packing_samples").exit_code == 0


def test_no_traceback_from_the_real_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "openrlhf_medical", "train", "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path}/none.yaml: cannot be read (No such file or directory)"]


def test_ctrl_c_ends_with_one_line_and_130(
    inputs: dict[str, Path], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(config: Any, resume: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["openrlhf_medical.commands"], "train", interrupted)
    result = run("train", "--config", inputs["config"])
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_a_fault_of_ours_keeps_its_traceback(
    inputs: dict[str, Path], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Any, resume: str | None) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(sys.modules["openrlhf_medical.commands"], "train", broken)
    result = run("train", "--config", inputs["config"])
    assert isinstance(result.exception, RuntimeError) and result.exit_code == 1


def test_an_error_of_several_lines_is_told_on_one(
    inputs: dict[str, Path], calls: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config: Any, resume: str | None) -> None:
        raise UserError("first\nsecond")

    monkeypatch.setattr(sys.modules["openrlhf_medical.commands"], "train", refuse)
    assert run("train", "--config", inputs["config"]).stderr == "error: first second\n"


def test_play_needs_no_configuration(inputs: dict[str, Path], calls: dict[str, Any]) -> None:
    words = [
        "--model",
        inputs["model"],
        "--data",
        inputs["data"],
        "--judge-url",
        "http://a:1",
        "--judge-url",
        "http://b",
    ]
    result = run("play", *words, "--num-samples", "3", "--seed", "5", "--game.cot", "false")
    assert result.exit_code == 0, result.output
    settings, options = calls["play"]
    assert settings.judge.urls == ("http://a:1", "http://b")
    assert (settings.run.name, settings.train.seed, settings.game.cot) == ("play", 5, False)
    assert options == {
        "models": dict.fromkeys(Role, str(inputs["model"])),
        "num_samples": 3,
        "num_episodes": 1,
        "output": Path("runs/play/games.jsonl"),
    }


def test_play_starts_from_a_configuration(inputs: dict[str, Path], calls: dict[str, Any], tmp_path: Path) -> None:
    result = run("play", "--config", inputs["config"], "--output", tmp_path / "g.jsonl", "--num-episodes", "2")
    assert result.exit_code == 0, result.output
    settings, options = calls["play"]
    assert (settings.run.name, settings.train.seed) == ("r", 42)
    models = dict.fromkeys(Role, str(inputs["model"]))
    assert options == {"models": models, "num_samples": 16, "num_episodes": 2, "output": tmp_path / "g.jsonl"}


def test_play_can_pair_two_models(inputs: dict[str, Path], calls: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    inputs["model"].rename(other)
    inputs["model"].mkdir()
    words = ("play", "--config", inputs["config"], "--output", tmp_path / "g.jsonl", "--attacker", other)
    refused = run(*words)
    assert refused.exit_code == 2 and "config.json" in refused.stderr
    assert run(*words, "--assessor", other).exit_code == 0
    assert calls["play"][1]["models"] == dict.fromkeys(Role, str(other))


def test_play_asks_who_plays(calls: dict[str, Any]) -> None:
    result = run("play")
    assert result.exit_code == 2 and "--model" in result.stderr


def test_serve_judge_hands_on_its_options(calls: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    options = ("--port", "0", "--port-file", tmp_path / "port", "--token-file", tmp_path / "token")
    limits = (
        "--max-queue",
        "100",
        "--max-batch",
        "8",
        "--request-timeout-s",
        "30",
        "--grace-s",
        "2",
        "--cache-dir",
        tmp_path / "cache",
    )
    result = run("serve-judge", *options, *limits, "--log-text", "--exit-with-parent")
    assert result.exit_code == 0, result.output
    assert calls["serve"] == {
        "spec": JudgeSpec(),
        "cache_folder": tmp_path / "cache",
        "host": "127.0.0.1",
        "port": 0,
        "port_file": tmp_path / "port",
        "token": "s3cret",
        "limits": Limits(max_queue=100, max_batch=8, request_timeout_s=30, grace_s=2),
        "log_text": True,
        "exit_with_parent": True,
    }


def test_prepare_data_hands_on_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_medical.data import prepare

    seen: list[Any] = []

    def record(*options: Any) -> Any:
        seen.append(options)
        return types.SimpleNamespace(render=lambda: "the summary")

    monkeypatch.setattr(prepare, "prepare_data", record)
    words = ["--output-dir", "out", "--num-samples", "8", "--train-ratio", "0.5", "--seed", "3", "--download",
             "--families", "cardiac, gastro", "--vignettes", "9", "--wording", "second"]  # fmt: skip
    assert run("prepare-data", *words).stdout == "the summary\n"
    assert run("prepare-data", "--source", "x.csv").exit_code == 0
    assert seen == [
        ("synthetic", Path("out"), 8, 0.5, 3, prepare.PUBLIC_URL, ["cardiac", "gastro"], 9, "second"),
        ("x.csv", Path("data"), None, 0.9, 0, None, [], None, "all"),
    ]


def test_doctor_ends_with_1_exactly_when_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_medical import doctor
    from openrlhf_medical.doctor.findings import Finding, Status

    warn = Finding("a", Status.WARN, "b", "c")
    monkeypatch.setattr(doctor, "diagnose", lambda judge_urls, model: [warn])
    assert run("doctor").exit_code == 0
    monkeypatch.setattr(doctor, "diagnose", lambda judge_urls, model: [warn, Finding("d", Status.FAIL, "e", "f")])
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "fail"


def test_unknown_commands_are_refused() -> None:
    assert run("trian").exit_code == 2
