"""For all tests."""

from hypothesis import settings

# How long an example takes depends on who else uses the machine: pytest-timeout stops what hangs.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")
