"""A task for EleutherAI's lm-evaluation-harness (``lm-eval``, 0.4.13), for people who measure with that.

    lm_eval --model hf --model_args pretrained=FOLDER --apply_chat_template --tasks medec_flag \\
      --include_path "$(python -c 'from openrlhf_medical.evaluation import lm_eval; print(lm_eval.FOLDER)')" \\
      --metadata '{"data": "path/to/MEDEC.csv"}'

The harness loads the folder's files by path and needs nothing but this package beside itself.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""For ``--include_path``."""
