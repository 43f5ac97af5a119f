"""Vectors of the tracker: whose turn it is, and who has the office after each event.

A case of rule "order" is `{"name", "rule", "producers", "validators", "candidates"}`: producers newest first, null
where the genesis names nobody. One of rule "office" is `{"name", "rule", "me", "order", "events"}`; an event happens
`at` a second of the node's clock, which is 0 when it starts with a head of zeros, and is a new `head` with its `order`,
a `claim` (an encoded TrackerClaim), a sign of `life`, somebody `gone`, a span for which the node itself stood `still`,
or none of these, just time; with it the `view`, `tracker` and `state` after it, what it `sends`, and `fault` (null, or
why it was refused).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loremesh.errors import ProtocolError
from loremesh.primitives import Hash, Height, PeerId
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.genesis import Validator
from loremesh.protocol.identity import Identity
from loremesh.protocol.tracker import (
    Claimed,
    Office,
    Send,
    on_claim,
    on_gone,
    on_head,
    on_life,
    on_stall,
    on_tick,
    open_office,
    order_of_candidates,
)
from loremesh.protocol.wire import TrackerClaim
from loremesh.testing.builders import ANN, BOB, CAT, DAN, START, small_genesis
from loremesh.testing.vectors.plain import Case

Event = dict[str, Any]

_FIRST = Hash(bytes(32))
_NEXT = Hash(bytes([1]) * 32)
_FOUR = (ANN, BOB, CAT, DAN)


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    return [*_orders(), *_offices()]


def send_view(send: Send) -> Case:
    """Show what is to be sent."""
    if isinstance(send, Claimed):
        return {"claim": send.head.hex(), "view": send.view}
    return {"handed_over": send.head.hex(), "height": send.height, "tracker": send.tracker.hex()}


def after(office: Office, event: Event) -> Office:
    """Give the office after an event as a case has it.

    Raises:
        InvalidMessage: A claim to what is somebody else's.
    """
    now = event["at"]
    if "head" in event:
        order = tuple(PeerId(bytes.fromhex(peer)) for peer in event["order"])
        return on_head(office, Hash(bytes.fromhex(event["head"])), Height(office.height + 1), order, now)
    if "claim" in event:
        return on_claim(office, decode(TrackerClaim, bytes.fromhex(event["claim"])), now)
    if "life" in event:
        return on_life(office, PeerId(bytes.fromhex(event["life"])), now)
    if "gone" in event:
        return on_gone(office, PeerId(bytes.fromhex(event["gone"])), now)
    if "still" in event:
        return on_stall(office, event["still"])
    return on_tick(office, now)


def _orders() -> list[Case]:
    told = (
        ("nobody has produced anything", (ANN,), (BOB, CAT)),
        ("producers come newest first and once", (BOB, CAT, BOB, ANN), (DAN,)),
        ("a validator that has produced comes once", (BOB, None), (CAT, BOB)),
        ("the genesis names nobody", (None,), ()),
    )
    made: list[Case] = []
    for name, producers, validators in told:
        genesis = replace(small_genesis(), validators=tuple(Validator(one.peer_id) for one in validators))
        named = [one.peer_id if one is not None else None for one in producers]
        made.append(
            {
                "name": name,
                "rule": "order",
                "producers": [one.hex() if one is not None else None for one in named],
                "validators": [one.peer_id.hex() for one in validators],
                "candidates": [one.hex() for one in order_of_candidates(named, genesis)],
            }
        )
    return made


def _offices() -> list[Case]:
    return [
        _case("the tracker of the head is the tracker", ANN, [_at(1), _at(100)]),
        _case("somebody else who is alive is the tracker", BOB, [_at(1, life=ANN), _at(10, life=ANN), _at(19)]),
        _case("the next one takes over at once from one that refuses", BOB, [_at(5, gone=ANN)]),
        _case("the one after the next has another ten seconds", CAT, [_at(5, gone=ANN), _at(14), _at(15)]),
        _case("whoever is gone is not waited for", CAT, [_at(5, gone=BOB), _at(6, gone=ANN)]),
        _case("one never heard in the office is given ten seconds", BOB, [_at(9), _at(10)]),
        _case("view 3 of a head whose candidates are all unknown", DAN, [_at(29), _at(30)]),
        _case("one that was heard is waited for until it is gone", BOB, [_at(5, life=ANN), _at(40), _at(41, gone=ANN)]),
        _case("one that nobody declares gone is given forty seconds", BOB, [_at(5, life=ANN), _at(44), _at(45)]),
        _case("a claim in its turn is accepted", DAN, [_at(5, gone=ANN), _claim(6, BOB, 1)]),
        _case("a claim before its turn waits for it", DAN, [_claim(6, BOB, 1), _at(7), _at(8, gone=ANN)]),
        _case("a claim that has waited too long is forgotten", DAN, [_claim(6, BOB, 1), _at(17, gone=ANN)]),
        _case("a living tracker is not claimed away", DAN, [_at(4, life=ANN), _claim(6, BOB, 1), _at(13)]),
        _case(
            "of two claims the lowest view wins",
            DAN,
            [_at(5, gone=ANN), _at(5, gone=BOB), _claim(6, CAT, 2), _claim(7, BOB, 1)],
        ),
        _case(
            "of two claims the lowest view wins, in the other order",
            DAN,
            [_at(5, gone=ANN), _at(5, gone=BOB), _claim(6, BOB, 1), _claim(7, CAT, 2)],
        ),
        _case("a tracker that comes back has its office back", BOB, [_at(5, gone=ANN), _at(60, life=ANN)]),
        _case("a claim to somebody else's view is refused", DAN, [_at(5, gone=ANN), _claim(6, CAT, 1)]),
        _case("a claim to a view that nobody has is refused", DAN, [_claim(6, CAT, 4)]),
        _case("a claim of another head changes nothing", DAN, [_at(5, gone=ANN), _claim(6, CAT, 1, _NEXT)]),
        _case(
            "a claim that is repeated is no sign of life",
            CAT,
            [_at(5, gone=ANN), _claim(6, BOB, 1), _claim(40, BOB, 1), _at(46)],
        ),
        _case("a new head begins at view 0", BOB, [_at(5, gone=ANN), _head(9, CAT, ANN, BOB)]),
        _case("whoever has handed over says so", ANN, [_head(9, CAT, ANN, BOB), _head(12, ANN, CAT, BOB)]),
        _case("nobody was silent while we stood still", BOB, [_at(8), {"at": 60, "still": 52}, _at(61), _at(62)]),
        _case("a story without any candidate has no tracker", ANN, [_at(100, gone=BOB)], order=()),
    ]


def _at(at: int, **event: Identity) -> Event:
    return {"at": at, **{what: who.peer_id.hex() for what, who in event.items()}}


def _claim(at: int, who: Identity, view: int, head: Hash = _FIRST) -> Event:
    return {"at": at, "claim": encode(TrackerClaim(_FIRST, head, view, who.peer_id, START)).hex()}


def _head(at: int, *order: Identity) -> Event:
    return {"at": at, "head": bytes([at] * 32).hex(), "order": [one.peer_id.hex() for one in order]}


def _case(name: str, me: Identity, events: Sequence[Event], order: tuple[Identity, ...] = _FOUR) -> Case:
    named = tuple(one.peer_id for one in order)
    office = open_office(me.peer_id, _FIRST, Height(0), named, 0)
    told = list[Event]()
    for event in events:
        fault, sends = None, list[Any]()
        try:
            office = after(office, event)
            sends = [send_view(send) for send in office.sends]
        except ProtocolError as error:
            fault = str(error.fault)
        tracker = office.tracker.hex() if office.tracker is not None else None
        result = {"view": office.view, "tracker": tracker, "state": str(office.state), "sends": sends, "fault": fault}
        told.append({**event, **result})
    return {
        "name": name,
        "rule": "office",
        "me": me.peer_id.hex(),
        "order": [one.hex() for one in named],
        "events": told,
    }
