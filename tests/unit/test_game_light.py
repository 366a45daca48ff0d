"""The rules import in under a second, and need nothing but the standard library."""

import ast
import subprocess
import sys
from pathlib import Path

import openrlhf_medical.game

GAME = Path(openrlhf_medical.game.__file__).parent
CHECK = """
import sys, time
began = time.perf_counter()
import openrlhf_medical.game.manager, openrlhf_medical.game.metrics
print(time.perf_counter() - began)
print([name for name in ("torch", "ray", "vllm", "requests", "pydantic", "numpy", "openrlhf") if name in sys.modules])
"""


def test_the_game_imports_fast_and_pulls_nothing_heavy():
    run = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True, timeout=60)
    seconds, heavy = run.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1.0


def test_the_game_imports_the_standard_library_and_itself_only():
    for path in GAME.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name.startswith("openrlhf_medical.game") or name == "openrlhf_medical.errors"
                own = own or name == "openrlhf_medical"  # `from openrlhf_medical.game import edits` and the like
                assert own or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"
