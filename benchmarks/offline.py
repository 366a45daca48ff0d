"""vLLM's offline ``generate`` in a process of its own: the bound that games on engines are held against.

The same model, types and cache as the engines of a run; everything else is what vLLM's ``LLM`` chooses for itself.
While nothing is asked of it, it waits on a pipe and uses no processor.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from turn_work import Request

from openrlhf_medical import devices
from openrlhf_medical.rollout.engines import EngineSpec

START_S, ANSWER_S = 300.0, 300.0


class Offline:
    """A context manager. ``sampling``: further arguments of vLLM's SamplingParams, the same for all requests."""

    def __init__(self, spec: EngineSpec, sampling: Mapping[str, Any]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process
        self._process = process(target=_serve, args=(theirs, spec, dict(sampling)), name="offline")
        before = dict(os.environ)
        os.environ.update(devices.worker_environment())  # as Ray gives it to engines; read at a process's start
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        theirs.close()
        self._ready = False

    def seconds(self, requests: Sequence[Request]) -> float:
        """How long ``generate`` takes, with an empty prefix cache, all requests known from the start.

        Raises:
            RuntimeError: it does not answer, or not all tokens were written.
        """
        self.wait_ready()
        self._connection.send(list(requests))
        took, written = self._answer(ANSWER_S)
        if written != sum(request.new_tokens for request in requests):
            raise RuntimeError(f"vLLM wrote {written} tokens, asked for {sum(r.new_tokens for r in requests)}")
        return took

    def wait_ready(self) -> None:
        if not self._ready:
            self._answer(START_S)
            self._ready = True

    def _answer(self, limit_s: float) -> Any:
        if not self._connection.poll(limit_s):
            raise RuntimeError(f"vLLM's offline process gave no answer in {limit_s:g} s")
        return self._connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()  # it ends when it reads the end of the pipe
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection, spec: EngineSpec, sampling: dict[str, Any]) -> None:
    devices.prepare_process()
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(**{**spec.arguments(), **devices.engine_arguments()}, disable_log_stats=True)
    connection.send("ready")
    while True:
        try:
            requests: list[Request] = connection.recv()
        except EOFError:
            return
        llm.reset_prefix_cache()
        prompts = [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
        lengths = [SamplingParams(**sampling, ignore_eos=True, max_tokens=r.new_tokens) for r in requests]
        began = time.perf_counter()
        outputs = llm.generate(prompts, lengths, use_tqdm=False)
        took = time.perf_counter() - began
        connection.send((took, sum(len(output.outputs[0].token_ids) for output in outputs)))
