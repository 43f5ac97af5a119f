"""However many strangers come, a node can go and meet others."""

import pytest
import trio

from loremesh.errors import ServiceError
from loremesh.network.events import PeerConnected
from loremesh.network.settings import NetworkSettings
from loremesh.testing.loopback import PATIENCE, make_node, wait_event

SMALL = NetworkSettings(max_connections=8)


async def test_strangers_take_seven_of_eight_places_and_the_last_is_for_whom_we_dial(nursery: trio.Nursery) -> None:
    node, honest = make_node(SMALL), make_node()
    strangers = [make_node() for _ in range(10)]
    for one in (node, honest, *strangers):
        await nursery.start(one.run)
    for stranger in strangers[:7]:
        await stranger.connect(node.addresses()[0], PATIENCE)
        await wait_event(node, PeerConnected)
    for stranger in strangers[7:]:
        with pytest.raises(ServiceError):
            await stranger.connect(node.addresses()[0], PATIENCE)
    assert len(node.connected()) == 7
    assert await node.connect(honest.addresses()[0], PATIENCE) == honest.peer_id
    assert (await wait_event(node, PeerConnected)).peer_id == honest.peer_id


def test_an_eighth_of_the_places_is_never_a_strangers() -> None:
    assert NetworkSettings().max_inbound == 112
    assert NetworkSettings(max_connections=2).max_inbound == 2
