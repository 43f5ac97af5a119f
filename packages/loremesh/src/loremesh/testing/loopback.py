"""Real nodes on 127.0.0.1, for tests that are about the network itself."""

import secrets
from typing import Final, TypeVar

import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import NetworkEvent
from loremesh.network.settings import NetworkSettings
from loremesh.protocol.identity import Identity

Event = TypeVar("Event", bound=NetworkEvent)

PATIENCE: Final = 30.0
"""Seconds after which a wait has failed: generous, since machines are shared."""


def make_node(settings: NetworkSettings | None = None, secret: bytes | None = None) -> Behaviour:
    """Make a node that listens on a free port of 127.0.0.1 unless told otherwise; `run` it in a nursery."""
    return Behaviour(Identity.new(secret or secrets.token_bytes(32)), settings or NetworkSettings())


async def wait_event(node: Behaviour, kind: type[Event]) -> Event:
    """Read a node's events until one of a kind comes."""
    with trio.fail_after(PATIENCE):
        while True:
            event = await node.events.receive()
            if isinstance(event, kind):
                return event
