"""``python -m openrlhf_medical`` is the same program as ``openrlhf-medical``."""

from openrlhf_medical.cli import main

if __name__ == "__main__":
    main()
