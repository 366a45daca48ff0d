"""One resolved configuration per run: typed, checked, loadable without torch.

``load_config(path, overrides)`` reads YAML or JSON and dotted command-line options; ``RunConfig`` is
handed down from there. See ``upstream_sections`` and ``own_sections`` for every key.
"""

from openrlhf_medical.config.checks import check_hardware
from openrlhf_medical.config.load import config_from, dump_config, load_config
from openrlhf_medical.config.run_config import RunConfig
from openrlhf_medical.config.schema import config_schema_keys
from openrlhf_medical.config.upstream import upstream_options

__all__ = [
    "RunConfig",
    "check_hardware",
    "config_from",
    "config_schema_keys",
    "dump_config",
    "load_config",
    "upstream_options",
]
