"""A learner with scripted workers: what it counts, and how long it waits for whom. No Ray."""

from __future__ import annotations

import json
import random
import threading
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
from openrlhf_medical.rollout import fleet
from openrlhf_medical.rollout.engines import adapter_checksum
from openrlhf_medical.rollout.fleet import Fleet
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
    monkeypatch.setattr(fleet, "gather", gather)
    monkeypatch.setattr(policy.ray, "put", lambda value: value)
    monkeypatch.setattr(fleet, "end", lambda engine: None)
    config = load_config(Path("configs/tiny.yaml"), ["--roles.policy", "shared", *words])
    strategy = SimpleNamespace(args=assembly._namespace(upstream_options(config)))
    workers: Any = Workers(SimpleNamespace(_actor_handlers=[Actor(), Actor()]))  # type: ignore[arg-type]
    deadlines = Deadlines(UPDATE_S, SYNC_S)
    engines = Fleet("shared", lambda index: Actor(), 1, start_timeout_s=1, equip_timeout_s=1)
    return Learner("shared", tuple(Role), strategy, workers, engines, 0, deadlines, adapter=adapter), waited


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


class Sent:
    """What workers and engines of a learner were asked for, in order: (method, arguments)."""

    def __init__(self, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.checksum = "sum"

        def gather(references: dict[str, Any], timeout_s: float, doing: str) -> dict[str, Any]:
            self.calls += references.values()
            answers = {name: result_of(call) for name, call in references.items()}
            sent = {
                name: WeightStamp(a.version, self.checksum) for name, a in answers.items() if _is_send(references[name])
            }
            return answers | sent

        monkeypatch.setattr(policy, "gather", gather)
        monkeypatch.setattr(fleet, "gather", gather)
        self.learner = learner

    def lose_engine(self) -> Any:
        """Its only engine dies and is replaced; the new one."""
        [seat] = self.learner.engines._seats
        self.calls.clear()
        self.learner.engines.lost(seat, seat.engine, " was struck")
        self.learner.engines.wait_whole()
        return seat.engine

    def asked(self) -> list[tuple[str, Any]]:
        """Groups that were formed and versions that were sent."""
        found = [(name, list(args[0].values()) if name == "join_weight_group" else args[0])
                 for name, args in self.calls if name in ("join_weight_group", "send_weights")]  # fmt: skip
        return found[:: len(self.learner.workers.policy._actor_handlers)]  # every rank is asked the same


def _is_send(call: tuple[str, Any]) -> bool:
    return call[0] == "send_weights"


def synced(monkeypatch: pytest.MonkeyPatch, adapter: str = "") -> tuple[Learner, Sent]:
    learner, _ = learner_of(monkeypatch, adapter=adapter)
    sent = Sent(learner, monkeypatch)
    learner.join_engines(1, 1 << 20, shares_gpu=False)
    learner.sync()
    return learner, sent


def test_a_new_engine_alone_gets_what_the_others_hold_and_joins_them_at_the_next_sync(monkeypatch) -> None:
    learner, sent = synced(monkeypatch)
    new = sent.lose_engine()
    assert sent.asked() == [("join_weight_group", [new]), ("send_weights", 0)] and learner.version == 0
    learner._in_group = [object(), new]  # as where there are others
    sent.calls.clear()
    learner.sync()
    assert sent.asked() == [("join_weight_group", [new]), ("send_weights", 1)]
    sent.calls.clear()
    learner.sync()
    assert sent.asked() == [("send_weights", 2)], "the group is formed once"


def test_weights_that_an_update_has_moved_carry_the_next_version(monkeypatch) -> None:
    learner, sent = synced(monkeypatch)
    learner.load_state(Path("state"))
    sent.checksum = "another"
    sent.lose_engine()
    assert sent.asked()[-1] == ("send_weights", 1) and learner.version == 0
    held = {"shared engine 0": WeightStamp(1, "another"), "shared engine 1": WeightStamp(0, "sum")}
    monkeypatch.setattr(learner.engines, "stamps", lambda adapter, timeout_s: held)
    learner.check_engines()  # of games that are played during the update
    assert learner.sync() == WeightStamp(1, "another")
    with pytest.raises(RuntimeError, match="shared engine 1"):
        learner.check_engines()


def test_weights_that_moved_unseen_are_refused(monkeypatch) -> None:
    _, sent = synced(monkeypatch)
    sent.checksum = "another"
    with pytest.raises(RunError, match=r"was sent .*another.*the other engines hold .*sum"):
        sent.lose_engine()


def test_a_new_engine_waits_for_the_end_of_an_update(monkeypatch) -> None:
    learner, sent = synced(monkeypatch)
    order: list[str] = []
    entered, done = threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> list[Any]:
        order.append("update begins")
        entered.set()
        assert done.wait(20)
        order.append("update ends")
        return []

    original = learner.each_rank

    def each_rank(method: str, *args: Any, **options: Any) -> list[Any]:
        order.append(method)
        return slow() if method == "load_state" else original(method, *args, **options)

    monkeypatch.setattr(learner, "each_rank", each_rank)
    update = threading.Thread(target=learner.load_state, args=(Path("state"),))
    update.start()
    assert entered.wait(20)
    threading.Timer(0.3, done.set).start()
    sent.lose_engine()
    update.join()
    assert order == ["load_state", "update begins", "update ends", "join_weight_group", "send_weights"]
    assert sent.asked()[-1] == ("send_weights", 1)


def test_a_new_engine_gets_the_adapter_of_the_others_whatever_the_workers_are_at(monkeypatch) -> None:
    learner, sent = synced(monkeypatch, adapter="shared")
    with learner._workers_free:  # an update is under way, in this thread
        sent.lose_engine()
    loads = [args for name, args in sent.calls if name == "load_adapter"]
    assert loads == [("shared", 0, FILES.config, FILES.weights)]
    assert not {name for name, _ in sent.calls} & {"adapter_files", "select", "send_weights"}


def test_a_learner_goes_on_with_the_version_and_the_kl_coefficient_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--algo.kl.target", "6.0", "--algo.kl.init_coef", "0.1")
    before, _ = learner_of(monkeypatch, *words)
    before.version = 7
    before._kl.update(60.0, 5000)
    state = json.loads(json.dumps(before.state()))
    after, _ = learner_of(monkeypatch, *words)
    assert after._kl.value == 0.1 != before._kl.value
    Sent(after, monkeypatch)
    after.join_engines(1, 1 << 20, shares_gpu=False)
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
