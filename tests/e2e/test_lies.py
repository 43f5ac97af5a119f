"""A node that serves a changed story: readers recompute everything, so one byte is enough to be refused."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Hash, Height
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.wire import (
    SYNC_PROTOCOL,
    BlocksRequest,
    GenesisAnswer,
    Headers,
    MessageType,
    Status,
    seal,
    seal_bytes,
    unseal,
)
from loremesh.testing.builders import BOB, CAT, EASY, identity, resigned, small_genesis
from loremesh.testing.node_processes import run_program
from loremesh.testing.orchard import Orchard, name_of

EVE = identity("eve")
GENESIS = small_genesis(EASY)


class Teller:
    """Serves one story over the real network; `bodies` is what it sends for each block."""

    def __init__(self, genesis: Genesis, blocks: list[Block], bodies: dict[Hash, bytes]) -> None:
        self.genesis, self.blocks, self.bodies = genesis, blocks, bodies
        self.network = Behaviour(EVE, NetworkSettings())
        self.network.serve(SYNC_PROTOCOL, self.serve)

    async def serve(self, stream: Stream) -> None:
        frame = await stream.receive(30)
        assert frame is not None
        kind, payload = unseal(frame, stream.peer_id)
        story = self.blocks[0].header.story
        match kind:
            case MessageType.STATUS_REQUEST:
                status = Status((story,), Height(len(self.blocks)), (name_of(self.blocks[-1]),), ())
                await self.send(stream, MessageType.STATUS, status)
            case MessageType.GENESIS_REQUEST:
                await self.send(stream, MessageType.GENESIS, GenesisAnswer(encode(self.genesis)))
            case MessageType.HEADERS_REQUEST:
                signed = tuple(SignedHeader(block.header, block.signature) for block in self.blocks)
                await self.send(stream, MessageType.HEADERS, Headers(signed))
            case MessageType.BLOCKS_REQUEST:
                for name in decode(BlocksRequest, payload).hashes:
                    await stream.send(seal_bytes(EVE, MessageType.BLOCK, self.bodies[name], 0, stream.peer_id))
        await stream.finish()

    async def send(self, stream: Stream, kind: MessageType, payload: object) -> None:
        await stream.send(seal(EVE, kind, payload, 0, stream.peer_id))


@asynccontextmanager
async def telling(teller: Teller) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        await nursery.start(teller.network.run)

        async def drain() -> None:
            async for _ in teller.network.events:
                pass

        nursery.start_soon(drain)
        yield teller.network.addresses()[0]
        nursery.cancel_scope.cancel()


def honest() -> tuple[list[Block], dict[Hash, bytes]]:
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, 8, BOB, CAT)
    return blocks, {name_of(block): encode(block) for block in blocks}


async def test_an_honest_story_is_read_from_the_same_teller() -> None:
    blocks, bodies = honest()
    async with telling(Teller(GENESIS, blocks, bodies)) as address:
        read = await run_program("loremesh", "canon", "--bootstrap-nodes", address, "--json")
    assert read.code == 0, read.err
    assert [block["text"] for block in read.json()["blocks"]] == [block.content.text for block in blocks]


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def text_byte(block: Block) -> bytes:
    data = encode(block)
    return flip(data, data.index(block.content.text.encode()) + 3)


def signature_byte(block: Block) -> bytes:
    data = encode(block)
    return flip(data, data.index(block.signature) + 7)


def header_byte(block: Block) -> bytes:
    data = encode(block)
    return flip(data, data.index(block.header.state_root) + 7)


def last_byte(block: Block) -> bytes:
    data = encode(block)
    return flip(data, len(data) - 1)


@pytest.mark.parametrize("change", [text_byte, signature_byte, header_byte, last_byte])
@pytest.mark.parametrize("command", ["canon", "tree"])
async def test_one_changed_byte_in_a_served_block_is_refused(change: Callable[[Block], bytes], command: str) -> None:
    blocks, bodies = honest()
    bodies[name_of(blocks[4])] = change(blocks[4])
    async with telling(Teller(GENESIS, blocks, bodies)) as address:
        read = await run_program("loremesh", command, "--bootstrap-nodes", address, "--json")
    assert read.code == 4, read.err
    assert read.out == ""
    assert read.err.count("\n") == 1
    assert "Traceback" not in read.err


async def test_a_state_root_that_its_producer_signed_wrongly_is_refused() -> None:
    blocks, _ = honest()
    blocks[-1] = resigned(blocks[-1], CAT, state_root=Hash(b"\x05" * 32))
    bodies = {name_of(block): encode(block) for block in blocks}
    async with telling(Teller(GENESIS, blocks, bodies)) as address:
        read = await run_program("loremesh", "canon", "--bootstrap-nodes", address)
    assert read.code == 4
    assert "state does not match its root" in read.err


async def test_a_header_with_a_changed_signature_is_refused_before_any_body() -> None:
    blocks, bodies = honest()
    blocks[3] = replace(blocks[3], signature=blocks[4].signature)
    async with telling(Teller(GENESIS, blocks, bodies)) as address:
        read = await run_program("loremesh", "canon", "--bootstrap-nodes", address)
    assert read.code == 4
    assert "bad signature" in read.err or "wrong sender" in read.err


async def test_a_genesis_that_is_not_the_one_asked_for_is_not_followed() -> None:
    blocks, bodies = honest()
    async with telling(Teller(small_genesis(EASY, title="Another one"), blocks, bodies)) as address:
        read = await run_program("loremesh", "canon", "--bootstrap-nodes", address)
    assert read.code in {3, 4}
    assert read.out == ""
