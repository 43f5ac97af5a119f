"""The gateway role: a client of the mesh, and an HTTP server in front of it."""

import gc
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import trio

from loremesh.backends.chat import Deliver
from loremesh.config import Settings
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.llm import MAX_PRICE
from loremesh.roles.mesh import Mesh, joined
from loremesh.roles.process import allow_files
from loremesh.services.discovery import PATIENCE
from loremesh.services.router import Chat
from loremesh.web.answers import Answered, Offered
from loremesh.web.chats import Asked
from loremesh.web.gateway import GATEWAY_LIMITS, Gateway
from loremesh.web.guard import check_exposure
from loremesh.web.server import bound_address, listen, serve

_BASE_PATH: Final = "/v1"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a gateway agrees to in the name of whoever asks it."""

    max_price: int = MAX_PRICE
    """Gwei per 1,000 tokens: what costs more is neither listed nor asked."""
    deadline: float = 600.0
    """Seconds for one answer; by default the longest that a request may live. Silence ends it much sooner."""
    discovery: float = PATIENCE
    """Seconds to look for an executor before there is none."""


async def run(
    settings: Settings, address: str, key: str | None, terms: Terms, tell_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; then calls in flight get `settings.drain` seconds. A second signal ends at once.

    Args:
        settings: Whom to join through, and where key and journal are.
        address: HOST:PORT to listen at; port 0 takes a free one.
        key: What clients must send; None: none, and nobody but this machine is listened to.
        terms: Of each call.
        tell_ready: Gets the base URL, once calls are taken.

    Raises:
        UsageError: No bootstrap nodes; others could reach it, and there is no key.
        MachineError: The port is taken, or the data directory cannot be used.
        Unreachable: No bootstrap node answers.
    """
    allow_files(1)
    listeners = await listen(address, "--listen")
    async with trio.open_nursery() as serving:
        try:
            check_exposure(listeners, key)
            async with joined(settings, patience=terms.discovery) as mesh:
                gateway = Gateway(AskedOf(mesh, terms), key)
                gc.freeze()  # what was imported stays, as in every node
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    serving.start_soon(serve, gateway.app(), listeners, GATEWAY_LIMITS)
                    tell_ready(f"http://{bound_address(listeners[0])}{_BASE_PATH}")
                    await anext(signals)
                    gateway.close()
                    async with trio.open_nursery() as leaving:
                        leaving.start_soon(_leave_at_next, signals)
                        with trio.move_on_after(settings.drain):
                            await gateway.wait_idle()
                        leaving.cancel_scope.cancel()
        finally:
            for listener in listeners:
                listener.socket.close()
            serving.cancel_scope.cancel()


class AskedOf:
    """Puts what HTTP clients ask before the mesh, and its answers into what they understand.

    Args:
        mesh: Answers.
        terms: Of each call.
    """

    def __init__(self, mesh: Mesh, terms: Terms) -> None:
        self._mesh = mesh
        self._terms = terms

    async def models(self) -> list[Offered]:
        """Give what can be asked now."""
        return [
            Offered(model.id, tuple(map(peer_id_text, model.executors)), model.context, model.price)
            for model in await self._mesh.models(self._terms.max_price)
        ]

    async def call(self, asked: Asked, deliver: Deliver) -> Answered:
        """Have a chat answered.

        Raises:
            LoremeshError: As `Mesh.call`.
        """
        chat = Chat(
            asked.model,
            asked.messages,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            stop=asked.stop,
            response_format=asked.response_format,
            max_price=self._terms.max_price,
            deadline=self._terms.deadline,
            is_whole=not asked.stream,
            **({} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}),
        )
        answer = await self._mesh.call(chat, deliver)
        return Answered(
            answer.text,
            answer.finish,
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
            tuple(map(peer_id_text, answer.executors)),
            tuple(one.receipt.request.hex() for one in answer.evidence),
            answer.warnings,
        )


async def _leave_at_next(signals: AsyncIterator[int]) -> None:
    async for number in signals:
        os._exit(128 + number)
