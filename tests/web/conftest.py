"""A plain HTTP client: says exactly what a test wants said, and reads until the other side closes."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

PATIENCE = 60


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Ask = Callable[..., Awaitable[Answer]]
Say = Callable[[str, bytes], Awaitable[bytes]]


async def said(address: str, request: bytes) -> bytes:
    """Send bytes; give all that comes until the other side closes."""
    host, _, port = address.rpartition(":")
    with trio.fail_after(PATIENCE):
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            answer = b""
            try:
                await stream.send_all(request)
                async for piece in stream:
                    answer += piece
            except trio.BrokenResourceError:
                pass  # closed before it had read all of what was sent
            return answer


async def asked(address: str, path: str, method: str = "GET", *headers: str, body: bytes = b"") -> Answer:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address}", "Connection: close", *headers, "", ""]
    answer = await said(address, "\r\n".join(lines).encode() + body)
    if not answer:
        raise ConnectionResetError("hung up on")
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    named = dict(field.lower().split(": ", 1) for field in fields)
    return Answer(int(status.split(" ")[1]), named, content.decode())


@pytest.fixture
def say() -> Say:
    return said


@pytest.fixture
def ask() -> Ask:
    return asked
