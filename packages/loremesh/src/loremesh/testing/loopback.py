"""Real nodes on 127.0.0.1, for tests that are about the network itself."""

import secrets
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import trio

from loremesh.errors import ServiceError
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import GossipReceived, NetworkEvent
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity

Event = TypeVar("Event", bound=NetworkEvent)

PATIENCE: Final = 30.0
"""Seconds after which a wait has failed: generous, since machines are shared."""
ECHO: Final = "/loremesh/echo/1"
TOPIC: Final = "/loremesh/test/1"


class Teller(Protocol):
    """A node, as far as it tells what happens: real, or in memory."""

    @property
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """What happens, in order."""


def patient(settings: NetworkSettings | None = None) -> NetworkSettings:
    """Give settings under which a handshake may take as long as a busy machine needs, unless they name a time."""
    settings, usual = settings or NetworkSettings(), NetworkSettings().handshake_timeout
    return replace(settings, handshake_timeout=PATIENCE) if settings.handshake_timeout == usual else settings


def make_node(settings: NetworkSettings | None = None, secret: bytes | None = None) -> Behaviour:
    """Make a patient node that listens on a free port of 127.0.0.1 unless told otherwise; `run` it in a nursery."""
    return Behaviour(Identity.new(secret or secrets.token_bytes(32)), patient(settings))


async def wait_event(node: Teller, kind: type[Event]) -> Event:
    """Read a node's events until one of a kind comes."""
    with trio.fail_after(PATIENCE):
        while True:
            event = await node.events.receive()
            if isinstance(event, kind):
                return event


async def echo(stream: Stream) -> None:
    """Serve `ECHO`: give each frame back."""
    while (frame := await stream.receive(PATIENCE)) is not None:
        await stream.send(frame, PATIENCE)


def anything(_signer: PeerId, _data: bytes) -> None:
    """Accept every gossip message."""


async def prepare(*nodes: Behaviour) -> None:
    """Let nodes serve `ECHO` and hear `TOPIC`."""
    for node in nodes:
        node.serve(ECHO, echo)
        await node.subscribe(TOPIC, anything)


async def wait_usable(one: Behaviour, other: Behaviour) -> None:
    """Call both ways and gossip both ways, again and again until it works; both are prepared."""
    with trio.fail_after(PATIENCE):
        for caller, callee in ((one, other), (other, one)):
            while not await _is_answered(caller, callee.peer_id):  # noqa: ASYNC110 - nothing tells when it can be
                await trio.sleep(0.05)
        for speaker, listener in ((one, other), (other, one)):
            word = secrets.token_bytes(8)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_repeat, speaker, word)
                while not isinstance(heard := await listener.events.receive(), GossipReceived) or heard.data != word:
                    pass
                nursery.cancel_scope.cancel()


async def _is_answered(caller: Behaviour, peer_id: PeerId) -> bool:
    try:
        return await caller.call(peer_id, ECHO, b"?", 3) == b"?"
    except ServiceError:
        return False


async def _repeat(speaker: Behaviour, word: bytes) -> None:
    while True:
        await speaker.publish(TOPIC, word)
        await trio.sleep(0.1)


async def wait_settled(*nodes: Behaviour) -> None:
    """Wait until every node has one connection."""
    with trio.fail_after(PATIENCE):
        while any(len(node._swarm.get_connections()) != 1 for node in nodes):  # noqa: ASYNC110, SLF001 - upstream's table has no event
            await trio.sleep(0.05)
