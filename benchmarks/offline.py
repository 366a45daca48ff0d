"""vLLM's offline ``generate`` in a process of its own, as vLLM is without us: what games on engines are held against.

Of the project it imports rules of the game alone, and so do vLLM's own processes, which import this file: nothing is
patched in there. While nothing is asked of it, it waits on a pipe and uses no processor.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from turn_work import Request

START_S, ANSWER_S, END_S = 300.0, 300.0, 30.0
NICENESS = 15
"""Ray's own for its workers: whatever else runs on the machine must disturb both sides alike."""


class Offline:
    """A context manager.

    Args:
        engine: arguments of vLLM's ``LLM``.
        sampling: further arguments of its SamplingParams, the same for all requests.
        environment: of the process, beside ours.
    """

    def __init__(self, engine: Mapping[str, Any], sampling: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._connection, theirs = Pipe()
        fd = theirs.fileno()
        # Each of the cores computes, as in our engines; vLLM by itself would leave one to its scheduler.
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        own = {"VLLM_CPU_OMP_THREADS_BIND": cores, "VLLM_LOGGING_LEVEL": "ERROR"}
        inherited = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
        self._process = subprocess.Popen(
            ["nice", "-n", str(NICENESS), sys.executable, __file__, str(fd)],
            env={**inherited, **environment, **own},
            pass_fds=[fd],
        )
        theirs.close()
        self._connection.send((dict(engine), dict(sampling)))
        self._ready = False

    def seconds(self, requests: Sequence[Request]) -> float:
        """How long ``generate`` takes with an empty prefix cache and all requests known from the start.

        Raises:
            RuntimeError: no answer, or fewer tokens than asked for.
        """
        self.wait_ready()
        self._connection.send(list(requests))
        took, written = self._answer(ANSWER_S)
        asked = sum(request.new_tokens for request in requests)
        if written != asked:
            raise RuntimeError(f"vLLM wrote {written} tokens where {asked} were asked for")
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
        self._connection.close()  # it ends when there is nobody to ask it anything
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _serve(connection: Connection) -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    engine, sampling = connection.recv()
    llm = LLM(**engine, disable_log_stats=True)
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


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
