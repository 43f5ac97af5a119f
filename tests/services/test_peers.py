"""The table of peers: who joined, who left, who is silent, who is dead, and who is dialled again."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import trio

from loremesh.errors import Fault, InvalidMessage, Unreachable
from loremesh.network.frames import Stream
from loremesh.primitives import Height, Millis, PeerId
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    ListedPeer,
    MessageType,
    Nothing,
    PeerCard,
    PeerList,
    PeerRecord,
    check_record,
    read_peer_list,
    seal,
    sign_card,
    topic,
    unseal,
)
from loremesh.services.happenings import PeerChanged, Rejected
from loremesh.services.liveness import DEAD_AFTER, HEARTBEAT, SUSPECT_AFTER, Liveness
from loremesh.testing.builders import BOB, EASY, identity, small_genesis
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.small_network import SmallNetwork, SmallNode

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
EVE = identity("eve")
NOT_THE_DROIDS = "these-are-not-the-droids-you-are-looking-for"


def card(who: Identity, *addresses: str, time: int = 0) -> PeerCard:
    return PeerCard(who.peer_id, addresses, ("executor",), (), (), Height(0), Millis(time))


def changes(node: SmallNode, peer: PeerId) -> list[str]:
    return [one.change for one in node.happened.of(PeerChanged) if one.peer_id == peer]


def liveness(node: SmallNode, peer: PeerId) -> Liveness:
    return node.services.peers._known[peer].liveness


async def ask(
    stranger: MemoryNode, node: SmallNode, kind: MessageType, payload: object
) -> tuple[MessageType, PeerList]:
    """Let a stranger (EVE) ask a node on the peers protocol."""
    frame = seal(EVE, kind, payload, 0, node.peer_id)
    answer = await stranger.call(node.peer_id, PEERS_PROTOCOL, frame, 5)
    found, data = unseal(answer, node.peer_id, EVE.peer_id)
    return found, read_peer_list(found, data, node.peer_id)


@pytest.fixture
async def stranger(pair: tuple[SmallNetwork, SmallNode, SmallNode], nursery: trio.Nursery) -> MemoryNode:
    """EVE's bare network, connected to the first of the pair."""
    network, first, _ = pair
    eve = network.between.node(EVE)
    await nursery.start(eve.run)
    await eve.connect(first.address)
    await trio.sleep(1)
    return eve


Pair = tuple[SmallNetwork, SmallNode, SmallNode]


async def test_whoever_connects_says_who_it_is_and_both_sides_tell(pair: Pair) -> None:
    _, first, second = pair
    assert changes(first, second.peer_id) == ["joined"]
    assert changes(second, first.peer_id) == ["joined"]


async def test_a_third_is_found_through_the_peer_list_and_the_mesh_is_whole(pair: Pair) -> None:
    network, first, second = pair
    third = await network.start("cat", first)
    await third.wait_joined(second.peer_id)
    await second.wait_joined(third.peer_id)
    assert set(third.network.connected()) == {first.peer_id, second.peer_id}


async def test_heartbeats_keep_everybody_alive(pair: Pair) -> None:
    _, first, second = pair
    await trio.sleep(20 * DEAD_AFTER)
    assert changes(first, second.peer_id) == ["joined"]
    assert liveness(first, second.peer_id) is Liveness.ALIVE
    assert len(first.services.peers.listed()) == 2


async def test_an_anchor_that_gossips_nothing_stays_alive_and_keeps_a_list(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    anchor = await network.start("ann", anchor=True)
    nodes = [await network.start(name, anchor) for name in ("bob", "cat")]
    await trio.sleep(5 * DEAD_AFTER)
    for node in nodes:
        assert changes(node, anchor.peer_id) == ["joined"]
        assert changes(anchor, node.peer_id) == ["joined"]
    listed = anchor.services.peers.listed()
    assert {one.record.card.peer_id for one in listed} == {anchor.peer_id, *(node.peer_id for node in nodes)}
    assert listed[0].record.card.story == ()
    assert listed[1].record.card.story == (nodes[0].chain.store.story,)


async def test_nodes_of_different_stories_do_not_take_each_other_for_dead(new_network: NewNetwork) -> None:
    network = new_network(small_genesis(EASY))
    first = await network.start("ann")
    other = await network.start("bob", first, genesis=small_genesis(EASY, title="Another one"))
    await trio.sleep(5 * DEAD_AFTER)
    assert changes(first, other.peer_id) == ["joined"]
    assert changes(other, first.peer_id) == ["joined"]


async def test_a_silent_peer_is_suspect_after_15_seconds_and_dead_after_30(pair: Pair) -> None:
    network, first, second = pair
    await trio.sleep(60)
    network.between.cut(first.peer_id, second.peer_id, silently=True)
    began = trio.current_time()
    await trio.sleep(SUSPECT_AFTER - HEARTBEAT - 2)
    assert liveness(first, second.peer_id) is Liveness.ALIVE
    await trio.sleep(HEARTBEAT + 5)
    assert liveness(first, second.peer_id) is Liveness.SUSPECT
    assert len(first.services.peers.listed()) == 1
    await first.happened.wait(PeerChanged, lambda one: one.change == "dead")
    assert DEAD_AFTER - HEARTBEAT - 2 <= trio.current_time() - began <= DEAD_AFTER + 3


async def test_a_dead_peer_that_speaks_again_has_joined_again(pair: Pair) -> None:
    network, first, second = pair
    network.between.cut(first.peer_id, second.peer_id, silently=True)
    await first.happened.wait(PeerChanged, lambda one: one.change == "dead")
    network.between.heal()
    await trio.sleep(3 * HEARTBEAT)
    assert changes(first, second.peer_id) == ["joined", "dead", "joined"]


async def test_a_refused_connection_is_dead_at_once(pair: Pair) -> None:
    _, first, second = pair
    await trio.sleep(60)
    began = trio.current_time()
    await kill(second)
    await first.happened.wait(PeerChanged, lambda one: one.change == "dead")
    assert trio.current_time() - began < 3


async def kill(node: SmallNode) -> None:
    """End a node as kill -9 would: it says nothing."""
    node.network.deny(frozenset(node.network.connected()))
    await node.stop()


async def test_whoever_says_goodbye_has_left_and_is_not_dialled(pair: Pair) -> None:
    _, first, second = pair
    await second.stop()
    await trio.sleep(120)
    assert changes(first, second.peer_id) == ["joined", "left"]
    assert second.peer_id not in first.services.peers._known


async def test_a_bootstrap_node_that_comes_back_is_found_again(pair: Pair) -> None:
    network, first, second = pair
    await first.stop()
    await trio.sleep(600)
    again = await network.start("ann")
    await again.wait_joined(second.peer_id)
    await trio.sleep(1)
    assert changes(second, first.peer_id)[-1] == "joined"


async def test_a_node_that_meets_nobody_says_that_it_goes_on_alone(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    network, first, _ = pair
    assert "alone" not in caplog.text
    network.between.cut(first.peer_id, EVE.peer_id)
    lonely = await network.start("eve", first)
    await lonely.services.ready.wait()
    assert "going on alone" in caplog.text


async def test_an_address_where_nobody_answers_is_dialled_ever_less_often_and_then_forgotten(pair: Pair) -> None:
    _, first, _ = pair
    dials = first.services.peers._dials
    address = "/ip4/127.0.0.1/tcp/9"
    began = trio.current_time()
    first.services.peers.hear_of(EVE.peer_id, (address,))
    tries = list[float]()
    while address in dials:
        if dials[address].failures > len(tries):
            tries.append(trio.current_time() - began)
        await trio.sleep(0.1)
    gaps = [later - earlier for earlier, later in pairwise(tries)]
    assert len(tries) == 6
    assert gaps == sorted(gaps)
    assert 30 < trio.current_time() - began < 90


async def test_the_tracker_answers_with_the_list_and_others_say_who_the_tracker_is(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network(small_genesis(EASY, tracker=identity("ann")))
    tracker = await network.start("ann")
    other = await network.start("bob", tracker)
    await tracker.wait_joined(other.peer_id)
    eve = network.between.node(EVE)
    await nursery.start(eve.run)
    await eve.connect(tracker.address)
    await eve.connect(other.address)
    kind, found = await ask(eve, tracker, MessageType.PEER_LIST_REQUEST, Nothing())
    assert (kind, found.authoritative, found.tracker) == ("peer-list", 1, (tracker.peer_id,))
    assert [check_record(one.record).peer_id for one in found.peers] == [tracker.peer_id, other.peer_id]
    kind, found = await ask(eve, other, MessageType.PEER_LIST_REQUEST, Nothing())
    assert (kind, found.authoritative, found.tracker) == (NOT_THE_DROIDS, 0, (tracker.peer_id,))
    assert [check_record(one.record).peer_id for one in found.peers] == [other.peer_id, tracker.peer_id]


async def test_a_join_notice_is_answered_with_the_list(pair: Pair, stranger: MemoryNode) -> None:
    _, first, second = pair
    record = sign_card(EVE, card(EVE, *stranger.addresses()))
    _, found = await ask(stranger, first, MessageType.PEER_JOIN, record)
    assert {one.record.card.peer_id for one in found.peers} >= {first.peer_id, second.peer_id}
    assert changes(first, EVE.peer_id) == ["joined"]
    await ask(stranger, first, MessageType.PEER_LEAVE, Nothing())
    assert changes(first, EVE.peer_id) == ["joined", "left"]


@pytest.mark.parametrize("lie", ["signature", "somebody else", "address of another"])
async def test_a_lying_record_is_refused_and_nobody_is_taken_in(lie: str, pair: Pair, stranger: MemoryNode) -> None:
    _, first, _ = pair
    honest = sign_card(EVE, card(EVE, *stranger.addresses()))
    record = {
        "signature": PeerRecord(replace(honest.card, height=Height(9)), honest.signature),
        "somebody else": sign_card(identity("dan"), card(identity("dan"))),
        "address of another": PeerRecord(replace(honest.card, peer_id=identity("dan").peer_id), honest.signature),
    }[lie]
    with pytest.raises((Unreachable, InvalidMessage)):
        await ask(stranger, first, MessageType.PEER_JOIN, record)
    rejected = await first.happened.wait(Rejected)
    assert rejected.peer_id == EVE.peer_id
    assert rejected.fault in {Fault.BAD_SIGNATURE, Fault.WRONG_SENDER}
    assert not changes(first, EVE.peer_id)
    assert not changes(first, identity("dan").peer_id)


async def test_a_list_with_a_lying_record_costs_whoever_gave_it(new_network: NewNetwork, nursery: trio.Nursery) -> None:
    network = new_network(small_genesis(EASY))
    node = await network.start("ann")
    eve = network.between.node(EVE)
    honest = sign_card(BOB, card(BOB, "/ip4/127.0.0.1/tcp/9"))
    forged = PeerRecord(replace(honest.card, addresses=("/ip4/127.0.0.1/tcp/10",)), honest.signature)

    async def lie(stream: Stream) -> None:
        await stream.receive(5)
        answer = PeerList((), 0, (ListedPeer(sign_card(EVE, card(EVE)), ()), ListedPeer(forged, ())))
        await stream.send(seal(EVE, MessageType.NOT_THE_TRACKER, answer, 0, stream.peer_id))
        await stream.finish()

    eve.serve(PEERS_PROTOCOL, lie)
    await nursery.start(eve.run)
    await eve.connect(node.address)
    rejected = await node.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault, rejected.what) == (EVE.peer_id, Fault.BAD_SIGNATURE, "peer list")


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/0", "/ip4/0.0.0.0/tcp/1", "/dns4/x/udp/1", ""])
async def test_an_address_that_nobody_can_dial_harms_nobody(address: str, pair: Pair, stranger: MemoryNode) -> None:
    _, first, _ = pair
    first.services.peers.hear_of(identity("dan").peer_id, (address, first.address))
    await ask(stranger, first, MessageType.PEER_JOIN, sign_card(EVE, card(EVE, address)))
    await stranger.disconnect(first.peer_id)
    await trio.sleep(300)
    assert not first.ended.is_set()
    assert not first.happened.of(Rejected)


async def test_messages_that_do_not_belong_on_the_peers_protocol_are_named(pair: Pair, stranger: MemoryNode) -> None:
    _, first, _ = pair
    for frame in (
        seal(EVE, MessageType.STATUS_REQUEST, Nothing(), 0, first.peer_id),
        seal(BOB, MessageType.PEER_LIST_REQUEST, Nothing(), 0, first.peer_id),
        seal(EVE, MessageType.PEER_LIST_REQUEST, Nothing(), 0, BOB.peer_id),
        seal(EVE, MessageType.PEER_JOIN, Nothing(), 0, first.peer_id),
        b"junk",
    ):
        with pytest.raises((Unreachable, InvalidMessage)):
            await stranger.call(first.peer_id, PEERS_PROTOCOL, frame, 5)
    await trio.sleep(1)
    assert len(first.happened.of(Rejected, lambda one: one.peer_id == EVE.peer_id)) == 5
    kind, _ = await ask(stranger, first, MessageType.PEER_LIST_REQUEST, Nothing())
    assert kind == NOT_THE_DROIDS


async def test_a_heartbeat_with_somebody_elses_card_is_not_relayed(pair: Pair, stranger: MemoryNode) -> None:
    _, first, second = pair
    name = topic(first.chain.store.story, "peers")
    await stranger.subscribe(name, lambda _signer, _data: None)
    dan = identity("dan")
    await stranger.publish(name, seal(EVE, MessageType.HEARTBEAT, sign_card(dan, card(dan)), 0))
    rejected = await first.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (EVE.peer_id, Fault.WRONG_SENDER)
    await trio.sleep(5)
    assert not changes(second, dan.peer_id)
    assert not second.happened.of(Rejected)


async def test_an_older_card_never_replaces_a_newer_one(pair: Pair, stranger: MemoryNode) -> None:
    _, first, _ = pair
    for time, height in ((5, 7), (3, 9), (5, 11)):
        record = sign_card(EVE, replace(card(EVE, time=time), height=Height(height)))
        await ask(stranger, first, MessageType.PEER_JOIN, record)
    assert first.services.peers._known[EVE.peer_id].record.card.height == 7


async def test_the_tables_are_bounded_and_the_silent_make_room(pair: Pair) -> None:
    _, first, second = pair
    table = first.services.peers
    for number in range(600):
        who = identity(f"sybil {number}")
        table.on_heartbeat(sign_card(who, card(who, f"/ip4/127.0.0.1/tcp/{number + 10}", time=1)))
        table.hear_of(identity(f"rumour {number}").peer_id, tuple(f"/ip4/10.0.0.1/tcp/{number + n}" for n in range(8)))
        if number % 50 == 0:
            await trio.sleep(0.01)
    assert len(table._known) == 512
    assert len(table._dials) <= 512
    assert len(table.listed()) == 128
    await trio.sleep(10)
    assert liveness(first, second.peer_id) is Liveness.ALIVE


async def test_a_peer_that_is_denied_is_let_go_and_found_again_when_it_is_not(pair: Pair) -> None:
    _, first, second = pair
    first.network.deny(frozenset({second.peer_id}))
    await trio.sleep(60)
    assert second.peer_id not in first.network.connected()
    first.network.deny(frozenset())
    first.services.peers.look_again()
    await trio.sleep(35)
    assert second.peer_id in first.network.connected(), peer_id_text(second.peer_id)


async def test_a_node_full_of_strangers_still_dials_whom_it_hears_of(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network(small_genesis(EASY))
    first = await network.start("ann")
    for number in range(20):
        stranger = network.between.node(identity(f"stranger {number}"))
        await nursery.start(stranger.run)
        await stranger.connect(first.address)
    friend = await network.start("bob")
    await trio.sleep(5)
    assert len(first.network.connected()) == 20
    first.services.peers.hear_of(friend.peer_id, (friend.address,))
    await friend.wait_joined(first.peer_id)
    assert friend.peer_id in first.network.connected()


async def test_a_node_with_enough_peers_of_its_own_choice_dials_no_more(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    network = new_network(small_genesis(EASY))
    first = await network.start("ann")
    others = [network.between.node(identity(f"other {number}")) for number in range(30)]
    for other in others:
        await nursery.start(other.run)
        first.services.peers.hear_of(other.peer_id, other.addresses())
    await trio.sleep(20)
    assert len(first.network.connected()) == first.services.peers.wanted
