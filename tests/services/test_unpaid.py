"""Who leaves before it pays is lent so much and no more; who pays is served, however often it breaks off."""

import pytest
import trio

from loremesh.primitives import Hash, PeerId
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import Accepted, Busy, Delta
from loremesh.protocol.receipts import LlmFinal
from loremesh.protocol.vouchers import VoucherAccepted
from loremesh.services.unpaid import FORGIVING, Unpaid
from loremesh.testing.builders import CAT
from loremesh.testing.calls import CLIENT, PRICE
from loremesh.testing.scripted_chat import ScriptedChat
from loremesh.testing.serving_scene import Scene

pytestmark = pytest.mark.usefixtures("autojump_clock")

QUESTION = "one two three four"
LIMIT = 40


@pytest.fixture
async def scene(nursery: trio.Nursery) -> Scene:
    scene = await Scene.set(nursery)
    scene.chat = ScriptedChat.playing(("word " * 6, 1.0, "the end"))
    scene.server(unpaid_limit=LIMIT)
    return scene


async def call(scene: Scene, number: int, who: Identity = CLIENT, *, is_left: bool) -> Busy | LlmFinal | None:
    """Call on a stream and in a session of its own; leave before the end, or before the voucher."""
    before = len(scene.ended)
    async with scene.call(who, Hash(number.to_bytes(32, "little"))) as caller:
        await caller.ask(caller.request(QUESTION))
        reply = await caller.reply()
        if isinstance(reply, Busy):
            return reply
        assert isinstance(reply, Accepted)
        final = None
        while not isinstance(final, LlmFinal):
            final = await caller.reply()
            assert isinstance(final, Delta | LlmFinal)
            if is_left:
                await caller.stream.reset()
                break
    await scene.wait_ended(before + 1)
    return final if isinstance(final, LlmFinal) else None


@pytest.mark.parametrize("is_left", [True, False])
async def test_who_always_leaves_before_it_pays_is_soon_told_to_wait_and_others_are_served(
    scene: Scene, *, is_left: bool
) -> None:
    replies = [await call(scene, number, is_left=is_left) for number in range(8)]
    served = [reply for reply in replies if not isinstance(reply, Busy)]
    assert 2 <= len(served) <= 6
    reply = replies[-1]
    assert isinstance(reply, Busy)
    assert "not paid for" in reply.reason
    assert reply.retry_after > 1000
    assert not isinstance(await call(scene, 100, CAT, is_left=is_left), Busy)
    await trio.sleep(3600)
    assert not isinstance(await call(scene, 101, is_left=is_left), Busy)
    assert [event.fault for event in scene.ended] == [None] * len(scene.ended)


async def test_who_pays_is_served_though_it_breaks_off_one_answer_in_ten(scene: Scene) -> None:
    async with scene.call() as caller:
        for number in range(100):
            if number % 10 == 5:
                assert not isinstance(await call(scene, number, is_left=True), Busy)
            _, final = await caller.answer(caller.request(QUESTION))
            assert isinstance(final, LlmFinal)
            assert isinstance(await caller.pay(final), VoucherAccepted)


async def test_what_is_free_can_be_left_and_nothing_is_owed_for_it(scene: Scene) -> None:
    scene.price = 0
    for number in range(8):
        assert not isinstance(await call(scene, number, is_left=True), Busy)
    scene.price = PRICE
    assert not isinstance(await call(scene, 9, is_left=True), Busy)


def test_what_is_owed_is_forgiven_within_an_hour_and_by_paying() -> None:
    now = 0.0
    unpaid = Unpaid(3600, lambda: now)
    name = CLIENT.peer_id
    unpaid.leave(name, 3600)
    assert unpaid.wait(name) == 0
    unpaid.leave(name, 100)
    assert unpaid.wait(name) == 100
    unpaid.pay(name, 60 * FORGIVING)
    assert unpaid.wait(name) == 40
    now = 50.0
    assert unpaid.wait(name) == 0
    unpaid.pay(name, 10**6)
    assert len(unpaid) == 0
    unpaid.leave(name, 3700)
    assert unpaid.wait(name) == 100  # what was paid before is no purse
    assert unpaid.total == 7400


def test_many_names_cost_little_memory_and_those_who_owe_most_are_remembered() -> None:
    unpaid = Unpaid(100, lambda: 0.0)
    unpaid.leave(CLIENT.peer_id, 10**6)
    for number in range(4200):
        unpaid.leave(PeerId(number.to_bytes(39, "big")), 1)
    assert len(unpaid) == 4096
    assert unpaid.wait(CLIENT.peer_id) > 0
