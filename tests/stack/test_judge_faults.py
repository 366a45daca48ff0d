"""A judge that fails in every way, beside real games: 10,000 through the client alone, then whole training runs."""

from __future__ import annotations

import contextlib
import json
import signal
import statistics
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from faulty_judge import FAULTS, Body, FaultyJudge, Row, faults_now_and_then, flapping, good, row_of, status, truth_of
from judge_storm import check, queries, storm
from test_train import data, rows, run, training_steps  # noqa: F401  (data is a fixture)

from openrlhf_medical.judge.client import JudgeClient
from openrlhf_medical.judge.process import kept_running

GAMES = 10_000


# --- the client alone ----------------------------------------------------------------------------------


@contextlib.contextmanager
def killed_now_and_then(every_s: float) -> Iterator[list[int]]:
    """SIGKILL for judge processes of ours that have been up for ``every_s``. Gives the pids that were hit."""
    done, hit = threading.Event(), []

    def kill() -> None:
        while not done.wait(0.2):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.Error):
                    if "serve-judge" in child.cmdline() and time.time() - child.create_time() > every_s:
                        child.send_signal(signal.SIGKILL)
                        hit.append(child.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield hit
    finally:
        done.set()
        thread.join()


def test_ten_thousand_games_not_one_wrong_label_and_none_lost(tmp_path):
    """Two judges with every fault in three requests of ten, a third that is also stopped and started all the
    time, and a real judge process that is killed every few seconds."""
    asked = queries(GAMES, seed=7, abstain=False)
    with contextlib.ExitStack() as stack:
        judges = [stack.enter_context(FaultyJudge(faults_now_and_then(0.3, seed))) for seed in range(3)]
        real = stack.enter_context(kept_running(tmp_path / "judge.log", deadline_s=120))
        urls = [*(judge.url for judge in judges), real]
        client = stack.enter_context(
            JudgeClient(urls, batch_size=8, max_wait_s=0.01, timeout_s=60, attempt_timeout_s=0.5)
        )
        stack.enter_context(flapping(judges[2], up_s=0.5, down_s=0.3))
        killed = stack.enter_context(killed_now_and_then(3.0))
        started = time.monotonic()
        labels = storm(client, asked)
        taken = time.monotonic() - started
        counts = client.snapshot()
    ended = check(asked, labels)
    served = sum((judge.served for judge in judges), Counter())
    print(f"{taken:.1f} s, {dict(ended)}, {counts}, judge process killed {len(killed)} times, {dict(served)}")
    assert len(set(FAULTS) - served.keys()) <= 2, "drawn ten times each on average"
    assert killed, "the judge process was never killed"
    assert ended["error"] < 0.01 * GAMES, "what can be mended by asking again was not"


# --- a training run through such a judge ------------------------------------------------------------------


def train(data: Path, folder: Path, name: str, judges: list[FaultyJudge], *words: str, expect: int = 0):  # noqa: F811
    return run(
        *("train", "--config", "configs/tiny.yaml", "--run.name", name, "--run.dir", str(folder)),
        *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
        *("--train.colocate_all", "true", "--judge.urls", *(judge.url for judge in judges)),
        *words,
        timeout_s=600,
        expect=expect,
    )


def expected(note: str) -> str | None:
    """What this judge says of a note, by the text alone, where that is not its truth."""
    return {0: "abstain", 1: "error"}.get(zlib.crc32(note.encode()) % 6)


def undecided(query: Body) -> Row:
    """Abstains on some notes and fails on some, always the same; its truth on the others."""
    row, verdict = row_of(query), expected(query["medical_note"])
    return row | {"status": verdict, "actual_harm": None, "error_present": None} if verdict else row


def test_a_training_run_through_such_a_judge_finishes_and_tells_of_each_game(data, tmp_path):  # noqa: F811
    with contextlib.ExitStack() as stack:
        judges = [
            stack.enter_context(FaultyJudge(faults_now_and_then(0.5, seed), row_of=undecided)) for seed in range(3)
        ]
        stack.enter_context(flapping(judges[2], up_s=2, down_s=0.5))
        train(data, tmp_path, "faults", judges, "--run.steps", "3", "--run.eval_games", "16", "--rollout.batch_size",
              "48", "--judge.batch_size", "2", "--judge.attempt_timeout_s", "1", "--judge.max_failed_fraction",
              "1.0")  # fmt: skip
    assert sum(sum(judge.served[name] for name in FAULTS) for judge in judges) > 5
    games = rows(tmp_path / "faults" / "games.jsonl")
    keys = Counter((game["step"], game["game_idx"]) for game in games)
    assert max(keys.values()) == 1 and Counter(game["step"] for game in games) == {-1: 16, 0: 48, 1: 48, 2: 48, 3: 16}
    statuses = Counter()
    for game in games:
        label, note = game["label"], game["presented_note"]
        if label is None or label["source"] != "judge":
            assert game["status"] in ("ok", "forfeit") and not (game["status"] == "ok" and label is None)
            continue
        statuses[game["status"]] += 1
        if label["status"] == "error":
            assert label["actual_harm"] is None and label["reason"] and game["status"] == "error"
        elif label["status"] == "abstain":
            assert "abstain" in (expected(note), truth_of(game["reference_note"], note))
            assert game["status"] == "abstain"
        else:
            assert expected(note) is None and label["actual_harm"] == truth_of(game["reference_note"], note)
        if label["status"] != "ok":
            assert not any(game[role] and game[role]["trained"] for role in ("attacker", "assessor"))
    assert {"ok", "abstain", "error"} <= statuses.keys(), statuses
    steps = training_steps(tmp_path / "faults")
    assert len(steps) == 3 and any(row["policy/assessor/grad_norm"] > 0 for row in steps)


def steps_done(folder: Path) -> int:
    """Of a run under way, whose last line may not be whole yet."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_text(encoding="utf-8").count('"time/step_s"') if metrics.exists() else 0


@contextlib.contextmanager
def once(happened: Callable[[], bool], then: Callable[[], None]) -> Iterator[threading.Event]:
    """Does something in the background as soon as something else has happened. Gives whether it was done."""
    over, acted = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if happened():
                then()
                acted.set()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield acted
    finally:
        over.set()
        thread.join()


def test_a_run_outlives_an_outage_and_ends_in_order_when_the_judge_is_gone_for_good(data, tmp_path):  # noqa: F811
    """Step 1 meets judges that refuse for a while, step 3 or so judges that are gone."""
    folder = tmp_path / "outage"
    judges = [FaultyJudge(good), FaultyJudge(good)]
    refused: list[float] = []

    def refusing(judge: FaultyJudge, http, body) -> None:
        refused.append(time.monotonic())
        status(503)(judge, http, body)

    def set_all(handler, healthy: bool) -> None:
        for judge in judges:
            judge.handler, judge.healthy = handler, healthy

    limits = ("--judge.timeout_s", "4", "--judge.recovery_timeout_s", "30", "--judge.max_failed_fraction", "0.0")
    try:
        with (
            once(lambda: steps_done(folder) >= 1, lambda: set_all(refusing, False)),
            once(lambda: bool(refused) and time.monotonic() > refused[0] + 9, lambda: set_all(good, True)) as back,
            once(lambda: back.is_set() and steps_done(folder) >= 3, lambda: [judge.stop() for judge in judges]) as gone,
        ):
            done = train(data, tmp_path, "outage", judges, "--run.steps", "50", *limits, expect=1)
        assert back.is_set() and gone.is_set()
    finally:
        for judge in judges:
            judge.stop()

    assert "training pauses for up to 30 s" in done.stderr and "the judge is back after" in done.stderr
    assert "more than judge.max_failed_fraction (0) allows, and the judge did not come back within 30 s" in done.stderr
    for judge in judges:
        assert f"{judge.url}: ConnectionError" in done.stderr
    assert str(folder / "checkpoints" / "interrupted") in done.stderr and "Traceback" not in done.stderr

    games = rows(folder / "games.jsonl")
    keys = [(game["step"], game["game_idx"]) for game in games]
    last = keys[-1][0]
    assert keys == [(step, idx) for step in range(last + 1) for idx in range(16)], "every game, once"
    assert {game["status"] for game in games if game["step"] < last} <= {"ok", "forfeit", "abstain"}
    assert any(game["judge_failures"] for game in games if game["step"] < last), "what was judged again says so"
    failed = [game for game in games if game["step"] == last and game["status"] == "error"]
    assert failed and all(game["label"]["status"] == "error" and game["reason"] for game in failed)
    steps = training_steps(folder)
    assert [row["step"] for row in steps] == list(range(last))
    assert sum("judge/paused_s" in row for row in steps) == 1

    from transformers import AutoModelForCausalLM

    for policy in (folder / "checkpoints" / "interrupted").iterdir():
        assert AutoModelForCausalLM.from_pretrained(policy).num_parameters() > 0


# --- a slow judge ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_judge_that_takes_two_seconds_costs_a_step_at_most_a_tenth(data, tmp_path):  # noqa: F811
    """SmolLM2, whose replies take longer than that. One run in which the judge is instant and takes 2 s in turn,
    so that both meet the same machine. Compared is what a step takes: of that most goes into reading prompts, which are
    as many in each. The time for a reply's token is not compared: replies get shorter while it learns."""
    folder, pairs = tmp_path / "slow", 4

    def in_turn(judge: FaultyJudge, http, body) -> None:
        if steps_done(folder) % 2:
            time.sleep(2.0)
        good(judge, http, body)

    with FaultyJudge(in_turn) as judge:
        run(
            *("train", "--config", "configs/quickstart.yaml", "--run.name", "slow", "--run.dir", str(tmp_path)),
            *("--data.train", str(data / "train.jsonl"), "--data.val", str(data / "val.jsonl")),
            *("--roles.policy", "shared", "--train.colocate_all", "true", "--run.eval_games", "0"),
            # 32 seeds, so that each of the two turns takes longer than the judge
            *("--rollout.batch_size", "32", "--run.steps", str(2 * pairs + 1), "--judge.urls", judge.url),
            timeout_s=3600,
        )
    steps = training_steps(folder)[1:]  # the first one warms up
    slow, instant = (statistics.median(row["time/step_s"] for row in steps[first::2]) for first in (0, 1))
    shown = [
        {name: round(row[name], 2) for name in ("time/step_s", "time/games_s", "judge/latency_s")} for row in steps
    ]
    print(json.dumps({"slow_s": slow, "instant_s": instant, "ratio": slow / instant, "steps": shown}))
    assert min(row["time/games_s"] for row in steps[::2]) > 4, "two turns, each longer than the judge takes"
    assert slow <= 1.10 * instant
