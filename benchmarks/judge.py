"""Judge client and server over loopback: the client that a run has, against the server that a run starts.

    python benchmarks/judge.py [--runs N] [--quick]

  peak       512 queries under way all the time: labels a second
  half load  queries arrive one by one at half of that rate: how long each waits for its label (99th percentile)

All queries are different; the backend is ``reference``. Both processes share the machine's cores, as they do in a run
of the quickstart.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import judge_load
from measure import RESULTS, Result, Row, parser

from openrlhf_medical.data.synthetic import generate
from openrlhf_medical.game.players import Query
from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import start_judge_process

UNDER_WAY = 512
"""Games that are being judged at once: two engines' worth (layout.TURNS_OF_ENGINE)."""


def queries(seed: int = 0) -> Iterator[Query]:
    """Endless, and none twice. A reference is two notes of the embedded corpus, one after the other: about as long as
    one of MEDEC's. There are 800, that come again as those of a training set do; in the note of the game one to three
    words are others, as an attacker might have put them."""
    notes = [row.text for row in generate("train", num_vignettes=400)]
    references = [f"{note} {following}" for note, following in zip(notes, notes[1:] + notes[:1], strict=True)]
    words = sorted({word for note in notes for word in note.split()})
    rng = random.Random(seed)
    for number in itertools.count():
        reference = rng.choice(references)
        changed = reference.split()
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice(words)
        yield Query(number, reference, " ".join(changed), "", None, "adversarial_benign")


async def peak(client: JudgeClient, asked: Iterator[Query], seconds: float) -> float:
    """Labels a second with ``UNDER_WAY`` queries under way."""
    end = time.monotonic() + seconds
    labelled = 0

    async def one() -> None:
        nonlocal labelled
        while time.monotonic() < end:
            await _label(client, next(asked))
            labelled += 1

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(UNDER_WAY)))
    return labelled / (time.monotonic() - began)


async def latencies(client: JudgeClient, asked: Iterator[Query], per_s: float, seconds: float) -> list[float]:
    """Seconds from question to label of queries that are asked at this rate, whatever comes back."""
    took: list[float] = []

    async def one(due: float) -> None:
        await _label(client, next(asked))
        took.append(time.monotonic() - due)  # a question that was asked late has waited, too

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(per_s * seconds)):
            due = began + number / per_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(one(due))
    return took


async def _label(client: JudgeClient, query: Query) -> None:
    label = await client.label(query)
    if label.status == "error":
        raise RuntimeError(f"the judge failed: {label.reason}")


async def same_notes(url: str, seconds: float) -> float:
    """Queries a second where all ask for the same three notes, by clients that do next to nothing (``judge_load``):
    what is left when neither the rules nor our client have anything to do."""
    clients, answers = judge_load.Clients(url, 64), judge_load.Answers()
    began = time.monotonic()
    await clients.ask_again_and_again(judge_load.CLIENTS, seconds, answers)
    return sum(rows for _, _, rows in answers.ok) / (time.monotonic() - began)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def main() -> None:
    options = parser(__doc__).parse_args()
    runs, seconds = (1, 0.5) if options.quick else (options.runs, 4.0)
    asked = queries()
    rates: list[float] = []
    waits: list[list[float]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        start_judge_process(log_file=Path(folder) / "judge.log") as judge,
        JudgeClient([judge.url]) as client,
    ):
        asyncio.run(peak(client, asked, 0.5))  # to warm up
        for number in range(runs):
            rates.append(asyncio.run(peak(client, asked, seconds)))
            waits.append(asyncio.run(latencies(client, asked, rates[-1] / 2, seconds)))
            print(f"  {number + 1}/{runs}: {rates[-1]:.0f} queries/s, p99 {1000 * percentile(waits[-1], 0.99):.0f} ms")
        alone = asyncio.run(same_notes(judge.url, seconds))
    p99 = [1000 * percentile(each, 0.99) for each in waits]
    name = "judge client and server, reference backend, loopback"
    rows = [
        Row(name, statistics.median(rates), 1000, "higher", "queries/s", (min(rates), max(rates))),
        Row(f"{name}: p99 at half load", statistics.median(p99), 250, "lower", "ms", (min(p99), max(p99)),
            "of which 50 ms is judge.max_wait_s"),
    ]  # fmt: skip
    samples = {
        "queries_per_s": rates,
        "p50_ms": [1000 * percentile(each, 0.5) for each in waits],
        "p99_ms": p99,
        "same_three_notes_queries_per_s": alone,
        "under_way": UNDER_WAY,
    }
    Result("judge", rows, samples).report(None if options.quick else RESULTS)


if __name__ == "__main__":
    main()
