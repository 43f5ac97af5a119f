"""One flood against one node, from a process of its own: python flooder.py KIND MULTIADDR COUNT GENESIS.

Prints `began` when it is at it, `done` when all is sent, and then holds on to what it has until it is killed.
"""

import hashlib
import os
import secrets
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.stream_muxer.yamux import yamux

from loremesh.network.addresses import Endpoint
from loremesh.network.behaviour import Behaviour
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.streams import StreamPipe, opened
from loremesh.primitives import MIB, Hash, Height, Millis, PeerId
from loremesh.protocol.block import Block, Header, SignedHeader, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import new_store
from loremesh.protocol.genesis import Genesis, genesis_from_toml, story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.validation import Link, genesis_link, link_of, target_after
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    SYNC_PROTOCOL,
    BlockAnnouncement,
    Headers,
    HeadersRequest,
    MessageType,
    PeerCard,
    Status,
    seal,
    sign_card,
    topic,
    unseal,
)
from loremesh.roles.networking import running_network
from loremesh.roles.process import allow_files
from loremesh.testing.builders import block_on, parent_of, resigned

SETTINGS = NetworkSettings(listen_addresses=(), dht_server=False)
EVE = Identity.generate(secrets.token_bytes(32))
Flood = Callable[[Endpoint, int, Genesis], Awaitable[None]]


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def connections(where: Endpoint, count: int, _: Genesis) -> None:
    """Open sockets and say nothing."""
    held: list[trio.SocketStream] = []
    for number in range(count):
        held.append(await open_socket(where))
        if number % 50 == 0:
            await trio.lowlevel.checkpoint()
    say("done")
    await trio.sleep_forever()


async def slow_handshakes(where: Endpoint, count: int, _: Genesis) -> None:
    """Begin handshakes, a byte a second, and begin anew when they are ended; from an address that nobody else has."""
    async with trio.open_nursery() as nursery:
        for _number in range(count):
            nursery.start_soon(dawdle, where)
            await trio.lowlevel.checkpoint()
        say("done")


async def dawdle(where: Endpoint) -> None:
    while True:
        with Unbothered():
            stream = await trio.open_tcp_stream(where.host, where.port, local_address="127.0.0.2")
            async with stream:
                for byte in b"\x13/multistream/1.0.0\n\x07/noise\n" * 10:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(1)
        await trio.sleep(1)


async def identities(where: Endpoint, count: int, _: Genesis) -> None:
    """Connect under many names, and stay."""
    limit = trio.CapacityLimiter(16)
    left = [count]
    async with trio.open_nursery() as nursery:
        for _number in range(count):
            nursery.start_soon(one_identity, where, limit, left)


async def one_identity(where: Endpoint, limit: trio.CapacityLimiter, left: list[int]) -> None:
    async with limit, held_network(Identity.generate(secrets.token_bytes(32))) as network:
        with Unbothered():
            await network.connect(str(where))
        left[0] -= 1
        if not left[0]:
            say("done")
        limit.total_tokens += 1  # what is held takes no turn
        await trio.sleep_forever()


async def orphans(where: Endpoint, count: int, genesis: Genesis) -> None:
    """Announce blocks whose parents nobody has, each worked for and signed."""
    good = block_on(genesis, parent_of(new_store(genesis, Millis(2**53))), EVE, text=("lantern " * 100).strip())
    async with connected(where, genesis) as network:
        name = topic(story_id(genesis), "blocks")
        for number in range(count):
            parent = Hash(hashlib.sha256(number.to_bytes(8, "big")).digest())
            block = resigned(good, EVE, parent=parent, height=Height(9))
            await network.publish(name, announced(block))
        say("done")
        await trio.sleep_forever()


def announced(block: Block) -> bytes:
    header = block.header
    said = BlockAnnouncement(header.height, header_hash(header), header.producer, header.time, encode(block))
    return seal(EVE, MessageType.BLOCK_ANNOUNCEMENT, said, 0)


async def headers(where: Endpoint, count: int, genesis: Genesis) -> None:
    """Serve a long chain of headers that are in order, and none of their bodies."""
    made = fake_headers(genesis, count)
    places = {header_hash(signed.header): number for number, signed in enumerate(made)}

    async def serve(stream: Stream) -> None:
        frame = await stream.receive(30)
        assert frame is not None
        kind, payload = unseal(frame, stream.peer_id)
        if kind is MessageType.STATUS_REQUEST:
            head = header_hash(made[-1].header)
            status = Status((story_id(genesis),), made[-1].header.height, (head,), ())
            await stream.send(seal(EVE, MessageType.STATUS, status, 0, stream.peer_id))
        elif kind is MessageType.BLOCKS_REQUEST:
            await trio.sleep(9)  # just short of where it would be given up
        elif kind is MessageType.HEADERS_REQUEST:
            request = decode(HeadersRequest, payload)
            start = 1 + max((places[name] for name in request.locator if name in places), default=-1)
            answer = Headers(tuple(made[start : start + request.limit]))
            await stream.send(seal(EVE, MessageType.HEADERS, answer, 0, stream.peer_id))
        await stream.finish()

    async with connected(where, genesis, lambda network: network.serve(SYNC_PROTOCOL, serve)):
        say("done")
        await trio.sleep_forever()


def fake_headers(genesis: Genesis, count: int) -> list[SignedHeader]:
    good = block_on(genesis, parent_of(new_store(genesis, Millis(2**53))), EVE).header
    link: Link = genesis_link(genesis)
    made = []
    for _ in range(count):
        time = Millis(link.time + genesis.parameters.solo_after)
        header = Header(
            story=good.story,
            height=Height(link.height + 1),
            parent=link.hash,
            time=time,
            producer=EVE.peer_id,
            target=target_after(genesis, link),
            nonce=0,
            content_root=good.content_root,
            transaction_root=good.transaction_root,
            state_root=good.state_root,
        )
        made.append(SignedHeader(header, EVE.sign(header_hash(header))))
        link = link_of(header, link)
    return made


async def subscriptions(where: Endpoint, count: int, genesis: Genesis) -> None:
    """Subscribe to topics nobody has heard of, on a new stream when one is ended, under a new name when shut out."""
    frames = iter(range(0, count, 64))
    left = True
    while left:
        identity = Identity.generate(secrets.token_bytes(32))
        with Unbothered():
            async with held_network(identity) as network:
                await network.connect(str(where))
                while left:
                    left = await subscribe_until_ended(network, where, frames)
    say("done")
    await trio.sleep_forever()


async def subscribe_until_ended(network: Behaviour, where: Endpoint, frames: Iterator[int]) -> bool:
    """Send frames on one stream; tell whether any are left. Raises when there is no stream to be had any more."""
    async with gossip_stream(network, where) as pipe:
        with Unbothered():
            for number in frames:
                rpc = rpc_pb2.RPC()
                for topic_number in range(number, number + 64):
                    rpc.subscriptions.add(subscribe=True, topicid=f"/junk/{topic_number:060}")
                body = rpc.SerializeToString()
                await pipe.write(varint(len(body)) + body)
            return False
    return True


def gossip_stream(network: Behaviour, where: Endpoint) -> AbstractAsyncContextManager[StreamPipe]:
    return opened(network._host, ID(peer_of(where)), "/meshsub/1.1.0", 10, lambda _: None)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


async def unread(where: Endpoint, count: int, genesis: Genesis) -> None:
    """Send MiBs on a stream that the node does not read, because it goes to look where our card says we are."""
    silent = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    address = f"/ip4/127.0.0.1/tcp/{silent.socket.getsockname()[1]}"
    card = PeerCard(EVE.peer_id, (address,), ("executor",), (), (), Height(0), Millis(2**40))
    join = seal(EVE, MessageType.PEER_JOIN, sign_card(EVE, card), 0)
    async with connected(where, genesis) as network:
        connection = network._swarm.get_connections(ID(peer_of(where)))[0]
        muxed = connection.muxed_conn
        assert isinstance(muxed, yamux.Yamux)
        async with network.open(peer_of(where), PEERS_PROTOCOL) as stream:
            await stream.send(join)
            number = max(known for known in muxed.streams)
            body = bytes(256 * 1024)
            frame = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, number, len(body)) + body
            with Unbothered():
                for _number in range(count * MIB // len(body)):
                    await muxed._write_frame(frame)
            say("done")
            await trio.sleep_forever()


# ---- what they share


def peer_of(where: Endpoint) -> PeerId:
    assert where.peer_id is not None
    return where.peer_id


async def open_socket(where: Endpoint) -> trio.SocketStream:
    return await trio.open_tcp_stream(where.host, where.port)


class Unbothered:
    """Whatever the node does to us in here was to be expected."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, Exception)


@asynccontextmanager
async def held_network(
    identity: Identity, prepare: Callable[[Behaviour], None] = lambda _: None
) -> AsyncIterator[Behaviour]:
    async with running_network(identity, SETTINGS) as network, trio.open_nursery() as nursery:
        prepare(network)

        async def drain() -> None:
            async for _ in network.events:
                pass

        nursery.start_soon(drain)
        yield network
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(
    where: Endpoint, genesis: Genesis, prepare: Callable[[Behaviour], None] = lambda _: None
) -> AsyncIterator[Behaviour]:
    async with held_network(EVE, prepare) as network:
        for name in ("blocks", "txs", "peers"):
            await network.subscribe(topic(story_id(genesis), name), lambda _, __: None)
        await network.connect(str(where))
        await trio.sleep(1)
        yield network


FLOODS: dict[str, Flood] = {
    "connections": connections,
    "slow-handshakes": slow_handshakes,
    "identities": identities,
    "orphans": orphans,
    "headers": headers,
    "subscriptions": subscriptions,
    "unread": unread,
}


def main() -> None:
    kind, address, count, genesis = sys.argv[1:5]
    os.nice(19)  # what is measured is the node, and not how little is left of this machine
    allow_files(30)
    story = genesis_from_toml(Path(genesis).read_text(encoding="utf-8"))
    say("began")
    trio.run(FLOODS[kind], Endpoint.from_str(address), int(count), story)


if __name__ == "__main__":
    main()
