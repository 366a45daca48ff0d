"""TRL's environment is made, refused, or found (benchmarks/trl_process.py), and its process ends or answers."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # as `python benchmarks/trl_grpo.py` has it

import trl_process
from trl_process import interpreter, started, what_is_wrong

ECHO = """
import sys, time
print('{"ready": 1}', flush=True)
for line in sys.stdin:
    until = time.process_time() + 0.05  # the kernel counts a process's time in hundredths of a second
    while time.process_time() < until: pass
    print('{"step": 1}', flush=True)
"""


def pins(folder: Path, *lines: str) -> Path:
    file = folder / "pins.txt"
    file.write_text("\n".join(("# why", *lines)))
    return file


def test_an_environment_with_the_pinned_versions_is_taken_as_it_is(tmp_path):
    found = interpreter(Path(sys.executable), pins=pins(tmp_path, f"pytest=={version('pytest')}  # these tests"))
    assert found == Path(sys.executable)


@pytest.mark.parametrize(("pin", "words"), [
    ("pytest==0.0.1", "instead of pytest==0.0.1"), ("no-such-package==1", "no-such-package"),
])  # fmt: skip
def test_one_that_was_chosen_is_refused_and_not_changed(tmp_path, monkeypatch, pin, words):
    monkeypatch.setattr(trl_process, "make", lambda *_: pytest.fail("it was somebody's own"))
    with pytest.raises(SystemExit, match=words):
        interpreter(Path(sys.executable), pins=pins(tmp_path, pin))


def test_one_that_is_missing_is_made_and_failing_that_is_told(tmp_path):
    file = pins(tmp_path, "-r no-such-file.txt")  # nothing is asked of an index
    with pytest.raises(SystemExit, match=r"could not be made.*failed"):
        interpreter(None, tmp_path / "home", file)
    assert (tmp_path / "home" / "bin" / "python").exists()
    assert "no-such-file" in what_is_wrong(tmp_path / "home" / "bin" / "python", file)


def test_a_process_answers_each_step(tmp_path):
    with started([sys.executable, "-c", ECHO], tmp_path / "log") as side:
        assert side.answer(60) == {"ready": 1}
        assert side.step() == {"step": 1} == side.step()
        assert side.cpu_s() >= 0.08
    assert side.process.returncode is not None


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path):
    with started([sys.executable, "-c", "import sys; sys.exit('no model')"], tmp_path / "log") as side:
        with pytest.raises(RuntimeError, match=r"no model\n\nTRL's process ended with code 1"):
            side.answer(60)
        with pytest.raises(RuntimeError, match="code 1"):
            side.step()


def test_a_process_that_hangs_is_ended(tmp_path):
    with (
        started([sys.executable, "-c", "input()"], tmp_path / "log") as side,
        pytest.raises(RuntimeError, match=r"code -9 \(it had 0 s"),
    ):
        side.answer(0.2)
