"""Packing of weights, trajectories as upstream's Experience, and seeds of turns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_medical.game.players import Role, TurnKey
from openrlhf_medical.rollout.engine_player import turn_seed
from openrlhf_medical.rollout.trajectories import Trajectory, masked_experience, to_experience
from openrlhf_medical.rollout.weights import (
    ALIGNMENT,
    Checksum,
    TensorSpec,
    bucket_bytes,
    pack,
    packets,
    plan_buckets,
    unpack,
)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 50)), min_size=1, max_size=12), st.integers(64, 8192))
def test_what_is_packed_comes_out_again(shapes, target):
    tensors = [torch.randn(shape).bfloat16() for shape in shapes]
    specs = [TensorSpec(str(i), t.dtype, tuple(t.shape)) for i, t in enumerate(tensors)]
    plan = plan_buckets(specs, 7, target)
    found = {}
    for bucket, buffer in packets(plan, None, "cpu"):
        pack(bucket, [tensors[int(spec.name)] for spec in bucket], buffer)
        assert buffer.numel() == bucket_bytes(bucket) and buffer.numel() % ALIGNMENT == 0
        found |= dict(unpack(bucket, buffer))
        assert len(bucket) == 1 or sum(spec.num_bytes for spec in bucket) <= target
    assert list(found) == [spec.name for spec in specs]
    for i, tensor in enumerate(tensors):
        assert torch.equal(found[str(i)], tensor)


def test_padding_is_zero_whatever_the_memory_held():
    spec = TensorSpec("a", torch.bfloat16, (3,))
    buffer = torch.full((bucket_bytes((spec,)),), 255, dtype=torch.uint8)
    pack((spec,), [torch.ones(3).bfloat16()], buffer)
    assert buffer[:6].any() and not buffer[6:].any()


def checksum(*buffers: torch.Tensor) -> str:
    total = Checksum()
    for buffer in buffers:
        total.add(buffer)
    return total.hexdigest()


def test_checksum_sees_one_changed_bit_and_swapped_buckets():
    a = torch.randint(0, 255, (2 * ALIGNMENT,), dtype=torch.uint8)
    b = torch.randint(0, 255, (ALIGNMENT,), dtype=torch.uint8)
    changed = a.clone()
    changed[12_345] ^= 1
    assert checksum(a, b) == checksum(a.clone(), b.clone())
    assert len({checksum(a, b), checksum(changed, b), checksum(b, a)}) == 3


def trajectory(**changes) -> Trajectory:
    return Trajectory(
        role=Role.ATTACKER,
        game_idx=3,
        group="g",
        category="adversarial_benign",
        prompt_ids=(5, 6, 7),
        token_ids=changes.get("token_ids", (8, 9)),
        logprobs=changes.get("logprobs", (-0.5, -1.5)),
        reward=1.5,
    )


def test_experience_marks_the_action_tokens():
    """Position t speaks of token t+1: three prompt tokens and two actions give actions at 2 and 3."""
    experience = to_experience(trajectory(), index=4)
    assert experience.sequences.tolist() == [[5, 6, 7, 8, 9]]
    assert experience.action_mask.tolist() == [[0, 0, 1, 1]]
    assert experience.rollout_log_probs.tolist() == [[0.0, 0.0, -0.5, -1.5]]
    assert experience.rewards.tolist() == [1.5]
    assert experience.index == [4]


def test_a_turn_without_tokens_is_refused():
    with pytest.raises(ValueError, match="game 3"):
        to_experience(trajectory(token_ids=(), logprobs=()), index=0)


def test_masked_experience_has_no_action():
    assert masked_experience(2).action_mask.sum() == 0


def test_turn_seeds_depend_on_the_turn_alone():
    key = TurnKey(3, 7, Role.ATTACKER)
    others = [TurnKey(4, 7, Role.ATTACKER), TurnKey(3, 8, Role.ATTACKER), TurnKey(3, 7, Role.ASSESSOR)]
    assert turn_seed(1, key) == turn_seed(1, key)
    assert len({turn_seed(1, key), turn_seed(2, key), *(turn_seed(1, other) for other in others)}) == 5
