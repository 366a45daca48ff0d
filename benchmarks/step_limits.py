"""What each phase of a step would take if nothing but its bare work were done: the limits of ``step.py``.

games      the step's prompts, each with as many new tokens as it had, given to the same engines at once
log-probs  plain transformers forward of the same samples, one by one without padding, logits of the replies only
update     plain transformers forward, backward and torch's AdamW on the same samples
sync       in every engine: a copy of all weights in memory, and one ``reload_weights`` of it
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
    """A plain transformers model in a process of its own, with the environment that a worker has."""

    def __init__(self, model: str, lr: float) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=lr, fused=True)

    def forward(self, samples: Sequence[Sample], times: int, processes: int) -> None:
        """Of logits only the replies', as in the update."""
        devices.use_cores(processes)
        with torch.no_grad():
            for ids, prompt in samples * times:
                self._model(torch.tensor([ids]), use_cache=False, logits_to_keep=len(ids) - prompt + 1)

    def update(self, samples: Sequence[Sample], optimizer_steps: int, processes: int) -> None:
        devices.use_cores(processes)
        each = -(-len(samples) // optimizer_steps)
        for first in range(0, len(samples), each):
            for ids, prompt in samples[first : first + each]:
                kept = len(ids) - prompt + 1
                logits = self._model(torch.tensor([ids]), use_cache=False, logits_to_keep=kept).logits[0, :-1]
                torch.nn.functional.cross_entropy(logits.float(), torch.tensor(ids[prompt:])).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()


class Limits:
    """Measures the limits of a step's phases right after the step, on its engines and with its tokens."""

    def __init__(self, learners: Sequence[Learner], model: str, lr: float) -> None:
        self._learners, self._model = learners, model
        self._bare = [ray.remote(num_cpus=0)(_Bare).remote(model, lr) for _ in learners]
        self._at_once: bool | None = None
        ray.get([bare.update.remote([((1, 2, 3), 1)], 1, 1) for bare in self._bare])
        self.sync_s()

    def of(self, games: Sequence[Game], trajectories: Sequence[Trajectory], metrics: dict[str, float]) -> dict:
        """Seconds of each phase's limit. ``metrics``: the step's, which say how many optimizer steps there were."""
        forward, update = [], []
        for learner in self._learners:
            own = [(t.prompt_ids + t.token_ids, len(t.prompt_ids)) for t in trajectories if t.role in learner.roles]
            forward.append((own, 1 + (learner.workers.reference is not None)))
            update.append((own, int(metrics.get(f"policy/{learner.roles[0]}/optimizer_steps", 1))))
        if self._at_once is None:  # which is faster depends on the machine: the faster one is the limit
            ways = {at_once: self._bare_s("update", update, at_once=at_once) for at_once in (True, False)}
            self._at_once = min(ways, key=lambda way: ways[way])
            print(f"bare updates at the same time {ways[True]:.1f} s, one after the other {ways[False]:.1f} s")
        return {
            "games": self.generate_s(games),
            "log_probs": self._bare_s("forward", forward, at_once=self._at_once),
            "update": self._bare_s("update", update, at_once=self._at_once),
            "sync": self.sync_s(),  # last: afterwards the engines hold what the policies have
        }

    def _bare_s(self, method: str, work: Sequence[tuple[Any, ...]], *, at_once: bool) -> float:
        """Every policy's bare work: all at the same time with a share of the cores, or one after another with all."""
        began = time.perf_counter()
        waiting = []
        for bare, arguments in zip(self._bare, work, strict=True):
            if arguments[0]:
                waiting.append(getattr(bare, method).remote(*arguments, len(work) if at_once else 1))
            if not at_once:
                ray.get(waiting)
        ray.get(waiting)
        return time.perf_counter() - began

    def generate_s(self, games: Sequence[Game]) -> float:
        """Every turn's prompt to its engines, all of one policy's at once and nothing streamed back, one policy after
        another: both engines use all cores. Prefix caches are empty, as they are after a sync."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._on_all_engines("reset_prefix_cache")
        began = time.perf_counter()
        for learner in self._learners:
            engines = list(learner.engines)
            turns = [turn.reply for role in learner.roles for _, turn in turns_of(games, role) if turn.reply.token_ids]
            asked = [
                engines[i % len(engines)].generate.remote(
                    list(reply.prompt_ids),
                    SamplingParams(
                        temperature=0.7,
                        max_tokens=len(reply.token_ids),
                        ignore_eos=True,
                        output_kind=RequestOutputKind.FINAL_ONLY,
                    ),
                )
                for i, reply in enumerate(turns)
            ]
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
