"""`upstream/kademlia.py`: lookups of our own network, that no one stream can stop."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected
from loremesh.network.upstream import kademlia
from loremesh.testing.loopback import PATIENCE, wait_event

from libp2p import new_host  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT  # isort: skip
from libp2p.kad_dht.provider_store import ProviderStore  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.peer.peerinfo import PeerInfo  # isort: skip
from libp2p.protocol_muxer.exceptions import MultiselectClientError  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]


async def test_nobody_is_served_under_the_id_of_the_public_network(
    start_node: StartNode, start_stock: StartStock
) -> None:
    node, stranger = await start_node(), await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    with pytest.raises(Exception) as refused:  # noqa: PT011 - stock code wraps what the next line looks for
        await stranger.new_stream(ID(node.peer_id), ["/ipfs/kad/1.0.0"])
    assert isinstance(refused.value.__cause__, MultiselectClientError)
    await stranger.new_stream(ID(node.peer_id), ["/loremesh/kad/1.0.0"])


async def test_a_lookup_is_answered_while_a_peer_holds_lookup_streams_open(
    start_node: StartNode, start_stock: StartStock
) -> None:
    server, provider, asker, idler = await start_node(), await start_node(), await start_node(), await start_stock()
    await idler.get_network().dial_addr(Multiaddr(server.addresses()[0]), ID(server.peer_id))
    for _ in range(20):
        await idler.new_stream(ID(server.peer_id), ["/loremesh/kad/1.0.0"])
    for node in (provider, asker):
        await node.connect(server.addresses()[0], PATIENCE)
        await wait_event(node, PeerConnected)
    await provider.provide("role/executor")
    with trio.fail_after(PATIENCE):
        while not await asker.find_providers("role/executor", PATIENCE):
            pass


async def test_more_records_than_ten_from_one_peer_are_kept(start_node: StartNode) -> None:
    server, provider, asker = await start_node(), await start_node(), await start_node()
    for node in (provider, asker):
        await node.connect(server.addresses()[0], PATIENCE)
        await wait_event(node, PeerConnected)
    keys = [f"content/{number}" for number in range(25)]
    for key in keys:
        await provider.provide(key)
    with trio.fail_after(PATIENCE):
        while len(server._kademlia.provider_store.providers) < len(keys):  # noqa: ASYNC110 - sending a record is not answered
            await trio.sleep(0.02)
    assert all([await asker.find_providers(key, PATIENCE) for key in keys])


def stock_dht() -> KadDHT:
    return KadDHT(new_host(key_pair=create_new_key_pair(secrets.token_bytes(32))), DHTMode.SERVER)


def test_canary_stock_lookups_still_stop_at_twelve_streams_and_ten_records() -> None:
    dht = stock_dht()
    remedy = "upstream's limits have changed: look through upstream/kademlia.py"
    assert (dht._inbound_limiter.total_tokens, dht._provider_rate_max) == (12, 10), remedy


def test_canary_the_prefix_of_a_stock_dht_is_still_ignored() -> None:
    host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)))
    KadDHT(host, DHTMode.SERVER, protocol_prefix="/another")  # type: ignore[arg-type]  # a plain string, as TProtocol is
    served = [str(protocol) for protocol in vars(host)["multiselect"].handlers]
    assert "/another/kad/1.0.0" not in served, "upstream heeds protocol_prefix now: use it instead of the constants"


def record(number: int) -> tuple[bytes, PeerInfo]:
    return kademlia.key_of(str(number)), PeerInfo(ID(bytes(39)), [])


def test_records_are_kept_for_so_many_keys_and_the_oldest_goes_first() -> None:
    dht = kademlia.BoundedKademlia(new_host(key_pair=create_new_key_pair(secrets.token_bytes(32))), server=True)
    for number in range(10_001):
        dht.provider_store.add_provider(*record(number))
    assert len(dht.provider_store.providers) == 10_000
    assert not dht.provider_store.get_providers(record(0)[0])
    assert dht.provider_store.get_providers(record(10_000)[0])


def test_canary_a_stock_dht_still_keeps_records_for_any_number_of_keys() -> None:
    store = ProviderStore(new_host(key_pair=create_new_key_pair(secrets.token_bytes(32))))
    for number in range(10_001):
        store.add_provider(*record(number))
    assert len(store.providers) > 10_000, "upstream bounds its records now: BoundedProviders can go"


def test_a_key_is_the_multihash_of_its_text_even_when_it_looks_like_hexadecimal() -> None:
    assert kademlia.key_of("deadbeef")[:2] == b"\x12\x20"
    assert len(kademlia.key_of("deadbeef")) == 34
    assert kademlia.key_of("deadbeef") != kademlia.key_of("DEADBEEF")
