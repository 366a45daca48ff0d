"""``train`` leaves a report behind, also where the run failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from openrlhf_medical import commands
from openrlhf_medical.config import load_config
from openrlhf_medical.errors import RunError, UserError


@pytest.mark.parametrize("error", [None, RunError("the judge is gone"), UserError("a wrong key")], ids=str)
def test_what_train_leaves(tmp_path, monkeypatch, capsys, error):
    config = load_config(Path("configs/tiny.yaml"), ["--run.dir", str(tmp_path), "--run.name", "r"])
    for name in ("load_tokenizer", "check_prompts_fit"):
        monkeypatch.setattr(commands.assembly, name, lambda *words: None)
    monkeypatch.setattr(commands, "_stream", lambda *words: SimpleNamespace(all_seeds=list))

    def trains(*given):
        directory = given[6]
        if not isinstance(error, UserError):
            directory.add_metrics(0, {"assessor/accuracy": 0.5})
        directory.close()
        if error:
            raise error

    monkeypatch.setattr(commands, "_train", trains)
    if error:
        with pytest.raises(type(error)):
            commands.train(config)
    else:
        commands.train(config)
    report = tmp_path / "r" / "report.html"
    told = capsys.readouterr()
    if isinstance(error, UserError):
        assert not report.exists() and told.out == ""
    else:
        assert told.out == f"The report is {report}\n" and "1 of 2 steps" in report.read_text(encoding="utf-8")
        assert "games.jsonl: missing" in told.err
