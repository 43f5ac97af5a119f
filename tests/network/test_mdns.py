"""Peers on the local network: found when asked for, and only then; what is heard there is hearsay."""

import os
import secrets
import socket
from collections.abc import Awaitable, Callable

import dns.flags
import dns.message
import dns.rrset
import psutil
import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerNearby
from loremesh.network.mdns import Mdns
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.loopback import PATIENCE, wait_event

StartNode = Callable[..., Awaitable[Behaviour]]
NEARBY = NetworkSettings(mdns=True)


def has_mdns_socket() -> bool:
    return any(one.laddr and one.laddr.port == 5353 for one in psutil.Process(os.getpid()).net_connections("udp"))


async def test_two_nodes_on_one_network_find_each_other_and_connect(start_node: StartNode) -> None:
    one, other = await start_node(NEARBY), await start_node(NEARBY)
    while (found := await wait_event(one, PeerNearby)).peer_id != other.peer_id:
        pass
    assert found.addresses == other.addresses()
    assert await one.connect(found.addresses[0], PATIENCE) == other.peer_id
    while (found := await wait_event(other, PeerNearby)).peer_id != one.peer_id:
        pass


async def test_a_node_that_is_not_told_to_neither_listens_nor_tells(start_node: StartNode) -> None:
    await start_node()
    assert not has_mdns_socket()
    await start_node(NEARBY)
    assert has_mdns_socket()


async def test_a_node_listens_no_longer_when_it_has_ended(nursery: trio.Nursery) -> None:
    async with trio.open_nursery() as inner:
        node = Behaviour(Identity.new(secrets.token_bytes(32)), NEARBY)
        await inner.start(node.run)
        inner.cancel_scope.cancel()
    assert not has_mdns_socket()


async def listening(nursery: trio.Nursery) -> tuple[Mdns, list[tuple[PeerId, tuple[str, ...]]]]:
    found: list[tuple[PeerId, tuple[str, ...]]] = []
    mdns = Mdns(lambda: (), lambda peer_id, addresses: found.append((peer_id, addresses)))
    await mdns.open(["127.0.0.1"])
    nursery.start_soon(mdns.run)
    return mdns, found


def claim(*texts: str) -> bytes:
    message = dns.message.Message(id=0)
    message.flags = dns.flags.QR
    quoted = " ".join(f'"{text}"' for text in texts)
    message.additional = [dns.rrset.from_text("x._p2p._udp.local.", 120, "IN", "TXT", quoted)]
    return message.to_wire()


def send(data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(data, ("224.0.0.251", 5353))


async def is_heard(found: list[tuple[PeerId, tuple[str, ...]]]) -> None:
    """Claim to be somebody until that is heard: where much has come at once, the next datagrams have no room."""
    last = Identity.new(secrets.token_bytes(32)).peer_id
    with trio.fail_after(PATIENCE):
        while last not in dict(found):
            send(claim(f"dnsaddr=/ip4/192.0.2.8/tcp/1/p2p/{peer_id_text(last)}"))
            await trio.sleep(0.01)


async def test_only_addresses_that_name_a_place_and_a_peer_are_heard_and_each_peer_once_a_minute(
    nursery: trio.Nursery,
) -> None:
    _, found = await listening(nursery)
    peer_id = Identity.new(secrets.token_bytes(32)).peer_id
    good = f"/ip4/192.0.2.7/tcp/4001/p2p/{peer_id_text(peer_id)}"
    useless = (
        "dnsaddr=/ip4/192.0.2.7/tcp/4001",
        "dnsaddr=/ip4/0.0.0.0/tcp/1/p2p/" + peer_id_text(peer_id),
        "dnsaddr=nonsense",
        "something=else",
        f"dnsaddr={good}/p2p-circuit",
    )
    send(claim(*useless))
    send(claim(*useless, f"dnsaddr={good}"))
    send(claim(f"dnsaddr={good}"))
    await is_heard(found)
    assert [one for one in found if one[0] == peer_id] == [(peer_id, (good,))]


@pytest.mark.parametrize("length", [0, 1, 11, 12, 13, 40, 500, 8000])
async def test_junk_is_ignored(nursery: trio.Nursery, length: int) -> None:
    _, found = await listening(nursery)
    header = b"\x00\x00\x84\x00\x00\x00\xff\xff\x00\x00\x00\x00"
    for _ in range(20):
        send(secrets.token_bytes(length))
        send((header + b"\xc0\x0c" + secrets.token_bytes(length))[: max(length, 12)])
    await is_heard(found)
