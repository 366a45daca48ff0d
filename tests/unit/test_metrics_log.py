"""Metrics for people's own tools: TensorBoard, as it reads them itself, and a scripted Weights & Biases."""

from __future__ import annotations

import math
import shutil
import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from openrlhf_medical.config import load_config
from openrlhf_medical.errors import UserError
from openrlhf_medical.run_directory import MetricsLog, RunDirectory


def log_of(folder, *words, first_step=0):
    config = load_config(Path("configs/tiny.yaml"), list(words))
    directory = RunDirectory(folder)
    if not folder.exists():
        directory.create("")
    return MetricsLog(config, directory, first_step)


def scalars(folder):
    """(name, step, value) as TensorBoard itself reads them."""
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {(name, e.step): e.value for name in found.Tags()["scalars"] for e in found.Scalars(name)}


def test_tensorboard_has_the_names_of_metrics_jsonl_and_no_point_twice(tmp_path):
    words = ("--logger.tensorboard_dir", str(tmp_path / "tb"), "--run.name", "r")
    log = log_of(tmp_path / "run", *words)
    log.write(-1, {"eval/assessor/accuracy": 0.5})
    for step in range(4):
        log.write(step, {"reward/attacker/mean": float(step), "policy/attacker/kl": math.nan})
    log.close()
    log._directory.close()
    shutil.rmtree(tmp_path / "run")
    log = log_of(tmp_path / "run", *words, first_step=2)
    for step in (2, 3, 4):
        log.write(step, {"reward/attacker/mean": 10.0 + step})
    log.close()
    found = scalars(tmp_path / "tb" / "r")
    rewards = {step: value for (name, step), value in found.items() if name == "reward/attacker/mean"}
    assert rewards == {0: 0, 1: 1, 2: 12, 3: 13, 4: 14}
    assert found["eval/assessor/accuracy", -1] == 0.5 and math.isnan(found["policy/attacker/kl", 0])


class ScriptedWandb(types.ModuleType):
    """What we use of wandb, keeping what it was told."""

    def __init__(self):
        super().__init__("wandb")
        self.started, self.rows, self.keys, self.metrics = [], [], [], []

    def login(self, key):
        self.keys.append(key)

    def Settings(self, **given):
        return given

    def init(self, **given):
        self.started.append(given)
        return self

    def define_metric(self, *given, **named):
        self.metrics.append((given, named))

    def log(self, row, step):
        self.rows.append((step, row))

    def finish(self):
        self.finished = True


def test_wandb_offline_needs_no_key(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := ScriptedWandb())
    log = log_of(tmp_path / "run", "--logger.wandb.offline", "true", "--logger.wandb.group", "g")
    log.write(-1, {"eval/assessor/accuracy": 0.5})
    log.write(0, {"reward/attacker/mean": math.nan})
    log.close()
    [started] = wandb.started
    assert started["mode"] == "offline" and started["group"] == "g" and wandb.keys == [] and wandb.finished
    assert started["dir"] == str(tmp_path / "run") and started["config"]["run"]["name"] == "tiny"
    assert [step for step, _ in wandb.rows] == [0, 1], "wandb counts up from 0"
    assert wandb.rows[0][1] == {"step": -1, "eval/assessor/accuracy": 0.5}
    assert ((("*",), {"step_metric": "step"})) in wandb.metrics
    (again := MetricsLog(load_config(Path("configs/tiny.yaml"), ["--logger.wandb.offline", "true"]), log._directory))
    again.close()
    assert wandb.started[1]["id"] == started["id"] and wandb.started[1]["resume"] == "allow"


def test_wandb_online_logs_in_with_the_key_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", wandb := ScriptedWandb())
    (tmp_path / "key").write_text("abc\n")
    log_of(tmp_path / "run", "--logger.wandb.key_file", str(tmp_path / "key")).close()
    assert wandb.keys == ["abc"] and wandb.started[0]["mode"] == "online"


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        log_of(tmp_path / "run", "--logger.wandb.offline", "true")
