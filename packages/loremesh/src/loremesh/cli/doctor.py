"""`loremesh doctor`: what is reachable, what this machine allows, and how to mend what is not as it should be."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.cli.findings import Check
    from loremesh.config import Settings


@with_flags(*CLIENT_FLAGS, "listen_address")
def doctor(
    flags: Flags,
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="Look at this OpenAI-compatible server as well.")
    ] = None,
) -> None:
    """Check this machine, the bootstrap nodes and a backend; say how to mend what fails.

    Ends with 0 if every check passes; else the first that fails decides: 2 a setting, 3 nobody reachable there, 5 nodes
    that do not agree, 6 this machine.
    """
    settings = client_settings(flags)

    import trio

    checks = trio.run(_look_patiently, settings, base_url or settings.base_url)
    if settings.json_output:
        typer.echo(json.dumps(checks_view(checks), ensure_ascii=False))
    else:
        _print(checks)
    raise typer.Exit(next((check.code for check in checks if not check.ok), 0))


async def _look_patiently(settings: "Settings", base_url: str | None) -> "list[Check]":
    from loremesh.cli.present import under_way

    async with under_way("looking at this machine and the nodes"):
        return await _look(settings, base_url)


async def _look(settings: "Settings", base_url: str | None) -> "list[Check]":
    from loremesh.cli.doctor_machine import check_backend, check_listening, check_machine
    from loremesh.cli.doctor_network import check_network

    checks = check_machine(settings)
    checks += await check_listening(settings.listen_addresses)
    if base_url is not None:
        checks.append(await check_backend(settings, base_url))
    return checks + await check_network(settings)


def checks_view(checks: "list[Check]") -> dict[str, Any]:
    """Show findings as the JSON object that scripts rely on; `remedy` is empty where nothing needs one."""
    return {
        "checks": [
            {"name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy} for check in checks
        ]
    }


def _print(checks: "list[Check]") -> None:
    from rich.text import Text

    from loremesh.cli.present import beside, console
    from loremesh.logs import printable

    out = console()
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = Text("ok  " if check.ok else "NO  ", "green" if check.ok else "bold red")
        label = Text.assemble(mark, f"{check.name:<{width}}  ")
        out.print(beside(out, label, Text(printable(check.detail))))
        if check.remedy:
            label = Text(f"{'':{label.cell_len}}→ ", "yellow")
            out.print(beside(out, label, Text(printable(check.remedy), "yellow")))
    failed = sum(not check.ok for check in checks)
    if failed:
        out.print(Text(f"{failed} of {len(checks)} checks failed", "bold red"))
    else:
        out.print(Text("all is well", "bold green"))
