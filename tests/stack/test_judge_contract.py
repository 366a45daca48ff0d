"""The judge server against those it did not meet yet: a fuzzer that reads its OpenAPI document, and upstream's own
reward client."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_medical.judge.process import JudgeProcess, start_judge_process

NOTE = "A 40-year-old man comes in with a cough. He was given amoxicillin for pneumonia of the left lung."
WRONG = NOTE.replace("amoxicillin", "vancomycin")


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeProcess]:
    with start_judge_process(log_file=tmp_path_factory.mktemp("judge") / "judge.log") as it:
        yield it


# What a schema cannot say: a game_idx that comes twice, a label that is no JSON, a time too short for anything
# (422, 408, 503 for no reward); and a body that does not fit may be refused for its size (413).
SCHEMATHESIS = """
[checks]
positive_data_acceptance.expected-statuses = [200, 408, 413, 422, 503]
negative_data_rejection.expected-statuses = [400, 401, 405, 408, 413, 422]
"""


def test_schemathesis_finds_nothing(judge: JudgeProcess, tmp_path: Any) -> None:
    """All of its checks: no server error, and every answer is one that the document describes."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(SCHEMATHESIS)
    words = ["--config-file", config, "run", f"{judge.url}/openapi.json", "--checks", "all", "--max-examples", "50"]
    run = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *map(str, words), "--continue-on-failure", "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    assert cases is not None and cases[1] == cases[2] and int(cases[1]) > 100, run.stdout[-2000:]
    assert "5 selected / 5 total" in run.stdout and judge.running
    assert "defect" not in judge.log_file.read_text()


class Words:
    """A tokenizer and an engine of upstream's shape, for one reply: a token is a word."""

    def __init__(self, reply: str) -> None:
        self.words: list[str] = []
        self.reply = reply

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [SimpleNamespace(tolist=lambda: self._ids(text))]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[i] for i in ids)

    async def generate(self, ids: list[int], params: Any, **_: Any) -> Any:
        output = SimpleNamespace(token_ids=self._ids(self.reply), finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])

    def _ids(self, text: str) -> list[int]:
        first = len(self.words)
        self.words += re.findall(r"\s*\S+|\s+$", text)
        return list(range(first, len(self.words)))


@pytest.mark.parametrize(
    ("note", "reply", "reward"),
    [
        (WRONG, " hm </think> <answer> Harmful </answer><|im_end|>", 2.5),
        (WRONG, " hm </think> <answer> Safe </answer><|im_end|>", 0.5),
        (NOTE, " hm </think> <answer> Safe </answer><|im_end|>", 2.5),
        (NOTE, " no idea", -2.0),
    ],
)
def test_upstreams_own_client_gets_its_reward(judge: JudgeProcess, note: str, reply: str, reward: float) -> None:
    from openrlhf_medical import devices

    devices.prepare_process()
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(f"{judge.url}/get_reward")
    words = Words(reply)
    label = json.dumps({"game_idx": 7, "original_note": NOTE, "medical_note": note})
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    result = asyncio.run(executor.execute(f"<s>Judge: {note} <think>", label, params, 2048, words, words))
    assert result["reward"] == [reward] and result["scores"] == [reward]
    experience = SamplesGenerator._process_response_into_experience(None, result)
    assert experience.rewards.flatten().tolist() == [reward]
    assert experience.info["actual_harm"].flatten().tolist() == [float(note != NOTE)]
