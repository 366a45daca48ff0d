"""DeepSpeed's Adam for the CPU, saved and loaded, goes on with the same bits."""

from __future__ import annotations

import copy

import torch

from openrlhf_medical import devices

devices.prepare_process()

from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: E402  (after prepare_process)

from openrlhf_medical.learner.bias_correction import replay  # noqa: E402


def adam(weight: torch.Tensor) -> tuple[torch.nn.Parameter, DeepSpeedCPUAdam]:
    parameter = torch.nn.Parameter(weight.clone())
    return parameter, DeepSpeedCPUAdam([parameter], lr=1e-3, betas=(0.9, 0.95))


def step(parameter: torch.nn.Parameter, optimizer: DeepSpeedCPUAdam, number: int) -> None:
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()


def test_a_loaded_adam_ends_where_the_saved_one_does() -> None:
    """After each of these numbers of steps. Without ``replay`` it does not for some: else it is not needed any more."""
    ends: dict[bool, set[bool]] = {False: set(), True: set()}
    for steps in range(3, 20):
        whole, optimizer = adam(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
        for number in range(steps):
            step(whole, optimizer, number)
        state, weight = copy.deepcopy(optimizer.state_dict()), whole.detach().clone()
        step(whole, optimizer, steps)
        for replayed in ends:
            resumed, other = adam(weight)
            other.load_state_dict(copy.deepcopy(state))
            if replayed:
                replay(other)
            assert torch.equal(resumed, weight)
            step(resumed, other, steps)
            ends[replayed].add(torch.equal(resumed, whole))
    assert ends == {False: {False, True}, True: {True}}


def test_one_that_goes_back_does_as_well() -> None:
    weight, optimizer = adam(torch.ones(100))
    for number in range(3):
        step(weight, optimizer, number)
    state, at_three = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    ends = []
    for _ in range(2):
        for number in range(3, 8):
            step(weight, optimizer, number)
        ends.append(weight.detach().clone())
        optimizer.load_state_dict(copy.deepcopy(state))
        weight.data.copy_(at_three)
        replay(optimizer)
    assert torch.equal(*ends)


def test_other_optimizers_are_left_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    replay(optimizer)
    assert not optimizer.state
