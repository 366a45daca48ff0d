"""What waits for what: the barriers of lockstep, the limits, and its failures. That both schedules give the
same games is held by ``test_game_manager.test_whatever_players_write``."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.manager import SCHEDULES, MedicalDialogueGameManager
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed

NOTE = "A man has gout. He takes colchicine for it."
LONGER = NOTE + " He is well."


class Recorder:
    """Both players and the judge: writes down when each call begins and ends, and how many were in flight."""

    def __init__(self, yields=lambda what, idx: 1, fails=lambda what, idx: None):
        self.events, self.most = [], {}
        self.now = dict.fromkeys(("attacker", "assessor", "judge"), 0)
        self.yields, self.fails = yields, fails

    async def _call(self, what, idx):
        self.events.append((what, "begins", idx))
        self.now[what] += 1
        self.most[what] = max(self.most.get(what, 0), self.now[what])
        for _ in range(self.yields(what, idx)):
            await asyncio.sleep(0)
        self.now[what] -= 1
        self.events.append((what, "ends", idx))
        if error := self.fails(what, idx):
            raise error

    async def reply(self, prompt, key):
        await self._call(key.role.value, key.game_idx)
        answer = LONGER if key.role is Role.ATTACKER else "Harmful"
        return Reply(f"t </think> <answer>{answer}</answer>", player=key.role.value)

    async def label(self, query):
        await self._call("judge", query.game_idx)
        return Label("ok", Truth.HARMFUL, error_present=True)

    def when(self, what, event):
        return [i for i, (who, happened, _) in enumerate(self.events) if (who, happened) == (what, event)]


def seeds_of(*categories):
    return [Seed(f"s{i}", category, f"n{i}", f"v{i}", "clean", NOTE, NOTE) for i, category in enumerate(categories)]


def play(recorder, seeds, schedule="lockstep", rules=None, on_game=None, **kwargs):
    manager = MedicalDialogueGameManager(
        recorder, recorder, recorder, rules or GameRules(), schedule=schedule, **kwargs
    )  # fmt: skip
    return asyncio.run(manager.play(seeds, on_game=on_game))


ADVERSARIAL = seeds_of(*[Category.ADVERSARIAL_BENIGN] * 12)
MIXED = seeds_of(*[Category.ADVERSARIAL_BENIGN, Category.VANILLA_BENIGN] * 6)


def test_lockstep_has_two_barriers_and_one_burst_of_labels():
    slow = Recorder(yields=lambda what, idx: 9 if idx == 0 else 1)
    play(slow, ADVERSARIAL, rules=GameRules(assessments_per_note=2))
    assert max(slow.when("attacker", "ends")) < min(slow.when("assessor", "begins"))
    assert max(slow.when("assessor", "ends")) < min(slow.when("judge", "begins"))
    assert max(slow.when("judge", "begins")) < min(slow.when("judge", "ends"))
    assert slow.most["judge"] == 12  # more than enough to fill a batch, whatever max_concurrent is


def test_the_burst_is_whole_where_some_games_need_no_judge_and_few_turns_may_be_in_flight():
    recorder = Recorder()
    play(recorder, MIXED, max_concurrent=2)
    assert recorder.most == {"attacker": 2, "assessor": 2, "judge": 6}
    assert max(recorder.when("judge", "begins")) < min(recorder.when("judge", "ends"))


def test_pipelined_waits_for_nobody():
    slow = Recorder(yields=lambda what, idx: 99 if idx == 0 else 1)
    play(slow, ADVERSARIAL, "pipelined")
    assert min(slow.when("judge", "ends")) < max(slow.when("attacker", "ends"))


@pytest.mark.parametrize(("limit", "per_note"), [(1, 1), (5, 1), (5, 3), (2, 3), (1000, 2)])
def test_lockstep_counts_single_turns(limit, per_note):
    recorder = Recorder()
    play(recorder, ADVERSARIAL, rules=GameRules(assessments_per_note=per_note), max_concurrent=limit)
    assert recorder.most == {"attacker": min(limit, 12), "assessor": min(limit, 12 * per_note), "judge": 12}


@given(
    st.lists(st.sampled_from(Category), max_size=8),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 3),
    st.sets(st.tuples(st.sampled_from(["attacker", "assessor", "judge"]), st.integers(0, 20))),
)
@settings(max_examples=150, deadline=None)
def test_the_same_replies_and_failures_give_the_same_games(categories, attacks, per_note, limit, spread, failing):
    rules = GameRules(attacks_per_seed=attacks, assessments_per_note=per_note, unassessable_share=0.2)
    found = {}
    for schedule in SCHEDULES:
        recorder = Recorder(
            yields=lambda what, idx: idx * spread % 7,  # who is slow differs, and so does the order of events
            fails=lambda what, idx: RuntimeError(f"{what} {idx}") if (what, idx) in failing else None,
        )
        streamed = []
        games = play(recorder, seeds_of(*categories), schedule, rules, streamed.append, max_concurrent=limit)
        assert [game.game_idx for game in games] == list(range(len(categories) * attacks * per_note))
        assert sorted(streamed, key=lambda game: game.game_idx) == games  # each once
        calls = sorted(event for event in recorder.events if event[1] == "begins")
        found[schedule] = ([game.to_json() for game in games], games, calls)
    assert found["pipelined"] == found["lockstep"]


def test_what_on_game_raises_ends_a_lockstep_call():
    def full(game):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        play(Recorder(), ADVERSARIAL, on_game=full)


@pytest.mark.parametrize("phase", ["attacker", "assessor", "judge"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cancelling_in_any_phase_leaves_nothing_running(phase, schedule):
    begun, cancelled = asyncio.Event(), []

    class Hanging(Recorder):
        async def _call(self, what, idx):
            if what != phase:
                return await super()._call(what, idx)
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(idx)
                raise

    async def run():
        hanging, before = Hanging(), asyncio.all_tasks()
        manager = MedicalDialogueGameManager(hanging, hanging, hanging, GameRules(), schedule=schedule)
        task = asyncio.create_task(manager.play(ADVERSARIAL))
        await begun.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(run(), timeout=5))
    assert sorted(cancelled) == list(range(12))


def test_a_schedule_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"rollout\.schedule is 'async'; allowed: pipelined or lockstep"):
        play(Recorder(), [], schedule="async")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_seeds_no_games(schedule):
    assert play(Recorder(), [], schedule) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_who_has_two_turns_begins_first(schedule):
    """Else the step ends with one that came last and has hardly begun."""
    recorder = Recorder()
    vanilla, writes = Category.VANILLA_BENIGN, Category.ADVERSARIAL_BENIGN
    games = play(recorder, seeds_of(vanilla, writes, vanilla, writes), schedule, max_concurrent=2)
    assert [(who, idx) for who, event, idx in recorder.events if event == "begins"][:2] == [
        ("attacker", 1),
        ("attacker", 3),
    ]
    assert [game.game_idx for game in games] == [0, 1, 2, 3]
