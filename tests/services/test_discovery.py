"""Who serves what: asked of whoever is connected, then of the DHT; only what is fresh and signed counts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio

from loremesh.errors import NoExecutor, Unreachable, UnsupportedModel
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Millis
from loremesh.protocol.cards import (
    CARD_LIFE,
    CARD_PROTOCOL,
    EXECUTOR_KEY,
    MAX_CARDS,
    Cards,
    CardsRequest,
    ModelOffer,
    SignedCard,
    model_key,
)
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import MessageType, expect, seal
from loremesh.services.discovery import REFRESH, SURE, Discovery
from loremesh.testing.builders import ANN, BOB, CAT, DAN, identity
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.scripted_executor import MODEL, ScriptedExecutor
from loremesh.testing.virtual_time import virtual_clock

pytestmark = pytest.mark.usefixtures("autojump_clock")

CLOCK = virtual_clock()


@dataclass
class World:
    """A client, and the nodes that a test starts."""

    between: MemoryNetwork
    nursery: trio.Nursery
    client: MemoryNode
    discovery: Discovery
    places: dict[Identity, MemoryNode] = field(default_factory=dict)
    """Of the executors."""

    async def executor(self, who: Identity, *, model: str = MODEL, is_known: bool = False) -> ScriptedExecutor:
        """Start one; `is_known`: the client is connected to it."""
        executor = ScriptedExecutor(who, CLOCK, offer=ModelOffer(model, 8192, 250))
        node = executor.attach(self.between.node(who))
        await self.nursery.start(node.run)
        self.places[who] = node
        if is_known:
            await self.client.connect(node.place)
        return executor

    async def validator(self, who: Identity, *cards: SignedCard, pause: float = 0) -> MemoryNode:
        """Start a node that knows cards, and connect the client to it."""

        async def serve(stream: Stream) -> None:
            frame = await stream.receive(60)
            assert frame is not None
            model = expect(frame, stream.peer_id, MessageType.CARDS_REQUEST, CardsRequest).model
            found = tuple(one for one in cards if not model or any(offer.id == model for offer in one.card.models))
            await trio.sleep(pause)
            await stream.send(seal(who, MessageType.CARDS, Cards(found), CLOCK(), stream.peer_id))
            await stream.finish()

        node = self.between.node(who)
        node.serve(CARD_PROTOCOL, serve)
        await self.nursery.start(node.run)
        await self.client.connect(node.place)
        return node


@asynccontextmanager
async def world(patience: float = 10, bootstrap: tuple[str, ...] = ()) -> AsyncIterator[World]:
    between = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        client = between.node(ANN, NetworkSettings(listen_addresses=(), dht_server=False))
        await nursery.start(client.run)
        discovery = Discovery(ANN, client, CLOCK, patience=patience, bootstrap=bootstrap)
        yield World(between, nursery, client, discovery)
        nursery.cancel_scope.cancel()


async def test_a_connected_node_passes_on_the_cards_it_knows() -> None:
    async with world() as here:
        executor = await here.executor(BOB)
        place = here.places[BOB].addresses()
        await here.validator(CAT, executor.card(place))
        (card,) = await here.discovery.find(MODEL)
        assert (card.peer_id, card.addresses) == (BOB.peer_id, place)
        await here.discovery.reach(BOB.peer_id)
        assert BOB.peer_id in here.client.connected()


async def test_an_executor_that_is_connected_answers_for_itself() -> None:
    async with world() as here:
        await here.executor(BOB, is_known=True)
        (card,) = await here.discovery.find(MODEL)
        assert card.peer_id == BOB.peer_id


async def test_where_connected_nodes_know_nobody_the_dht_is_asked() -> None:
    async with world() as here:
        await here.executor(BOB)
        hub = await here.validator(CAT)
        await here.places[BOB].connect(hub.place)
        await trio.sleep(1)
        await here.places[BOB].provide(model_key(MODEL))
        (card,) = await here.discovery.find(MODEL)
        assert card.peer_id == BOB.peer_id


async def test_what_the_dht_names_and_is_dead_costs_no_more_than_a_dial() -> None:
    async with world() as here:
        hub = await here.validator(CAT)
        for who in (BOB, DAN):
            await here.executor(who)
            await here.places[who].connect(hub.place)
            await trio.sleep(1)
            await here.places[who].provide(EXECUTOR_KEY)
        here.places[DAN].vanish()
        (card,) = await here.discovery.find(MODEL)
        assert card.peer_id == BOB.peer_id


async def test_a_node_that_is_slow_holds_nobody_up() -> None:
    async with world() as here:
        executor = await here.executor(BOB)
        await here.validator(DAN, pause=2.5)
        await here.validator(CAT, executor.card(here.places[BOB].addresses()))
        began = trio.current_time()
        assert await here.discovery.find(MODEL)
        assert trio.current_time() - began < 0.5


async def test_an_executor_that_comes_up_while_one_looks_is_found() -> None:
    async with world() as here:
        await here.validator(CAT)
        here.nursery.start_soon(_start_later, here, 4.0)
        began = trio.current_time()
        assert await here.discovery.find(MODEL)
        assert 4 <= trio.current_time() - began < 9


async def _start_later(here: World, seconds: float) -> None:
    await trio.sleep(seconds)
    await here.executor(BOB, is_known=True)


async def test_where_there_is_nobody_the_caller_hears_after_its_patience_what_was_tried() -> None:
    async with world(patience=7) as here:
        await here.validator(CAT)
        began = trio.current_time()
        with pytest.raises(NoExecutor) as caught:
            await here.discovery.find(MODEL)
        assert trio.current_time() - began == pytest.approx(7, abs=0.2)
        assert any("knows 0 executors" in line for line in caught.value.tried)
        assert any(line.startswith(f"the DHT, for {EXECUTOR_KEY}") for line in caught.value.tried)


async def test_where_there_are_executors_of_other_models_only_those_are_named_and_soon() -> None:
    async with world() as here:
        first, second = await here.executor(BOB, model="b-model"), await here.executor(CAT, model="a-model")
        await here.validator(DAN, first.card(()), second.card(()))
        began = trio.current_time()
        with pytest.raises(UnsupportedModel) as caught:
            await here.discovery.find(MODEL)
        assert caught.value.served == ("a-model", "b-model")
        assert SURE <= trio.current_time() - began < SURE + 2
        began = trio.current_time()
        with pytest.raises(UnsupportedModel):
            await here.discovery.find(MODEL)
        assert trio.current_time() - began < 1


async def test_a_card_counts_until_it_expires_and_no_longer() -> None:
    async with world(patience=1) as here:
        executor = await here.executor(BOB)
        await here.validator(CAT, executor.card(()))
        assert await here.discovery.find(MODEL)
        await trio.sleep(CARD_LIFE / 1000 + 1)
        assert not here.discovery.fresh()
        with pytest.raises(NoExecutor):
            await here.discovery.find(MODEL)


async def test_of_two_cards_of_one_executor_the_later_holds() -> None:
    async with world() as here:
        executor = await here.executor(BOB)
        now = Millis(CLOCK())
        old = executor.card((), running=1, time=Millis(now - 1000), expires=Millis(now + 50_000))
        await here.validator(CAT, executor.card((), running=3))
        await here.validator(DAN, old, pause=1)
        await here.discovery.look()
        (card,) = here.discovery.fresh()
        assert card.running == 3


async def test_a_card_that_is_not_its_executors_own_word_is_not_believed_nor_whoever_passes_it_on() -> None:
    async with world(patience=1) as here:
        executor = await here.executor(BOB)
        good = executor.card(())
        forged = SignedCard(replace(good.card, models=(ModelOffer(MODEL, 1, 0),), running=4), good.signature)
        honest = await here.executor(DAN)
        await here.validator(CAT, honest.card(()), forged)
        with pytest.raises(NoExecutor) as caught:
            await here.discovery.find(MODEL)
        assert any("bad signature" in line for line in caught.value.tried)


async def test_a_card_that_expired_on_its_way_is_nobodys_fault() -> None:
    async with world() as here:
        executor, other = await here.executor(BOB), await here.executor(DAN)
        now = Millis(CLOCK())
        old = executor.card((), time=Millis(now - 2000), expires=Millis(now - 1000))
        await here.validator(CAT, old, other.card(()))
        assert [card.peer_id for card in await here.discovery.find(MODEL)] == [DAN.peer_id]


async def test_where_there_are_more_executors_than_one_answer_holds_those_of_the_model_are_asked_for() -> None:
    async with world() as here:
        asked = list[bytes | None]()

        async def serve(stream: Stream) -> None:
            asked.append(await stream.receive(60))
            cards = [ScriptedExecutor(identity(f"e{n}"), CLOCK).card(()) for n in range(MAX_CARDS)]
            await stream.send(seal(CAT, MessageType.CARDS, Cards(tuple(cards)), CLOCK(), stream.peer_id))
            await stream.finish()

        node = here.between.node(CAT)
        node.serve(CARD_PROTOCOL, serve)
        await here.nursery.start(node.run)
        await here.client.connect(node.place)
        assert len(await here.discovery.find(MODEL)) == MAX_CARDS
        assert MODEL.encode() in (asked[0] or b"")


async def test_several_who_look_for_the_same_ask_once() -> None:
    async with world() as here:
        executor = await here.executor(BOB)
        asked = list[bytes | None]()

        async def serve(stream: Stream) -> None:
            asked.append(await stream.receive(60))
            await stream.send(seal(CAT, MessageType.CARDS, Cards((executor.card(()),)), CLOCK(), stream.peer_id))
            await stream.finish()

        node = here.between.node(CAT)
        node.serve(CARD_PROTOCOL, serve)
        await here.nursery.start(node.run)
        await here.client.connect(node.place)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(here.discovery.find, MODEL)
        assert len(asked) == 1


async def test_a_client_that_stays_looks_again_and_comes_back_to_its_bootstrap_nodes() -> None:
    between = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        client = between.node(ANN, NetworkSettings(listen_addresses=(), dht_server=False))
        await nursery.start(client.run)
        executor = ScriptedExecutor(BOB, CLOCK)
        node = executor.attach(between.node(BOB))
        await nursery.start(node.run)
        discovery = Discovery(ANN, client, CLOCK, bootstrap=(node.place,))
        nursery.start_soon(discovery.run)
        for _ in range(2):
            await trio.sleep(REFRESH + 5)
            (card,) = discovery.fresh()
            assert card.time > CLOCK() - 1000 * REFRESH
            await client.disconnect(BOB.peer_id)
        nursery.cancel_scope.cancel()


async def test_an_executor_at_none_of_its_addresses_cannot_be_reached() -> None:
    async with world() as here:
        executor = await here.executor(BOB)
        other = await here.executor(DAN)
        del other
        wrong = ("/ip4/127.0.0.1/tcp/9", "no address", here.places[DAN].addresses()[0].partition("/p2p/")[0])
        await here.validator(CAT, executor.card(wrong))
        await here.discovery.find(MODEL)
        with pytest.raises(Unreachable) as caught:
            await here.discovery.reach(BOB.peer_id)
        assert "somebody else is there" in str(caught.value)
