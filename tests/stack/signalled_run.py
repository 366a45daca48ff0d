"""The command line in a process that sends itself a signal at a chosen place. What is measured is the product's code:
only the function that waits for workers, and the console's count of games, are wrapped.

    python signalled_run.py SIGNAL PLACE N -- train …

PLACE: ``games`` (a game is over, others are under way), or what the driver is waiting for, with the work under way
(``update``, ``send_weights``, ``save_state``, ``log-probabilities``). N: at the how-manieth time, from 1.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

FORWARD = "log-probabilities"


def main() -> None:
    name, place, count = sys.argv[1:4]
    number, left = signal.Signals[name], itertools.count(int(count) - 1, -1)

    def reached(where: str) -> None:
        if where == place and next(left) == 0:
            os.kill(os.getpid(), number)

    from openrlhf_medical import cli, console
    from openrlhf_medical.learner import experience, policy

    gather, game_done, prepare = policy.gather, console.Console.game_done, policy.Learner.prepare
    begun = False

    def waiting(references: Any, timeout_s: float, doing: str) -> Any:
        reached(doing)
        return gather(references, timeout_s, doing)

    def forward(references: Any, timeout_s: float, doing: str) -> Any:
        nonlocal begun
        if begun:
            begun = False
            reached(FORWARD)
        return gather(references, timeout_s, doing)

    def prepared(self: policy.Learner, trajectories: Any) -> Any:
        nonlocal begun
        begun = True  # the first of several waits
        return prepare(self, trajectories)

    def played(self: console.Console, game: Any) -> None:
        game_done(self, game)
        reached("games")

    policy.gather, experience.gather = waiting, forward
    policy.Learner.prepare, console.Console.game_done = prepared, played  # type: ignore[method-assign]
    sys.argv[1:] = sys.argv[5:]
    cli.main()


main()
