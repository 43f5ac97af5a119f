"""The tracker: who it is, what it does, who follows it. Nobody mines here: the next block would hide it all."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from loremesh.errors import Fault
from loremesh.network.events import GossipReceived
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.codec import decode
from loremesh.protocol.genesis import Validator
from loremesh.protocol.identity import Identity
from loremesh.protocol.tracker import TURN, TrackerState
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    ListedPeer,
    MessageType,
    Nothing,
    PeerCard,
    PeerList,
    PeerRecord,
    SignedClaim,
    SignedPeerList,
    TrackerAnnouncement,
    TrackerClaim,
    TrackerList,
    check_list,
    check_record,
    seal,
    seal_bytes,
    sign_card,
    sign_claim,
    sign_list,
    topic,
    unseal,
)
from loremesh.services.happenings import Head, PeerChanged, Rejected, Role, Tracker
from loremesh.services.liveness import DEAD_AFTER, HEARTBEAT
from loremesh.services.tracker import LIST_EVERY
from loremesh.testing.builders import EASY, identity, small_genesis
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode, tracker_of, trackers

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
NAMES = ("ann", "bob", "cat", "dan", "fay")
ANN, BOB, CAT, DAN, FAY = map(identity, NAMES)  # the first tracker, and who follows, in this order
VALIDATORS = tuple(Validator(one.peer_id) for one in (BOB, CAT, DAN, FAY))
GENESIS = replace(small_genesis(EASY, tracker=ANN), validators=VALIDATORS)
EVE = identity("eve")


class Five:
    """Five nodes that know each other, and a clock for how long something took."""

    def __init__(self, network: SmallNetwork, nodes: list[SmallNode]) -> None:
        self.network, self.nodes = network, nodes
        self.orchard = Orchard(network.genesis)

    def of(self, who: Identity) -> SmallNode:
        """Give the node of somebody."""
        return next(node for node in self.nodes if node.identity == who)

    def others(self, *without: Identity) -> list[SmallNode]:
        """Give the nodes of everybody else."""
        return [node for node in self.nodes if node.identity not in without]

    async def kill(self, who: Identity) -> None:
        """End a node as kill -9 would: it says nothing."""
        node = self.of(who)
        node.network.deny(frozenset(node.network.connected()))
        await node.stop()

    async def produce(self, who: Identity) -> None:
        """Let somebody's node find a block on its head, as of now."""
        node = self.of(who)
        block = self.orchard.grow(node.head, 1, who, time=self.network.clock())[0]
        await node.chain.submit(block, None)
        await node.story.announcer.announce(block)

    async def produce_by_eve(self, eve: "Listener") -> Hash:
        """Let EVE, who has no node, find a block that everybody has at once: she is the tracker then. Give its name."""
        await trio.sleep(3)
        block = self.orchard.grow(eve.story, 1, EVE)[0]
        for node in self.nodes:
            if not node.ended.is_set():
                await node.chain.submit(block, None)
        await trio.sleep(0.1)
        return name_of(block)

    async def freeze(self, who: Identity) -> None:
        """Let nothing through to or from a node, and break nothing."""
        for other in self.others(who):
            self.network.between.cut(who.peer_id, other.peer_id, silently=True)


@pytest.fixture
async def five(new_network: NewNetwork) -> Five:
    network = new_network(GENESIS)
    nodes = [await network.start("ann")]
    for name in NAMES[1:]:
        nodes.append(await network.start(name, *nodes[:2]))
    for node in nodes:
        for other in nodes:
            if other is not node:
                await node.wait_joined(other.peer_id)
    await trio.sleep(2 * HEARTBEAT)
    return Five(network, nodes)


async def wait_tracker(nodes: Iterable[SmallNode], who: Identity, patience: float = 1000) -> float:
    """Wait until all of `nodes` take somebody for the tracker; give the seconds that took."""
    nodes, began = list(nodes), trio.current_time()
    with trio.fail_after(patience):
        while {tracker_of(node) for node in nodes} != {who.peer_id}:  # noqa: ASYNC110 - to look often costs no real time
            await trio.sleep(0.05)
    return trio.current_time() - began


class Listener:
    """EVE's bare network: hears and says what travels on the topic of peers."""

    def __init__(self, network: MemoryNode, story: Hash) -> None:
        self.network, self.story = network, story
        self.heard: list[tuple[PeerId, MessageType, bytes]] = []

    def take(self, signer: PeerId, data: bytes) -> None:
        self.heard.append((signer, *unseal(data, signer)))

    def of(self, kind: MessageType) -> list[tuple[PeerId, bytes]]:
        return [(signer, payload) for signer, found, payload in self.heard if found is kind]

    def lists(self) -> list[TrackerList]:
        return [check_list(decode(SignedPeerList, payload)) for _, payload in self.of(MessageType.PEER_LIST)]

    async def say(self, kind: MessageType, payload: object) -> None:
        await self.network.publish(topic(self.story, "peers"), seal(EVE, kind, payload, 0))

    async def ask(self, node: SmallNode) -> tuple[MessageType, bytes]:
        frame = seal(EVE, MessageType.PEER_LIST_REQUEST, Nothing(), 0, node.peer_id)
        return unseal(await self.network.call(node.peer_id, PEERS_PROTOCOL, frame, 5), node.peer_id, EVE.peer_id)


@pytest.fixture
async def eve(five: Five, nursery: trio.Nursery) -> Listener:
    """EVE, connected to BOB only: what he does not relay nobody else sees."""
    network = five.network.between.node(EVE)
    listener = Listener(network, five.of(BOB).chain.store.story)
    await network.subscribe(topic(listener.story, "peers"), listener.take)
    await nursery.start(network.run)
    await network.connect(five.of(BOB).address)
    await trio.sleep(1)
    return listener


# two states


async def test_the_producer_of_the_head_is_the_tracker(five: Five) -> None:
    for who in (BOB, ANN, CAT):
        await trio.sleep(3)
        await five.produce(who)
        await wait_tracker(five.nodes, who, 2)
    roles = [(one.state, one.height) for one in five.of(ANN).happened.of(Role)]
    assert roles == [("tracker", 0), ("peer", 1), ("tracker", 2), ("peer", 3)]
    for node in five.nodes:
        told = [(one.peer_id, one.height) for one in node.happened.of(Tracker)]
        assert told == [(ANN.peer_id, 0), (BOB.peer_id, 1), (ANN.peer_id, 2), (CAT.peer_id, 3)]
    assert trackers(five.nodes) == {CAT.peer_id}


async def test_the_first_tracker_is_the_one_in_the_genesis_and_hears_of_everybody(five: Five) -> None:
    assert trackers(five.nodes) == {ANN.peer_id}
    listed = five.of(ANN).services.peers.listed()
    assert {one.record.card.peer_id for one in listed} == {node.peer_id for node in five.nodes}


async def test_the_tracker_hears_of_somebody_who_joined_elsewhere(five: Five) -> None:
    for other in five.others(BOB):
        five.network.between.cut(identity("gus").peer_id, other.peer_id)
    await five.network.start("gus", five.of(BOB))
    await five.of(ANN).happened.wait(PeerChanged, lambda one: one.peer_id == identity("gus").peer_id)


async def test_an_old_tracker_becomes_a_peer_and_says_who_follows_with_which_block(five: Five, eve: Listener) -> None:
    await trio.sleep(3)
    await five.produce(CAT)
    await wait_tracker(five.nodes, CAT, 2)
    await trio.sleep(1)
    [(signer, payload)] = eve.of(MessageType.TRACKER_ANNOUNCEMENT)
    said = decode(TrackerAnnouncement, payload)
    head = five.of(CAT).head
    assert (signer, said) == (ANN.peer_id, TrackerAnnouncement(eve.story, Height(1), head, CAT.peer_id))


async def test_whoever_missed_the_block_gets_it_through_the_word_of_the_old_tracker(five: Five, eve: Listener) -> None:
    await trio.sleep(3)
    five.network.between.mute(CAT.peer_id, DAN.peer_id)
    block = five.orchard.grow(eve.story, 1, CAT)[0]
    for node in five.others(DAN):
        await node.chain.submit(block, None)
    with trio.fail_after(2):
        await five.of(DAN).happened.wait(Head, lambda head: head.hash == name_of(block))


# the list


async def test_the_tracker_broadcasts_its_signed_list_and_nobody_else_does(five: Five, eve: Listener) -> None:
    await trio.sleep(5 * LIST_EVERY)
    assert {signer for signer, _ in eve.of(MessageType.PEER_LIST)} == {ANN.peer_id}
    assert 5 <= len(eve.lists()) <= 7
    last = eve.lists()[-1]
    assert (last.story, last.head, last.view, last.tracker) == (eve.story, eve.story, 0, ANN.peer_id)
    assert {check_record(one.record).peer_id for one in last.peers} == {node.peer_id for node in five.nodes}
    times = [one.time for one in eve.lists()]
    assert times == sorted(set(times))


async def test_whoever_comes_or_goes_is_on_the_list_at_once_or_off_it(five: Five, eve: Listener) -> None:
    await five.kill(FAY)
    await trio.sleep(4)
    assert FAY.peer_id not in {one.record.card.peer_id for one in eve.lists()[-1].peers}
    await five.network.start("fay", five.of(BOB))
    await trio.sleep(4)
    assert FAY.peer_id in {one.record.card.peer_id for one in eve.lists()[-1].peers}


async def test_a_peer_takes_in_lists_quietly(five: Five) -> None:
    before = {node.peer_id: len(node.happened.all) for node in five.nodes}
    await trio.sleep(10 * LIST_EVERY)
    assert {node.peer_id: len(node.happened.all) for node in five.nodes} == before


async def test_a_list_leads_to_somebody_who_was_never_met(five: Five, eve: Listener, nursery: trio.Nursery) -> None:
    gus = five.network.between.node(identity("gus"))
    await nursery.start(gus.run)
    dialled = list[PeerId]()
    card = PeerCard(identity("gus").peer_id, gus.addresses(), (), (), (), Height(0), Millis(1))
    head = await five.produce_by_eve(eve)
    entry = ListedPeer(sign_card(identity("gus"), card), gus.addresses())
    await eve.say(*peer_list(EVE, head, EVE, entry, story=eve.story))
    with trio.fail_after(10):
        while not dialled:
            dialled = list(gus.connected())
            await trio.sleep(0.1)


async def test_no_list_removes_a_living_peer_nor_brings_a_dead_one_back(five: Five, eve: Listener) -> None:
    await five.kill(FAY)
    await trio.sleep(3)
    head = await five.produce_by_eve(eve)
    fay = five.of(FAY).services.peers.record()
    await eve.say(*peer_list(EVE, head, EVE, ListedPeer(fay, ()), story=eve.story))
    await trio.sleep(2)
    for node in five.others(FAY):
        listed = {one.record.card.peer_id for one in node.services.peers.listed()}
        assert listed >= {other.peer_id for other in five.others(FAY)}
        assert FAY.peer_id not in listed
        assert not node.happened.of(Rejected)


async def test_a_peer_says_where_the_tracker_is_and_adds_a_list_of_its_own(five: Five, eve: Listener) -> None:
    kind, payload = await eve.ask(five.of(BOB))
    assert kind == "these-are-not-the-droids-you-are-looking-for"
    answer = decode(PeerList, payload)
    assert (answer.tracker, answer.authoritative) == ((ANN.peer_id,), 0)
    assert answer.tracker_addresses == five.of(ANN).network.addresses()
    assert {one.record.card.peer_id for one in answer.peers} == {node.peer_id for node in five.nodes}
    await eve.network.connect(answer.tracker_addresses[0])
    kind, payload = await eve.ask(five.of(ANN))
    assert kind == "peer-list"
    assert check_list(decode(SignedPeerList, payload)).tracker == ANN.peer_id


# succession


async def test_a_killed_tracker_is_followed_at_once_by_the_first_that_may(five: Five, eve: Listener) -> None:
    await five.kill(ANN)
    assert await wait_tracker(five.others(ANN), BOB) < 3
    assert trackers(five.others(ANN)) == {BOB.peer_id}
    assert five.of(BOB).happened.of(Role)[-1] == Role(TrackerState.TRACKER, Height(0))
    assert five.of(DAN).happened.of(Tracker)[-1] == Tracker(BOB.peer_id, Height(0))
    await trio.sleep(60)
    assert trackers(five.others(ANN)) == {BOB.peer_id}
    assert len(eve.of(MessageType.TRACKER_CLAIM)) == 1
    assert (eve.lists()[-1].tracker, eve.lists()[-1].view) == (BOB.peer_id, 1)


async def test_a_tracker_that_says_goodbye_is_followed_at_once(five: Five) -> None:
    await five.of(ANN).stop()
    assert await wait_tracker(five.others(ANN), BOB) < 3


async def test_a_frozen_tracker_is_followed_after_thirty_seconds(five: Five) -> None:
    await five.freeze(ANN)
    took = await wait_tracker(five.others(ANN), BOB)
    assert DEAD_AFTER - HEARTBEAT - 1 <= took <= DEAD_AFTER + 3
    assert trackers(five.others(ANN)) == {BOB.peer_id}
    assert tracker_of(five.of(ANN)) == ANN.peer_id


async def test_nobody_takes_over_because_it_stood_still_itself(five: Five) -> None:
    await trio.sleep(3)
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    clock.jump(100)
    await trio.sleep(5)
    for node in five.nodes:
        assert [one.peer_id for one in node.happened.of(Tracker)] == [ANN.peer_id]


async def test_when_the_follower_is_dead_as_well_nobody_waits_for_it(five: Five) -> None:
    await five.kill(BOB)
    await trio.sleep(3)
    await five.kill(ANN)
    assert await wait_tracker(five.others(ANN, BOB), CAT) < 3


async def test_a_head_whose_tracker_was_never_there_is_somebodys_after_ten_seconds_a_view(
    new_network: NewNetwork,
) -> None:
    network = new_network(GENESIS)
    dan = await network.start("dan")
    assert TURN * 3 <= await wait_tracker([dan], DAN) <= TURN * 3 + 2
    assert tracker_of(dan) == DAN.peer_id


async def test_of_two_that_claim_at_the_same_time_everybody_takes_the_lower_view(five: Five) -> None:
    # BOB and CAT do not hear each other, and each believes at once that the tracker is dead, CAT that BOB is too.
    five.network.between.cut(BOB.peer_id, CAT.peer_id)
    five.of(CAT).story.tracker.on_peer(BOB.peer_id, lives=False)
    five.of(CAT).story.tracker.on_peer(ANN.peer_id, lives=False)
    five.of(BOB).story.tracker.on_peer(ANN.peer_id, lives=False)
    assert trackers([five.of(BOB), five.of(CAT)]) == {BOB.peer_id, CAT.peer_id}
    await five.kill(ANN)
    await wait_tracker(five.others(ANN), BOB, 5)
    assert trackers(five.others(ANN)) == {BOB.peer_id}


async def test_two_halves_have_two_trackers_and_one_when_they_meet(five: Five) -> None:
    left, right = [five.of(who) for who in (ANN, BOB)], [five.of(who) for who in (CAT, DAN, FAY)]
    five.network.between.partition([one.peer_id for one in left], [one.peer_id for one in right])
    await wait_tracker(right, CAT)
    assert trackers(five.nodes) == {ANN.peer_id, CAT.peer_id}
    five.network.between.heal()
    await wait_tracker(five.nodes, ANN, 60)
    assert trackers(five.nodes) == {ANN.peer_id}
    assert five.of(CAT).happened.of(Role)[-1].state is TrackerState.PEER


async def test_two_halves_that_both_lost_the_tracker_agree_on_the_lower_view(five: Five) -> None:
    five.network.between.partition([ANN.peer_id], [BOB.peer_id, DAN.peer_id], [CAT.peer_id, FAY.peer_id])
    await wait_tracker([five.of(BOB), five.of(DAN)], BOB)
    await wait_tracker([five.of(CAT), five.of(FAY)], CAT)
    await five.of(ANN).stop()
    five.network.between.heal()
    await wait_tracker(five.others(ANN), BOB, 60)
    assert trackers(five.others(ANN)) == {BOB.peer_id}


async def test_a_block_ends_the_office_of_whoever_has_taken_over(five: Five) -> None:
    await five.kill(ANN)
    await wait_tracker(five.others(ANN), BOB)
    await five.produce(DAN)
    await wait_tracker(five.others(ANN), DAN, 2)
    assert [one.state for one in five.of(BOB).happened.of(Role)] == ["peer", "tracker", "peer"]


async def test_a_tracker_that_restarts_is_the_tracker_again(five: Five) -> None:
    await trio.sleep(3)
    await five.produce(FAY)
    await wait_tracker(five.nodes, FAY, 2)
    await five.kill(FAY)
    await wait_tracker(five.others(FAY), ANN)
    again = await five.network.start("fay", five.of(BOB), disk=five.of(FAY).disk)
    await wait_tracker([*five.others(FAY), again], FAY, 10)


async def test_of_each_peers_cards_only_the_newest_is_remembered_as_checked(five: Five) -> None:
    await trio.sleep(20 * HEARTBEAT)
    for node in five.nodes:
        assert set(node.story.tracker._checked) <= {one.peer_id for one in five.nodes}


# lies


async def was_refused(five: Five, fault: Fault) -> None:
    """Check that BOB refused what EVE said, and that nobody else has even seen it."""
    rejected = await five.of(BOB).happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault, rejected.what) == (EVE.peer_id, fault, "gossip message")
    await trio.sleep(5)
    assert trackers(five.nodes) == {ANN.peer_id}
    for node in five.others(BOB):
        assert not node.happened.of(Rejected)
        assert tracker_of(node) == ANN.peer_id


@pytest.mark.parametrize("view", [0, 1, 4, 5, 2**64 - 1])
async def test_a_claim_to_somebody_elses_view_is_refused_and_costs_its_sender(
    view: int, five: Five, eve: Listener
) -> None:
    await eve.say(*claim(EVE, eve.story, view, EVE, eve.story))
    await was_refused(five, Fault.NOT_THE_TRACKER)


Said = tuple[MessageType, object]


def claim(signer: Identity, story: Hash, view: int, claimant: Identity, head: Hash) -> Said:
    return MessageType.TRACKER_CLAIM, sign_claim(signer, TrackerClaim(story, head, view, claimant.peer_id, Millis(9)))


def peer_list(signer: Identity, head: Hash, tracker: Identity, *peers: ListedPeer, story: Hash) -> Said:
    listed = TrackerList(story, head, 0, Millis(9), tracker.peer_id, peers)
    return MessageType.PEER_LIST, sign_list(signer, listed)


def word(story: Hash, head: Hash, tracker: Identity) -> Said:
    return MessageType.TRACKER_ANNOUNCEMENT, TrackerAnnouncement(story, Height(0), head, tracker.peer_id)


ELSEWHERE = Hash(bytes(32))
LIES: dict[str, tuple[Fault, Callable[[Hash], Said]]] = {
    "a claim that somebody else signed": (Fault.BAD_SIGNATURE, lambda story: claim(EVE, story, 1, BOB, story)),
    "a claim that somebody else made": (Fault.WRONG_SENDER, lambda story: claim(CAT, story, 2, CAT, story)),
    "a claim of another story": (Fault.WRONG_STORY, lambda story: claim(EVE, ELSEWHERE, 1, EVE, story)),
    "a list of no tracker": (Fault.NOT_THE_TRACKER, lambda story: peer_list(EVE, story, EVE, story=story)),
    "a list not signed": (Fault.BAD_SIGNATURE, lambda story: peer_list(EVE, story, ANN, story=story)),
    "a word for no tracker": (Fault.NOT_THE_TRACKER, lambda story: word(story, story, EVE)),
    "a block": (Fault.UNEXPECTED, lambda _: (MessageType.BLOCK, Nothing())),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_about_the_tracker_goes_no_further(lie: str, five: Five, eve: Listener) -> None:
    fault, make = LIES[lie]
    await eve.say(*make(eve.story))
    await was_refused(five, fault)


async def test_a_list_with_a_forged_card_goes_no_further(five: Five, eve: Listener) -> None:
    head = await five.produce_by_eve(eve)
    honest = five.of(CAT).services.peers.record()
    forged = PeerRecord(replace(honest.card, addresses=(eve.network.addresses())), honest.signature)
    listed = (ListedPeer(honest, ()), ListedPeer(forged, eve.network.addresses()))
    await eve.say(*peer_list(EVE, head, EVE, *listed, story=eve.story))
    rejected = await five.of(BOB).happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (EVE.peer_id, Fault.BAD_SIGNATURE)
    assert not any(node.happened.of(Rejected) for node in five.others(BOB))


async def test_what_is_said_about_an_unknown_block_costs_nobody_anything_and_changes_nothing(
    five: Five, eve: Listener
) -> None:
    unknown = Hash(bytes(32))
    claim = TrackerClaim(eve.story, unknown, 3, EVE.peer_id, Millis(9))
    await eve.say(MessageType.TRACKER_CLAIM, sign_claim(EVE, claim))
    await eve.say(MessageType.PEER_LIST, sign_list(EVE, TrackerList(eve.story, unknown, 0, Millis(9), EVE.peer_id, ())))
    await eve.say(MessageType.TRACKER_ANNOUNCEMENT, TrackerAnnouncement(eve.story, Height(9), unknown, EVE.peer_id))
    await trio.sleep(60)
    assert trackers(five.nodes) == {ANN.peer_id}
    assert not any(node.happened.of(Rejected) for node in five.nodes)


async def test_an_early_claim_does_not_unseat_a_living_tracker(five: Five) -> None:
    head, me = five.of(BOB).head, BOB.peer_id
    early = TrackerClaim(five.of(BOB).chain.store.story, head, 1, me, Millis(five.network.clock()))
    frame = seal(BOB, MessageType.TRACKER_CLAIM, sign_claim(BOB, early), 0)
    await five.of(BOB).network.publish(topic(five.of(BOB).chain.store.story, "peers"), frame)
    await trio.sleep(120)
    assert trackers(five.nodes) == {ANN.peer_id}
    assert not any(node.happened.of(Rejected) for node in five.nodes)
    assert [one.peer_id for one in five.of(DAN).happened.of(Tracker)] == [ANN.peer_id]


async def test_a_claim_that_others_repeat_keeps_nobody_in_office(five: Five, eve: Listener) -> None:
    await five.kill(ANN)
    await wait_tracker(five.others(ANN), BOB)
    await trio.sleep(2)
    [(_, payload)] = eve.of(MessageType.TRACKER_CLAIM)
    old, claim = seal_bytes(BOB, MessageType.TRACKER_CLAIM, payload, 0), decode(SignedClaim, payload).claim
    await five.freeze(BOB)
    with trio.fail_after(DEAD_AFTER + 3):
        while {tracker_of(node) for node in five.others(ANN, BOB)} != {CAT.peer_id}:
            for node in five.others(ANN, BOB):
                repeated = GossipReceived(topic(eve.story, "peers"), old, BOB.peer_id, EVE.peer_id, claim)
                node.story.tracker.on_gossip(repeated, node.services.peers)
            await trio.sleep(1)
