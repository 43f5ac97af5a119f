"""`loremesh ask`: one answer of a model that somebody on the mesh serves."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from loremesh.cli.options import CLIENT_FLAGS, Discovery, Flags, MaxPrice, Timeout, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.config import Settings
    from loremesh.protocol.llm import ChatMessage
    from loremesh.services.router import Answer, Chat

NOTICE_FILE: Final = "prompts-can-be-read"
NOTICE: Final = "note: executors can read what you ask them and what they answer (this is said once)"
_MAX_FILE: Final = 1024 * 1024


@with_flags(*CLIENT_FLAGS)
def ask(  # noqa: PLR0917 - each is a flag, and typer passes them by name
    flags: Flags,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model, as `loremesh models` has it.")],
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="What to ask.")] = None,
    messages: Annotated[
        Path | None,
        typer.Option("--messages", metavar="FILE", help='A chat: JSON [{"role": …, "content": …}]; - is stdin.'),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer as it comes.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say on stderr who was chosen, and why.")] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", min=1, max=1 << 20, help="Longest answer.")
    ] = 1024,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", metavar="T", min=0, max=2, help="0 to 2; the executor's own without."),
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="P", min=0, max=1, help="0 to 1; likewise.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The same answer again, if it can.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends there. Repeatable.")] = None,
    max_price: MaxPrice = None,
    timeout: Timeout = 120.0,
    discovery: Discovery = 10.0,
) -> None:
    """Ask a model that somebody on the mesh serves; the answer alone goes to stdout.

    Executors can read what is asked. What was used is counted here as well, and kept: see loremesh receipts.
    """
    settings = client_settings(flags)

    import trio

    from loremesh.protocol.llm import MAX_PRICE
    from loremesh.services.router import Chat

    shows_pieces = stream and not settings.json_output
    chat = Chat(
        model,
        _read_chat(prompt, messages),
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        max_price=MAX_PRICE if max_price is None else min(max_price, MAX_PRICE),
        deadline=timeout,
        is_whole=not shows_pieces,
    )
    trio.run(partial(_ask, settings, chat, discovery, shows_pieces=shows_pieces, verbose=verbose))


async def _ask(settings: "Settings", chat: "Chat", discovery: float, *, shows_pieces: bool, verbose: bool) -> None:
    from loremesh.cli.present import for_reader, under_way
    from loremesh.roles.mesh import joined

    async with (
        under_way(f"asking {chat.model}") as end_waiting,
        joined(settings, patience=discovery, keep=True) as mesh,
    ):
        _notice_once(settings.data_dir)

        async def deliver(text: str) -> None:
            if shows_pieces:
                await end_waiting()
                sys.stdout.write(for_reader(text))
                sys.stdout.flush()

        answer = await mesh.call(chat, deliver)
        await end_waiting()
        if settings.json_output:
            typer.echo(json.dumps(answer_view(answer)))
        else:
            typer.echo("" if shows_pieces else for_reader(answer.text))
        _remark(answer, verbose=verbose)


def answer_view(answer: "Answer") -> dict[str, Any]:
    """Show an answer as the JSON object that scripts rely on.

    `executor` and `receipt` are the last one's; where an answer was continued elsewhere, `executors` and `receipts`
    have all. A receipt is null where the bill was not signed.
    """
    from loremesh.protocol.identity import peer_id_text
    from loremesh.protocol.json_values import to_json

    by_executor = {one.receipt.executor: to_json(one) for one in answer.evidence}
    executors = [peer_id_text(executor) for executor in answer.executors]
    return {
        "content": answer.text,
        "model": answer.model,
        "executor": executors[-1],
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
            "total_tokens": answer.usage.total_tokens,
        },
        "receipt": by_executor.get(answer.executors[-1]),
        "finish": answer.finish,
        "executors": executors,
        "receipts": [by_executor.get(executor) for executor in answer.executors],
        "backend_usage": None if answer.backend_usage is None else to_json(answer.backend_usage),
        "attempts": list(answer.attempts),
        "warnings": list(answer.warnings),
    }


def _remark(answer: "Answer", *, verbose: bool) -> None:
    from loremesh.logs import printable

    for line in (*(answer.attempts if verbose else ()), *(f"warning: {warning}" for warning in answer.warnings)):
        typer.echo(printable(line), err=True)


def _read_chat(prompt: str | None, file: Path | None) -> "tuple[ChatMessage, ...]":
    from loremesh.errors import UsageError
    from loremesh.protocol.llm import ChatMessage, whole_characters

    if (prompt is None) is (file is None):
        raise UsageError("what to ask? give --prompt TEXT, or --messages FILE" + (", not both" if prompt else ""))
    if file is None:
        return (ChatMessage("user", whole_characters(prompt or "")),)
    found = _read_json(file)
    is_chat = isinstance(found, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in found
    )
    if not is_chat or not found:
        raise UsageError(f'--messages {file}: should be JSON such as [{{"role": "user", "content": "Who are you?"}}]')
    return tuple(ChatMessage(one["role"], whole_characters(one["content"])) for one in found)


def _read_json(file: Path) -> Any:  # noqa: ANN401 - JSON
    from loremesh.errors import UsageError

    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_FILE + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(_MAX_FILE + 1)
        if len(data) > _MAX_FILE:
            raise UsageError(f"--messages {file}: at most {_MAX_FILE} bytes")
        return json.loads(data.decode())
    except OSError as error:
        raise UsageError(f"--messages {file}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--messages {file}: is not JSON: {error}") from error


def _notice_once(directory: Path) -> None:
    """Say that executors can read prompts, unless it was said to whoever uses this directory."""
    try:
        (directory / NOTICE_FILE).touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return
    except OSError:
        pass  # where nothing can be kept it is said each time
    typer.echo(NOTICE, err=True)
