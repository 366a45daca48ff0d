"""Random states of a process: what dropout and the like go on from."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy
import torch


def save_random_states(file: Path) -> None:
    """Python's, numpy's and torch's, with that of the GPU that this process works on, if any."""
    states = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }
    file.write_bytes(pickle.dumps(states))


def load_random_states(file: Path) -> None:
    """Back to what ``save_random_states`` wrote."""
    states = pickle.loads(file.read_bytes())
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"])
