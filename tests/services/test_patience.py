"""Who waits as told is never shut out, however many calls wait behind one name; who does not wait is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from loremesh.errors import ErrorKind, ExecutorBusy, Fault, Unreachable
from loremesh.primitives import Hash, Millis, PeerId
from loremesh.protocol.cards import CARD_LIFE, CapabilityCard, ModelOffer
from loremesh.protocol.llm import Accepted, Busy
from loremesh.protocol.receipts import LlmFinal
from loremesh.services.counting import Counting
from loremesh.services.lanes import Lanes
from loremesh.services.paying import Paying
from loremesh.services.refusals import MAX_IMPATIENCE, MAX_REFUSALS
from loremesh.services.router import Chat, Router
from loremesh.services.slots import Slots
from loremesh.testing.builders import CAT
from loremesh.testing.calls import ASKED, CLIENT, EXECUTOR, PRICE, count_words
from loremesh.testing.memory_journal import MemoryJournal
from loremesh.testing.scripted_chat import ScriptedChat
from loremesh.testing.serving_scene import MODEL, Scene, refusal

pytestmark = pytest.mark.usefixtures("autojump_clock")


class OneExecutor:
    """Finds the executor of a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    async def find(self, model: str) -> tuple[CapabilityCard, ...]:
        await trio.lowlevel.checkpoint()
        now = Millis(self.scene.clock())
        offer = ModelOffer(model, self.scene.context, PRICE)
        return (CapabilityCard(EXECUTOR.peer_id, (), (offer,), 0, self.scene.slots.size, now, Millis(now + CARD_LIFE)),)


@asynccontextmanager
async def router(scene: Scene) -> AsyncIterator[Router]:
    """Run a router that knows the executor of a scene, and nobody else."""
    node, counting = await scene.client(CLIENT), Counting(count_words)

    async def reach(_: PeerId) -> None:
        await trio.lowlevel.checkpoint()

    lanes = Lanes(node, reach)
    paying = Paying(CLIENT, MemoryJournal(), counting, scene.clock)
    made = Router(
        identity=CLIENT,
        finder=OneExecutor(scene),
        lanes=lanes,
        paying=paying,
        counting=counting,
        clock=scene.clock,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(lanes.run)
        await nursery.start(made.run)
        yield made
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("slots", "seconds", "least"), [(1, 0.5, 200), (1, 4.0, 25), (16, 4.0, 350), (16, 20.0, 70)])
async def test_a_gateway_with_64_callers_is_never_shut_out_and_fills_the_slots_however_few_they_are(
    scene: Scene, slots: int, seconds: float, least: int
) -> None:
    scene.slots, scene.chat = Slots(slots), ScriptedChat.playing((seconds, "Well."))
    server, answered = scene.server(), 0
    async with router(scene) as here:

        async def ask_on() -> None:
            nonlocal answered
            while True:
                try:
                    await here.call(Chat(MODEL, ASKED), _drop)
                    answered += 1
                except ExecutorBusy as busy:
                    await trio.sleep(busy.retry_after)  # as the gateway tells its own clients

        with trio.move_on_after(120):
            async with trio.open_nursery() as callers:
                for _ in range(64):
                    callers.start_soon(ask_on)
    assert answered >= least
    assert server.busy < MAX_REFUSALS
    assert not [event for event in scene.ended if event.fault is not None]


async def test_a_client_that_waits_as_told_may_be_refused_as_often_as_it_likes(scene: Scene) -> None:
    async with scene.call() as caller:
        told = 0
        for _ in range(3 * MAX_REFUSALS):
            await caller.ask(caller.request(model="none"))
            reply = await caller.reply()
            if isinstance(reply, Busy):
                told += 1
                await trio.sleep(reply.retry_after / 1000)
        assert 0 < told < 10
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)


async def test_a_client_that_does_not_wait_as_told_is_cut_off_and_it_counts_against_it(scene: Scene) -> None:
    scene.slots = Slots(1)
    scene.chat = ScriptedChat.playing((50.0, "Slowly."))
    async with scene.call(CAT) as first, scene.call() as caller:
        await first.ask()
        await first.expect(Accepted)
        for _ in range(MAX_IMPATIENCE):
            await caller.ask()
            await caller.expect(Busy)
        await caller.ask()
        with pytest.raises(Unreachable):
            await caller.reply()
    assert Fault.FLOOD in {event.fault for event in await scene.wait_ended(2)}


async def test_a_new_stream_for_every_call_is_no_way_round_waiting(scene: Scene) -> None:
    for number in range(MAX_IMPATIENCE):
        async with scene.call(session=Hash(number.to_bytes(32, "big"))) as caller:
            caller.made = number
            kind = await refusal(caller, caller.request(model="none"))
            assert kind.kind == ErrorKind.UNSUPPORTED_MODEL
    async with scene.call(session=Hash(b"\x01" * 32)) as caller:
        await caller.ask()
        with pytest.raises(Unreachable):
            await caller.reply()
    assert (await scene.wait_ended(MAX_IMPATIENCE + 1))[-1].fault is Fault.FLOOD


async def test_the_more_often_a_client_was_refused_the_longer_it_is_told_to_wait(scene: Scene) -> None:
    scene.slots = Slots(1)
    scene.chat = ScriptedChat.playing((600.0, "Slowly."))
    async with scene.call(CAT) as first, scene.call() as caller:
        await first.ask(first.request(expires=Millis(scene.clock() + 600_000)))
        await first.expect(Accepted)
        waits = []
        for _ in range(MAX_REFUSALS - 1):
            await caller.ask(caller.request(model="none"))
            await caller.reply()
        await caller.ask()
        waits.append((await caller.expect(Busy)).retry_after)
        await caller.ask()
        waits.append((await caller.expect(Busy)).retry_after)
    assert waits[0] >= 4 * MAX_REFUSALS
    assert 50_000 < waits[1] <= 60_000


async def _drop(_: str) -> None:
    await trio.lowlevel.checkpoint()
