"""Asks a server for chats over kept connections, as fast as it answers; costs next to nothing itself."""

import json
import time
from dataclasses import dataclass, field

import trio

_MOST_SECONDS = 120.0


@dataclass(slots=True)
class Load:
    """What came of some calls, in seconds each."""

    whole: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failed: int = 0
    took: float = 0.0
    """Seconds for all of them."""


def ask(port: int, model: str, *, calls: int, at_once: int = 1, stream: bool = False) -> Load:
    """Make so many calls, of which so many run at any time."""
    load = Load()
    trio.run(_ask, load, port, _request(port, model, stream=stream), calls, at_once)
    return load


def _request(port: int, model: str, *, stream: bool) -> bytes:
    messages = [
        {"role": "system", "content": "You tell stories in one paragraph."},
        {"role": "user", "content": "Who keeps the lamp, and why does the coast redraw itself at night?"},
    ]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 200, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer any\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _ask(load: Load, port: int, request: bytes, calls: int, at_once: int) -> None:
    left = calls

    async def one_by_one(stream: trio.SocketStream) -> None:
        nonlocal left
        async with stream:
            while left:
                left -= 1
                await _call(load, stream, request)

    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(at_once)]
    began = time.perf_counter()
    with trio.fail_after(_MOST_SECONDS):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(one_by_one, stream)
    load.took = time.perf_counter() - began


async def _call(load: Load, stream: trio.SocketStream, request: bytes) -> None:
    began = time.perf_counter()
    await stream.send_all(request)
    answer, first = bytearray(), 0.0
    while not _is_whole(answer):
        piece = await stream.receive_some()
        if not piece:
            break
        answer += piece
        # The head of a stream says nothing yet; its first piece does.
        if not first and b'"content"' in answer:
            first = time.perf_counter() - began
    if answer.startswith(b"HTTP/1.1 200") and b'"error"' not in answer and _is_whole(answer):
        load.whole.append(time.perf_counter() - began)
        load.first.append(first)
    else:
        load.failed += 1


def _is_whole(answer: bytearray) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    _, named, length = head.lower().partition(b"content-length:")
    if named:
        return len(body) >= int(length.split(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")
