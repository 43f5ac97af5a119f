"""A program answers at once when it is only asked what it can do."""

import resource
import subprocess
import sys

import pytest
import typer.main

from loremesh.cli import main

SLOW = {
    "libp2p",
    "openai",
    "trio",
    "structlog",
    "rich",
    "apsw",
    "coincurve",
    "multiaddr",
    "starlette",
    "hypercorn",
    "prometheus_client",
}
PROGRAMS = ["loremesh_client", "loremesh_executor", "loremesh_validator"]
HELP_CPU_SECONDS = 0.25
COMMANDS = sorted(getattr(typer.main.get_command(main.app), "commands", {}))


def imported(program: str, *arguments: str) -> set[str]:
    """The top-level packages that a program has imported by the time it ends."""
    script = (
        f"import sys; from {program}.__main__ import main; sys.argv[1:] = {list(arguments)!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print('\\n' + '\\n'.join(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in ended.stdout.splitlines()}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_slow(program: str, flag: str) -> None:
    modules = imported(program, flag)
    assert "typer" in modules
    assert not modules & SLOW


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_imports_nothing_slow(command: str) -> None:
    assert not imported("loremesh_client", command, "--help") & SLOW


def test_help_comes_within_a_quarter_of_a_second_of_work() -> None:
    # Processor time, not the clock: the machine may be busy with something else.
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "loremesh_client", "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) <= HELP_CPU_SECONDS
