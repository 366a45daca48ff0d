"""For all tests."""

import pytest
from hypothesis import settings
from leftovers import left_behind, mark_session, scene

# How long an example takes depends on who else uses the machine: pytest-timeout stops what hangs.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")

mark_session()


@pytest.fixture(autouse=True, scope="module")
def no_leftovers_of_the_file(request):
    """What the file's own fixtures started has ended with them; on the real stack shared memory, too. Segments say
    nothing of who made them, and unit tests have others beside them."""
    before = scene()
    yield
    left = left_behind(before, shared_memory="stack" in request.path.parts)
    assert not left, f"this file of tests left behind: {left}"


@pytest.fixture(autouse=True)
def no_leftovers():
    """A test ends what it started. What fixtures of a file or of the session run was there before."""
    before = scene()
    yield
    left = left_behind(before)
    assert not left, f"this test left behind: {left}"
