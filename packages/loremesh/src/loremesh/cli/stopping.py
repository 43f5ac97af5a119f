"""What a signal does to a node program that does not run a node yet: it ends, quietly, as if it had never been started.

Imports nothing slow, so that `main` can call it before anything else; only the start of Python itself is not covered.
"""

import os
import signal
from types import FrameType


def leave_at_signals() -> None:
    """End with exit code 0 at SIGTERM and SIGINT, pass over SIGHUP, until the node installs handlers of its own.

    Nothing is open yet and nothing half done, so there is nothing to clean up; and an exception raised in the middle
    of an import may be swallowed there.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the deny file is going to be read anyway


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)
