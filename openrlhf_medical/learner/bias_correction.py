"""What DeepSpeed's Adam for the CPU remembers beside its state.

It keeps β₁ᵗ and β₂ᵗ in single precision, multiplied by β in each step that follows the one before; after a state was
loaded it takes the power at once instead, which differs in the last bit. So a resumed run would end with other weights
(measured: 56,192 of 3.2 million master weights, by up to 3e-8, after one step). Its memory is also one for all
optimizers of a process: adapters that are trained in turn leave their own in each other's way.
"""

from __future__ import annotations

from typing import Any

import torch


def forget_steps(optimizer: Any) -> None:
    """Have the next step take the powers at once, whatever went before: the optimizer is told of a step 0 on nothing.

    ``optimizer``: DeepSpeed's wrapper, or the Adam itself (FusedAdam on the CPU, DeepSpeedCPUAdam); nothing is done for
    others, which compute the powers in every step."""
    adam = getattr(optimizer, "optimizer", optimizer)
    group = getattr(adam, "param_groups", [{"params": []}])[0]
    nothing = [torch.zeros(1) for _ in range(4)]  # gradient, weight and both moments, of no parameter
    if hasattr(adam, "ds_opt_adam"):
        adam.ds_opt_adam.adam_update(
            adam.opt_id, 0, group["lr"], *group["betas"], group["eps"], group["weight_decay"],
            group["bias_correction"], *nothing,
        )  # fmt: skip
    elif hasattr(adam, "multi_tensor_adam") and group["params"] and group["params"][0].device.type == "cpu":
        adam.multi_tensor_adam(
            1, adam._dummy_overflow_buf, [[each] for each in nothing], group["lr"], *group["betas"], group["eps"], 0,
            adam.adam_w_mode, int(group["bias_correction"]), group["weight_decay"],
        )  # fmt: skip
