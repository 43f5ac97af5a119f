"""What a doctor's check found."""

from dataclasses import dataclass

from loremesh.cli.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    detail: str
    ok: bool = True
    remedy: str = ""
    """One sentence on how to mend it; empty where nothing needs mending."""
    code: ExitCode = ExitCode.DONE
    """What the program ends with when this is the first check that fails."""


def failed(name: str, detail: str, remedy: str, code: ExitCode = ExitCode.MACHINE) -> Check:
    """Make a check that failed; `code` says whose fault it is."""
    return Check(name, detail, ok=False, remedy=remedy, code=code)
