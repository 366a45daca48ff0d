"""bf16 layers on a CPU without bf16: the same numbers as in fp32, rounded once, forward and backward."""

from __future__ import annotations

import pytest
import torch

from openrlhf_medical import devices
from openrlhf_medical.bf16_linear import Bf16Linear, applies_to

PLAIN = torch.nn.functional.linear


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_fp32_rounded_once(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator), torch.randn(3, 7, generator=generator)]
    given += [torch.randn(3, generator=generator)] if bias else []
    narrow = [t.bfloat16().requires_grad_() for t in given]
    wide = [t.detach().float().requires_grad_() for t in narrow]
    found = Bf16Linear.apply(PLAIN, *narrow, *([] if bias else [None]))
    expected = PLAIN(*wide)
    assert found.dtype is torch.bfloat16 and torch.equal(found, expected.bfloat16())
    weights = torch.randn(expected.shape, generator=generator).bfloat16()
    found.backward(weights)
    expected.backward(weights.float())
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a.grad, b.grad.bfloat16())


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = torch.randn(4, 7).bfloat16().requires_grad_(), torch.randn(3, 7).bfloat16()
    Bf16Linear.apply(PLAIN, x, weight, None).sum().backward()
    assert x.grad is not None and weight.grad is None


def test_only_bf16_on_the_cpu() -> None:
    narrow, wide = torch.zeros(1).bfloat16(), torch.zeros(1)
    assert applies_to(narrow, narrow, None)
    assert not applies_to(narrow, wide, None) and not applies_to(narrow, torch.zeros(1, device="meta").bfloat16())


@pytest.mark.parametrize(("fast", "steps_in"), [(False, True), (True, False)])
def test_it_steps_in_only_where_torch_is_slow(monkeypatch: pytest.MonkeyPatch, fast: bool, steps_in: bool) -> None:
    module = type("functional", (), {"linear": staticmethod(PLAIN)})
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda: fast)
    devices._patch_linear(module)
    x, weight = torch.randn(2, 7).bfloat16().requires_grad_(), torch.randn(3, 7).bfloat16()
    assert ("Bf16Linear" in type(module.linear(x, weight).grad_fn).__name__) is steps_in
    assert "Bf16Linear" not in type(module.linear(x.float(), weight.float()).grad_fn).__name__


@pytest.mark.parametrize(("fast", "dtype", "size"), [(True, None, 1 << 30), (False, "float32", 2 << 30)])
def test_engines_hold_what_the_cpu_computes_in(monkeypatch, fast: bool, dtype: str | None, size: int) -> None:
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    monkeypatch.setattr(devices, "_has_fast_bf16", lambda: fast)
    arguments = devices.engine_arguments(1 << 30)
    assert (arguments.get("dtype"), arguments["kv_cache_memory_bytes"]) == (dtype, size)
