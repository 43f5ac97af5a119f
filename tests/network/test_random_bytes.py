"""Random bytes at every layer of a connection: the node stays up and serves others."""

import random
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from loremesh.errors import Fault
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, GossipReceived, PeerConnected
from loremesh.primitives import PeerId
from loremesh.testing.loopback import ECHO, PATIENCE, TOPIC, anything, echo, wait_event

from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair  # isort: skip
from libp2p.io.trio import TrioTCPStream  # isort: skip
from libp2p.network.connection.raw_connection import RawConnection  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.protocol_muxer.multiselect_client import MultiselectClient  # isort: skip
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator  # isort: skip
from libp2p.pubsub.pb import rpc_pb2  # isort: skip
from libp2p.security.noise.transport import Transport as Noise  # isort: skip
from libp2p.utils import encode_varint_prefixed  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]
GOSSIP = "/meshsub/1.1.0"
PROTOCOLS = [GOSSIP, "/loremesh/kad/1.0.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", ECHO]


def junk(seed: int) -> list[bytes]:
    """Bytes of several lengths and kinds, the same for the same seed."""
    dice = random.Random(seed)
    return [
        *(dice.randbytes(length) for length in (1, 12, 100, 3000)),
        bytes(64),
        b"\xff" * 64,
        b"\x7f" + dice.randbytes(40),  # a length prefix that promises more than comes
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01" + dice.randbytes(40),  # the greatest varint
        b"\x13/multistream/1.0.0\n" + dice.randbytes(100),
        encode_varint_prefixed(dice.randbytes(50)),
    ]


@pytest.fixture
async def victim(start_node: StartNode) -> AsyncIterator[Behaviour]:
    """A node of ours; after the test another node still gets everything from it that there is."""
    node = await start_node()
    node.serve(ECHO, echo)
    await node.subscribe(TOPIC, anything)
    yield node
    other = await start_node()
    await other.subscribe(TOPIC, anything)
    with trio.fail_after(PATIENCE):
        await other.connect(node.addresses()[0], PATIENCE)
        await wait_event(other, PeerConnected)
        assert await other.call(node.peer_id, ECHO, b"served", PATIENCE) == b"served"
        assert await other.ping(node.peer_id, PATIENCE) > 0
        await other.publish(TOPIC, b"heard")
        while (await wait_event(node, GossipReceived)).data != b"heard":
            pass
        await other.find_providers("role/nobody", PATIENCE)


def port_of(node: Behaviour) -> int:
    return int(node.addresses()[0].split("/")[4])


async def write_until_refused(write: Callable[[bytes], Awaitable[Any]], pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        try:
            with trio.fail_after(PATIENCE):
                await write(piece)
        except Exception:  # noqa: BLE001 - the victim hangs up, and every layer says so in its own way
            return


@asynccontextmanager
async def dialled(node: Behaviour) -> AsyncIterator[tuple[trio.SocketStream, RawConnection]]:
    async with await trio.open_tcp_stream("127.0.0.1", port_of(node)) as socket:
        yield socket, RawConnection(TrioTCPStream(socket), initiator=True)


async def select(raw: Any, protocol: str) -> None:
    await MultiselectClient().select_one_of([protocol], MultiselectCommunicator(raw))  # type: ignore[list-item]  # a str does


@pytest.mark.parametrize("piece", junk(1))
async def test_on_the_bare_socket(victim: Behaviour, piece: bytes) -> None:
    async with dialled(victim) as (socket, _):
        await write_until_refused(socket.send_all, [piece])


@pytest.mark.parametrize("piece", junk(2))
async def test_after_noise_was_agreed_on(victim: Behaviour, piece: bytes) -> None:
    async with dialled(victim) as (socket, raw):
        await select(raw, "/noise")
        await write_until_refused(socket.send_all, [piece])


@asynccontextmanager
async def secured(node: Behaviour) -> AsyncIterator[Any]:
    keys = create_new_key_pair(secrets.token_bytes(32))
    async with dialled(node) as (_, raw):
        await select(raw, "/noise")
        noise = Noise(keys, noise_privkey=new_x25519_key_pair().private_key)
        yield await noise.secure_outbound(raw, ID(node.peer_id))


@pytest.mark.parametrize("piece", junk(3))
async def test_after_the_handshake_in_place_of_a_muxer(victim: Behaviour, piece: bytes) -> None:
    async with secured(victim) as session:
        await write_until_refused(session.write, [piece])


@pytest.mark.parametrize("piece", junk(4))
async def test_under_the_handshake_where_ciphertext_belongs(victim: Behaviour, piece: bytes) -> None:
    async with dialled(victim) as (socket, raw):
        await select(raw, "/noise")
        noise = Noise(create_new_key_pair(secrets.token_bytes(32)), noise_privkey=new_x25519_key_pair().private_key)
        session = await noise.secure_outbound(raw, ID(victim.peer_id))
        await select(session, "/yamux/1.0.0")
        await write_until_refused(socket.send_all, [piece])


def yamux_frames(seed: int) -> list[bytes]:
    dice = random.Random(seed)
    header = struct.Struct("!BBHII")
    frames = [
        header.pack(dice.randrange(3), dice.randrange(6), dice.randrange(32), dice.randrange(8), dice.randrange(64))
        for _ in range(60)
    ]
    return [*frames, header.pack(0, 0, 1, 99, 2**32 - 1), *junk(seed)]


@pytest.mark.parametrize("seed", range(6))
async def test_inside_the_muxer(victim: Behaviour, seed: int) -> None:
    async with secured(victim) as session:
        await select(session, "/yamux/1.0.0")
        await write_until_refused(session.write, yamux_frames(seed))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_on_a_stream_of(victim: Behaviour, start_stock: StartStock, protocol: str) -> None:
    stranger = await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(victim.addresses()[0]), ID(victim.peer_id))
    for piece in junk(5):
        stream = await stranger.new_stream(ID(victim.peer_id), [protocol])
        await write_until_refused(stream.write, [piece])
        await stream.close()


async def test_before_a_streams_protocol_is_agreed_on(victim: Behaviour, start_stock: StartStock) -> None:
    stranger = await start_stock()
    connection = await stranger.get_network().dial_addr(Multiaddr(victim.addresses()[0]), ID(victim.peer_id))
    for piece in junk(6):
        stream = await connection.new_stream()
        await write_until_refused(stream.write, [piece])
        await stream.close()


async def test_a_frame_of_gossip_that_is_none_is_the_peers_fault(victim: Behaviour, start_stock: StartStock) -> None:
    stranger = await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(victim.addresses()[0]), ID(victim.peer_id))
    stream = await stranger.new_stream(ID(victim.peer_id), [GOSSIP])
    await stream.write(encode_varint_prefixed(b"\xff" * 20))
    served = await wait_event(victim, CallServed)
    assert served == CallServed(GOSSIP, PeerId(stranger.get_id().to_bytes()), Fault.WRONG_SHAPE)


async def test_gossip_longer_than_allowed_is_refused_before_it_is_kept(
    victim: Behaviour, start_stock: StartStock
) -> None:
    stranger = await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(victim.addresses()[0]), ID(victim.peer_id))
    stream = await stranger.new_stream(ID(victim.peer_id), [GOSSIP])
    await stream.write(b"\xff\xff\xff\xff\x0f")
    assert (await wait_event(victim, CallServed)).fault is Fault.FRAME_TOO_LONG


def control() -> list[rpc_pb2.RPC]:
    ids = [b"", b"\xff" * 7, b"0x", b"zz"]
    return [
        rpc_pb2.RPC(control=rpc_pb2.ControlMessage(ihave=[rpc_pb2.ControlIHave(topicID="\x00", messageIDs=ids)])),
        rpc_pb2.RPC(control=rpc_pb2.ControlMessage(ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=ids)])),
        rpc_pb2.RPC(control=rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=ids)])),
        rpc_pb2.RPC(control=rpc_pb2.ControlMessage(graft=[rpc_pb2.ControlGraft(topicID="nothing")])),
        rpc_pb2.RPC(
            control=rpc_pb2.ControlMessage(
                prune=[
                    rpc_pb2.ControlPrune(
                        topicID=TOPIC, peers=[rpc_pb2.PeerInfo(peerID=b"\xff", signedPeerRecord=b"\xff")]
                    )
                ]
            )
        ),
        rpc_pb2.RPC(senderRecord=b"\xff\xff"),
        rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"t{i}") for i in range(500)]),
        rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts()]),
    ]


@pytest.mark.parametrize("rpc", control())
async def test_gossip_upkeep_that_means_nothing(victim: Behaviour, start_stock: StartStock, rpc: rpc_pb2.RPC) -> None:
    stranger = await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(victim.addresses()[0]), ID(victim.peer_id))
    stream = await stranger.new_stream(ID(victim.peer_id), [GOSSIP])
    for _ in range(3):
        await write_until_refused(stream.write, [encode_varint_prefixed(rpc.SerializeToString())])
