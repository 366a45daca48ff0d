"""vLLM's worker with what a weight sync is compared with: upstream's way of receiving, and the work alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from openrlhf_medical import devices
from openrlhf_medical.rollout.weights import WeightReceiver


class MeasuredReceiver(WeightReceiver):
    """Receives as ours does, and in two ways more."""

    def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> None:
        """Upstream's protocol (``WorkerWrap.update_weight``): one call, one broadcast, one tensor, here over gloo.

        Upstream loads each tensor as it comes, which vLLM on the CPU cannot do (``load_weights`` fails on packed
        layers): here they are loaded together, with the last call. So it is the faster of what upstream could do.
        """
        kind = getattr(torch, str(dtype).removeprefix("torch."))
        weight = torch.empty(tuple(shape), dtype=kind, device=self._weight_device)
        self._weight_group._group.broadcast(weight, 0).wait()
        self._arrived = {**getattr(self, "_arrived", {}), name: weight}
        if empty_cache:  # upstream's word for: this was the last one
            self._load(self._arrived)
            self._arrived = {}

    def load_folder(self, folder: str, version: int) -> tuple[int, str]:
        """Copy the folder's tensors, which are in memory from the first call on, and load the copies. In the place of
        a checksum it answers how many seconds that took: the call is there, and no other would tell."""
        if getattr(self, "_held", None) is None:
            files = sorted(Path(folder).glob("*.safetensors"))
            self._held = {name: tensor.clone() for file in files for name, tensor in load_file(file).items()}
        began = time.perf_counter()
        self._load({name: tensor.clone() for name, tensor in self._held.items()})
        return version, str(time.perf_counter() - began)

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        self._weight_stamp = None
        self.model_runner.reload_weights(weights_iterator=iter(tensors.items()))
        devices.repack_output_head(self.model_runner.get_model())
