"""Medical self-play training: an attacker and an assessor learn against each other on clinical notes.

This package imports nothing heavy; see ``openrlhf_medical.cli`` for the commands.
"""

__version__ = "0.1.0"
