"""Executors as processes that serve calls: without a story, to strangers who lie, and until they are told to stop."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from loremesh.errors import ErrorKind, Fault, ServiceError
from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Hash
from loremesh.protocol.cards import CARD_PROTOCOL, Cards, CardsRequest, check_capability_card
from loremesh.protocol.identity import Identity, peer_id_from_text, peer_id_text
from loremesh.protocol.llm import LLM_PROTOCOL, Accepted, Busy, Delta, LlmError, LlmRequest, SignedRequest, sign_request
from loremesh.protocol.receipts import LlmFinal
from loremesh.protocol.vouchers import VoucherAccepted
from loremesh.protocol.wire import MessageType, expect, seal
from loremesh.roles.networking import running_network, wall_clock
from loremesh.testing.builders import ANN, CAT
from loremesh.testing.caller import Caller, Reply
from loremesh.testing.node_processes import PATIENCE, NodeProcess, StartNode

SLOW = ("--latency", "5,5")


@asynccontextmanager
async def connected(address: str, identity: Identity = ANN) -> AsyncIterator[Behaviour]:
    """Run a client's network, connected to one node."""
    with trio.fail_after(PATIENCE):
        async with running_network(identity, NetworkSettings(listen_addresses=())) as network:
            await network.connect(address, PATIENCE)
            yield network


@asynccontextmanager
async def calling(network: Behaviour, executor: NodeProcess, identity: Identity = ANN) -> AsyncIterator[Caller]:
    ready = await executor.wait("ready")
    peer = peer_id_from_text(ready["peer_id"])
    async with network.open(peer, LLM_PROTOCOL, PATIENCE) as stream:
        yield Caller(identity, peer, stream, wall_clock)


def request(caller: Caller, **changes: object) -> LlmRequest:
    return caller.request(model="builtin", **changes)


async def test_an_executor_without_a_story_serves_a_client_that_knows_only_its_address(start: StartNode) -> None:
    executor = await start("executor")
    ready = await executor.wait("ready")
    assert ready["story"] is None
    assert "writes nothing" in executor.log()
    async with connected(ready["addresses"][0]) as network, calling(network, executor) as caller:
        for _ in range(2):
            transcript, final = await caller.answer(request(caller))
            assert isinstance(final, LlmFinal)
            assert len(transcript.text) > 20
            assert isinstance(await caller.pay(final), VoucherAccepted)
        served = await executor.wait("served")
    assert served["client"] == peer_id_text(ANN.peer_id)
    assert served["model"] == "builtin"
    usage = served["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0
    assert len(executor.told("served")) == 2
    assert await executor.end() == 0


async def test_an_anchor_knows_what_an_executor_serves_and_not_for_long_what_a_dead_one_did(start: StartNode) -> None:
    anchor = await start("anchor", role="validator")
    address = await anchor.wait_address()
    executor = await start("executor", "--bootstrap-nodes", address)
    name = peer_id_from_text((await executor.wait("ready"))["peer_id"])
    validator = peer_id_from_text((await anchor.wait("ready"))["peer_id"])
    async with connected(address) as network:

        async def known() -> list[Hash | bytes]:
            asked = seal(ANN, MessageType.CARDS_REQUEST, CardsRequest("builtin"), wall_clock(), validator)
            answer = await network.call(validator, CARD_PROTOCOL, asked, PATIENCE)
            cards = expect(answer, validator, MessageType.CARDS, Cards).cards
            return [check_capability_card(signed, wall_clock()).peer_id for signed in cards]

        while await known() != [name]:  # noqa: ASYNC110 - a card that comes is no event here
            await trio.sleep(0.1)
        executor.process.kill()
        await anchor.wait("peer", change="dead")
        assert await known() == []


async def test_a_request_that_was_served_is_not_served_again_after_a_kill(start: StartNode) -> None:
    executor = await start("executor")
    address = await executor.wait_address()
    async with connected(address) as network, calling(network, executor) as caller:
        asked = request(caller)
        _, final = await caller.answer(asked)
        assert isinstance(final, LlmFinal)
    executor.process.kill()
    await executor.wait_end()
    again = await start("executor")
    async with connected(await again.wait_address()) as network, calling(network, again) as caller:
        await caller.ask(asked)
        assert (await caller.expect(LlmError)).kind == ErrorKind.REPLAYED
    async with connected(await again.wait_address()) as network, calling(network, again) as caller:
        assert isinstance(await caller.hand_in(final, caller.signed(final.receipt)), VoucherAccepted)


async def test_a_stranger_who_lies_hears_why_and_it_counts_against_it(start: StartNode) -> None:
    executor = await start("executor")
    async with connected(await executor.wait_address()) as network:
        async with calling(network, executor) as caller:
            mine = request(caller)
            await caller.send(MessageType.LLM_REQUEST, SignedRequest(mine, sign_request(CAT, mine).signature))
            assert (await caller.expect(LlmError)).kind == ErrorKind.UNAUTHORISED
        await executor.wait("rejected", fault=str(Fault.BAD_SIGNATURE), what=f"call of {LLM_PROTOCOL}")
        async with calling(network, executor) as caller:
            await caller.ask(caller.request(model="none"))
            error = await caller.expect(LlmError)
            assert error.kind == ErrorKind.UNSUPPORTED_MODEL
            assert "builtin" in error.message
            transcript, final = await caller.answer(request(caller))
            assert isinstance(final, LlmFinal)
            assert transcript.text
    assert "Traceback" not in executor.log()


async def test_a_client_that_vanishes_frees_its_slot(start: StartNode, tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('[[backend]]\nkind = "builtin"\nconcurrency = 1\nlatency = [5, 5]\n', encoding="utf-8")
    executor = await start("executor", "--config", str(file))
    async with connected(await executor.wait_address()) as network:
        with pytest.raises(ServiceError):
            await _vanish(network, executor)
        async with calling(network, executor) as caller:
            caller.session = Hash(b"\x01" * 32)
            while isinstance(reply := await _ask_once(caller), Busy):  # noqa: ASYNC110 - as it was told to
                await trio.sleep(reply.retry_after / 1000)
            assert isinstance(reply, Accepted)
    assert not executor.told("served")


async def _ask_once(caller: Caller) -> Reply | None:
    await caller.ask(request(caller))
    return await caller.reply()


async def _vanish(network: Behaviour, executor: NodeProcess) -> None:
    async with calling(network, executor) as caller:
        await caller.ask(request(caller))
        await caller.expect(Accepted)
        await caller.expect(Delta)
        async with calling(network, executor) as other:
            other.session = Hash(b"\x02" * 32)
            assert isinstance(await _ask_once(other), Busy)
        raise ServiceError


async def test_told_to_stop_an_executor_finishes_the_answers_that_it_has_begun(start: StartNode) -> None:
    executor = await start("executor", *SLOW, "--drain", "60")
    async with connected(await executor.wait_address()) as network, calling(network, executor) as caller:
        await caller.ask(request(caller))
        await caller.expect(Accepted)
        await caller.expect(Delta)
        executor.process.send_signal(signal.SIGTERM)
        while isinstance(reply := await caller.reply(), Delta):
            pass
        assert isinstance(reply, LlmFinal)
    assert await executor.wait_end() == 0


async def test_what_takes_too_long_is_cut_when_an_executor_is_told_to_stop(start: StartNode) -> None:
    executor = await start("executor", *SLOW, "--drain", "0.2")
    async with connected(await executor.wait_address()) as network:
        with pytest.raises(ServiceError):
            await _be_cut(network, executor, signal.SIGTERM)
    assert await executor.wait_end() == 0
    assert not executor.told("served")


async def test_a_second_signal_ends_an_executor_whatever_it_has_begun(start: StartNode) -> None:
    executor = await start("executor", *SLOW, "--drain", "60")
    async with connected(await executor.wait_address()) as network:
        with pytest.raises(ServiceError):
            await _be_cut(network, executor, signal.SIGTERM, signal.SIGINT)
    assert await executor.wait_end() in {128 + signal.SIGTERM, 128 + signal.SIGINT}  # by whichever it hears second
    assert not executor.told("served")


async def _be_cut(network: Behaviour, executor: NodeProcess, *numbers: signal.Signals) -> None:
    async with calling(network, executor) as caller:
        await caller.ask(request(caller))
        await caller.expect(Accepted)
        await caller.expect(Delta)
        for number in numbers:
            executor.send(number)
        while isinstance(await caller.reply(), Delta):
            pass
