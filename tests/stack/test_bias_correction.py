"""DeepSpeed's Adam for the CPU, saved and loaded, goes on with the same bits."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from openrlhf_medical import devices

devices.prepare_process()

from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam  # noqa: E402  (after prepare_process)

from openrlhf_medical.learner.bias_correction import forget_steps  # noqa: E402

on_cpu = pytest.mark.skipif(devices.has_gpu(), reason="on a GPU FusedAdam has no memory of its own")
slow = pytest.mark.slow  # compiled for it alone: a minute and a half
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(DeepSpeedCPUAdam, marks=slow), pytest.param(FusedAdam, marks=on_cpu)]
)


def adam(kind: Any, weight: torch.Tensor) -> tuple[torch.nn.Parameter, Any]:
    parameter = torch.nn.Parameter(weight.clone())
    return parameter, kind([parameter], lr=1e-3, betas=(0.9, 0.95))


def step(parameter: torch.nn.Parameter, optimizer: Any, number: int) -> None:
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()


@kinds
def test_a_loaded_adam_ends_where_the_saved_one_does(kind: Any) -> None:
    """After each of these numbers of steps. Without ``forget_steps`` it does not for some: else it is not needed."""
    ends: dict[bool, set[bool]] = {False: set(), True: set()}
    for forgets in ends:
        for steps in range(3, 20):
            before = forget_steps if forgets else lambda _: None
            whole, optimizer = adam(kind, torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
            for number in range(steps):
                before(optimizer)
                step(whole, optimizer, number)
            state, weight = copy.deepcopy(optimizer.state_dict()), whole.detach().clone()
            before(optimizer)
            step(whole, optimizer, steps)
            resumed, other = adam(kind, weight)
            other.load_state_dict(copy.deepcopy(state))
            stray, third = adam(kind, torch.ones(3))  # of another optimizer in the process, at a step of its own
            step(stray, third, 0)
            before(other)
            step(resumed, other, steps)
            ends[forgets].add(torch.equal(resumed, whole))
    assert False in ends[False] and ends[True] == {True}


@kinds
def test_the_step_is_adams(kind: Any) -> None:
    """By hand, from moments of 0: m = (1-β₁)g, v = (1-β₂)g², so the first step is lr · sign(g); the second one with
    the same gradient as well."""
    parameter, optimizer = adam(kind, torch.zeros(3))
    for number in (1, 2):
        forget_steps(optimizer)
        parameter.grad = torch.tensor([0.5, -2.0, 4.0])
        optimizer.step()
        for value, sign in zip(parameter.detach().tolist(), (1, -1, 1), strict=True):
            assert math.isclose(value, -sign * 1e-3 * number, rel_tol=1e-5)


def test_other_optimizers_are_left_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    forget_steps(optimizer)
    assert not optimizer.state
