"""A gateway over a mesh that answers what it is told to."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from loremesh.web.answers import Answered, Offered
from loremesh.web.chats import Asked
from loremesh.web.gateway import GATEWAY_LIMITS, Gateway
from loremesh.web.server import Limits, bound_address, listen, serve

Ask = Callable[..., Awaitable[Any]]
Deliver = Callable[[str], Awaitable[None]]
PIECES: Final = ("Nobody", " keeps", ' the lamp \u2014 it keeps itself. 🐉\n"Then\u2028we walk"', "\0")
TEXT: Final = "".join(PIECES)
CHAT: Final = {"model": "small", "messages": [{"role": "user", "content": "Who keeps the lamp?"}]}
_JSON: Final = "Content-Type: application/json"


@dataclass(slots=True)
class FakeMesh:
    """Answers what it is told to; `error` comes after `before_error` pieces."""

    pieces: Sequence[str] = PIECES
    error: Exception | None = None
    before_error: int = 0
    hangs: bool = False
    asked: list[Asked] = field(default_factory=list)
    reached: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def models(self) -> Sequence[Offered]:
        """Give two."""
        if self.error is not None:
            raise self.error
        return [Offered("small", ("16Uiu2one",), 4096, 250), Offered("a/b", ("16Uiu2one",), 512, 0)]

    async def call(self, asked: Asked, deliver: Deliver) -> Answered:
        """Answer as told."""
        self.asked.append(asked)
        pieces = self.pieces if self.error is None else self.pieces[: self.before_error]
        try:
            for piece in pieces:
                await deliver(piece)
            self.reached.set()
            if self.hangs:
                await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        return Answered("".join(pieces), "stop", 5, 9, ("16Uiu2one",), ("ab" * 32,), ())


@asynccontextmanager
async def gateway_at(
    mesh: FakeMesh, key: str | None = None, limits: Limits = GATEWAY_LIMITS
) -> AsyncIterator[tuple[str, Gateway]]:
    """Run a gateway on a free port of 127.0.0.1 as long as the block lasts; give HOST:PORT and the gateway."""
    gateway = Gateway(mesh, key)
    listeners = await listen("127.0.0.1:0", "--listen")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, gateway.app(), listeners, limits)
        yield bound_address(listeners[0]), gateway
        nursery.cancel_scope.cancel()


async def post(ask: Ask, address: str, body: object, *headers: str, path: str = "/v1/chat/completions") -> Any:  # noqa: ANN401 - whatever `ask` gives
    """Ask for a chat with a body, as JSON unless it is bytes, by a client that speaks plain HTTP."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(address, path, "POST", _JSON, f"Content-Length: {len(data)}", *headers, body=data)
