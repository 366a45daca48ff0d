"""What an optimizer step's losses are divided by, when a step has any number of micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from openrlhf_medical import devices

devices.prepare_process()

from openrlhf.utils.loss_utils import get_loss_batch_info  # noqa: E402  (after prepare_process)


def loss_normalizers(strategy: Any, masks: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Token and sample counts of the whole optimizer step over all ranks: upstream's, on joined masks.

    ``masks`` are the (B_i, A_i) action masks of this rank's micro-batches. A collective call.
    """
    width = max(mask.shape[1] for mask in masks)
    joined = torch.cat([torch.nn.functional.pad(mask, (0, width - mask.shape[1])) for mask in masks])
    return get_loss_batch_info(strategy, joined.to(torch.cuda.current_device()))


def mean_of_own_tokens(share: float, normalizers: dict[str, Any], tokens: float) -> float:
    """Mean over a micro-batch's ``tokens``, from what upstream's ``aggregate_loss`` makes of it with these
    normalizers: its share of the whole step's mean, scaled by the number of ranks."""
    return share * float(normalizers["batch_num_tokens"]) / normalizers["dp_size"] / tokens
