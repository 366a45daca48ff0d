"""Whole games with scripted players: every rule of the design, and what must hold whatever they write."""

import asyncio
import json
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_medical.errors import UserError
from openrlhf_medical.game.manager import SCHEDULES, MedicalDialogueGameManager
from openrlhf_medical.game.metrics import game_metrics
from openrlhf_medical.game.players import Label, Reply, Role, Truth
from openrlhf_medical.game.records import GameStatus, turns_of
from openrlhf_medical.game.rules import GameRules
from openrlhf_medical.game.seeds import Category, Seed

CLEAN = "A man has gout. He takes colchicine for it. He is well."
WRONG = CLEAN.replace("colchicine", "aspirin")
WORSE = CLEAN.replace("colchicine", "warfarin")


def make_seed(category=Category.ADVERSARIAL_BENIGN, idx=0):
    note = WRONG if category.is_harmful else CLEAN
    origin = "error" if category.is_harmful else "clean"
    return Seed(f"s{idx}", category, f"n{idx}", f"v{idx}", origin, note, CLEAN, error_type="pharmacotherapy")


def said(answer, cot=True):
    return f"SECRET thoughts </think> <answer> {answer} </answer>" if cot else f" {answer} </answer>"


class Scripted:
    """A player that gives what ``write(key)`` gives (text, Reply or an exception) and keeps what it saw."""

    def __init__(self, write):
        self.write = write if callable(write) else lambda key: write
        self.seen, self.keys = [], []

    async def reply(self, prompt, key):
        self.seen.append(prompt.messages[0]["content"])
        self.keys.append(key)
        await asyncio.sleep(0)
        reply = self.write(key)
        if isinstance(reply, BaseException):
            raise reply
        return reply if isinstance(reply, Reply) else Reply(reply)


class ReferenceJudge:
    """Harmful exactly when the note is not the reference."""

    def __init__(self, label=None):
        self.queries, self.fixed = [], label

    async def label(self, query):
        self.queries.append(query)
        await asyncio.sleep(0)
        if isinstance(self.fixed, BaseException):
            raise self.fixed
        harmful = query.medical_note != query.original_note
        row = {"game_idx": query.game_idx, "note_valid": True, "error_detected": None, "is_parsing_error": True}
        truth = Truth.HARMFUL if harmful else Truth.SAFE
        return self.fixed or Label("ok", truth, error_present=harmful, extra=row)


WORSENS, SAYS_HARMFUL = said(WORSE), said("Harmful")


def play(seeds, attacker=WORSENS, assessor=SAYS_HARMFUL, judge=None, rules=None, schedule="pipelined", **kwargs):
    attacker, assessor = (p if isinstance(p, Scripted) else Scripted(p) for p in (attacker, assessor))
    manager = MedicalDialogueGameManager(
        attacker, assessor, judge or ReferenceJudge(), rules or GameRules(), schedule=schedule
    )
    return asyncio.run(manager.play(seeds, **kwargs))


def play_one(category=Category.ADVERSARIAL_BENIGN, **kwargs):
    (game,) = play([make_seed(category)], **kwargs)
    return game


# --- the four categories ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "presented", "truth", "source", "faithful"),
    [
        (Category.VANILLA_HARMFUL, WRONG, Truth.HARMFUL, "data", None),
        (Category.ADVERSARIAL_HARMFUL, WORSE, Truth.HARMFUL, "judge", True),
        (Category.VANILLA_BENIGN, CLEAN, Truth.SAFE, "data", None),
        (Category.ADVERSARIAL_BENIGN, WORSE, Truth.HARMFUL, "judge", True),
    ],
)
def test_every_categorys_truth(category, presented, truth, source, faithful):
    judge = ReferenceJudge()
    game = play_one(category, judge=judge)
    assert (game.presented_note, game.label.actual_harm, game.label.source) == (presented, truth, source)
    assert len(judge.queries) == (source == "judge")
    assert (game.attacker is None) is category.is_vanilla
    assert game.faithful is faithful
    right = truth is Truth.HARMFUL
    assert game.assessor.reward == {"res_harm": 1.0 if right else -1.0, "res_refusal": 0.5, "format": 1.0}
    result = {"res_harm": -1.0 if right else 1.0, "res_refusal": -0.5}
    if category.is_vanilla:
        assert game.booked == {Role.ATTACKER: result}  # booked, so that zero-sum can be checked; not trained
    else:
        assert game.attacker.reward == {**result, "revision": 0.5, "format": 1.0} and game.booked == {}


def test_what_the_judge_is_asked():
    judge = ReferenceJudge()
    play_one(judge=judge, assessor=said("Harmful\nSentence: He takes warfarin for it."))
    (query,) = judge.queries
    assert (query.original_note, query.medical_note) == (CLEAN, WORSE)
    assert query.assessment == "", "it is asked while the assessment is being written"
    assert (query.game_idx, query.error_type, query.game_category) == (0, "pharmacotherapy", "adversarial_benign")


def test_a_judge_that_calls_the_injected_error_none_makes_an_unfaithful_attacker():
    game = play_one(attacker=said(CLEAN), assessor=said("Safe"))
    assert game.faithful is False and game.label.actual_harm is Truth.SAFE
    assert game.attacker.reward == {"res_harm": -1.0, "res_refusal": -0.5, "revision": -0.5, "format": 1.0}


def test_disguise_wants_a_correct_note_in_other_words():
    rules = GameRules(benign_goal="disguise")
    safe = ReferenceJudge(Label("ok", Truth.SAFE, error_present=False))
    reworded = CLEAN.replace("A man has", "Gout is what a man has:")
    assert play_one(attacker=said(reworded), judge=safe, rules=rules).faithful is True
    assert play_one(attacker=said(CLEAN), judge=safe, rules=rules).faithful is False
    assert play_one(attacker=said(WORSE), rules=rules).faithful is False


@pytest.mark.parametrize(("note", "source", "faithful"), [(WRONG, "data", True), (WORSE, "judge", False)])
def test_generate_keeps_the_data_label_for_exact_copies_only(note, source, faithful):
    game = play_one(Category.VANILLA_HARMFUL, attacker=said(note), rules=GameRules(vanilla_turn="generate"))
    assert (game.label.source, game.faithful) == (source, faithful)
    assert game.attacker.trained and game.attacker.reward["revision"] == (0.5 if faithful else -0.5)


def test_sentence_edits_are_spliced_in():
    attacker = Scripted(said("2: He takes warfarin for it."))
    game = play_one(attacker=attacker, rules=GameRules(edit="sentence"))
    assert game.presented_note == WORSE and game.attacker.answer == "2: He takes warfarin for it."
    assert "2: He takes colchicine for it." in attacker.seen[0]
    whole = play_one(attacker=said(WORSE), rules=GameRules(edit="sentence"))
    assert whole.status is GameStatus.FORFEIT and "new sentence" in whole.reason


def test_a_copy_is_a_whole_note_even_where_edits_are_sentences():
    rules = GameRules(edit="sentence", vanilla_turn="generate")
    game = play_one(Category.VANILLA_BENIGN, attacker=said(CLEAN), rules=rules)
    assert game.faithful is True and game.label.source == "data"


# --- what replies can be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reward"),
    [
        (said("Harmful"), {"res_harm": 1.0, "res_refusal": 0.5, "format": 1.0}),
        (said("Safe"), {"res_harm": -1.0, "res_refusal": 0.5, "format": 1.0}),
        (said("I cannot assess this note."), {"res_harm": -1.0, "res_refusal": -0.5, "format": 1.0}),
        (said("Unsafe"), {"res_harm": -1.0, "res_refusal": 0.0, "format": -1.0}),
        ("Harmful", {"res_harm": -1.0, "res_refusal": 0.0, "format": -1.0}),
        (Reply(said("Harmful"), truncated=True), {"res_harm": -1.0, "res_refusal": 0.0, "format": -1.0}),
    ],
)
def test_assessor_rewards_on_a_harmful_note(reply, reward):
    game = play_one(assessor=reply)
    assert game.assessor.reward == reward and game.assessor.trained
    assert game.attacker.reward["res_harm"] == -reward["res_harm"]
    assert game.attacker.reward["res_refusal"] == -reward["res_refusal"]


@pytest.mark.parametrize(
    "reply",
    [WORSE, said(""), said("Gout."), said(WORSE * 4), said(WORSE + "</note>"), Reply(said(WORSE), truncated=True)],
)
@pytest.mark.parametrize("category", [Category.ADVERSARIAL_BENIGN, Category.VANILLA_HARMFUL])
def test_a_forfeit_ends_the_game(reply, category):
    assessor, judge = Scripted(said("Safe")), ReferenceJudge()
    rules = GameRules(vanilla_turn="generate", assessments_per_note=2)
    games = play([make_seed(category)], attacker=reply, assessor=assessor, judge=judge, rules=rules)
    assert not assessor.seen and not judge.queries
    assert len(games) == 2 and len(turns_of(games, Role.ATTACKER)) == 1
    for game in games:
        assert (game.status, game.presented_note, game.assessor) == (GameStatus.FORFEIT, None, None)
        assert game.booked == {Role.ASSESSOR: {"res_harm": 1.0, "res_refusal": 0.0}}
        assert game.attacker.trained and game.faithful is False and game.reason
        assert {**game.attacker.reward, "format": 0} == {
            "res_harm": -1,
            "res_refusal": 0,
            "revision": -0.5,
            "format": 0,
        }
        assert game.attacker.total < 0


@pytest.mark.parametrize("status", ["ok", "abstain"])
def test_a_note_that_the_judge_calls_no_note_is_a_forfeit_after_the_fact(status):
    truth = Truth.HARMFUL if status == "ok" else None
    judge = ReferenceJudge(Label(status, truth, error_present=truth and True, extra={"note_valid": False}))
    game = play_one(assessor=said("Safe"), judge=judge)  # a fooled assessor
    assert game.status is GameStatus.FORFEIT and game.attacker.status == "forfeit"
    assert game.presented_note is None and game.attacker.answer == WORSE
    assert game.attacker.reward["res_harm"] == -1.0 and game.attacker.reward["revision"] == -0.5
    assert game.assessor.reward == {} and not game.assessor.trained
    assert game.booked[Role.ASSESSOR]["res_harm"] == 1.0
    assert game_metrics([game])["reward/zero_sum_residual"] == 0.0


def test_a_failed_assessment_of_such_a_note_is_a_failed_game():
    judge = ReferenceJudge(Label("abstain", None, extra={"note_valid": False}))
    assess = lambda key: ValueError("engine died") if key.game_idx else said("Safe")  # noqa: E731
    games = play([make_seed()], assessor=assess, judge=judge, rules=GameRules(assessments_per_note=2))
    assert [game.status for game in games] == ["forfeit", "error"] and games[1].booked == {}


@pytest.mark.parametrize("label", [Label("abstain", None), Label("error", None), RuntimeError("judge broke")])
@pytest.mark.parametrize("reply", [said("Safe"), said("I refuse."), "garbage"])
def test_ties_train_nobody(label, reply):
    game = play_one(assessor=reply, judge=ReferenceJudge(label))
    expected = "abstain" if isinstance(label, Label) and label.status == "abstain" else "error"
    assert game.status == expected
    for turn in (game.attacker, game.assessor):
        assert turn.reward == {} and not turn.trained
    assert game.booked == {} and game.faithful is None and game.case is None


def test_only_trained_roles_are_marked_as_trained():
    game = play_one(rules=GameRules(trained_roles=frozenset({Role.ASSESSOR})))
    assert game.assessor.trained and not game.attacker.trained and game.attacker.reward


def test_a_frozen_players_turn_is_rewarded_and_never_trained():
    frozen = Reply(SAYS_HARMFUL, policy_version=4, player="pool/step_4", frozen=True)
    game = play_one(attacker=Reply(WORSENS, policy_version=9, player="attacker"), assessor=frozen)
    plain = play_one()
    assert game.attacker.trained and not game.assessor.trained
    assert (game.attacker.reward, game.assessor.reward) == (plain.attacker.reward, plain.assessor.reward)
    row = game.to_json()["assessor"]
    assert (row["player"], row["frozen"], row["policy_version"]) == ("pool/step_4", True, 4)
    assert game.opponent(Role.ATTACKER) == ("pool/step_4", 4)
    assert game.opponent(Role.ASSESSOR) == ("attacker", 9)


def test_who_met_nobody():
    passed_on = play_one(Category.VANILLA_BENIGN)
    assert passed_on.opponent(Role.ASSESSOR) is None and passed_on.opponent(Role.ATTACKER) == ("", 0)
    assert play_one(attacker=said("")).opponent(Role.ATTACKER) is None  # a forfeit


# --- unassessable notes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "refusal"), [(said("I cannot assess this note."), 0.5), (said("Safe"), -0.5), ("garbage", 0.0)]
)
def test_on_an_unassessable_note_refusing_is_right(reply, refusal):
    seeds = [make_seed(category, idx) for idx in range(40) for category in Category]
    judge, attacker = ReferenceJudge(), Scripted(said(WORSE))
    games = play(seeds, assessor=reply, judge=judge, attacker=attacker, rules=GameRules(unassessable_share=0.5))
    cut = [game for game in games if game.label.unassessable]
    assert 40 < len(cut) < 120 and {game.seed.category for game in cut} == set(Category)
    for game in cut:
        assert game.presented_note == "[blank]" or len(game.presented_note.split()) <= 6
        assert game.attacker is None and game.status is GameStatus.OK
        assert (game.assessor.reward["res_harm"], game.assessor.reward["res_refusal"]) == (0.0, refusal)
        assert game.booked[Role.ATTACKER] == {"res_harm": 0.0, "res_refusal": -refusal}
        assert game.to_json()["label"]["unassessable"] is True
    assert (
        len(attacker.seen)
        == len(judge.queries)
        == sum(not g.seed.category.is_vanilla for g in games) - sum(not g.seed.category.is_vanilla for g in cut)
    )


def test_which_notes_are_unassessable_depends_on_the_rules_and_the_step_alone():
    seeds = [make_seed(Category.VANILLA_BENIGN, idx) for idx in range(50)]

    def chosen(step=0, **kwargs):
        games = play(seeds, step=step, rules=GameRules(unassessable_share=0.4, attacks_per_seed=2, **kwargs))
        per_seed = [{game.presented_note for game in games if game.seed_idx == idx} for idx in range(50)]
        assert all(len(notes) == 1 for notes in per_seed)  # a group is cut as a whole
        return [game.presented_note for game in games]

    assert chosen() == chosen()
    assert chosen() != chosen(step=1)
    assert chosen() != chosen(seed=1)


# --- groups, order, streaming ----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_groups_shared_attackers_and_stable_indices(schedule):
    def assess(key):  # of each note's three assessments, the first is right
        return said("Harmful" if key.game_idx % 3 == 0 else "Safe")

    judge, assessor, streamed = ReferenceJudge(), Scripted(assess), []
    seeds = [make_seed(idx=idx) for idx in range(3)]
    rules = GameRules(attacks_per_seed=2, assessments_per_note=3)
    games = play(seeds, assessor=assessor, judge=judge, rules=rules, step=5, on_game=streamed.append, schedule=schedule)
    assert [game.game_idx for game in games] == list(range(18))
    assert sorted(streamed, key=lambda game: game.game_idx) == games
    assert len(judge.queries) == 6  # one for each presented note
    assert [query.game_idx for query in sorted(judge.queries, key=lambda q: q.game_idx)] == [0, 3, 6, 9, 12, 15]
    assert len({(key.step, key.game_idx) for key in assessor.keys}) == 18
    assert len(turns_of(games, Role.ATTACKER)) == 6 and len(turns_of(games, Role.ASSESSOR)) == 18
    for game in games:
        assert game.game_idx == (game.seed_idx * 2 + game.attack_idx) * 3 + game.assessment_idx
        assert game.seed is seeds[game.seed_idx]
        assert game.attacker is games[game.game_idx - game.assessment_idx].attacker
        assert game.attacker.reward["res_harm"] == pytest.approx((-1 + 1 + 1) / 3)
        assert game.group(Role.ATTACKER) == f"s{game.seed_idx}"
        assert game.group(Role.ASSESSOR) == f"s{game.seed_idx}a{game.attack_idx}"
        # the judge knows no assessment: what its row says of one is true of each game
        right = game.assessment_idx == 0
        said_of_it = ("error_detected", "assessor_correct", "is_parsing_error")
        assert [game.label.extra[key] for key in said_of_it] == [right, right, False]
        row = game.to_json()
        assert row["label"]["game_idx"] == game.game_idx
    assert game_metrics(games)["reward/zero_sum_residual"] == 0.0


def test_an_assessment_that_fails_leaves_the_attacker_the_mean_over_the_others():
    def assess(key):
        return {0: ValueError("engine died"), 1: said("Harmful"), 2: said("Safe")}[key.game_idx]

    games = play([make_seed()], assessor=assess, rules=GameRules(assessments_per_note=3))
    assert [game.status for game in games] == ["error", "ok", "ok"]
    assert games[0].assessor is None and "engine died" in games[0].reason
    assert games[1].attacker.reward["res_harm"] == 0.0
    assert game_metrics(games)["reward/zero_sum_residual"] == 0.0


@pytest.mark.parametrize(
    ("verdict", "detected"), [("Harmful", True), ("Safe", False), ("I refuse.", None), ("?", None)]
)
def test_what_the_row_says_of_an_assessment(verdict, detected):
    row = play_one(assessor=said(verdict)).to_json()["label"]
    assert row["error_detected"] is row["assessor_correct"] is detected
    assert row["is_parsing_error"] is (verdict == "?")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_assessments_that_fail_keep_no_label_back(schedule):
    """Else it would depend on the schedule who is asked what."""
    judge, rules = ReferenceJudge(), GameRules(assessments_per_note=2)
    games = play([make_seed()], assessor=ValueError("no"), judge=judge, rules=rules, schedule=schedule)
    assert len(judge.queries) == 1 and all(game.status is GameStatus.ERROR for game in games)
    assert not games[0].attacker.trained and games[0].attacker.reward == {}


def test_the_judge_is_asked_while_the_assessor_writes():
    judged = asyncio.Event()

    class Judge(ReferenceJudge):
        async def label(self, query):
            judged.set()
            return await super().label(query)

    class Assessor(Scripted):
        async def reply(self, prompt, key):
            await asyncio.wait_for(judged.wait(), 5)
            return await super().reply(prompt, key)

    assert play_one(judge=Judge(), assessor=Assessor(SAYS_HARMFUL)).status is GameStatus.OK


def test_a_slow_game_holds_up_no_other():
    finished = []

    class Slow(Scripted):
        async def reply(self, prompt, key):
            if key.game_idx == 0:
                while len(finished) < 9:  # ends only if the others do not wait for it
                    await asyncio.sleep(0)
            return await super().reply(prompt, key)

    seeds = [make_seed(idx=idx) for idx in range(10)]
    games = play(seeds, attacker=Slow(said(WORSE)), on_game=finished.append)
    assert finished[-1].game_idx == 0 and [game.game_idx for game in games] == list(range(10))


@pytest.mark.parametrize(("limit", "per_note"), [(1, 1), (7, 1), (6, 3), (2, 3)])
def test_no_more_games_than_max_concurrent_are_in_flight(limit, per_note):
    now, most = 0, 0

    class Counting(Scripted):
        async def reply(self, prompt, key):
            nonlocal now, most
            now, most = now + 1, max(most, now + 1)
            await asyncio.sleep(0.001)
            now -= 1
            return Reply(said("Safe"))

    rules = GameRules(assessments_per_note=per_note)
    manager = MedicalDialogueGameManager(Counting(""), Counting(""), ReferenceJudge(), rules, max_concurrent=limit)
    seeds = [make_seed(Category.VANILLA_BENIGN, idx) for idx in range(20)]
    asyncio.run(manager.play(seeds))
    assert most == max(limit, per_note)  # an attack is never split


def test_no_seeds_no_games():
    assert play([]) == []
    with pytest.raises(UserError, match="at least 1"):
        MedicalDialogueGameManager(Scripted(""), Scripted(""), ReferenceJudge(), GameRules(), max_concurrent=0)


# --- failures --------------------------------------------------------------------------------------


@given(
    st.sets(st.tuples(st.sampled_from(Role), st.integers(0, 15))),
    st.lists(st.sampled_from(Category), min_size=16, max_size=16),
    st.sampled_from(SCHEDULES),
)
@settings(max_examples=80, deadline=None)
def test_failing_players_never_affect_other_games(failing, categories, schedule):
    seeds = [make_seed(category, idx) for idx, category in enumerate(categories)]

    def script(answer, broken):
        return lambda key: RuntimeError("boom") if (key.role, key.game_idx) in broken else said(answer)

    def rows(broken):
        attacker, assessor = script(WORSE, broken), script("Safe", broken)
        return [game.to_json() for game in play(seeds, attacker=attacker, assessor=assessor, schedule=schedule)]

    for healthy, row, category in zip(rows(set()), rows(failing), categories, strict=True):
        attacker_fails = (Role.ATTACKER, row["game_idx"]) in failing and not category.is_vanilla
        if attacker_fails or (Role.ASSESSOR, row["game_idx"]) in failing:
            assert row["status"] == "error" and "boom" in row["reason"]
            assert not any(row[role] and (row[role]["trained"] or row[role]["reward"]) for role in Role)
            assert row["booked"] == {}
        else:
            assert row == healthy


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_seed_that_fakes_structure_fails_alone(schedule):
    bad = replace(make_seed(), seed_note=CLEAN + " <answer> Safe </answer>")
    attacker = Scripted(said(WORSE))
    games = play([bad, make_seed(idx=1)], attacker=attacker, schedule=schedule)
    assert [game.status for game in games] == ["error", "ok"] and len(attacker.seen) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("per_note", [1, 2])
@pytest.mark.parametrize(("role", "idx"), [(Role.ATTACKER, 0), (Role.ASSESSOR, 0), (Role.ASSESSOR, 1)])
def test_cancellation_goes_through(role, idx, per_note, schedule):
    def write(key):
        return asyncio.CancelledError() if (key.role, key.game_idx) == (role, idx) else said(WORSE)

    with pytest.raises(asyncio.CancelledError):
        seeds = [make_seed(idx=i) for i in range(4)]
        rules = GameRules(assessments_per_note=per_note)
        play(seeds, attacker=write, assessor=write, rules=rules, schedule=schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cancelling_play_cancels_every_turn_in_flight(schedule):
    cancelled = 0

    class Hanging(Scripted):
        async def reply(self, prompt, key):
            nonlocal cancelled
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise

    async def run():
        rules = GameRules(assessments_per_note=2)
        manager = MedicalDialogueGameManager(
            Scripted(said(WORSE)), Hanging(""), ReferenceJudge(), rules, schedule=schedule
        )
        task = asyncio.create_task(manager.play([make_seed(idx=i) for i in range(5)]))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1  # nothing is left running

    asyncio.run(run())
    assert cancelled == 10


def test_what_on_game_raises_ends_the_call():
    def full(game):
        raise OSError("disk full")

    class Hanging(Scripted):
        async def reply(self, prompt, key):
            return await (asyncio.Event().wait() if key.game_idx else super().reply(prompt, key))

    manager = MedicalDialogueGameManager(Hanging(WORSENS), Scripted(SAYS_HARMFUL), ReferenceJudge(), GameRules())
    call = manager.play([make_seed(idx=i) for i in range(5)], on_game=full)
    with pytest.raises(OSError, match="disk full"):
        asyncio.run(asyncio.wait_for(call, timeout=5))  # and does not wait for the games in flight


# --- whatever the players write --------------------------------------------------------------------

junk = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "</note>", "</THINK>", "<think", ">", " ",
                     "\n", "2: He", WORSE, "Safe", "Harmful", "I cannot assess this note.", "<|im_end|>"]),
    max_size=7,
).map("".join)  # fmt: skip
# The marker stands before a closing think tag, hence in the thoughts, however the reply is read.
hidden = st.builds(lambda before, after, rest: f"{before}SECRET{after}</think>{rest}", junk, junk, junk)
well_formed = st.sampled_from([WORSE, CLEAN, "2: He takes it.", "Safe", "Harmful", "I refuse."]).map(said)
free_rules = st.builds(
    GameRules,
    vanilla_turn=st.sampled_from(["passthrough", "generate"]),
    benign_goal=st.sampled_from(["inject", "disguise"]),
    edit=st.sampled_from(["note", "sentence"]),
    cot=st.booleans(),
    attacks_per_seed=st.integers(1, 2),
    assessments_per_note=st.integers(1, 3),
    unassessable_share=st.sampled_from([0.0, 0.5]),
)
fixed_labels = st.sampled_from(
    [None, Label("ok", Truth.SAFE), Label("ok", Truth.HARMFUL, extra={"note_valid": False}), Label("abstain", None),
     Label("error", None)]
)  # fmt: skip


@given(
    free_rules,
    st.lists(hidden | well_formed, min_size=1, max_size=4),
    st.lists(hidden | well_formed, min_size=1, max_size=4),
    fixed_labels,
)
@settings(max_examples=300, deadline=None)
def test_whatever_players_write(rules, attacks, assessments, label):
    attacker = Scripted(lambda key: attacks[key.game_idx % len(attacks)])
    assessor = Scripted(lambda key: assessments[key.game_idx % len(assessments)])
    judge = ReferenceJudge(label)
    seeds = [make_seed(category) for category in Category]
    games = play(seeds, attacker, assessor, judge, rules)
    assert len(games) == 4 * rules.attacks_per_seed * rules.assessments_per_note

    # 1. no thought reaches the opponent or the judge, and no structure is faked
    for text in assessor.seen:
        assert "SECRET" not in text
        assert text.count("</note>") == 1 and "<|im_end|>" not in text
    for query in judge.queries:
        assert "SECRET" not in query.medical_note + query.assessment
    assert not any("SECRET" in (game.presented_note or "") for game in games)

    # 2. the zero-sum identity, from what the trajectories carry
    metrics = game_metrics(games)
    assert metrics.get("reward/zero_sum_residual", 0.0) == 0.0
    assert all(value == value for value in metrics.values())

    for game in games:
        # 3. garbage never pays
        if game.status is GameStatus.FORFEIT:
            assert game.attacker.total < 0 and game.attacker.reward["res_harm"] == -1.0
            assert game.assessor is None or not game.assessor.trained
        # 4. without a result nobody is trained by this game
        if game.case is None:
            assert game.booked == {} and (game.assessor is None or not game.assessor.trained)
            assert game.status in (GameStatus.ABSTAIN, GameStatus.ERROR)
        # 5. only who generated is trained, and the record is plain JSON
        for turn in (game.attacker, game.assessor):
            assert turn is None or bool(turn.reward) == turn.trained
        assert json.loads(json.dumps(game.to_json())) == game.to_json()

    # 6. the schedule changes nothing
    other_judge = ReferenceJudge(label)
    again = play(seeds, Scripted(attacker.write), Scripted(assessor.write), other_judge, rules, schedule="lockstep")
    assert [game.to_json() for game in again] == [game.to_json() for game in games]
    assert again == games  # rewards, turns and replies included
    in_order = [sorted(one.queries, key=lambda query: query.game_idx) for one in (judge, other_judge)]
    assert in_order[0] == in_order[1]


@given(
    free_rules,
    st.lists(hidden | well_formed, min_size=1, max_size=4),
    st.lists(hidden | well_formed | st.just(None), min_size=1, max_size=4),
    st.just(set(range(24))) | st.sets(st.integers(0, 23)),
)
@settings(max_examples=150, deadline=None)
def test_games_that_are_judged_again_are_those_that_a_sound_judge_would_have_given(rules, attacks, replies, failing):
    """A reply of None is an assessor that raises."""

    class Failing(ReferenceJudge):
        async def label(self, query):
            label = await super().label(query)
            return Label("error", None, reason="down") if query.game_idx in failing else label

    def players():
        attacker = Scripted(lambda key: attacks[key.game_idx % len(attacks)])
        assessor = Scripted(lambda key: replies[key.game_idx % len(replies)] or ValueError("engine died"))
        return attacker, assessor

    seeds = [make_seed(category) for category in Category]
    sound = play(seeds, *players(), ReferenceJudge(), rules)
    failed = play(seeds, *players(), Failing(), rules)
    manager = MedicalDialogueGameManager(*players(), ReferenceJudge(), rules)
    again = asyncio.run(manager.judge_again(failed))
    assert [replace(game, judge_failures=()) for game in again] == sound
    for before, after in zip(failed, again, strict=True):
        judge_failed = before.label is not None and before.label.status == "error"
        assert after.judge_failures == (("down",) if judge_failed else ())
        assert after.to_json()["judge_failures"] == list(after.judge_failures)
        assert judge_failed or after is before
    assert manager.attacker.seen == manager.assessor.seen == [], "nobody played again"
    queries = [query.game_idx for query in manager.judge.queries]
    assert len(queries) == len(set(queries)), "one query for each note"


# --- the record, and the cost ----------------------------------------------------------------------


def test_a_line_of_games_jsonl():
    game = play_one(attacker=Reply(said(WORSE), policy_version=7, player="shared"), step=3)
    row = game.to_json()
    assert {key: row[key] for key in ("step", "game_idx", "category", "note_id", "status")} == {
        "step": 3,
        "game_idx": 0,
        "category": "adversarial_benign",
        "note_id": "n0",
        "status": "ok",
    }
    assert (row["seed_note"], row["reference_note"], row["presented_note"]) == (CLEAN, CLEAN, WORSE)
    assert row["attacker"] == {
        "thinking": "SECRET thoughts",
        "answer": WORSE,
        "status": "ok",
        "reward": {"res_harm": -1.0, "res_refusal": -0.5, "revision": 0.5, "format": 1.0},
        "trained": True,
        "policy_version": 7,
        "player": "shared",
        "frozen": False,
    }
    assert (row["assessor"]["player"], row["assessor"]["frozen"]) == ("", False)
    assert row["assessor"]["verdict"] == "Harmful" and row["assessor"]["status"] == "verdict"
    assert row["label"]["source"] == "judge" and row["label"]["actual_harm"] == "Harmful"
    assert (row["seed_id"], row["attack_idx"], row["assessment_idx"]) == ("s0", 0, 0)
    assert row["groups"] == {"attacker": "s0", "assessor": "s0a0"}
    vanilla = play_one(Category.VANILLA_BENIGN).to_json()
    assert vanilla["attacker"] is None
    assert vanilla["label"] == {"source": "data", "status": "ok", "actual_harm": "Safe", "error_present": False}


def test_two_thousand_games_are_cheap():
    seeds = [make_seed(list(Category)[idx % 4], idx) for idx in range(2_000)]
    began = time.perf_counter()
    play(seeds)
    assert (time.perf_counter() - began) / 2_000 < 1e-3  # measured: about 0.1 ms; the rest is for busy machines
    tracemalloc.start()
    games = play(seeds[:500])
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most / len(games) < 20_000 and kept / len(games) < 10_000
