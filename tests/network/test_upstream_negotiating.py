"""`upstream/negotiating.py`: one wait less for every connection and every stream."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from loremesh.network.upstream.negotiating import EagerClient

from libp2p.custom_types import TProtocol  # isort: skip
from libp2p.protocol_muxer.exceptions import MultiselectClientError  # isort: skip
from libp2p.protocol_muxer.multiselect import Multiselect  # isort: skip
from libp2p.protocol_muxer.multiselect_client import MultiselectClient  # isort: skip
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator  # isort: skip

GREETING = b"\x13/multistream/1.0.0\n"
NOISE, OTHER = TProtocol("/noise"), TProtocol("/other")
PROPOSAL = b"\x07/noise\n"


class Pipe:
    """One end of a pipe in memory, which remembers what was written before anything was read."""

    def __init__(self, stream: "trio.StapledStream[Any, Any]") -> None:
        self._stream = stream
        self._has_read = False
        self.opening = b""

    async def write(self, data: bytes) -> None:
        if not self._has_read:
            self.opening += data
        await self._stream.send_all(data)

    async def read(self, n: int | None = None) -> bytes:
        self._has_read = True
        return bytes(await self._stream.receive_some(n))


async def negotiate(
    nursery: trio.Nursery, client: MultiselectClient, proposals: list[TProtocol], known: TProtocol
) -> tuple[TProtocol, bytes]:
    """Let a client agree with upstream's server, which knows one protocol; give what the client sent unasked too."""
    here, there = (Pipe(stream) for stream in trio.testing.memory_stream_pair())
    nursery.start_soon(Multiselect({known: None}).negotiate, MultiselectCommunicator(there))  # type: ignore[arg-type]  # a pipe is enough
    return await client.select_one_of(proposals, MultiselectCommunicator(here)), here.opening  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(("client", "opening"), [(EagerClient, GREETING + PROPOSAL), (MultiselectClient, GREETING)])
async def test_the_proposal_goes_out_with_the_greeting(
    client: Callable[[], MultiselectClient], opening: bytes, nursery: trio.Nursery
) -> None:
    assert await negotiate(nursery, client(), [NOISE], NOISE) == (NOISE, opening)


async def test_a_peer_that_does_not_know_the_protocol_says_so(nursery: trio.Nursery) -> None:
    with pytest.raises(MultiselectClientError, match="not supported"):
        await negotiate(nursery, EagerClient(), [NOISE], OTHER)


async def test_of_several_protocols_each_is_proposed_in_its_turn(nursery: trio.Nursery) -> None:
    assert await negotiate(nursery, EagerClient(), [OTHER, NOISE], NOISE) == (NOISE, GREETING)


async def test_a_peer_that_is_gone_is_an_error_of_the_negotiation() -> None:
    here, there = trio.testing.memory_stream_pair()
    await there.aclose()
    with pytest.raises(MultiselectClientError):
        await EagerClient().select_one_of([NOISE], MultiselectCommunicator(_Gone(here)))  # type: ignore[arg-type]  # a pipe is enough


class _Gone(Pipe):
    async def write(self, data: bytes) -> None:  # noqa: ARG002 - upstream's
        raise ValueError("closed")
