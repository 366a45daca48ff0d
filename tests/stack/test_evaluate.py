"""``openrlhf-medical evaluate`` on a real engine, going on from half of its answers; and lm-evaluation-harness
with our task on the same model and notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_train import BASE, run

from openrlhf_medical.config import load_config
from openrlhf_medical.errors import RunError
from openrlhf_medical.evaluate import EvaluationPlan, Listener, Model, evaluate
from openrlhf_medical.evaluate_models import engine_model
from openrlhf_medical.evaluation.answer_file import Answer
from openrlhf_medical.evaluation.texts import load_texts
from openrlhf_medical.game.prompts import assessor_prompt

DATA, LIMIT, BEFORE, NEW_TOKENS = "synthetic:unseen_renderings", 10, 4, 32
SETTINGS = ("--rollout.max_new_tokens", str(NEW_TOKENS), "--data.max_len", "1024")
KNOWN_REPLY = " Told before. </think> <answer>Harmful</answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def done(folder: Path):
    """The command's process, after a first one that was stopped when it had the first ``BEFORE`` answers."""
    config = load_config(None, ["--run.name=evaluate", f"--actor.model_name_or_path={BASE}", *SETTINGS])
    real = engine_model(config, folder / "unused.log")

    def answers_some(questions, listener: Listener) -> None:
        for question in questions[:BEFORE]:
            listener.answered(Answer(question.key, question.note.note_id, KNOWN_REPLY))
        raise RunError("stopped")

    stopped = Model(real.asked, answers_some, "starting", is_chat=False)
    plan = EvaluationPlan(DATA, "tiny", model=stopped, config=config, json=folder / "out.json",
                          answers=folder / "out.answers.jsonl", limit=LIMIT)  # fmt: skip
    with pytest.raises(RunError, match="stopped"):
        evaluate(plan, [])
    with (folder / "out.answers.jsonl").open("a") as file:
        file.write('{"key": "cut')
    return run("evaluate", "--data", DATA, "--model", str(BASE), "--limit", str(LIMIT), "--json",
               str(folder / "out.json"), "--write-predictions", str(folder / "out.txt"), *SETTINGS)  # fmt: skip


def test_it_goes_on_where_it_was_stopped(done, folder: Path):
    assert f"{BEFORE} of {LIMIT} texts were answered before" in done.stderr
    assert "1 lines cannot be read" in done.stderr
    lines = (folder / "out.answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines if not line.endswith('"cut')]
    assert len(lines) == LIMIT + 1 and len({row["key"] for row in answers}) == LIMIT
    assert [row["reply"] for row in answers[:BEFORE]] == [KNOWN_REPLY] * BEFORE
    assert all(row["reply"] and row["reply"] != KNOWN_REPLY for row in answers[BEFORE:]), "the engine was asked"


def test_what_it_shows_and_writes(done, folder: Path):
    result = json.loads((folder / "out.json").read_text())
    assert result["data"]["texts"] == LIMIT and result["data"]["vignettes"] == LIMIT // 2
    assert sum(result["answers"][name] for name in ("verdict", "refusal", "unparsable", "too_long")) == LIMIT
    assert result["answers"]["verdict"] >= BEFORE
    assert result["baselines"]["always_flag"]["metrics"]["flag_accuracy"]["value"] == 0.5
    assert result["asked"]["weights"] and result["environment"]["versions"]["ray"]
    assert "always flag" in done.stdout and "flag accuracy" in done.stdout
    again = evaluate(EvaluationPlan(DATA, "file", predictions=folder / "out.txt", limit=LIMIT), [])
    assert again["metrics"] == result["metrics"]
    assert len((folder / "out.txt").read_text().splitlines()) == result["answers"]["verdict"]


class TestLmEvaluationHarness:
    """The task file on the same model, by the harness's own Hugging Face backend."""

    @pytest.fixture(scope="class")
    @classmethod
    def samples(cls):
        pytest.importorskip("lm_eval", reason="needs lm-eval: ./launch/setup.sh --dev installs it")
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from openrlhf_medical.evaluation.lm_eval import FOLDER

        tasks = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"data": DATA, "limit": LIMIT})
        model = HFLM(pretrained=str(BASE), device="cpu", batch_size=10, dtype="float32")
        # Drawn at temperature 1, with the harness's own seed: the most likely reply is the same for every note.
        return simple_evaluate(
            model=model,
            tasks=["medec_flag"],
            task_manager=tasks,
            apply_chat_template=True,
            gen_kwargs={"max_gen_toks": NEW_TOKENS, "do_sample": True, "temperature": 1.0},
            bootstrap_iters=0,
            log_samples=True,
        )

    def test_the_same_prompts(self, samples):
        from transformers import AutoTokenizer

        from openrlhf_medical.rollout.engine_player import prompt_ids

        tokenizer = AutoTokenizer.from_pretrained(BASE)
        notes = {note.note_id: note for note in load_texts(DATA, LIMIT).notes}
        assert len(samples["samples"]["medec_flag"]) == LIMIT
        for sample in samples["samples"]["medec_flag"]:
            prompt = assessor_prompt(notes[sample["doc"]["text_id"]].text, cot=True)
            sent = sample["arguments"][0][0]
            assert tokenizer(sent, add_special_tokens=False)["input_ids"] == prompt_ids(tokenizer, prompt)

    def test_the_same_flags(self, samples, folder: Path):
        """What the model wrote for the harness, put into ``evaluate`` as a model's answers."""
        wrote = {s["doc"]["text_id"]: s["resps"][0][0] for s in samples["samples"]["medec_flag"]}
        assert len(set(wrote.values())) > 1, "all replies alike would show little"

        def repeats(questions, listener: Listener) -> None:
            for question in questions:
                reply, end, _ = wrote[question.note.note_id].partition("</answer>")
                listener.answered(Answer(question.key, question.note.note_id, reply + end, truncated=not end))

        config = load_config(None, ["--run.name=evaluate", f"--actor.model_name_or_path={BASE}", *SETTINGS])
        plan = EvaluationPlan(DATA, "same", model=Model({"how": "harness"}, repeats, "", False), config=config,
                              answers=folder / "harness.jsonl", json=folder / "harness.json", limit=LIMIT)  # fmt: skip
        ours, theirs = evaluate(plan, []), samples["results"]["medec_flag"]
        assert theirs["flag_accuracy,none"] == pytest.approx(ours["metrics"]["flag_accuracy"]["value"], abs=1e-12)
        balanced = ours["metrics"]["balanced_accuracy"]["value"]
        assert theirs["balanced_accuracy,none"] == pytest.approx(balanced, abs=1e-12)
        assert theirs["no_verdict,none"] == pytest.approx(ours["metrics"]["missing_rate"]["value"], abs=1e-12)
