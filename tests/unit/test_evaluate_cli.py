"""``openrlhf-medical evaluate``: options, mistakes, and what a file of predictions gives from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from openrlhf_medical import evaluate as evaluation
from openrlhf_medical.cli import app
from openrlhf_medical.data.medec import write_medec_csv
from openrlhf_medical.evaluation.lm_eval import FOLDER, utils
from openrlhf_medical.evaluation.medec import reference_of
from openrlhf_medical.evaluation.result import published
from openrlhf_medical.evaluation.submission import Prediction, write_submission
from openrlhf_medical.evaluation.texts import load_texts

PART = "synthetic:unseen_renderings"


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(word) for word in words)])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A MEDEC CSV of 20 notes; the truth as predictions; the same with every third flag taken away."""
    folder = tmp_path_factory.mktemp("files")
    notes = load_texts(PART, 20).notes
    write_medec_csv(notes, folder / "data.csv")
    truth = {note.note_id: reference_of(note) for note in notes}
    write_submission(folder / "truth.txt", truth)
    worse = {k: Prediction("0") if n % 3 == 0 else said for n, (k, said) in enumerate(truth.items())}
    write_submission(folder / "worse.txt", worse)
    return {"data": folder / "data.csv", "truth": folder / "truth.txt", "worse": folder / "worse.txt"}


def test_a_file_of_predictions_gives_figures_in_a_table_and_in_json(files, tmp_path: Path):
    out = tmp_path / "deep" / "out.json"
    done = run("--data", files["data"], "--predictions", files["worse"], "--compare", files["truth"], "--json", out)
    assert done.exit_code == 0, done.output
    assert "worse" in done.stdout and "always flag" in done.stdout and "truth" in done.stdout
    result = json.loads(out.read_text())
    assert (result["kind"], result["name"], result["asked"]["how"]) == ("medec-evaluation", "worse", "predictions")
    for name in ("flag_accuracy", "sentence_accuracy", "rouge1_f1", "composite_rouge1", "balanced_accuracy",
                 "false_positive_rate", "accuracy", "precision", "recall", "f1"):  # fmt: skip
        figure = result["metrics"][name]
        assert set(figure) == {"value", "low", "high"} and figure["low"] <= figure["value"] <= figure["high"], name
    assert result["compared"]["metrics"]["flag_accuracy"]["value"] == 1
    difference = result["compared"]["difference"]["flag_accuracy"]
    assert difference["value"] == pytest.approx(result["metrics"]["flag_accuracy"]["value"] - 1)
    assert difference["high"] <= 0
    assert sum(kind["texts"] for kind in result["error_types"].values()) == result["data"]["errors"] == 10
    assert result["problems"]["missing_ids"] == [] and result["answers"] is None
    texts = [note.text for note in load_texts(PART, 20).notes]
    assert not any(text[:40] in out.read_text() for text in texts), "no note in the result"


def test_undefined_figures_are_null(files, tmp_path: Path):
    never = tmp_path / "never.txt"
    write_submission(never, {note.note_id: Prediction("0") for note in load_texts(PART, 20).notes})
    done = run("--data", files["data"], "--predictions", never, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out.json").read_text())["metrics"]
    assert metrics["precision"] == metrics["rouge1_f1"] == {"value": None, "low": None, "high": None}
    assert metrics["flag_accuracy"]["value"] == metrics["composite_rouge1"]["value"] == 0.5


def test_problems_of_a_file_are_told_and_kept(files, tmp_path: Path):
    lines = files["truth"].read_text().splitlines()
    bad = tmp_path / "bad.txt"
    bad.write_text("\n".join([*lines[:18], "Broken line", lines[0], "ms-none 0 -1 NA"]) + "\n")
    done = run("--data", files["data"], "--predictions", bad, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert "line 19: the text ID is 'Broken'" in done.stderr and "line 20: " in done.stderr
    assert "line 21: ms-none" in done.stderr and "2 texts have no valid line" in done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["problems"]["malformed_lines"] == [19] and len(result["problems"]["missing_ids"]) == 2
    assert result["metrics"]["flag_accuracy"]["value"] == pytest.approx(18 / 20)


def test_a_limit_leaves_predictions_of_other_texts_alone(files):
    done = run("--data", files["data"], "--predictions", files["truth"], "--limit", "6")
    assert done.exit_code == 0 and "6 of 20 texts" in done.stdout and "warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "neither --model nor --predictions"),
        (("--model", "m", "--predictions", "p.txt"), "both --model and --predictions"),
        (("--predictions", "none.txt"), "none.txt: cannot be read"),
        (("--predictions", "p.txt", "--api-base", "http://x/v1"), "--api-base belongs to --model"),
        (("--predictions", "p.txt", "--game.cot", "false"), "--game.cot belongs to --model"),
        (("--model", "./no-model"), "no model at ./no-model"),
        (("--model", "./no-model", "--game.cott", "false"), "game.cott"),
        (("--model", "m", "--api-base", "http://x/v1", "--api-key-env", "NO_SUCH_KEY"), "--api-key-env names is not"),
    ],
)
def test_mistakes_are_told_in_one_line(files, words, told):
    done = run("--data", files["data"], *words)
    assert done.exit_code == 2
    assert told in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_data_that_is_not_there():
    done = run("--data", "nowhere.csv", "--predictions", "p.txt")
    assert done.exit_code == 2 and "nowhere.csv: cannot be read" in done.stderr


def test_a_model_is_asked_as_told(tmp_path: Path, monkeypatch):
    """What reaches the program: paths beside the result, temperature 0 and the rules of the configuration."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(evaluation, "evaluate", lambda plan, command: seen.update(plan=plan))
    model = tmp_path / "step_3"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    words = ("--data", "MS Validation.csv", "--model", "step_3", "--game.cot", "false", "--deterministic")
    done = run(*words)
    assert done.exit_code == 0, done.output
    plan = seen["plan"]
    assert plan.json == Path("runs/evaluate/step_3-MS-Validation.json") and plan.name == "step_3"
    assert plan.answers == Path("runs/evaluate/step_3-MS-Validation.answers.jsonl")
    asked = plan.model.asked
    assert (asked["temperature"], asked["cot"], asked["deterministic"], asked["max_new_tokens"]) == (
        0,
        False,
        True,
        128,
    )
    assert not plan.config.rules().cot and plan.config.vllm.enable_prefix_caching
    (model / "model.safetensors").write_text("other weights")
    run(*words)
    assert seen["plan"].model.asked["weights"] != asked["weights"], "new weights in an old folder are another model"


def test_published_figures_say_what_they_are_of():
    rows = published()
    assert {row["set"] for row in rows} == {"full", "MS"} and all("arXiv" in row["source"] for row in rows)
    assert all(0.5 < row["flag_accuracy"] < 1 for row in rows)


class TestLmEvalTask:
    """The parts of the harness's task that need no harness; the rest is in tests/stack/test_evaluate.py."""

    DOC = {"text_id": "t-1", "text": "He has a cough.", "prefix": "<think>", "flag": "1"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("reply", "flag"),
        [
            (" x </think> <answer>Harmful</answer>", "1"),
            (" x </think> <answer>Safe</answer> and on it goes <answer>", "0"),  # engines stop at the answer's end
            (" x </think> <answer>Harmful\nSentence: He has a cough.\nCorrection: No.</answer>", "1"),
            (" x </think> <answer>Harmful", None),
            (" I cannot assess this note.", None),
        ],
    )
    def test_flags(self, reply, flag):
        assert utils.flag_of(self.DOC, reply) == flag
        found = utils.process_results(self.DOC, [reply])
        assert found["flag_accuracy"] == float(flag == "1") and found["no_verdict"] == float(flag is None)

    def test_balanced_accuracy(self):
        assert utils.balanced_accuracy([("1", 1.0), ("1", 0.0), ("1", 0.0), ("0", 1.0)]) == pytest.approx(2 / 3)
        one_sided = utils.balanced_accuracy([("1", 1.0)])
        assert one_sided != one_sided

    def test_the_task_file_calls_what_there_is(self):
        text = (FOLDER / "medec_flag.yaml").read_text()
        called = [line.split("!function utils.")[1].strip() for line in text.splitlines() if "!function" in line]
        assert called and all(callable(getattr(utils, name)) for name in called)


def test_scoring_needs_neither_torch_nor_an_engine():
    program = (
        "import sys, openrlhf_medical.evaluate_models as m; print(*{'torch', 'ray', 'vllm', 'openai'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
