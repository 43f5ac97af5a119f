"""The tracker service: knows who the tracker is, is it when the turn is ours, and keeps the topic that this is said on.

On the topic `peers` travel heartbeats, the tracker's signed lists, the claims of those that take over from a tracker
that is gone, and the word of a tracker that has become a peer again. The rules are in `protocol/tracker.py`; here they
get a clock, a network, and somebody to tell.

Source: docs/protocol/tracker.md; S0's two states.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

from loremesh.errors import Fault, InvalidMessage
from loremesh.network.events import GossipReceived
from loremesh.primitives import Hash, Millis, PeerId, StoryId
from loremesh.protocol.codec import decode
from loremesh.protocol.fork_choice import Store
from loremesh.protocol.identity import Identity
from loremesh.protocol.tracker import (
    Claimed,
    HandedOver,
    Office,
    Send,
    TrackerState,
    candidates,
    check_claim,
    on_claim,
    on_gone,
    on_head,
    on_life,
    on_stall,
    on_tick,
    open_office,
)
from loremesh.protocol.wire import (
    ListedPeer,
    MessageType,
    PeerRecord,
    SignedClaim,
    SignedPeerList,
    TrackerAnnouncement,
    TrackerClaim,
    TrackerList,
    check_claim_signature,
    check_list,
    check_record,
    seal,
    sign_claim,
    sign_list,
    topic,
    unseal,
)
from loremesh.services.happenings import Clock, Role, Tell, Tracker
from loremesh.services.latest import Latest

logger = logging.getLogger("loremesh.tracker")

LIST_EVERY: Final = 10.0
_LOOK: Final = 1.0
"""Seconds between two looks at the time; a list is not broadcast more often."""
_STOOD_STILL: Final = 5.0
"""Seconds without a look after which it was we who stood still, and nobody else was silent."""
_PUBLISH_TIMEOUT: Final = 10.0
_OUTBOX: Final = 16
_CHECKED_CARDS: Final = 1024


class Chain(Protocol):
    """What the tracker service needs of the chain."""

    @property
    def head(self) -> Latest[Hash]:
        """Give the head."""

    @property
    def store(self) -> Store:
        """Give the tree."""

    def knows(self, name: Hash) -> bool:
        """Tell whether a block is here or on its way."""


class Network(Protocol):
    """What the tracker service needs of the network."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip."""

    async def subscribe(self, topic: str, accept: Callable[[PeerId, bytes], object]) -> None:
        """Listen to a topic; `accept` refuses by raising, and what it returns comes with the message."""


class Peers(Protocol):
    """What the tracker service needs of the table of peers."""

    def listed(self) -> tuple[ListedPeer, ...]:
        """Give the living, ourselves first."""

    def on_heartbeat(self, record: PeerRecord) -> None:
        """Take in a checked heartbeat."""

    def hear_of(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Take in where a peer is said to be."""


class TrackerService:
    """Sole owner of the office of tracker, as this node sees it.

    Args:
        identity: Ours.
        chain: Gives the head, whose producer the tracker is.
        network: Carries the topic.
        ask: Lets sync ask a peer soon, for a head that we have not.
        clock: Unix milliseconds.
        tell: Hears of states and trackers.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        chain: Chain,
        network: Network,
        ask: Callable[[PeerId], None],
        clock: Clock,
        tell: Tell,
    ) -> None:
        self._identity = identity
        self._chain = chain
        self._network = network
        self._ask = ask
        self._clock = clock
        self._tell = tell
        self._topic = topic(chain.store.story, "peers")
        store, head = chain.store, chain.head.value
        height, order = store.entries[head].link.height, candidates(store, head)
        self._office = open_office(identity.peer_id, head, height, order, trio.current_time())
        self._told: tuple[TrackerState | None, PeerId | None] = None, None
        self._checked = OrderedDict[PeerId, PeerRecord]()
        self._to_send, self._outbox = trio.open_memory_channel[Send](_OUTBOX)

    @property
    def office(self) -> Office:
        """The office as it is now: an immutable value."""
        return self._office

    @property
    def tracker(self) -> PeerId | None:
        """Who the tracker is, as far as we know."""
        return self._office.tracker

    async def subscribe(self) -> None:
        """Listen to the story's topic of peers."""
        await self._network.subscribe(self._topic, self._check)

    async def run(self, peers: Peers) -> None:
        """Serve until cancelled.

        Args:
            peers: Whom the tracker lists.
        """
        self._take_step(self._office)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_head)
            nursery.start_soon(self._look_at_clock)
            nursery.start_soon(self._send)
            nursery.start_soon(self._broadcast, peers)

    async def beat(self, heartbeat: bytes) -> None:
        """Gossip our heartbeat."""
        with trio.move_on_after(_PUBLISH_TIMEOUT):
            await self._network.publish(self._topic, heartbeat)

    def signed_list(self, peers: tuple[ListedPeer, ...]) -> SignedPeerList | None:
        """Sign a list if we are the tracker."""
        return self._sign(peers) if self._office.state is TrackerState.TRACKER else None

    def on_peer(self, peer: PeerId, *, lives: bool) -> None:
        """Take in that a peer gave a sign of life, or is dead or has left."""
        event = on_life if lives else on_gone
        self._take_step(event(self._office, peer, trio.current_time()))

    def on_gossip(self, received: GossipReceived, peers: Peers) -> None:
        """Take in a message that passed its topic's check, if the topic is ours."""
        match received.value:
            case PeerRecord() as heartbeat:
                peers.on_heartbeat(heartbeat)
            case TrackerList() as listed:
                self._take_claim(TrackerClaim(listed.story, listed.head, listed.view, listed.tracker, listed.time))
                for one in listed.peers:  # worth a dial; that somebody is missing means nothing
                    peers.hear_of(one.record.card.peer_id, one.reached)
            case TrackerClaim() as claim:
                self._take_claim(claim)
            case TrackerAnnouncement(head=head) if not self._chain.knows(head):
                self._ask(received.forwarder)
            case _:  # nothing new, or of a topic that is not ours
                pass

    def _take_claim(self, claim: TrackerClaim) -> None:
        # Refused here it was let through before its head was known: nobody's fault.
        with suppress(InvalidMessage):
            self._take_step(on_claim(self._office, claim, trio.current_time()))

    def _take_step(self, office: Office) -> None:
        """Have another office: tell of what changed, and send what it asks for."""
        self._office = office
        before, self._told = self._told, (office.state, office.tracker)
        if office.state is not before[0]:
            self._tell(Role(office.state, office.height))
        if office.tracker is not None and office.tracker != before[1]:
            self._tell(Tracker(office.tracker, office.height))
        for message in office.sends:
            with suppress(trio.WouldBlock):  # when so many wait the network stands still, and lists say the same
                self._to_send.send_nowait(message)

    async def _follow_head(self) -> None:
        while True:
            head, store = self._chain.head.value, self._chain.store
            if head != self._office.head:
                height, order = store.entries[head].link.height, candidates(store, head)
                self._take_step(on_head(self._office, head, height, order, trio.current_time()))
            if head == self._chain.head.value:
                await self._chain.head.wait_change()

    async def _look_at_clock(self) -> None:
        looked = trio.current_time()
        while True:
            await trio.sleep(_LOOK)
            now = trio.current_time()
            if now - looked > _STOOD_STILL:
                self._office = on_stall(self._office, now - looked)
            looked = now
            self._take_step(on_tick(self._office, now))

    async def _send(self) -> None:
        async for message in self._outbox:
            story = self._chain.store.story
            match message:
                case Claimed(head, view):
                    claim = TrackerClaim(story, head, view, self._identity.peer_id, Millis(self._clock()))
                    await self._publish(MessageType.TRACKER_CLAIM, sign_claim(self._identity, claim))
                case HandedOver(head, height, tracker):
                    said = TrackerAnnouncement(story, height, head, tracker)
                    await self._publish(MessageType.TRACKER_ANNOUNCEMENT, said)

    async def _broadcast(self, peers: Peers) -> None:
        """While we are the tracker, tell everybody who is here: when that changes, and now and then."""
        said: object = None
        said_at = 0.0
        while True:
            await trio.sleep(_LOOK)
            if self._office.state is not TrackerState.TRACKER:
                continue
            listed, now = peers.listed(), trio.current_time()
            to_say = self._office.head, self._office.view, {one.record.card.peer_id for one in listed}
            if to_say != said or now - said_at >= LIST_EVERY:
                said, said_at = to_say, now
                await self._publish(MessageType.PEER_LIST, self._sign(listed))

    def _sign(self, peers: tuple[ListedPeer, ...]) -> SignedPeerList:
        office, me, story = self._office, self._identity.peer_id, self._chain.store.story
        now = Millis(self._clock())
        return sign_list(self._identity, TrackerList(story, office.head, office.view, now, me, peers))

    async def _publish(self, kind: MessageType, payload: object) -> None:
        with trio.move_on_after(_PUBLISH_TIMEOUT) as deadline:
            await self._network.publish(self._topic, seal(self._identity, kind, payload, self._clock()))
        if deadline.cancelled_caught:
            logger.warning("a %s was not taken by the network in time", kind)

    def _check(self, signer: PeerId, data: bytes) -> PeerRecord | TrackerList | TrackerClaim | TrackerAnnouncement:
        """Check a message before it is relayed; give what is in it.

        Raises:
            InvalidMessage: It is malformed, badly signed, or a claim to what is somebody else's.
        """
        kind, payload = unseal(data, signer)
        if kind is MessageType.HEARTBEAT:
            record = decode(PeerRecord, payload)
            self._check_card(record)
            _check_issuer(record.card.peer_id, signer)
            return record
        if kind is MessageType.PEER_LIST:
            listed = check_list(decode(SignedPeerList, payload))
            _check_issuer(listed.tracker, signer)
            self._check_office(listed.story, listed.head, listed.view, listed.tracker)
            for one in listed.peers:
                self._check_card(one.record)
            return listed
        if kind is MessageType.TRACKER_CLAIM:
            claim = check_claim_signature(decode(SignedClaim, payload))
            _check_issuer(claim.claimant, signer)
            self._check_office(claim.story, claim.head, claim.view, claim.claimant)
            return claim
        if kind is MessageType.TRACKER_ANNOUNCEMENT:
            said = decode(TrackerAnnouncement, payload)
            self._check_office(said.story, said.head, 0, said.tracker)
            return said
        raise InvalidMessage(Fault.UNEXPECTED, f"{kind} among heartbeats and lists")

    def _check_office(self, story: StoryId, head: Hash, view: int, claimant: PeerId) -> None:
        store = self._chain.store
        if story != store.story:
            raise InvalidMessage(Fault.WRONG_STORY, "of another story's tracker")
        if head == self._office.head:
            check_claim(tuple(turn.candidate for turn in self._office.turns), view, claimant)
        elif head in store.entries:
            check_claim(candidates(store, head), view, claimant)
        # Else others may know that block: relayed, and ignored here.

    def _check_card(self, record: PeerRecord) -> None:
        """Check a card's signature, once: the cards of a list have nearly all been heard as heartbeats before."""
        if self._checked.get(record.card.peer_id) != record:
            check_record(record)
            self._checked[record.card.peer_id] = record
            self._checked.move_to_end(record.card.peer_id)
            if len(self._checked) > _CHECKED_CARDS:
                self._checked.popitem(last=False)


def _check_issuer(issuer: PeerId, signer: PeerId) -> None:
    if issuer != signer:
        raise InvalidMessage(Fault.WRONG_SENDER, "signed by somebody else")
