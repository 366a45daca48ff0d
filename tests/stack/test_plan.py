"""The plan against a real Ray cluster of three machines (logical GPUs): what it has, where Ray puts placement groups,
and that nothing waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import three_machines
from three_machines import GPUS, GROUPS, MACHINES

from openrlhf_medical.data.seed_files import seeds_to_jsonl
from openrlhf_medical.game.seeds import Category, Seed
from openrlhf_medical.plan.placement import Free, pack


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    text = "The patient has a fever. He is given paracetamol."
    seed = Seed("train:0", Category.VANILLA_BENIGN, "n", "v", "clean", text, text, sentences=(text,))
    (folder / "train.jsonl").write_bytes(seeds_to_jsonl([seed]))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = [sys.executable, three_machines.__file__, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cluster_is_read_as_it_is(answer: dict[str, Any]) -> None:
    assert [node[:2] for node in answer["nodes"]] == [[GPUS, GPUS]] * MACHINES
    assert all(node[2] > 1 << 30 for node in answer["nodes"])
    assert f"{MACHINES} machines, {GPUS * MACHINES} GPUs" in answer["title"]


def test_placement_groups_are_where_the_plan_says(answer: dict[str, Any]) -> None:
    """Which of equal machines comes first is Ray's business: counts are compared, most first."""
    planned = []
    for groups in GROUPS:
        free = [Free(GPUS, GPUS) for _ in range(MACHINES)]
        counts = [pack(bundles, free) for bundles in groups]
        planned.append([sorted(filter(None, count or []), reverse=True) for count in counts])
    assert answer["taken"] == planned


def test_no_place_is_said_at_the_deadline(answer: dict[str, Any]) -> None:
    said = answer["full"]["said"]
    assert "no place for us within 2 s: 2 GPU and CPU needed, 0 GPU and 0 CPU free of 12 and 12" in said
    assert 1.9 <= answer["full"]["seconds"] < 30


def test_a_run_that_the_cluster_cannot_hold_is_refused(answer: dict[str, Any]) -> None:
    assert answer["train"]["code"] == 2
    assert "24 needed, 12 there" in answer["train"]["said"]
    assert "What would help: train.colocate_all" in answer["train"]["said"]
