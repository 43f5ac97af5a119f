"""The card service: what executors say they serve, kept while it is fresh, and told to whoever asks.

Every node keeps the cards it hears of. An executor also makes its own, every twenty seconds and when its load changes.

Source: docs/protocol/llm.md, "Cards".
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import Fault, InvalidMessage, ServiceError
from loremesh.network.events import GossipReceived
from loremesh.network.frames import Stream
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.cards import (
    CARD_LIFE,
    CARDS_TOPIC,
    EXECUTOR_KEY,
    MAX_CARDS,
    CapabilityCard,
    Cards,
    CardsRequest,
    ModelOffer,
    SignedCard,
    check_capability_card,
    is_fresh,
    model_key,
    sign_capability_card,
)
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import MessageType, expect, seal
from loremesh.services.asked import receive_request
from loremesh.services.happenings import Clock, Happening, PeerChanged, Tell
from loremesh.services.latest import Latest
from loremesh.services.slots import PerMinute

logger = logging.getLogger("loremesh.cards")

EVERY: Final = 20.0
"""Seconds between two cards of an executor whose load stays the same."""
SOONEST: Final = 2.0
"""Least seconds between two of its cards."""
PROVIDE_EVERY: Final = 300.0
"""Seconds between two times that an executor says in the DHT what it serves."""
_LONELY: Final = 10.0
_MOST_KEPT: Final = 512
_PER_MINUTE: Final = 60
"""Of one signer: twice what an executor makes, for they can be held up and come together."""
_ADDRESSES: Final = 4
_PUBLISH_TIMEOUT: Final = 10.0
_COUNTED: Final = 2**16 - 1
_GONE: Final = ("dead", "left")


class Network(Protocol):
    """What cards need of the network."""

    def addresses(self) -> tuple[str, ...]:
        """Give our dialable addresses."""

    def connected(self) -> tuple[PeerId, ...]:
        """Give the peers we have a connection to."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip."""

    async def subscribe(self, topic: str, accept: Callable[[PeerId, bytes], object]) -> None:
        """Listen to a topic; `accept` refuses by raising, and what it returns comes with the message."""

    async def provide(self, key: str) -> None:
        """Say in the DHT that we provide `key`."""


class Stock(Protocol):
    """What an executor has to offer: `LlmServer`."""

    @property
    def offers(self) -> tuple[ModelOffer, ...]:
        """The models."""

    @property
    def running(self) -> int:
        """Slots in use."""

    @property
    def slots(self) -> int:
        """Slots altogether."""

    @property
    def load(self) -> Latest[int]:
        """Set whenever a call has begun or ended."""


@dataclass(slots=True)
class CardService:
    """Sole owner of the cards that a node knows.

    Args:
        identity: Ours.
        network: Carries them.
        clock: Unix milliseconds.
    """

    identity: Identity
    network: Network
    clock: Clock
    _known: dict[PeerId, SignedCard] = field(default_factory=dict)
    _stock: Stock | None = None
    _wake: trio.Event = field(default_factory=trio.Event)
    _told: int = 0
    _rate: PerMinute = field(default_factory=lambda: PerMinute(_PER_MINUTE))
    _dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        """Make what chooses among too many cards."""
        self._dice = random.Random(self.identity.peer_id)  # noqa: S311 - no secret, and the same in every simulation

    async def subscribe(self) -> None:
        """Listen to the cards of others."""
        await self.network.subscribe(CARDS_TOPIC, self._check)

    def on_gossip(self, received: GossipReceived) -> None:
        """Take in a card that passed its topic's check."""
        if isinstance(received.value, SignedCard):
            self.take(received.value)

    def take(self, signed: SignedCard) -> None:
        """Keep a card that was checked, unless a later one of its executor is known."""
        card = signed.card
        known = self._known.get(card.peer_id)
        if card.peer_id == self.identity.peer_id or (known is not None and known.card.time >= card.time):
            return
        if known is None and len(self._known) >= _MOST_KEPT:
            self._forget_the_old()
            if len(self._known) >= _MOST_KEPT:
                self._known.pop(min(self._known, key=lambda peer: self._known[peer].card.expires))
        self._known[card.peer_id] = signed

    def hearing(self, tell: Tell) -> Tell:
        """Give what passes happenings on to `tell`, and forgets the card of whoever is gone."""

        def hear(happening: Happening) -> None:
            if isinstance(happening, PeerChanged) and happening.change in _GONE:
                self._known.pop(happening.peer_id, None)
            tell(happening)

        return hear

    def on_connected(self) -> None:
        """Take in that somebody came who may not have heard of us."""
        self._wake.set()

    def fresh(self, model: str = "") -> tuple[SignedCard, ...]:
        """Give the fresh cards, our own first: of all, or of those that offer a model."""
        self._forget_the_old()
        ours = (self._own(),) if self._stock is not None else ()
        return tuple(
            signed
            for signed in (*ours, *self._known.values())
            if not model or any(offer.id == model for offer in signed.card.models)
        )

    async def serve(self, stream: Stream) -> None:
        """Answer one request for cards.

        Raises:
            ProtocolError: The peer broke a rule.
            ServiceError: The peer went away, or was too slow.
        """
        kind, payload = await receive_request(stream, self.identity.peer_id)
        if kind is not MessageType.CARDS_REQUEST:
            raise InvalidMessage(Fault.UNEXPECTED, f"{kind} on the protocol of cards")
        found = self.fresh(decode(CardsRequest, payload).model)
        if len(found) > MAX_CARDS:  # whoever asks again hears of others
            found = tuple(self._dice.sample(found, MAX_CARDS))
        await stream.send(seal(self.identity, MessageType.CARDS, Cards(found), self.clock(), stream.peer_id))
        await stream.finish()

    # an executor's own

    async def announce(self, stock: Stock) -> None:
        """Tell the network what we serve, until cancelled; that needs a node that can be used."""
        self._stock = stock
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._provide, stock)
                nursery.start_soon(self._watch, stock)
                while True:
                    self._wake = trio.Event()
                    self._told = _level(stock)
                    await self.publish()
                    await trio.sleep(SOONEST)
                    with trio.move_on_after(EVERY - SOONEST):
                        await self._wake.wait()
        finally:
            self._stock = None

    async def publish(self) -> None:
        """Gossip our card as of now, if we serve anything."""
        if self._stock is None:
            return
        with trio.move_on_after(_PUBLISH_TIMEOUT) as deadline:
            data = seal(self.identity, MessageType.CARD, self._own(), self.clock())
            await self.network.publish(CARDS_TOPIC, data)
        if deadline.cancelled_caught:
            logger.warning("our card was not taken by the network in time; the next one follows")

    async def _watch(self, stock: Stock) -> None:
        while True:
            await stock.load.wait_change()
            if _level(stock) != self._told:
                self._wake.set()

    async def _provide(self, stock: Stock) -> None:
        while True:
            connected = self.network.connected()
            if connected:
                try:
                    for key in (EXECUTOR_KEY, *(model_key(offer.id) for offer in stock.offers)):
                        await self.network.provide(key)
                except ServiceError as error:
                    logger.info("the DHT does not take what we serve: %s", error)
            await trio.sleep(PROVIDE_EVERY if connected else _LONELY)

    def _own(self) -> SignedCard:
        assert self._stock is not None  # noqa: S101 - for the type checker: callers have looked
        now = Millis(self.clock())
        card = CapabilityCard(
            peer_id=self.identity.peer_id,
            addresses=self.network.addresses()[:_ADDRESSES],
            models=self._stock.offers,
            running=min(self._stock.running, _COUNTED),
            slots=min(self._stock.slots, _COUNTED),
            time=now,
            expires=Millis(now + CARD_LIFE),
        )
        return sign_capability_card(self.identity, card)

    # the cards of others

    def _check(self, signer: PeerId, data: bytes) -> SignedCard:
        signed = expect(data, signer, MessageType.CARD, SignedCard)
        if signed.card.peer_id != signer:
            raise InvalidMessage(Fault.WRONG_SENDER, "the card is somebody else's")
        if self._rate.wait(signer) > 0:
            raise InvalidMessage(Fault.QUOTA, f"more than {_PER_MINUTE} cards in a minute")
        self._rate.note(signer)
        check_capability_card(signed, Millis(self.clock()))
        return signed

    def _forget_the_old(self) -> None:
        now = Millis(self.clock())
        self._known = {peer: signed for peer, signed in self._known.items() if is_fresh(signed.card, now)}


def _level(stock: Stock) -> int:
    """Tell in quarters how busy an executor is: whoever chooses one need not know better."""
    return 4 * stock.running // stock.slots if stock.slots else -1
