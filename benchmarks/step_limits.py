"""What each phase of a step would take if nothing but its bare work were done: the limits of ``step.py``.

games       the step's prompts, each with as many new tokens as it had, given to the same engines at once
log-probs   plain transformers forward of the same samples, one after another without padding, on all cores
update      plain transformers forward, backward and torch's AdamW on the same samples, on all cores
sync        in every engine: a copy of all weights in memory, and one ``reload_weights`` of it
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import ray
import torch

from openrlhf_medical import devices
from openrlhf_medical.game.records import Game, turns_of
from openrlhf_medical.learner.policy import Learner
from openrlhf_medical.learner.together import side_by_side
from openrlhf_medical.rollout.trajectories import Trajectory
from openrlhf_medical.rollout.weights import WeightReceiver, WeightStamp

Sample = tuple[tuple[int, ...], int]
"""Token ids of prompt and reply, and how many of them are the prompt's."""


class BareReceiver(WeightReceiver):
    """An engine's worker whose ``load_folder`` is the limit of a sync: weights that are in memory already are copied
    and loaded. What training uses is as it was."""

    _held: dict[str, torch.Tensor]

    def load_folder(self, folder: str, version: int) -> tuple[int, str]:
        if not hasattr(self, "_held"):
            from openrlhf_medical.rollout.weights import _folder_tensors

            class Nothing:
                update = staticmethod(lambda view: None)

            self._held = {name: tensor.clone() for name, tensor in _folder_tensors(folder, Nothing())}
        self.model_runner.reload_weights(weights_iterator=((name, t.clone()) for name, t in self._held.items()))
        devices.repack_output_head(self.model_runner.get_model())
        self._weight_stamp = WeightStamp(version, "bare")
        return version, "bare"


class _Bare:
    """A plain transformers model in a process of its own, with the environment that a worker has, on all cores."""

    def __init__(self, model: str, lr: float) -> None:
        from transformers import AutoModelForCausalLM

        devices.use_cores(1)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=lr, fused=True)

    def forward_s(self, samples: Sequence[Sample]) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            for ids, _ in samples:
                self._model(torch.tensor([ids]), use_cache=False)
        return time.perf_counter() - began

    def update_s(self, samples: Sequence[Sample], optimizer_steps: int) -> float:
        began = time.perf_counter()
        each = -(-len(samples) // optimizer_steps)
        for first in range(0, len(samples), each):
            for ids, prompt in samples[first : first + each]:
                labels = torch.tensor([ids])
                labels[:, :prompt] = -100
                self._model(torch.tensor([ids]), labels=labels, use_cache=False).loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return time.perf_counter() - began


class Limits:
    """Measures the limits of a step's phases right after the step, on its engines and with its tokens."""

    def __init__(self, learners: Sequence[Learner], model: str, lr: float) -> None:
        self._learners, self._model = learners, model
        self._bare = ray.remote(num_cpus=0)(_Bare).remote(model, lr)
        ray.get([self._bare.forward_s.remote([((1, 2, 3), 1)]), self._bare.update_s.remote([((1, 2, 3), 1)], 1)])
        self.sync_s()

    def of(self, games: Sequence[Game], trajectories: Sequence[Trajectory], metrics: dict[str, float]) -> dict:
        """Seconds of each phase's limit. ``metrics``: the step's, which say how many optimizer steps there were."""
        found = {"games": self.generate_s(games), "log_probs": 0.0, "update": 0.0, "sync": 0.0}
        for learner in self._learners:
            samples = [(t.prompt_ids + t.token_ids, len(t.prompt_ids)) for t in trajectories if t.role in learner.roles]
            if not samples:
                continue
            forwards = 1 + (learner.workers.reference is not None)
            steps = int(metrics[f"policy/{learner.roles[0]}/optimizer_steps"])
            found["log_probs"] += sum(ray.get(self._bare.forward_s.remote(samples)) for _ in range(forwards))
            found["update"] += ray.get(self._bare.update_s.remote(samples, steps))
        found["sync"] = self.sync_s()  # last: afterwards the engines hold what the policies have
        return found

    def generate_s(self, games: Sequence[Game]) -> float:
        """Every turn's prompt to its engine at once, nothing streamed back, prefix caches empty as after a sync."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._on_all_engines("reset_prefix_cache")
        asked = []
        began = time.perf_counter()
        for learner in self._learners:
            engines = list(learner.engines)
            turns = [turn.reply for role in learner.roles for _, turn in turns_of(games, role) if turn.reply.token_ids]
            for i, reply in enumerate(turns):
                count = len(reply.token_ids)
                sampling = SamplingParams(
                    temperature=0.7, max_tokens=count, min_tokens=count, ignore_eos=True,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )  # fmt: skip
                asked.append(engines[i % len(engines)].generate.remote(list(reply.prompt_ids), sampling))
        ray.get(asked)
        return time.perf_counter() - began

    def sync_s(self) -> float:
        began = time.perf_counter()
        self._on_all_engines("load_folder", self._model, 0)
        seconds = time.perf_counter() - began
        side_by_side(self._learners, Learner.sync)
        return seconds

    def _on_all_engines(self, method: str, *args: Any) -> None:
        engines: Iterable[Any] = (engine for learner in self._learners for engine in learner.engines)
        ray.get([getattr(engine, method).remote(*args) for engine in engines])
