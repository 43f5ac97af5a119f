"""Who is the tracker of a round, and who takes over when it is gone.

Two states, tracker or peer. The tracker of the coming round is the producer of the head; before the first block, whom
the genesis names. That is *view* 0 of the head. When the tracker is gone the next candidate takes over with view 1, and
so on; a new head begins at view 0 again. A tracker is a hint, so nothing here needs agreement: two halves of a parted
network have two trackers until they meet, and then the lowest view that is alive has the office.

A reducer: `on_head`, `on_claim`, `on_life`, `on_gone`, `on_tick` and `on_stall` take an office and an event and give
the next office, whose `sends` say what to tell the others. Moments are seconds of the node's own clock, which nobody
compares with another's.

Source: docs/protocol/tracker.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from itertools import islice
from typing import Final

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.fork_choice import Store, chain
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.wire import TrackerClaim

TURN: Final = 10.0
"""Seconds that a candidate has to take the office, or to be heard in it, before the next one may."""
SILENCE: Final = 40.0
"""Seconds after which a candidate gives up on a tracker that nobody has declared dead."""
RECENT: Final = 64
"""Blocks below the head whose producers are candidates."""
_MAX_GONE: Final = 512


@unique
class TrackerState(StrEnum):
    """What a node is in a round: one of exactly two."""

    TRACKER = "tracker"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Claimed:
    """Send: we have taken the office of `head` with `view`."""

    head: Hash
    view: int


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Send: a block has come, so we are a peer again; `tracker` has the office of `head`."""

    head: Hash
    height: Height
    tracker: PeerId


Send = Claimed | HandedOver


@dataclass(frozen=True, slots=True)
class Turn:
    """What is known of one candidate."""

    candidate: PeerId
    heard: float | None = None
    """When it last gave a sign of life in the office; None: it has never taken it."""
    claimed: Millis = Millis(0)
    """The time in its newest claim, by its own clock: a claim that somebody repeats is no sign of life."""


@dataclass(frozen=True, slots=True)
class Office:
    """All that a node knows of the tracker of its head."""

    me: PeerId
    head: Hash
    height: Height
    since: float
    """When that head became ours."""
    turns: tuple[Turn, ...]
    """One for each view."""
    view: int = 0
    """The view that has the office."""
    gone: tuple[tuple[PeerId, float], ...] = ()
    """Peers known to be gone and since when, candidates or not, the newest last."""
    sends: tuple[Send, ...] = ()
    """What the last event asks us to send."""

    @property
    def tracker(self) -> PeerId | None:
        """Who has the office; None: the story has no block yet, and its genesis names nobody."""
        return self.turns[self.view].candidate if self.turns else None

    @property
    def state(self) -> TrackerState:
        """What we are."""
        return TrackerState.TRACKER if self.tracker == self.me else TrackerState.PEER


def order_of_candidates(producers: Iterable[PeerId | None], genesis: Genesis) -> tuple[PeerId, ...]:
    """Give who may be the tracker, by view: distinct producers as they come, then the validators of the genesis.

    Args:
        producers: Of recent blocks, the newest first; None: a genesis that names no tracker.
        genesis: Of the story.
    """
    validators = (validator.peer_id for validator in genesis.validators)
    named = (peer for peer in (*producers, *validators) if peer is not None)
    return tuple(dict.fromkeys(named))


def candidates(store: Store, head: Hash) -> tuple[PeerId, ...]:
    """Give the candidates of a block of the tree: the same wherever it is known."""
    recent = islice(chain(store, head), RECENT)
    return order_of_candidates((entry.link.producer for entry in recent), store.genesis)


def check_claim(order: tuple[PeerId, ...], view: int, claimant: PeerId) -> None:
    """Check that a view of a head belongs to whoever claims it.

    Args:
        order: The candidates of that head.
        view: Claimed, 0 by whoever produced the head.
        claimant: Who signed.

    Raises:
        InvalidMessage: NOT_THE_TRACKER.
    """
    if view >= len(order) or order[view] != claimant:
        raise InvalidMessage(Fault.NOT_THE_TRACKER, f"view {view} is somebody else's")


def open_office(me: PeerId, head: Hash, height: Height, order: tuple[PeerId, ...], now: float) -> Office:
    """Give the office of a node that has just started.

    Args:
        me: Ourselves.
        head: Our head.
        height: Its height.
        order: Its candidates.
        now: This moment.
    """
    return _settle(Office(me, head, height, now, tuple(map(Turn, order))), now)


def on_head(office: Office, head: Hash, height: Height, order: tuple[PeerId, ...], now: float) -> Office:
    """Take in a new head: a new round, view 0."""
    if head == office.head:
        return replace(office, sends=())
    turns = tuple(map(Turn, order))
    after = _settle(replace(office, head=head, height=height, since=now, turns=turns, view=0), now)
    if office.state is TrackerState.TRACKER and after.state is TrackerState.PEER:
        return replace(after, sends=(HandedOver(head, height, turns[0].candidate),))
    return after


def on_claim(office: Office, claim: TrackerClaim, now: float) -> Office:
    """Take in a claim, or what only the tracker sends. One about another head than ours changes nothing.

    One that comes before its turn is kept, and counts if its turn comes while it is fresh: its sender may have noticed
    before us that the tracker is gone.

    Args:
        office: As it is.
        claim: Of our story, its signature checked.
        now: This moment.

    Raises:
        InvalidMessage: NOT_THE_TRACKER.
    """
    view, claimant = claim.view, claim.claimant
    if claim.head != office.head:
        return replace(office, sends=())
    check_claim(tuple(turn.candidate for turn in office.turns), view, claimant)
    if claim.time <= office.turns[view].claimed or claimant == office.me:
        return replace(office, sends=())
    office = _with_turn(office, view, Turn(claimant, now, claim.time))
    return _settle(_without_gone(office, claimant), now)


def on_life(office: Office, peer: PeerId, now: float) -> Office:
    """Take in a sign of life of a peer: whoever has the office, or had it by right, goes on having it."""
    office = _without_gone(office, peer)
    view = view_of(office, peer)
    if view is not None and view in (0, office.view):
        office = _with_turn(office, view, replace(office.turns[view], heard=now))
    return _settle(office, now)


def on_gone(office: Office, peer: PeerId, now: float) -> Office:
    """Take in that a peer refuses connections, said goodbye, or has been silent for too long."""
    if peer == office.me:
        return replace(office, sends=())
    gone = ((known, since) for known, since in office.gone if known != peer)
    return _settle(replace(office, gone=(*gone, (peer, now))[-_MAX_GONE:]), now)


def on_tick(office: Office, now: float) -> Office:
    """Let time pass."""
    return _settle(office, now)


def on_stall(office: Office, span: float) -> Office:
    """Take in that it was we who stood still, for `span` seconds, and heard nothing: nobody was silent meanwhile."""
    turns = tuple(turn if turn.heard is None else replace(turn, heard=turn.heard + span) for turn in office.turns)
    return replace(office, since=office.since + span, turns=turns, sends=())


def view_of(office: Office, peer: PeerId) -> int | None:
    """Tell which view is a peer's; None: it is no candidate."""
    return next((view for view, turn in enumerate(office.turns) if turn.candidate == peer), None)


def opens_at(office: Office, view: int, patience: float) -> float:
    """Tell when a view's turn comes, as far as is known now: when every lower view has had its own.

    A candidate that is gone is not waited for. One that has never been heard in the office has `TURN` seconds to take
    it, which makes 10·v seconds for view v of a head whose candidates are all unknown.

    Args:
        office: As it is.
        view: 0 is open from the beginning.
        patience: Seconds to wait for one that was heard in the office.
    """
    moment = office.since
    gone = dict(office.gone)
    for turn in office.turns[:view]:
        if turn.candidate in gone:
            moment = max(moment, gone[turn.candidate])
        elif turn.heard is None:
            moment += TURN
        else:
            moment = max(moment, turn.heard + patience)
    return moment


def _settle(office: Office, now: float) -> Office:
    """Find out who has the office now, and take it if that is up to us."""
    before, mine = office, view_of(office, office.me)
    if mine is not None and mine in (0, office.view):
        office = _with_turn(office, mine, replace(office.turns[mine], heard=now))
    leader = _lowest_alive(office, now)
    if leader is None and mine is not None and now >= opens_at(office, mine, SILENCE):
        office = _with_turn(office, mine, replace(office.turns[mine], heard=now))
        leader = mine
    # While nobody is alive the last one keeps the name: there is no better answer to who the tracker is.
    office = replace(office, view=office.view if leader is None else leader, sends=())
    if office.view == mine and office.view not in (0, before.view):
        return replace(office, sends=(Claimed(office.head, office.view),))
    return office


def _lowest_alive(office: Office, now: float) -> int | None:
    gone = {peer for peer, _ in office.gone}
    for view, turn in enumerate(office.turns):
        # By right the producer of the head has the office from the start: its block was a sign of life.
        heard = office.since if view == 0 and turn.heard is None else turn.heard
        is_alive = heard is not None and now < heard + TURN and turn.candidate not in gone
        if is_alive and now >= opens_at(office, view, TURN):
            return view
    return None


def _with_turn(office: Office, view: int, turn: Turn) -> Office:
    return replace(office, turns=(*office.turns[:view], turn, *office.turns[view + 1 :]))


def _without_gone(office: Office, peer: PeerId) -> Office:
    if all(known != peer for known, _ in office.gone):
        return office
    return replace(office, gone=tuple((known, since) for known, since in office.gone if known != peer))
