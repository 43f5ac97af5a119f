"""`upstream/peerstore.py`: of peers that are gone, a node keeps those that it could dial, and not without end."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import trio.testing

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected, PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.peerstore import BoundedPeerStore
from loremesh.testing.loopback import PATIENCE, wait_event

from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.peer.peerstore import PeerStore  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
PLACE = Multiaddr("/ip4/127.0.0.1/tcp/4001")
ME, *PEERS = [ID(bytes([number])) for number in range(9)]


def fill(store: PeerStore) -> None:
    """Let a store hear of itself, of a client that tells no address, and of seven that do."""
    for peer_id in (ME, PEERS[0]):
        store.add_protocols(peer_id, ["/a/protocol"])
    for peer_id in PEERS[1:]:
        store.add_addrs(peer_id, [PLACE], 600)


def test_of_those_who_are_gone_the_oldest_are_forgotten_and_never_the_node_itself_or_whoever_is_connected() -> None:
    store = BoundedPeerStore(ME, {PEERS[0], PEERS[1]}.__contains__, most_gone=2)
    fill(store)
    assert store.peer_ids() == [ME, *PEERS[:2], *PEERS[-2:]]


def test_whoever_was_here_last_is_forgotten_last() -> None:
    connected = {PEERS[1]}
    store = BoundedPeerStore(ME, connected.__contains__, most_gone=2)
    fill(store)
    connected.clear()
    store.on_gone(PEERS[1])
    assert PEERS[1] in store.peer_ids()
    assert PEERS[-2] not in store.peer_ids()


def test_nothing_is_kept_of_a_peer_that_is_gone_and_told_no_address() -> None:
    store = BoundedPeerStore(ME, {PEERS[0]}.__contains__)
    fill(store)
    store.on_gone(PEERS[0])
    store.on_gone(PEERS[0])
    assert PEERS[0] not in store.peer_ids()


async def test_a_node_forgets_a_client_that_has_left(start_node: StartNode) -> None:
    node, client = await start_node(), await start_node(NetworkSettings(listen_addresses=()))
    await client.connect(node.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    store = node._host.get_peerstore()
    await client.ping(node.peer_id, PATIENCE)
    assert ID(client.peer_id) in store.peer_ids()
    await client.disconnect(node.peer_id)
    await wait_event(node, PeerDisconnected)
    await trio.testing.wait_all_tasks_blocked()
    assert store.peer_ids() == [ID(node.peer_id)]
    assert not node._host._pings._inbound_streams


def test_canary_the_stock_store_still_forgets_the_node_itself_first() -> None:
    keys = create_new_key_pair(secrets.token_bytes(32))
    me = ID.from_pubkey(keys.public_key)
    store: Any = PeerStore(max_peers=2)
    store.add_key_pair(me, keys)
    fill(store)
    assert me not in store.peer_ids(), "upstream keeps its own key now: BoundedPeerStore may not be needed"
