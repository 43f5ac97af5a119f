"""Cards: signed, fresh for 90 seconds, and worth nothing after."""

from dataclasses import replace
from typing import Any

import pytest

from loremesh.errors import Fault, InvalidMessage, ProtocolError
from loremesh.primitives import Millis
from loremesh.protocol.cards import (
    CARD_LIFE,
    MAX_CARDS,
    CapabilityCard,
    Cards,
    ModelOffer,
    SignedCard,
    check_capability_card,
    is_fresh,
    model_key,
    sign_capability_card,
)
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.llm import CLOCK_SKEW
from loremesh.protocol.peer_score import COSTS, FREE
from loremesh.testing.builders import ANN, BOB, START

OFFER = ModelOffer("small-model", 8192, 250)


def card(**changes: Any) -> CapabilityCard:
    usual = CapabilityCard(ANN.peer_id, ("/ip4/127.0.0.1/tcp/4001",), (OFFER,), 1, 4, START, Millis(START + CARD_LIFE))
    return replace(usual, **changes)


def fault_of(told: CapabilityCard, now: int = START) -> Fault:
    with pytest.raises(InvalidMessage) as refusal:
        check_capability_card(sign_capability_card(ANN, told), Millis(now))
    return refusal.value.fault


def test_a_card_holds_for_ninety_seconds() -> None:
    signed = sign_capability_card(ANN, card())
    for now in (START - CLOCK_SKEW, START, START + CARD_LIFE):
        assert check_capability_card(signed, Millis(now)) == card()
        assert is_fresh(card(), Millis(now))


def test_a_card_that_is_not_fresh_is_refused_at_no_cost_to_whoever_passed_it_on() -> None:
    late, early = START + CARD_LIFE + 1, START - CLOCK_SKEW - 1
    assert (fault_of(card(), late), fault_of(card(), early)) == (Fault.EXPIRED, Fault.FROM_THE_FUTURE)
    assert not is_fresh(card(), Millis(late))
    assert not is_fresh(card(), Millis(early))
    assert COSTS[Fault.EXPIRED] == COSTS[Fault.FROM_THE_FUTURE] == FREE


@pytest.mark.parametrize("life", [0, -1, CARD_LIFE + 1])
def test_no_card_lives_longer(life: int) -> None:
    assert fault_of(card(expires=Millis(START + life))) is Fault.OUT_OF_RANGE


def test_a_model_is_offered_once() -> None:
    assert fault_of(card(models=(OFFER, replace(OFFER, price=1)))) is Fault.DUPLICATE


def test_only_its_executor_signs_a_card() -> None:
    assert fault_of(card(peer_id=BOB.peer_id)) is Fault.BAD_SIGNATURE


def test_one_changed_byte_anywhere_in_a_card_is_refused() -> None:
    good = encode(sign_capability_card(ANN, card()))
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            check_capability_card(decode(SignedCard, bytes(changed)), START)


def test_the_largest_answer_fits_into_a_frame() -> None:
    offers = tuple(ModelOffer(f"{number:0128}", 2**32 - 1, 10**12) for number in range(64))
    largest = sign_capability_card(ANN, card(models=offers, addresses=("x" * 256,) * 8))
    assert check_capability_card(largest, START) == largest.card
    answer = Cards((largest,) * MAX_CARDS)
    assert decode(Cards, encode(answer)) == answer


def test_a_model_has_its_key_in_the_dht() -> None:
    assert model_key("small-model") == "model/small-model"
