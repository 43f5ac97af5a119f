"""How a program ends: exceptions become the documented exit codes and one line on stderr, never a traceback."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NoReturn

import typer
import typer.main

from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ExecutorBusy,
    LoremeshError,
    MachineError,
    ProtocolError,
    ServiceError,
    StorageError,
    Unreachable,
    UsageError,
    leaves,
)
from loremesh.logs import printable


class ExitCode(IntEnum):
    """What scripts may rely on."""

    DONE = 0
    BUG = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    DEADLINE = 5
    MACHINE = 6
    INTERRUPTED = 130
    """128 + SIGINT, as shells have it."""


# The first class that fits decides, so what is more special stands above.
_CODES: Final[tuple[tuple[type[LoremeshError], ExitCode], ...]] = (
    (UsageError, ExitCode.USAGE),
    (MachineError, ExitCode.MACHINE),
    (StorageError, ExitCode.MACHINE),
    (Unreachable, ExitCode.UNREACHABLE),
    (DeadlinePassed, ExitCode.DEADLINE),
    (ExecutorBusy, ExitCode.UNREACHABLE),
    (CallFailed, ExitCode.REFUSED),
    (ServiceError, ExitCode.UNREACHABLE),
    (ProtocolError, ExitCode.REFUSED),
)
_MACHINE_ERRNOS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run a program with the arguments of this process, and end the process."""
    sys.exit(execute(app, program, sys.argv[1:]))


def execute(app: typer.Typer, program: str, arguments: Sequence[str]) -> ExitCode | int:
    """Run one command to its end.

    Args:
        app: The program's commands.
        program: Its name, which starts the line on stderr.
        arguments: As typed, without the program's name.

    Returns:
        The exit code. Nothing is raised, whatever the command did.
    """
    command = typer.main.get_command(app)
    try:
        with command.make_context(program, list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except typer.TyperException as error:
        return _explain_usage(program, error)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 - here everything ends
        return _explain(program, error)
    return ExitCode.DONE


def exit_code(error: BaseException) -> ExitCode:
    """Tell the exit code of one exception that is not a group."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, BrokenPipeError):
        return ExitCode.DONE  # whoever read our output has had enough of it, as `head` does
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRNOS:
        return ExitCode.MACHINE
    return ExitCode.BUG


def _explain_usage(program: str, error: typer.TyperException) -> ExitCode:
    from loremesh.settings_tables import plain_reason

    message = plain_reason(error.format_message())
    if message.startswith("Usage:"):  # nothing was asked for, so typer answers with the whole help
        return _say(message, ExitCode.USAGE)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else program
    return _say(f"{program}: {message[:1].lower()}{message[1:].rstrip('.')} (see {command} --help)", ExitCode.USAGE)


def _explain(program: str, error: BaseException) -> ExitCode:
    # Of several tasks that failed together, a bug of ours is what must be seen.
    leaf = min(leaves(error), key=lambda one: exit_code(one) is not ExitCode.BUG)
    code = exit_code(leaf)
    if isinstance(leaf, OSError):
        _discard_output()
    if code is ExitCode.DONE:
        return code
    if code is ExitCode.INTERRUPTED:
        return _say(f"{program}: interrupted", code)
    if code is not ExitCode.BUG:
        return _say(f"{program}: {printable(str(leaf))}", code)
    if logging.getLogger("loremesh").isEnabledFor(logging.DEBUG):
        hint = "the traceback is above"
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    else:
        hint = "--log-level debug shows where"
    return _say(f"{program}: a bug of ours: {type(leaf).__name__}: {printable(str(leaf))} ({hint})", code)


def _say(line: str, code: ExitCode) -> ExitCode:
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    return code


def _discard_output() -> None:
    """Keep the interpreter, when it ends, from trying once more to write what could not be written."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
