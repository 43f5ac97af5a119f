"""What a signal does to a program that has not begun yet: it ends, quietly, as if it had never been started.

Imports nothing slow, so that `main` can call it before anything else; only the start of Python itself is not covered.
"""

import os
import signal
import sys
from types import FrameType
from typing import Final

_INTERRUPTED: Final = 128 + signal.SIGINT


def leave_at_signals() -> None:
    """End with exit code 0 at SIGTERM and SIGINT, pass over SIGHUP, until the node installs handlers of its own.

    Nothing is open yet and nothing half done, so there is nothing to clean up; and an exception raised in the middle
    of an import may be swallowed there.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the deny file is going to be read anyway


def leave_at_interrupt() -> None:
    """End a client program at Ctrl-C, with the code and the line that it always has for that, until a command runs."""
    signal.signal(signal.SIGINT, _interrupted)


def raise_at_interrupt() -> None:
    """Let Ctrl-C be an exception again: from here on somebody waits for it, and there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"loremesh: interrupted\n")
    os._exit(_INTERRUPTED)
