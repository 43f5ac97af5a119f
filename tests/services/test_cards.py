"""Cards: every node knows who serves what now, forgets it when it is over, and believes nobody but the signer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest
import trio

from loremesh.errors import Fault, Unreachable
from loremesh.network.events import CallServed, GossipRefused
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.cards import (
    CARD_LIFE,
    CARD_PROTOCOL,
    CARDS_TOPIC,
    EXECUTOR_KEY,
    MAX_CARDS,
    CapabilityCard,
    Cards,
    CardsRequest,
    ModelOffer,
    SignedCard,
    check_capability_card,
    model_key,
    sign_capability_card,
)
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import MessageType, Nothing, expect, seal
from loremesh.services.cards import EVERY, PROVIDE_EVERY
from loremesh.services.happenings import PeerChanged, Rejected
from loremesh.services.latest import Latest
from loremesh.testing.builders import CAT, identity
from loremesh.testing.happened import PATIENCE
from loremesh.testing.small_network import SmallNetwork, SmallNode

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
SMALL = ModelOffer("small", 4096, 250)
LARGE = ModelOffer("large", 8192, 900)


@dataclass(slots=True)
class Stock:
    """What an executor pretends to have."""

    offers: tuple[ModelOffer, ...] = (SMALL, LARGE)
    running: int = 0
    slots: int = 4
    load: Latest[int] = field(default_factory=lambda: Latest(0))

    def set(self, running: int) -> None:
        self.running = running
        self.load.set(running)


def known(node: SmallNode, model: str = "") -> list[CapabilityCard]:
    return [signed.card for signed in node.services.cards.fresh(model)]


async def wait_known(node: SmallNode, fits: Callable[[list[CapabilityCard]], bool]) -> list[CapabilityCard]:
    with trio.fail_after(PATIENCE):
        while not fits(cards := known(node)):  # noqa: ASYNC110 - a card that expires is no event
            await trio.sleep(0.1)
    return cards


async def wait_names(node: SmallNode, names: Iterable[PeerId]) -> list[CapabilityCard]:
    wanted = set(names)
    return await wait_known(node, lambda cards: {card.peer_id for card in cards} == wanted)


async def ask(asker: SmallNode, node: SmallNode, model: str = "") -> list[CapabilityCard]:
    request = seal(asker.identity, MessageType.CARDS_REQUEST, CardsRequest(model), asker.clock(), node.peer_id)
    answer = await asker.network.call(node.peer_id, CARD_PROTOCOL, request, 5)
    cards = expect(answer, node.peer_id, MessageType.CARDS, Cards).cards
    return [check_capability_card(signed, Millis(asker.clock())) for signed in cards]


@pytest.fixture
async def two(new_network: NewNetwork) -> tuple[SmallNetwork, SmallNode, SmallNode]:
    """An anchor without a story, and an executor beside it that serves two models."""
    network = new_network()
    anchor = await network.start("anchor", anchor=True)
    executor = await network.start("executor", anchor, anchor=True)
    await anchor.wait_joined(executor.peer_id)
    return network, anchor, executor


async def test_an_anchor_without_a_story_knows_what_an_executor_serves_and_tells_whoever_asks(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    network, anchor, executor = two
    nursery.start_soon(executor.services.cards.announce, Stock())
    [card] = await wait_names(anchor, [executor.peer_id])
    assert card.models == (SMALL, LARGE)
    assert (card.running, card.slots) == (0, 4)
    assert card.addresses == executor.network.addresses()
    client = await network.start("client", anchor, anchor=True)
    await client.wait_joined(anchor.peer_id)
    assert [one.peer_id for one in await ask(client, anchor)] == [executor.peer_id]
    assert [one.peer_id for one in await ask(client, anchor, "large")] == [executor.peer_id]
    assert await ask(client, anchor, "huge") == []


async def test_an_executor_that_is_asked_itself_answers_with_its_card_as_of_now(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    _, anchor, executor = two
    stock = Stock()
    nursery.start_soon(executor.services.cards.announce, stock)
    await wait_names(anchor, [executor.peer_id])
    stock.running = 3
    [card] = await ask(anchor, executor)
    assert card.running == 3
    assert card.expires - card.time == CARD_LIFE


@pytest.mark.parametrize("anchors", [1, 2, 3])
async def test_with_two_three_and_four_nodes_every_node_knows_every_executor(
    anchors: int, new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network()
    nodes = [await network.start("anchor-0", anchor=True)]
    for number in range(1, anchors):
        nodes.append(await network.start(f"anchor-{number}", nodes[0], anchor=True))
    executor = await network.start("executor", nodes[0], anchor=True)
    nursery.start_soon(executor.services.cards.announce, Stock())
    for node in nodes:
        await wait_names(node, [executor.peer_id])


async def test_an_executor_that_stays_is_known_for_as_long_as_it_stays(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    _, anchor, executor = two
    nursery.start_soon(executor.services.cards.announce, Stock())
    times = set()
    await wait_names(anchor, [executor.peer_id])
    for _ in range(30):
        await trio.sleep(EVERY / 2)
        [card] = known(anchor)
        times.add(card.time)
    assert len(times) >= 14


async def test_a_dead_executor_is_gone_at_once_where_that_is_known_and_within_90_seconds_everywhere(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network()
    near = await network.start("near", anchor=True)
    far = await network.start("far", near, anchor=True)
    executor = await network.start("executor", near, anchor=True)
    executor.network.deny(frozenset({far.peer_id}))  # it hears of the executor through others alone
    nursery.start_soon(executor.services.cards.announce, Stock())
    for node in (near, far):
        await wait_names(node, [executor.peer_id])
    died = trio.current_time()
    await executor.kill()
    await near.happened.wait(PeerChanged, lambda one: one == PeerChanged(executor.peer_id, "dead"))
    assert known(near) == []
    await wait_names(far, [])
    assert trio.current_time() - died <= 90.1


async def test_an_executor_that_says_goodbye_is_gone_at_once(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    async with trio.open_nursery() as nursery:
        nursery.start_soon(executor.services.cards.announce, Stock())
        await wait_names(anchor, [executor.peer_id])
        nursery.cancel_scope.cancel()
    await executor.stop()
    await anchor.happened.wait(PeerChanged, lambda one: one == PeerChanged(executor.peer_id, "left"))
    assert known(anchor) == []


async def test_a_change_of_load_is_told_soon_and_not_each_small_one(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    _, anchor, executor = two
    stock = Stock(slots=16)
    nursery.start_soon(executor.services.cards.announce, stock)
    await wait_names(anchor, [executor.peer_id])
    await trio.sleep(3)
    started = trio.current_time()
    stock.set(1)
    await trio.sleep(4)
    assert known(anchor)[0].running == 0
    stock.set(16)
    await wait_known(anchor, lambda cards: cards[0].running == 16)
    assert trio.current_time() - started < 7
    before = known(anchor)[0].time
    for running in range(500):
        stock.set(running % 17)
        await trio.sleep(0.01)
    await trio.sleep(1)
    assert known(anchor)[0].time - before <= 6_000


async def test_an_executor_that_takes_no_calls_any_more_says_so(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    _, anchor, executor = two
    stock = Stock()
    nursery.start_soon(executor.services.cards.announce, stock)
    await wait_names(anchor, [executor.peer_id])
    stock.slots = 0
    await executor.services.cards.publish()
    await wait_known(anchor, lambda cards: cards[0].slots == 0)


async def test_whoever_joins_late_hears_of_an_executor_at_once(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    network, anchor, executor = two
    nursery.start_soon(executor.services.cards.announce, Stock())
    await wait_names(anchor, [executor.peer_id])
    await trio.sleep(5)
    late = await network.start("late", executor, anchor=True)
    await executor.wait_joined(late.peer_id)
    started = trio.current_time()
    await wait_names(late, [executor.peer_id])
    assert trio.current_time() - started < 3


async def test_an_executor_provides_its_role_and_its_models_in_the_dht_and_does_so_again(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    _, anchor, executor = two
    stock = Stock()
    nursery.start_soon(executor.services.cards.announce, stock)
    await wait_names(anchor, [executor.peer_id])
    await trio.sleep(1)
    for key in (EXECUTOR_KEY, model_key("small"), model_key("large")):
        [record] = await anchor.network.find_providers(key)
        assert record.peer_id == executor.peer_id
        assert record.addresses == executor.network.addresses()
    assert await anchor.network.find_providers(model_key("huge")) == ()
    stock.offers = (ModelOffer("huge", 4096, 0),)
    await trio.sleep(PROVIDE_EVERY + 1)
    assert len(await anchor.network.find_providers(model_key("huge"))) == 1


async def test_while_it_tells_of_its_models_an_executor_goes_on_hearing_of_its_peers(
    two: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery
) -> None:
    network, anchor, executor = two
    nursery.start_soon(executor.services.cards.announce, Stock())
    for number in range(3):
        await trio.sleep(PROVIDE_EVERY / 2)
        late = await network.start(f"late-{number}", anchor, anchor=True)
        await executor.wait_joined(late.peer_id)
    assert len(known(anchor)) == 1


# ---- what is not believed


def card_of(who: Identity, node: SmallNode, **changes: object) -> SignedCard:
    now = Millis(node.clock())
    usual = CapabilityCard(who.peer_id, (), (SMALL,), 0, 1, now, Millis(now + CARD_LIFE))
    return sign_capability_card(who, replace(usual, **changes))  # type: ignore[arg-type]  # named by the test


def aged(now: int, age: int) -> dict[str, Millis]:
    """Give the times of a card that was made `age` milliseconds ago."""
    return {"time": Millis(now - age), "expires": Millis(now - age + CARD_LIFE)}


async def gossip(node: SmallNode, signed: SignedCard) -> None:
    await node.network.publish(CARDS_TOPIC, seal(node.identity, MessageType.CARD, signed, node.clock()))


async def test_a_card_of_somebody_else_is_refused_and_its_sender_answers_for_it(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    await gossip(executor, card_of(CAT, executor))
    rejected = await anchor.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (executor.peer_id, Fault.WRONG_SENDER)
    assert known(anchor) == []


async def test_a_card_with_a_bad_signature_is_refused_and_its_sender_answers_for_it(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    good = card_of(executor.identity, executor)
    await gossip(executor, replace(good, card=replace(good.card, slots=9)))
    rejected = await anchor.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (executor.peer_id, Fault.BAD_SIGNATURE)
    assert known(anchor) == []


async def test_an_old_card_is_refused_and_costs_nobody_anything(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    now = executor.clock()
    await gossip(executor, card_of(executor.identity, executor, **aged(now, CARD_LIFE + 1)))
    rejected = await anchor.happened.wait(Rejected)
    assert rejected.fault is Fault.EXPIRED
    assert anchor.services.scores.score(executor.peer_id) == 0
    assert known(anchor) == []


async def test_of_two_cards_the_later_holds_in_whichever_order_they_come(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    now = executor.clock()
    for slots, age in ((7, 1000), (3, 2000)):
        await gossip(executor, card_of(executor.identity, executor, slots=slots, **aged(now, age)))
    await wait_known(anchor, bool)
    await trio.sleep(1)
    assert [card.slots for card in known(anchor)] == [7]


async def test_a_flood_of_cards_is_not_passed_on(new_network: NewNetwork) -> None:
    network = new_network()
    middle = await network.start("middle", anchor=True)
    far = await network.start("far", middle, anchor=True)
    loud = await network.start("loud", middle, anchor=True)
    loud.network.deny(frozenset({far.peer_id}))
    await middle.wait_joined(loud.peer_id)
    for number in range(200):
        await gossip(loud, card_of(loud.identity, loud, **aged(loud.clock(), -number)))
    rejected = await middle.happened.wait(Rejected)
    assert rejected.fault is Fault.QUOTA
    await trio.sleep(1)
    assert far.services.heard[GossipRefused] == 0
    assert middle.services.heard[GossipRefused] >= 140
    assert middle.services.scores.score(loud.peer_id) == 0


async def test_of_many_cards_the_book_keeps_a_bounded_number_and_an_answer_has_64(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    for number in range(600):
        anchor.services.cards.take(card_of(identity(f"executor {number}"), anchor))
    assert len(known(anchor)) == 512
    assert len(await ask(executor, anchor)) == MAX_CARDS
    first, second = [{card.peer_id for card in await ask(executor, anchor)} for _ in range(2)]
    assert first != second


async def test_whatever_else_is_asked_on_the_protocol_of_cards_is_a_fault(
    two: tuple[SmallNetwork, SmallNode, SmallNode],
) -> None:
    _, anchor, executor = two
    with pytest.raises(Unreachable):
        await executor.network.call(
            anchor.peer_id, CARD_PROTOCOL, seal(executor.identity, MessageType.STATUS_REQUEST, Nothing(), 0), 5
        )
    rejected = await anchor.happened.wait(Rejected)
    assert rejected.fault is Fault.UNEXPECTED
    assert anchor.services.heard[CallServed] >= 1
