"""What a worker's process does with memory that is free (devices.worker_environment, give_back_memory)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_medical import devices

CODE = """
import os, torch
from memory import pss_bytes
from openrlhf_medical import devices

def held():
    return pss_bytes(os.getpid())

def used(elements, tensors):
    kept = [torch.ones(elements) for _ in range(tensors)]
    last = torch.ones(1)  # else what is free would be the end of the heap, which is another matter
    del kept
    return last

begun = held()
last = used(1 << 26, 1), held()
after = used(1 << 18, 300), held()
devices.give_back_memory()
print(last[1] - begun, after[1] - begun, held() - begun)
"""


@pytest.mark.skipif(devices.has_gpu(), reason="with a GPU tensors are not in the C library's memory")
def test_a_phase_keeps_small_tensors_memory_and_loading_none():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    environment = {**os.environ, **devices.worker_environment(), "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    answer = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    large, small, none = (int(each) >> 20 for each in answer.stdout.split())
    assert large < 100, "a tensor of 256 MiB is gone with its last use"
    assert small > 250, "300 of 1 MiB are kept"
    assert none < 100, "and nothing of them when they are given back"
