"""The peers service: who is here, who left, who is dead; finds the way back when connections are lost.

A node says who it is when it connects (`peer_join`), every five seconds by gossip (`heartbeat`), and when it goes
(`peer_leave`). Whose heartbeat is late, or does not come by gossip at all, is asked directly. A peer is suspect when
nothing was heard of it for 15 s, and dead 30 s after the first heartbeat that did not come; a refused connection, at
once. So whoever freezes is dead to others 30 to 36 s later.

Source: docs/protocol/peers.md; S0's join notice and peer list, S1's heartbeat.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import ConnectionRefused, Fault, InvalidMessage, ProtocolError, ServiceError, UsageError
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, Height, Millis, PeerId, StoryId
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    ListedPeer,
    MessageType,
    Nothing,
    PeerCard,
    PeerList,
    PeerRecord,
    SignedPeerList,
    check_record,
    read_peer_list,
    seal,
    sign_card,
    unseal,
)
from loremesh.services.asked import receive_request
from loremesh.services.chain import Penalize
from loremesh.services.happenings import Clock, PeerChanged, Tell
from loremesh.services.liveness import DEAD_AFTER, HEARTBEAT, SUSPECT_AFTER, Known, Liveness
from loremesh.services.reachability import Reachability

logger = logging.getLogger("loremesh.peers")

_LOOK: Final = 1.0
"""Most seconds between two looks at who is silent and whom to dial."""
_ANSWER: Final = 5.0
_CHECK: Final = 1.0
"""Seconds that an answer waits for where the asker can be reached."""
_MAX_KNOWN: Final = 512
_BACK_OFF: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_DIALS_AT_ONCE: Final = 4
_MAX_ADDRESSES: Final = 4
_MAX_MODELS: Final = 8
"""With these a card of the longest names still fits its size."""


class Network(Protocol):
    """What the peers service needs of the network."""

    def addresses(self) -> tuple[str, ...]:
        """Give our dialable addresses."""

    def connected(self) -> tuple[PeerId, ...]:
        """Give the peers we have a connection to."""

    async def connect(self, address: str) -> PeerId:
        """Dial."""

    async def reaches(self, address: str, timeout: float) -> bool:  # noqa: ASYNC109 - the network's surface takes seconds
        """Tell whether the peer that an address names proves its key there."""

    async def disconnect(self, peer_id: PeerId) -> None:
        """Hang up."""

    async def call(self, peer_id: PeerId, protocol: str, frame: bytes, timeout: float) -> bytes:  # noqa: ASYNC109 - the network's surface takes seconds
        """Send one frame, give the one that answers."""


class Office(Protocol):
    """What the peers service needs of whoever knows the tracker."""

    @property
    def tracker(self) -> PeerId | None:
        """Who it is."""

    def signed_list(self, peers: tuple[ListedPeer, ...]) -> SignedPeerList | None:
        """Sign a list if we are the tracker."""

    def on_peer(self, peer: PeerId, *, lives: bool) -> None:
        """Take in that a peer gave a sign of life, or is dead or has left."""

    async def beat(self, heartbeat: bytes) -> None:
        """Gossip our heartbeat."""


@dataclass(slots=True)
class _Dial:
    """An address to be connected to, and how often that failed."""

    address: str
    failures: int = 0
    next_try: float = 0.0
    under_way: bool = False
    peer_id: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Self:
    """What a node says of itself, as far as it does not change."""

    roles: tuple[str, ...]
    models: tuple[str, ...] = ()
    story: tuple[Hash, ...] = ()


@dataclass(slots=True)
class PeerService:
    """Sole owner of the table of peers.

    Args:
        identity: Ours.
        network: To dial and to call.
        me: What we say of ourselves.
        height: Gives the height of our head.
        office: Knows the tracker, hears who lives and who is gone, gossips heartbeats; None without a story.
        bootstrap: Addresses that are always dialled again.
        clock: Unix milliseconds.
        tell: Hears of who joined, left, died.
        penalize: Hears which peer broke which rule.
        wanted: Connections to aim for.
        wanted_of_own: How many of them this node has dialled itself, however many others come.
    """

    identity: Identity
    network: Network
    me: Self
    height: Callable[[], Height]
    office: Office | None
    bootstrap: tuple[str, ...]
    clock: Clock
    tell: Tell
    penalize: Penalize
    wanted: int = 16
    wanted_of_own: int = 4
    _known: dict[PeerId, Known] = field(default_factory=dict)
    _dials: dict[str, _Dial] = field(default_factory=dict)
    _dialled: set[PeerId] = field(default_factory=set)
    _look_now: trio.Event = field(default_factory=trio.Event)
    _reachability: Reachability = field(init=False)

    def __post_init__(self) -> None:
        self._reachability = Reachability(self.network)

    async def run(self) -> None:
        """Serve until cancelled; then tell the connected peers that we leave."""
        for address in self.bootstrap:
            self._dials[address] = _Dial(address)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, nursery)
                nursery.start_soon(self._watch, nursery)
        finally:
            await self._say_goodbye()

    async def introduce(self, peer: PeerId) -> None:
        """Tell a newly connected peer who we are, and learn from its answer who else is here."""
        try:
            answer = await self._call(peer, MessageType.PEER_JOIN, self.record())
            kind, payload = unseal(answer, peer, self.identity.peer_id)
            for listed in read_peer_list(kind, payload, peer).peers:
                if listed.record.card.peer_id == peer:
                    self._take_word_in_person(listed.record, peer)
                else:
                    self.learn(listed)
            if peer in self._known:
                await self._reachability.check(self._known[peer].record.card)
        except ProtocolError as error:
            self.penalize(peer, "peer list", error)
        except ServiceError as error:
            logger.debug("a peer did not answer our introduction: %s", error)

    async def serve(self, stream: Stream) -> None:
        """Answer one request for the peer list.

        The tracker answers with the list; anybody else says where the tracker is, and adds a list of its own that is
        marked as second-hand (S0: "these are not the droids you are looking for").

        Raises:
            ProtocolError: The peer broke a rule.
            ServiceError: The peer went away, or was too slow.
        """
        kind, payload = await receive_request(stream, self.identity.peer_id, _ANSWER)
        if kind is MessageType.PEER_JOIN:
            record = decode(PeerRecord, payload)
            self._take_word_in_person(record, stream.peer_id)
            # Before the answer, so that of two that join at once at least the later hears where the other is.
            with trio.move_on_after(_CHECK):
                await self._reachability.check(record.card)
        elif kind is MessageType.PEER_LEAVE:
            decode(Nothing, payload)
            self.on_leave(stream.peer_id)
        elif kind is MessageType.PEER_LIST_REQUEST:
            decode(Nothing, payload)
        else:
            raise InvalidMessage(Fault.UNEXPECTED, f"{kind} on the peers protocol")
        await stream.send(self._answer(stream.peer_id))
        await stream.finish()

    def _answer(self, asker: PeerId) -> bytes:
        signed = self.office.signed_list(self.listed()) if self.office is not None else None
        if signed is not None:
            return seal(self.identity, MessageType.PEER_LIST, signed, self.clock(), asker)
        return seal(self.identity, MessageType.NOT_THE_TRACKER, self.peer_list(), self.clock(), asker)

    def record(self) -> PeerRecord:
        """Give our own signed card as of now."""
        card = PeerCard(
            peer_id=self.identity.peer_id,
            addresses=self.network.addresses()[:_MAX_ADDRESSES],
            roles=self.me.roles,
            models=self.me.models[:_MAX_MODELS],
            story=self.me.story,
            height=self.height(),
            time=Millis(self.clock()),
        )
        return sign_card(self.identity, card)

    def peer_list(self) -> PeerList:
        """Give what we answer when somebody else is the tracker: who and where that is, and a list of our own."""
        tracker = self.office.tracker if self.office is not None else None
        known = self._known.get(tracker) if tracker is not None else None
        where = self._reachability.reached(known.record.card) if known is not None else ()
        return PeerList((tracker,) if tracker is not None else (), 0, self.listed(), where)

    def listed(self) -> tuple[ListedPeer, ...]:
        """List the living, ourselves first."""
        ours = self.record()
        living = [
            ListedPeer(known.record, self._reachability.reached(known.record.card))
            for known in self._known.values()
            if known.liveness is Liveness.ALIVE
        ]
        return (ListedPeer(ours, ours.card.addresses), *living[:127])

    def liveness(self) -> Counter[Liveness]:
        """Count the peers we have heard from, by what we think of them."""
        return Counter(known.liveness for known in self._known.values())

    def heights(self, story: StoryId) -> list[int]:
        """List how high the living peers of a story say they are; only their word."""
        cards = [known.record.card for known in self._known.values() if known.liveness is Liveness.ALIVE]
        return [card.height for card in cards if story in card.story]

    def on_connected(self, peer: PeerId) -> None:
        """Take in that a connection is up."""
        if (known := self._known.get(peer)) is not None:
            self._revive(known)

    def on_disconnected(self, peer: PeerId) -> None:
        """Take in that a connection is gone: find out at once whether the peer still listens."""
        self._dialled.discard(peer)
        known = self._known.get(peer)
        if known is not None and known.liveness is not Liveness.DEAD:
            for address in known.record.card.addresses:
                # A fresh entry in place of an old one: whatever back-off there was is over.
                self._dials.pop(address, None)
                self._want(address, peer)
        self._look_now.set()

    def on_heartbeat(self, record: PeerRecord) -> None:
        """Take in a heartbeat: the card of its signer, whose signature the gossip check has verified."""
        self._take_own_word(record, in_person=False)

    def on_leave(self, peer: PeerId) -> None:
        """Take in that a peer says it goes."""
        if peer in self._known:
            self._forget(peer)
            self.tell(PeerChanged(peer, "left"))
        self._tell_office(peer, lives=False)
        self._dials = {
            address: dial
            for address, dial in self._dials.items()
            if dial.peer_id != peer or address in self.bootstrap  # an anchor comes back
        }

    def look_again(self) -> None:
        """Forget every back-off and dial now, after the operator changed who is denied."""
        for dial in self._dials.values():
            dial.failures, dial.next_try = 0, 0.0
        for peer, known in self._known.items():
            for address in known.record.card.addresses:
                self._want(address, peer)
        self._look_now.set()

    def learn(self, listed: ListedPeer) -> None:
        """Take in a peer that somebody lists: where it was met it is worth a dial, it proves no life."""
        if listed.record.card.peer_id not in self._known:  # in a large network most are, and a signature is dear
            self.hear_of(check_record(listed.record).peer_id, listed.reached)

    def hear_of(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Take in where a peer is said to be."""
        if peer == self.identity.peer_id or peer in self._known:
            return
        for address in addresses:
            self._want(address, peer)
        self._look_now.set()

    def _want(self, address: str, peer: PeerId) -> None:
        if len(self._dials) < _MAX_KNOWN or address in self.bootstrap:
            self._dials.setdefault(address, _Dial(address, peer_id=peer))

    def _take_word_in_person(self, record: PeerRecord, peer: PeerId) -> None:
        if check_record(record).peer_id != peer:
            raise InvalidMessage(Fault.WRONG_SENDER, "the card is somebody else's")
        self._take_own_word(record, in_person=True)

    def _take_own_word(self, record: PeerRecord, *, in_person: bool) -> None:
        card, signer = record.card, record.card.peer_id
        known = self._known.get(signer)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._forget_the_silent()
            self._known[signer] = Known(record, trio.current_time())
            self.tell(PeerChanged(signer, "joined"))
            self._tell_office(signer, lives=True)
        elif card.time > known.record.card.time:
            known.record = record
            self._revive(known)
        elif in_person:  # on its own connection nobody can repeat it: it lives, and its clock was set back
            self._revive(known)

    def _revive(self, known: Known) -> None:
        known.seen = trio.current_time()
        if known.liveness is Liveness.DEAD:
            self.tell(PeerChanged(known.record.card.peer_id, "joined"))
        known.liveness = Liveness.ALIVE
        self._tell_office(known.record.card.peer_id, lives=True)

    def _tell_office(self, peer: PeerId, *, lives: bool) -> None:
        if self.office is not None:
            self.office.on_peer(peer, lives=lives)

    def _forget_the_silent(self) -> None:
        self._forget(min(self._known, key=lambda peer: self._known[peer].seen))

    async def _beat(self, nursery: trio.Nursery) -> None:
        due = trio.current_time()
        while True:
            due = max(due + HEARTBEAT, trio.current_time())  # a beat that takes long makes the next no later
            await trio.sleep_until(due)
            if self.office is not None:
                await self.office.beat(seal(self.identity, MessageType.HEARTBEAT, self.record(), self.clock()))
            for known in self._known.values():
                if known.liveness is Liveness.ALIVE and self._reachability.is_due(known.record.card):
                    nursery.start_soon(self._reachability.check, known.record.card)

    async def _watch(self, nursery: trio.Nursery) -> None:
        limit = trio.CapacityLimiter(_DIALS_AT_ONCE)
        looked = trio.current_time()
        while True:
            now = trio.current_time()
            if now - looked > SUSPECT_AFTER:
                # It was we who stood still, and heard nothing of what was said: nobody is silent for that.
                for known in self._known.values():
                    known.seen += now - looked
            looked = now
            for ghost in self._judge_the_silent():
                nursery.start_soon(self.network.disconnect, ghost)
            next_question = self._ask_the_late(nursery)
            self._dial_the_lost(nursery, limit)
            next_judgement = min((known.next_judgement for known in self._known.values()), default=math.inf)
            with trio.move_on_at(min(now + _LOOK, next_question, next_judgement)):
                await self._look_now.wait()
            self._look_now = trio.Event()

    def _ask_the_late(self, nursery: trio.Nursery) -> float:
        """Ask connected peers whose heartbeats do not come, as an anchor's; tell when the next question is due."""
        now, next_question = trio.current_time(), math.inf
        for peer in self.network.connected():
            if (known := self._known.get(peer)) is not None:
                if known.next_question <= now:
                    known.asked = now
                    nursery.start_soon(self.introduce, peer)
                next_question = min(next_question, known.next_question)
        return next_question

    def _judge_the_silent(self) -> list[PeerId]:
        """Give those that are dead and still connected: the connection is a ghost, and in the way of a new one."""
        now = trio.current_time()
        connected = set(self.network.connected())
        ghosts = []
        for peer, known in list(self._known.items()):
            if now >= known.seen + DEAD_AFTER and known.liveness is not Liveness.DEAD:
                self._declare_dead(peer, known)
                for address in known.record.card.addresses:
                    self._want(address, peer)
                if peer in connected:
                    ghosts.append(peer)
            elif now >= known.next_judgement and known.liveness is Liveness.ALIVE:
                known.liveness = Liveness.SUSPECT
                logger.info("peer %s is silent", peer_id_text(peer))
            if known.liveness is Liveness.DEAD and now > known.seen + 20 * DEAD_AFTER and peer not in connected:
                self._forget(peer)
        return ghosts

    def _forget(self, peer: PeerId) -> None:
        del self._known[peer]
        self._reachability.forget(peer)

    def _declare_dead(self, peer: PeerId, known: Known) -> None:
        known.liveness = Liveness.DEAD
        self.tell(PeerChanged(peer, "dead"))
        self._tell_office(peer, lives=False)

    def _dial_the_lost(self, nursery: trio.Nursery, limit: trio.CapacityLimiter) -> None:
        now = trio.current_time()
        connected = set(self.network.connected())
        busy = {dial.peer_id for dial in self._dials.values() if dial.under_way and dial.peer_id is not None}
        # Whom we dial already takes a place: else every look until they answer dials as many again.
        # Strangers who fill this node choose its peers, unless some are of its own choice.
        own = self.wanted_of_own - len((self._dialled & connected) | busy)
        room = max(self.wanted - len(connected | busy), own)
        for dial in list(self._dials.values()):
            if dial.peer_id in connected:
                if dial.address not in self.bootstrap:
                    del self._dials[dial.address]
                continue
            due = not dial.under_way and now >= dial.next_try and dial.peer_id not in busy
            if due and (room > 0 or dial.address in self.bootstrap):
                room -= 1
                busy.update(() if dial.peer_id is None else (dial.peer_id,))
                dial.under_way = True
                nursery.start_soon(self._dial, dial, limit)

    async def _dial(self, dial: _Dial, limit: trio.CapacityLimiter) -> None:
        try:
            async with limit:
                dial.peer_id = await self.network.connect(dial.address)
            self._dialled.add(dial.peer_id)
            dial.failures = 0
        except ConnectionRefused:
            self._on_refused(dial)
        except (ServiceError, ProtocolError, UsageError) as error:  # UsageError: a peer lists what is no address
            logger.debug("no connection to %s: %s", dial.address, error)
            self._back_off(dial)
        finally:
            dial.under_way = False

    def _on_refused(self, dial: _Dial) -> None:
        known = self._known.get(dial.peer_id) if dial.peer_id is not None else None
        if known is not None and known.liveness is not Liveness.DEAD and dial.peer_id not in self.network.connected():
            self._declare_dead(known.record.card.peer_id, known)
        self._back_off(dial)

    def _back_off(self, dial: _Dial) -> None:
        dial.failures += 1
        # Whoever has nobody left forgets nobody: any of them may be the way back.
        is_kept = dial.address in self.bootstrap or dial.peer_id in self._known or not self.network.connected()
        if is_kept or dial.failures < len(_BACK_OFF):
            step = min(dial.failures, len(_BACK_OFF) - 1)
            dial.next_try = trio.current_time() + _BACK_OFF[step]
        else:
            self._dials.pop(dial.address, None)

    async def _call(self, peer: PeerId, kind: MessageType, payload: object) -> bytes:
        frame = seal(self.identity, kind, payload, self.clock(), peer)
        return await self.network.call(peer, PEERS_PROTOCOL, frame, _ANSWER)

    async def _say_goodbye(self) -> None:
        async def tell_one(peer: PeerId) -> None:
            try:
                await self._call(peer, MessageType.PEER_LEAVE, Nothing())
            except (ProtocolError, ServiceError) as error:
                logger.debug("a goodbye was not heard: %s", error)

        with trio.move_on_after(0.5, shield=True):
            async with trio.open_nursery() as nursery:
                for peer in self.network.connected():
                    nursery.start_soon(tell_one, peer)
