"""A learner with scripted workers: what it counts, and how long it waits for whom. No Ray."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

from openrlhf_medical import assembly
from openrlhf_medical.config import load_config, upstream_options
from openrlhf_medical.errors import RunError
from openrlhf_medical.game.players import Role
from openrlhf_medical.learner import policy
from openrlhf_medical.learner.adapters import AdapterFiles
from openrlhf_medical.learner.policy import Deadlines, Learner, Workers
from openrlhf_medical.learner.random_states import load_random_states, save_random_states
from openrlhf_medical.learner.workers import rank_file
from openrlhf_medical.rollout.engines import adapter_checksum
from openrlhf_medical.rollout.trajectories import Trajectory, to_experience
from openrlhf_medical.rollout.weights import WeightStamp

UPDATE_S, SYNC_S = 3600.0, 60.0
FILES = AdapterFiles("{}", b"weights")


class Actor:
    """Any method of a Ray actor: its reference is its name and arguments."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: (name, args))


def result_of(call: tuple[str, tuple[Any, ...]]) -> Any:
    name, args = call
    return {
        "send_weights": lambda: WeightStamp(args[0], "sum"),
        "adapter_files": lambda: FILES,
        "load_adapter": lambda: WeightStamp(args[1], adapter_checksum(FILES.config, FILES.weights)),
    }.get(name, lambda: None)()


def learner_of(monkeypatch: pytest.MonkeyPatch, *words: str, adapter: str = "") -> tuple[Learner, dict[str, float]]:
    """A shared policy, and the deadline of each method that it waited for."""
    waited: dict[str, float] = {}

    def gather(references: dict[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
        waited.update({call[0]: timeout_s for call in references.values()})
        return {name: result_of(call) for name, call in references.items()}

    monkeypatch.setattr(policy, "gather", gather)
    monkeypatch.setattr(policy.ray, "put", lambda value: value)
    config = load_config(Path("configs/tiny.yaml"), ["--roles.policy", "shared", *words])
    strategy = SimpleNamespace(args=assembly._namespace(upstream_options(config)))
    workers: Any = Workers(SimpleNamespace(_actor_handlers=[Actor(), Actor()]))  # type: ignore[arg-type]
    deadlines = Deadlines(UPDATE_S, SYNC_S)
    return Learner("shared", tuple(Role), strategy, workers, [Actor()], 0, deadlines, adapter=adapter), waited


@pytest.mark.parametrize("adapter", ["", "shared"])
def test_a_sync_has_a_deadline_of_its_own(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, waited = learner_of(monkeypatch, adapter=adapter)
    learner.join_engines(1, 1 << 20, shares_gpu=False)
    learner.sync()
    syncing = {"adapter_files", "load_adapter"} if adapter else {"join_weight_group", "send_weights"}
    assert {name: waited[name] for name in syncing} == dict.fromkeys(syncing, SYNC_S)
    learner.load_state(Path("state"))
    assert waited["load_state"] == UPDATE_S


def sample(role: Role, group: str) -> Trajectory:
    return Trajectory(role, 0, group, "c", (1, 2), (3, 4), (-1.0, -1.0), 1.0)


def test_what_is_alone_in_its_group_is_counted_for_its_own_role(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ["--game.attacks_per_seed", "2", "--game.assessments_per_note", "2"]
    learner, _ = learner_of(monkeypatch, "--algo.advantage.estimator", "rloo", *groups)
    learner.version = 0

    def prepared(kept: list[Trajectory]) -> list[Any]:
        made = [to_experience(t, i) for i, t in enumerate(kept)]
        for each in made:
            each.action_log_probs = each.rollout_log_probs
            each.info["kl"] = each.rewards * 0
        return made

    learner._maker.prepare = prepared  # type: ignore[method-assign]
    pair = [sample(Role.ASSESSOR, "s0a0")] * 2
    ready = learner.prepare([*pair, sample(Role.ATTACKER, "s0"), sample(Role.ATTACKER, "s1")])
    assert ready is not None and ready.trajectories == pair
    dropped = {name: value for name, value in ready.metrics.items() if name.endswith("dropped_thinned")}
    assert dropped == {"policy/attacker/dropped_thinned": 2.0}
    assert learner.prepare([sample(Role.ATTACKER, "s0")]) is None


def test_a_learner_goes_on_with_the_version_and_the_kl_coefficient_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--algo.kl.target", "6.0", "--algo.kl.init_coef", "0.1")
    before, _ = learner_of(monkeypatch, *words)
    before.version = 7
    before._kl.update(60.0, 5000)
    state = json.loads(json.dumps(before.state()))
    after, _ = learner_of(monkeypatch, *words)
    assert after._kl.value == 0.1 != before._kl.value
    after.load(state)
    assert after.sync().version == 7 and after._kl.value == before._kl.value


def test_a_file_system_that_is_not_shared_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learner, _ = learner_of(monkeypatch)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / rank_file(0)).touch()
    with pytest.raises(RunError, match=r"what ranks \[1\] of policy shared saved is not in .*all machines share"):
        learner.save_state(tmp_path)
    (tmp_path / "policy" / rank_file(1)).touch()
    learner.save_state(tmp_path)


def test_random_states_go_on(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    save_random_states(tmp_path / "states")
    first = draw()
    assert draw() != first
    load_random_states(tmp_path / "states")
    assert draw() == first
