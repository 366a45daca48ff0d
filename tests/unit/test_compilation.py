"""A process killed while DeepSpeed's optimizer is compiled must not stop the next run."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from openrlhf_medical.learner.compilation import HeldLock, outlive_killed_compilers

HOLDER = """
import sys, time
from openrlhf_medical.learner.compilation import HeldLock
assert HeldLock(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path: Path) -> str:
    return str(tmp_path / "lock")


@pytest.fixture
def holder(lock: str):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, lock], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_one_at_a_time(lock: str) -> None:
    first, second = HeldLock(lock), HeldLock(lock)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()


def test_waiting_ends_with_the_process_that_holds_it(lock: str, holder: subprocess.Popen[str]) -> None:
    waiting = HeldLock(lock)
    assert not waiting.try_acquire()
    thread = threading.Thread(target=waiting.wait, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    holder.kill()
    thread.join(10)
    assert not thread.is_alive()
    assert HeldLock(lock).try_acquire()


def test_torch_builds_beside_the_lock_file_of_a_killed_process(tmp_path: Path, lock: str, monkeypatch) -> None:
    """torch's own compile function, as DeepSpeed calls it; with torch's lock this waits for ever."""
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    outlive_killed_compilers()
    Path(lock).touch()
    source = tmp_path / "answer.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n')
    built: list[str] = []

    def build() -> None:
        built.append(
            cpp_extension.load("answer", [str(source)], build_directory=str(tmp_path), is_python_module=False) or "done"
        )

    thread = threading.Thread(target=build, daemon=True)
    thread.start()
    thread.join(60)
    assert built
    assert (tmp_path / "answer.so").exists()
