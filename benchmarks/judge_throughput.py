"""What batching is worth to a judge that is a model: queries a second, many in one request and one request for each.

    python benchmarks/judge_throughput.py --model models/smollm2-135m
    python benchmarks/judge_throughput.py --url http://127.0.0.1:8000 --queries 256     # a judge that runs already

One judge, so one engine, and both ways over HTTP. No note is sent twice, so neither way finds what the other left in
a cache of findings or of prefixes; the notes of both are of the same kind and length, taken in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from openrlhf_medical.data.synthetic import generate
from openrlhf_medical.judge.process import PROGRAM, start_judge_process

_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Result:
    """Queries a second; ``statuses`` counts the rows of both ways."""

    queries: int
    one_by_one: float
    batched: float
    statuses: dict[str, int]

    @property
    def gain(self) -> float:
        return self.batched / self.one_by_one

    def render(self) -> str:
        return (
            f"{self.queries} queries each way: {self.one_by_one:.2f} queries/s one at a time, {self.batched:.2f} "
            f"queries/s in one request: {self.gain:.1f} times as many; rows: {self.statuses}"
        )


def queries(count: int) -> list[dict[str, Any]]:
    """Error notes of the embedded corpus with their corrections, all different."""
    rows = [row for row in generate("train", num_vignettes=count) if row.corrected_text is not None]
    return [
        {"game_idx": i, "original_note": row.corrected_text, "medical_note": row.text} for i, row in enumerate(rows)
    ]


def ask(url: str, asked: Sequence[dict[str, Any]]) -> tuple[float, Counter[str]]:
    """Seconds, and the rows by status."""
    start = time.perf_counter()
    headers = {"X-Request-Timeout-S": str(_TIMEOUT_S)}
    answer = requests.post(f"{url}/judge", json={"queries": list(asked)}, headers=headers, timeout=_TIMEOUT_S)
    answer.raise_for_status()
    return time.perf_counter() - start, Counter(row["status"] for row in answer.json()["labels"])


def measure(url: str, count: int) -> Result:
    """The two ways by turns, in four parts, so that a machine that slows down slows both."""
    asked = queries(2 * count + 2)
    ask(url, asked[-2:])  # the first question of an engine takes longer
    seconds, statuses = {"one": 0.0, "batch": 0.0}, Counter[str]()
    parts = 1 if count < 32 else 2  # a batch must still fill the engine
    size = count // parts
    for part in range(parts):
        mine = asked[2 * part * size : 2 * (part + 1) * size]
        for query in mine[::2]:
            took, found = ask(url, [query])
            seconds["one"] += took
            statuses += found
        took, found = ask(url, mine[1::2])
        seconds["batch"] += took
        statuses += found
    done = parts * size
    return Result(done, done / seconds["one"], done / seconds["batch"], dict(statuses))


@contextlib.contextmanager
def judge(options: argparse.Namespace) -> Iterator[str]:
    if options.url:
        yield options.url
        return
    words = ["--model", options.model, "--max-new-tokens", str(options.max_new_tokens)]
    words += ["--max-batch", str(max(64, options.queries)), "--request-timeout-s", str(_TIMEOUT_S)]
    with (
        tempfile.TemporaryDirectory() as folder,
        start_judge_process(
            log_file=Path(folder) / "judge.log", backend="vllm", program=(*PROGRAM, *words), deadline_s=900
        ) as process,
    ):
        yield process.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--url", help="of a judge that runs; none is started then")
    parser.add_argument("--queries", type=int, default=64, help="each way")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    options = parser.parse_args()
    with judge(options) as url:
        print(measure(url, options.queries).render())


if __name__ == "__main__":
    main()
