"""How far one controller, one judge and one network go: the schedule in simulated time, 1 to 512 engines, 10^3 to 10^6
games a step.

    python benchmarks/scale.py                            # measures the controller, writes scale.json and scale.md
    python benchmarks/scale.py --judges 4 --link-gb-s 50  # with other service times; --help has all of them
    python benchmarks/scale.py --check runs/NAME …        # the model against real runs: predicted and measured seconds

``scale_model`` plays the games; here are its service times, each with its source, the table, and the check. A step is
its games and the weight sync; updates are left out, for they scale with the learner's GPUs and wait for all games.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lengths
import scale_check
import scale_controller
from measure import RESULTS, Result, Row, parser
from scale_model import Service, Step, draw_games, play_step
from simulated_engine import Rates

from openrlhf_medical.game.players import Reply, Role
from openrlhf_medical.layout import TURNS_OF_ENGINE

ENGINES = (1, 2, 8, 32, 128, 512)
GAMES = (10**3, 10**4, 10**5, 10**6)
PROMPT = 190
"""Tokens of a prompt that are read anew: the note. The instructions before it are in the prefix cache."""

Times = dict[str, tuple[float, str]]
"""Service time -> (value, where it is from)."""


def service_times() -> Times:
    """Defaults. Those of GPUs are nobody's measurement: no GPU was at hand; put in your own."""
    manager, judge = _committed("schedule", "CPU time a game"), _committed("judge", "loopback")
    return {
        "slots": (TURNS_OF_ENGINE, "layout.TURNS_OF_ENGINE"),
        "alone": (100.0, "assumed, tokens/s of one sequence: an 8B model on one GPU"),
        "full": (4000.0, "assumed, tokens/s of a full engine"),
        "prefill": (20_000.0, "assumed, prompt tokens/s"),
        "turn-ms": (1.0, "measured by this command: prompt, tokenizer, fleet and Ray call of one turn"),
        "pick-us": (0.1, "measured by this command: each engine more to choose from"),
        "game-ms": (manager or 0.15, "results/schedule.json: the manager, CPU time a game"),
        "label-per-s": (judge or 1000.0, "results/judge.json: queries/s of one reference judge"),
        "judges": (1, "judge.urls: replicas"),
        "weights-gb": (16.0, "8B parameters in bf16"),
        "link-gb-s": (12.5, "assumed: 100 Gbit/s, broadcast in pieces that travel on"),
        "reload-s": (2.0, "assumed: loading what has arrived (0.5 s for 135M parameters: facts/cpu-stack.md)"),
        "reply-kb": (len(pickle.dumps(_reply())) / 1000, "pickle of a Reply of mean length with ids and logprobs"),
        "game-kb": (_game_kb(), "results/schedule.json: a game with 450 ids a turn and their logprobs, tracemalloc"),
    }


def _committed(name: str, words: str) -> float | None:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return next((row["ratio"] for row in rows if words in row["name"]), None)


def _game_kb() -> float:
    path = RESULTS / "schedule.json"
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"] if path.exists() else {}
    return float(samples.get("kb_a_game_with_450_tokens_a_turn", 30.0))


def _reply() -> Reply:
    rng = random.Random(0)
    ids = tuple(rng.randrange(128_000) for _ in range(600))
    return Reply(
        "word " * 250, prompt_ids=ids[:300], token_ids=ids[300:], logprobs=tuple(rng.random() for _ in range(300))
    )


def service_of(times: Times) -> Service:
    value = {name: found for name, (found, _) in times.items()}
    return Service(
        rates=Rates(int(value["slots"]), value["alone"], value["full"]),
        prefill_per_s=value["prefill"],
        turn_s=value["turn-ms"] / 1e3,
        pick_s=value["pick-us"] / 1e6,
        game_s=value["game-ms"] / 1e3,
        label_per_s=value["label-per-s"],
        judges=int(value["judges"]),
        reply_bytes=value["reply-kb"] * 1e3,
        weight_bytes=value["weights-gb"] * 1e9,
        link_bytes_per_s=value["link-gb-s"] * 1e9,
        reload_s=value["reload-s"],
        controller_bytes=value["game-kb"] * 1e3,
    )


def table_of(service: Service, games: Sequence[int], engines: Sequence[int]) -> list[Step]:
    long, rng = lengths.real(), random.Random(0)
    drawn = {role.value: [long.draw(role, "note", rng) for _ in range(20_000)] for role in Role}
    steps = []
    for count in games:
        work = draw_games(count, drawn, {role.value: PROMPT for role in Role})
        for number in engines:
            began = time.perf_counter()
            steps.append(play_step(work, number, service))
            print(f"  {count:,} games on {number} engines: {steps[-1].seconds:,.1f} s, limited by {steps[-1].limit} "
                  f"(simulated in {time.perf_counter() - began:.1f} s)", file=sys.stderr, flush=True)  # fmt: skip
    return steps


INTRODUCTION = """\
Written by `benchmarks/scale.py`. One controller, one pool of engines for both roles, the default mix of games and
whole-note edits, lengths as in `benchmarks/lengths.py`. *Seconds* are of a step's games and its weight sync, without
the update. A part's column says what share of that time it would need if nothing else took any: near 100 % it is what
limits the step. *GB* is what the games hold in the controller's memory. The engines' rates and the network are those
of no machine that was at hand: the last table says which figures are measured.
"""
PARTS = ("engines", "longest game", "controller", "judge", "network")


def markdown(steps: Sequence[Step], times: Times) -> str:
    lines = [
        "# How far it goes: simulated steps\n",
        INTRODUCTION,
        "| games | engines | seconds | games/s | limited by | " + " | ".join(PARTS) + " | GB |",
        "| ---: | ---: | ---: | ---: | --- | " + "---: | " * (len(PARTS) + 1),
    ]
    for step in steps:
        shares = " | ".join(f"{step.needs[part] / step.seconds:.0%}" for part in PARTS)
        lines.append(f"| {step.games:,} | {step.engines} | {step.seconds:,.1f} | {step.games_per_s:,.1f} "
                     f"| {step.limit} | {shares} | {step.controller_gb:.2f} |")  # fmt: skip
    lines += ["\n## What one of each can serve\n", *_most(steps)]
    lines += ["\n## Service times\n", "| what | value | source |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {value:,.4g} | {source} |" for name, (value, source) in times.items()]
    return "\n".join(lines) + "\n"


def _most(steps: Sequence[Step]) -> list[str]:
    """Games/s that a part can do at most, and how many engines make as many: from the largest step, where waiting for
    the longest game no longer counts."""
    largest = max(step.games for step in steps)
    one = next(step for step in steps if step.games == largest)  # the fewest engines
    work_s = one.needs["engines"] * one.engines / largest  # of one engine, for one game
    lines = ["| part | games/s at most | engines that it keeps busy |", "| --- | ---: | ---: |"]
    for part in ("controller", "judge", "network"):
        per_s = largest / one.needs[part]
        lines.append(f"| {part} | {per_s:,.0f} | {per_s * work_s:,.0f} |")
    return lines


def options_of(times: Times) -> argparse.Namespace:
    words = parser(__doc__)
    for name, (value, source) in times.items():
        words.add_argument(f"--{name}", type=float, help=f"default {value:g}: {source}".replace("%", "%%"))
    words.add_argument("--check", nargs="+", type=Path, metavar="RUN", help="run directories to predict")
    words.add_argument("--engines", type=int, nargs="+", default=ENGINES)
    words.add_argument("--games", type=int, nargs="+", default=GAMES)
    return words.parse_args()


def main() -> None:
    times = service_times()
    options = options_of(times)
    if options.check:
        for folder in options.check:
            scale_check.check(folder).show()
        return
    if not options.quick:
        for name, (value, source) in scale_controller.measured(times["game-ms"][0]).items():
            times[name] = (value, source)
    for name in list(times):
        if (given := getattr(options, name.replace("-", "_"))) is not None:
            times[name] = (given, "given on the command line")
    service = service_of(times)
    games = (1000, 10_000) if options.quick else options.games
    steps = table_of(service, games, options.engines)
    text = markdown(steps, times)
    print(text)
    samples: dict[str, Any] = {
        "steps": [asdict(step) | {"seconds": step.seconds, "limit": step.limit} for step in steps],
        "service_times": {name: {"value": value, "source": source} for name, (value, source) in times.items()},
    }
    checked = [scale_check.check(file) for file in sorted(scale_check.KEPT.glob("*.json"))]
    samples["checks"] = [asdict(each) for each in checked]
    rows = [
        Row(
            f"scale model against a real run ({each.run}): seconds of its games",
            each.worst,
            1.3,
            "lower",
            note=each.note,
        )
        for each in checked
    ]
    for each in checked:
        each.show()
    Result("scale", rows, samples).report(None if options.quick else RESULTS)
    if not options.quick:
        (RESULTS / "scale.md").write_text(text + "".join(each.markdown() for each in checked), encoding="utf-8")


if __name__ == "__main__":
    main()
