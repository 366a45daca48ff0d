"""What a judge server does at several times its capacity, over real sockets.

    python benchmarks/judge_load.py --backend reference
    python benchmarks/judge_load.py --backend sleep --batch-s 0.1     # a model of known speed: 64 queries in 0.1 s

Three phases; the server is a process of its own, and this one is all its clients:
  peak       a few clients, each asking again as soon as it is answered: the most queries a second there are
  overload   requests sent at 4 times that rate, whatever comes back
  recovery   from the last request of the overload until one is taken again, and the peak measured once more
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from openrlhf_medical.game.players import Truth
from openrlhf_medical.judge import backends
from openrlhf_medical.judge.findings import BlindPair, Finding
from openrlhf_medical.judge.limits import Limits
from openrlhf_medical.judge.process import JudgeProcess, start_judge_process

NOTE = (
    "A 54-year-old woman comes to the clinic because of three days of fever, chills and a productive cough. She has "
    "type 2 diabetes mellitus and hypertension; her medications are metformin 500 mg twice daily and lisinopril 10 mg "
    "daily. Temperature is 38.9 C, pulse 104/min, respirations 22/min and blood pressure 128/76 mm Hg. There are "
    "crackles over the left lower lobe. Leukocyte count is 15,200/mm3. A chest x-ray shows consolidation of the left "
    "lower lobe. A diagnosis of community-acquired pneumonia is made. She was given amoxicillin 1 g three times daily "
    "for five days and was told to return if she becomes short of breath. She has no known drug allergies."
)
CHANGED = (NOTE.replace("amoxicillin", "vancomycin"), NOTE.replace("left", "right"), NOTE.replace("500 mg", "500mg"))
CLIENTS = 12  # enough that the backend never waits for one
MAX_CONNECTIONS = 400


class SleepBackend:
    """A backend of known speed: every batch takes the same time, as on a GPU with room to spare."""

    model_name = "sleep"

    def __init__(self, batch_s: float) -> None:
        self.batch_s = batch_s

    def load(self) -> None:
        pass

    def judge(self, pairs: Sequence[BlindPair]) -> list[Finding]:
        time.sleep(self.batch_s)
        return [Finding("ok", Truth.SAFE)] * len(pairs)


# --- the server ------------------------------------------------------------------------------------------


def start(backend: str, batch_s: float, max_queue: int, log_file: Path) -> JudgeProcess:
    program = (sys.executable, __file__, "serve", "--batch-s", str(batch_s), "--max-queue", str(max_queue))
    return start_judge_process(log_file=log_file, backend=backend, program=program)


def serve(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    for option, kind in (("batch-s", float), ("max-queue", int), ("backend", str), ("host", str), ("port", int)):
        parser.add_argument(f"--{option}", type=kind)
    parser.add_argument("--port-file", type=Path)
    parser.add_argument("--exit-with-parent", action="store_true")
    options = vars(parser.parse_args(words))
    batch_s, limits = options.pop("batch_s"), Limits(max_queue=options.pop("max_queue"))
    backends.BACKENDS["sleep"] = lambda: SleepBackend(batch_s)
    from openrlhf_medical.judge import server

    server.serve(**options, limits=limits)


# --- clients ---------------------------------------------------------------------------------------------


@dataclass
class Answers:
    """What came back: (when, seconds, rows) of the requests that were answered, seconds of those refused."""

    ok: list[tuple[float, float, int]] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)

    def rows_between(self, start: float, end: float) -> int:
        return sum(rows for when, _, rows in self.ok if start < when <= end)

    def other(self, what: str) -> None:
        self.others[what] = self.others.get(what, 0) + 1


class Clients:
    """Connections that are kept and used again, each by one request at a time."""

    def __init__(self, url: str, queries: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.queries = queries
        asked = [
            {"game_idx": i, "original_note": NOTE, "medical_note": CHANGED[i % len(CHANGED)], "assessment": "Harmful"}
            for i in range(queries)
        ]
        body = json.dumps({"queries": asked}).encode()
        head = f"POST /judge HTTP/1.1\r\nHost: judge\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body

    async def ask(self, answers: Answers) -> int:
        """The status, 0 where there was none."""
        start = time.monotonic()
        try:
            status, rows = await asyncio.wait_for(self._exchange(), 60)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            answers.other(type(error).__name__)
            return 0
        now = time.monotonic()
        if status == 200:
            answers.ok.append((now, now - start, rows))
        elif status == 429:
            answers.refused_s.append(now - start)
        else:
            answers.other(f"HTTP {status}")
        return status

    async def _exchange(self) -> tuple[int, int]:
        connection = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        reader, writer = connection
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))
        self._idle.append(connection)
        return int(head.split(" ", 2)[1]), body.count(b'"status":"ok"')

    async def ask_again_and_again(self, clients: int, seconds: float, answers: Answers) -> None:
        end = time.monotonic() + seconds

        async def one() -> None:
            while time.monotonic() < end:
                await self.ask(answers)

        await asyncio.gather(*(one() for _ in range(clients)))

    async def ask_at_rate(self, queries_per_s: float, seconds: float, answers: Answers) -> int:
        """Sends at this rate whatever comes back; the number of requests that were sent."""
        start = time.monotonic()
        every_s = self.queries / queries_per_s
        under_way: set[asyncio.Task[int]] = set()
        sent = 0
        while (due := start + sent * every_s) < start + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent += 1
            if len(under_way) >= MAX_CONNECTIONS:
                answers.other("not sent: no connection left")
                continue
            task = asyncio.create_task(self.ask(answers))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        return sent


# --- the three phases ------------------------------------------------------------------------------------


@dataclass
class Result:
    """Rates in queries a second, times in seconds; ``refused_s`` is (median, 95 %, 99 %, longest)."""

    peak: float
    offered: float
    overload: float
    refused: int
    refused_s: tuple[float, float, float, float]
    recovery_s: float
    peak_again: float
    others: dict[str, int]

    def render(self) -> str:
        shown = " / ".join(f"{seconds * 1000:.0f}" for seconds in self.refused_s)
        return (
            f"peak {self.peak:.0f} queries/s; offered {self.offered:.0f}/s: {self.overload:.0f} queries/s judged "
            f"({self.overload / self.peak:.0%} of the peak), {self.refused} requests refused with 429 in {shown} ms "
            f"(median / 95 % / 99 % / longest); took queries again after {self.recovery_s * 1000:.0f} ms, "
            f"peak then {self.peak_again:.0f} queries/s; other answers: {self.others or 'none'}"
        )


async def measure(url: str, *, queries: int, seconds: float, times: float = 4.0) -> Result:
    clients, warm, first = Clients(url, queries), Answers(), Answers()
    await clients.ask_again_and_again(CLIENTS, 0.5, warm)
    peak = await _peak(clients, seconds, first)

    flood = Answers()
    await clients.ask_at_rate(times * peak, seconds / 2, flood)  # until the queue is full
    start = time.monotonic()
    await clients.ask_at_rate(times * peak, seconds, flood)
    end = time.monotonic()

    after = Answers()
    while await clients.ask(after) != 200:
        await asyncio.sleep(0.01)
    taken = after.ok[0]
    recovery_s = taken[0] - taken[1] - end
    again = await _peak(clients, seconds, Answers())
    return Result(
        peak=peak,
        offered=times * peak,
        overload=flood.rows_between(start, end) / (end - start),
        refused=len(flood.refused_s),
        refused_s=_quantiles(flood.refused_s),
        recovery_s=recovery_s,
        peak_again=again,
        others={**first.others, **flood.others, **after.others},
    )


async def _peak(clients: Clients, seconds: float, answers: Answers) -> float:
    start = time.monotonic()
    await clients.ask_again_and_again(CLIENTS, seconds, answers)
    return answers.rows_between(start, start + seconds) / seconds


def _quantiles(values: Sequence[float]) -> tuple[float, float, float, float]:
    ordered = sorted(values) or [float("nan")]
    last = len(ordered) - 1
    return ordered[last // 2], ordered[round(0.95 * last)], ordered[round(0.99 * last)], ordered[last]


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("reference", "sleep"), default="reference")
    parser.add_argument("--batch-s", type=float, default=0.1, help="of the sleeping backend")
    parser.add_argument("--max-queue", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=64, help="in one request")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        start(options.backend, options.batch_s, options.max_queue, Path(folder) / "judge.log") as judge,
    ):
        result = asyncio.run(measure(judge.url, queries=options.queries, seconds=options.seconds))
    print(result.render())


if __name__ == "__main__":
    main()
