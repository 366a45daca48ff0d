"""Linear layers in bf16 on a CPU that computes in fp32 only.

oneDNN multiplies bf16 matrices on processors with AVX-512 (or AMX); on all others torch takes a loop of its own. On an
AMD EPYC with AVX2, one thread, 400 × 576 times 576 × 1536, forward and backward: 0.93 s by that loop, 0.05 s here.
Weights stay bf16, so memory, optimizer and checkpoints are the same; sums are rounded to bf16 once, at the end, as
oneDNN does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Linear = Callable[..., torch.Tensor]


def has_fast_bf16() -> bool:
    """Whether torch multiplies bf16 matrices by oneDNN on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def applies_to(*tensors: torch.Tensor | None) -> bool:
    return all(t is None or (t.dtype is torch.bfloat16 and t.device.type == "cpu") for t in tensors)


class Bf16Linear(torch.autograd.Function):
    """(…, I) bf16, (O, I) bf16 and (O,) bf16 or None -> (…, O) bf16, computed in fp32.

    The fp32 copies of the weight live for one product each; autograd of the plain expression would keep them all.
    """

    @staticmethod
    def forward(ctx: Any, linear: Linear, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        ctx.save_for_backward(x, weight)
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        _, of_x, of_weight, of_bias = ctx.needs_input_grad
        gradient = gradients[0].float()
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            None,
            (gradient @ weight.float()).to(x.dtype) if of_x else None,
            (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(weight.dtype) if of_weight else None,
            rows.sum(0).to(weight.dtype) if of_bias else None,
        )
