"""Whose weights are exchanged on running engines, and who needs others: with scripted engines."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from openrlhf_medical import seats
from openrlhf_medical.config import load_config
from openrlhf_medical.evaluation.arena_players import Entrant
from openrlhf_medical.game.players import Role
from openrlhf_medical.rollout import opponents
from openrlhf_medical.rollout.fleet import Fleet
from openrlhf_medical.seats import Seat, kind_of


def model(folder: Path, name: str, hidden: int = 64, **more) -> Entrant:
    own = folder / name
    own.mkdir()
    (own / "config.json").write_text(json.dumps({"hidden_size": hidden, "dtype": "bfloat16", **more}))
    return Entrant(name, Role.ATTACKER, str(own))


def adapter(folder: Path, name: str, rank: int, base: str = "base") -> Entrant:
    own = folder / name
    own.mkdir()
    (own / "adapter_config.json").write_text(json.dumps({"r": rank}))
    (own / "adapter_model.safetensors").write_text(name)
    return Entrant(name, Role.ATTACKER, str(own), base=base)


def test_what_can_be_exchanged(tmp_path):
    a, b = model(tmp_path, "a"), model(tmp_path, "b", transformers_version="5", _name_or_path="x")
    assert kind_of(a) == kind_of(b) != kind_of(model(tmp_path, "wide", hidden=128))
    c, d = adapter(tmp_path, "c", 8), adapter(tmp_path, "d", 8)
    assert kind_of(c) == kind_of(d)
    assert len({kind_of(one) for one in (c, adapter(tmp_path, "e", 16), adapter(tmp_path, "f", 8, "other"), a)}) == 4
    hub = [Entrant(name, Role.ATTACKER, name) for name in ("org/a", "org/b")]
    assert kind_of(hub[0]) != kind_of(hub[1]), "of these nothing is known here"


@pytest.fixture
def told(monkeypatch):
    """What engines were told; ``stamp`` is what they answer."""
    done: list[tuple] = []

    def call(kind):
        return SimpleNamespace(remote=lambda *words: (done.append((kind, *words)), stamps.pop(0) if stamps else 0)[1])

    class Engines(Fleet):
        def stop(self):
            done.append(("kill",))

        def stamps(self, adapter="", *, timeout_s):
            return {}

    def start(config, spec, title, place, share):
        done.append(("start", spec.model, spec.adapters, spec.adapter_rank))
        engine = SimpleNamespace(load_folder=call("folder"), load_adapter=call("adapter"))
        return Engines(title, lambda i: engine, config.vllm.num_engines, start_timeout_s=1, equip_timeout_s=1)

    stamps: list = []
    monkeypatch.setattr(seats.casting, "start_fleet", start)
    monkeypatch.setattr(seats.casting, "player_of", lambda *given, **who: None)
    monkeypatch.setattr(seats, "tokenizer_of", lambda one: None)
    monkeypatch.setattr(seats, "reserve", lambda *given: "place")
    monkeypatch.setattr(opponents, "gather", lambda named, *given: named)
    monkeypatch.setattr(seats.casting, "wait_for_engines", lambda config, engines: done.append(("wait",)))
    monkeypatch.setattr(seats, "remove_placement_group", lambda place: done.append(("free", place)))
    return SimpleNamespace(done=done, stamps=stamps)


def seat(*words: str) -> Seat:
    return Seat(load_config(Path("configs/tiny.yaml"), list(words)), Role.ATTACKER)


def test_models_of_one_shape_come_and_go_on_the_same_engines(tmp_path, told):
    a, b, wide = model(tmp_path, "a"), model(tmp_path, "b"), model(tmp_path, "wide", hidden=128)
    one = seat()
    for entrant in (a, a, b, a):
        one.take(entrant)
    assert told.done == [("start", a.folder, 0, 0), ("wait",), ("folder", b.folder, 1), ("wait",),
                         ("folder", a.folder, 2)]  # fmt: skip
    told.done.clear()
    one.take(wide)
    assert told.done == [("kill",), ("free", "place"), ("start", wide.folder, 0, 0)]


def test_adapters_come_and_go_on_their_base(tmp_path, told):
    c, d = adapter(tmp_path, "c", 8), adapter(tmp_path, "d", 8)
    one = seat()
    one.take(c)
    one.take(d)
    assert [words for words in told.done if words[0] != "wait"] == [
        ("start", "base", 1, 8), ("adapter", seats.ADAPTER, 1, '{"r": 8}', b"c"),
        ("adapter", seats.ADAPTER, 2, '{"r": 8}', b"d"),
    ]  # fmt: skip


def test_engines_that_read_different_bytes_do_not_play(tmp_path, told):
    one = seat("--vllm.num_engines", "2")
    one.take(model(tmp_path, "a"))
    told.stamps += [1, 2]
    with pytest.raises(RuntimeError, match="different weights"):
        one.take(model(tmp_path, "b"))


def test_a_replaced_engine_gets_the_weights_of_who_sits_there(tmp_path, told):
    """It starts with the model that came first."""
    one = seat()
    for name in ("a", "b"):
        one.take(model(tmp_path, name))
    [equip] = one._engines._equipment
    told.done.clear()
    equip(next(iter(one._engines)), "engine 0")
    assert told.done == [("folder", str(tmp_path / "b"), 1)]
