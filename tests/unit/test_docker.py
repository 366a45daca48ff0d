"""Image and compose file, where no engine can build them: a linter, the project's own pins, and commands that exist."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from openrlhf_medical.cli import app
from openrlhf_medical.config import load_config

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
INSTRUCTIONS = [line.split(maxsplit=1) for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line[:1].isupper()]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def instructions(name: str) -> list[str]:
    return [words for instruction, words in INSTRUCTIONS if instruction == name]


def program(name: str) -> str:
    """Of a package that is installed beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is missing: ./launch/setup.sh --dev installs it"
    return found


class TestImage:
    def test_linter(self):
        done = subprocess.run(
            [program("hadolint"), "--no-color", str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout

    def test_the_linter_finds_something(self, tmp_path):
        (tmp_path / "Dockerfile").write_text("FROM ubuntu:latest\nRUN pip install torch\n")
        done = subprocess.run([program("hadolint"), str(tmp_path / "Dockerfile")], capture_output=True, text=True)
        assert done.returncode != 0 and "DL3007" in done.stdout

    def test_its_pins_are_the_projects(self):
        """Whatever is installed by version is installed by launch/setup.sh, from launch/pins/cuda.txt."""
        (setup,) = [words for words in instructions("RUN") if "setup.sh" in words]
        assert "STACK=cuda" in setup and not re.search(r"\bpip3? install\b", DOCKERFILE)
        pinned = {line.partition("==")[0] for line in (ROOT / "launch/pins/cuda.txt").read_text().split()}
        assert {"openrlhf[vllm]", "vllm", "flash-attn"} <= pinned
        versions = re.findall(r"==\s*[\d.]+", "\n".join(" ".join(words) for words in INSTRUCTIONS))
        assert not versions, f"{versions} stands beside the pins"

    def test_the_base_is_one_version_with_the_compiler(self):
        (base,) = [words for words in instructions("ARG") if words.startswith("BASE=")]
        assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-devel-ubuntu24\.04(@sha256:[0-9a-f]{64})?", base)
        assert instructions("FROM") == ["${BASE}"]

    def test_its_python_is_one_that_the_project_takes(self):
        wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
        assert wanted == ">=3.11,<3.13", "Ubuntu 24.04 has Python 3.12: look whether the base image still fits"

    def test_it_runs_as_somebody(self):
        assert instructions("USER") == ["1000:1000"]
        order = [name for name, _ in INSTRUCTIONS]
        assert order.index("USER") < order.index("ENTRYPOINT")

    def test_what_is_copied_exists_and_is_sent(self):
        ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
        assert ignored[0] == "*", "everything is left out that is not named: notes, models, tokens"
        sent = {line[1:] for line in ignored if line.startswith("!")}
        copied = {word for words in instructions("COPY") for word in words.split()[:-1] if not word.startswith("--")}
        assert copied == sent and all((ROOT / name).exists() for name in copied)
        for secret in ("judge.token", "data", "models", "runs", ".git", ".venv"):
            assert not any(fnmatch.fnmatch(secret, name) for name in sent)


class TestCompose:
    def test_one_image(self):
        assert {service["image"] for service in SERVICES.values()} == {"openrlhf-medical"}
        assert SERVICES["judge"]["build"] == {"context": "..", "dockerfile": "docker/Dockerfile"}

    @pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "entrypoint" not in service])
    def test_commands_and_options_exist(self, name):
        command, *words = SERVICES[name]["command"]
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts}
        dotted = {word for word in words if word.startswith("--") and "." in word}
        unknown = {word for word in words if word.startswith("--")} - known - dotted
        assert not unknown, f"{command} has no {unknown}"
        assert not dotted or command == "train"

    def test_the_trainers_settings_are_accepted(self):
        _, *words = SERVICES["trainer"]["command"]
        overrides = words[next(i for i, word in enumerate(words) if word.startswith("--") and "." in word) :]
        config = load_config(ROOT / words[words.index("--config") + 1], overrides)
        judge = SERVICES["judge"]["command"]
        assert config.judge.urls == (f"http://judge:{judge[judge.index('--port') + 1]}",)
        assert str(config.judge.token_file) == judge[judge.index("--token-file") + 1]
        board = SERVICES["tensorboard"]["command"]
        assert str(config.logger.tensorboard_dir) == board[board.index("--logdir") + 1]
        mounts = {volume.split(":")[1] for volume in SERVICES["trainer"]["volumes"]}
        assert {"/app/runs", "/app/data", "/app/models"} <= mounts, "what has to outlive the container"

    def test_only_the_compose_network_reaches_the_judge(self):
        assert "ports" not in SERVICES["judge"] and SERVICES["judge"]["networks"] == ["judge"]
        assert COMPOSE["networks"]["judge"] == {"internal": True}
        assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service.get("ports", ()))

    def test_secrets_are_files_outside_the_image(self):
        for name in ("judge", "trainer"):
            assert SERVICES[name]["secrets"] == ["judge_token"]
        assert COMPOSE["secrets"]["judge_token"] == {"file": "../judge.token"}

    def test_stopping_leaves_time_for_a_checkpoint(self):
        assert SERVICES["trainer"]["stop_grace_period"] == "10m"
        words = SERVICES["trainer"]["command"]
        assert words[words.index("--resume") + 1] == "auto"
