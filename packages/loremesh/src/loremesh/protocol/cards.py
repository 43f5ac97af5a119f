"""Cards: what an executor can serve now, signed, for a short while. Calls need no story, and neither do cards.

Source: docs/protocol/llm.md.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import KIB, Hash, Millis
from loremesh.protocol.codec import (
    Int,
    Many,
    MillisField,
    PeerIdField,
    SignatureField,
    Text,
    encode,
    schema,
)
from loremesh.protocol.identity import NO_STORY, Identity, check_peer_id, digest, verify
from loremesh.protocol.llm import CLOCK_SKEW, ModelField, PriceField, check_times

CARD_PROTOCOL: Final = "/loremesh/card/1"
CARDS_TOPIC: Final = "/loremesh/cards/1"
CARD_LIFE: Final = Millis(90 * 1000)
MAX_CARDS: Final = 64
EXECUTOR_KEY: Final = "role/executor"
"""Under which executors provide themselves in the DHT."""


@schema(version=1, limit=256)
@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model that an executor serves."""

    id: ModelField
    context: Annotated[int, Int(1, 2**32 - 1)]
    """Tokens that prompt and answer may have together, as the backend counts."""
    price: PriceField
    """Gwei per 1,000 tokens."""


@schema(version=1, limit=12 * KIB)
@dataclass(frozen=True, slots=True)
class CapabilityCard:
    """What an executor can serve, before it signs it."""

    peer_id: PeerIdField
    addresses: Annotated[tuple[Annotated[str, Text(256)], ...], Many(8)]
    """Dialable multiaddrs."""
    models: Annotated[tuple[ModelOffer, ...], Many(64)]
    """No model twice."""
    running: Annotated[int, Int(0, 2**16 - 1)]
    """Calls now."""
    slots: Annotated[int, Int(0, 2**16 - 1)]
    """Calls at most; 0: none are taken."""
    time: MillisField
    """The executor's clock: of its cards the latest holds."""
    expires: MillisField


@schema(version=1, limit=13 * KIB)
@dataclass(frozen=True, slots=True)
class SignedCard:
    """A card and its executor's signature: it may be passed on."""

    card: CapabilityCard
    signature: SignatureField


@schema(version=1, limit=192)
@dataclass(frozen=True, slots=True)
class CardsRequest:
    """Ask for the fresh cards that a node knows."""

    model: ModelField
    """Only of executors that serve it; empty: of all."""


@schema(version=1, limit=960 * KIB)
@dataclass(frozen=True, slots=True)
class Cards:
    """Fresh cards, the executor's own among them if the answering node is one."""

    cards: Annotated[tuple[SignedCard, ...], Many(MAX_CARDS)]


def model_key(model: str) -> str:
    """Give the key under which the executors of a model provide themselves in the DHT."""
    return f"model/{model}"


def card_digest(card: CapabilityCard) -> Hash:
    """Give what an executor signs of a card."""
    return digest("card", NO_STORY, encode(card))


def sign_capability_card(identity: Identity, card: CapabilityCard) -> SignedCard:
    """Sign a card as its executor."""
    return SignedCard(card, identity.sign(card_digest(card)))


def check_capability_card(signed: SignedCard, now: Millis) -> CapabilityCard:
    """Check a card; give it if it is good, and fresh.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE. DUPLICATE, a model twice. OUT_OF_RANGE, it lives too long. EXPIRED or
            FROM_THE_FUTURE: it is not fresh, which is no fault of whoever passed it on.
    """
    card = signed.card
    check_peer_id(card.peer_id)
    if len({offer.id for offer in card.models}) < len(card.models):
        raise InvalidMessage(Fault.DUPLICATE, "a model is offered twice")
    verify(signed.signature, card_digest(card), card.peer_id)
    check_times(card.time, card.expires, CARD_LIFE, now)
    return card


def is_fresh(card: CapabilityCard, now: Millis) -> bool:
    """Tell whether a card that was checked once still holds."""
    return now <= card.expires and card.time <= now + CLOCK_SKEW
