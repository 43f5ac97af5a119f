"""Vectors of the fork choice: events in order, and the head and the changes after each.

A case is `{"name", "genesis", "now", "max_reorg", "events"}`; an event is `{"block": hex}` or `{"tick": now}` with
what follows from it: `head`, `changes` (each named by its kind) and `fault` (null, or why the event was refused).
"""

from collections.abc import Sequence

from loremesh.errors import ProtocolError
from loremesh.primitives import Millis
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.changes import (
    Accepted,
    Change,
    Equivocated,
    HeadMoved,
    Refused,
    ReorgWithheld,
    SetAside,
    Waiting,
)
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import Store, new_store, on_block, on_tick
from loremesh.protocol.genesis import Genesis, Parameters
from loremesh.protocol.identity import Identity
from loremesh.protocol.production import Parent
from loremesh.testing.builders import ANN, BOB, CAT, DAN, START, block_on, parent_of, resigned, small_genesis
from loremesh.testing.vectors.plain import Case

_LATER = Millis(START + 3_600_000)
_GENESIS = small_genesis()
_WORKED = small_genesis(Parameters(initial_work=16, easiest_work=2, half_life=Millis(2000)))


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    one, two, three = _chain(_GENESIS, [BOB, CAT, BOB])
    left, right = _chain(_GENESIS, [ANN, BOB]), _chain(_GENESIS, [CAT, DAN, CAT])
    slow = _chain(_WORKED, [ANN, BOB, CAT, DAN], gap=12_000)
    fast = _chain(_WORKED, [BOB, ANN, DAN], gap=1000)
    twins = _siblings([BOB, BOB, BOB])
    on_first, on_third = (block_on(_GENESIS, _after(twin), CAT) for twin in (twins[0], twins[2]))
    broken = resigned(two, CAT, state_root=bytes(32))
    on_broken = resigned(three, BOB, parent=header_hash(broken.header))
    return [
        _case("blocks in order", _GENESIS, [one, two, three]),
        _case("children before their parents", _GENESIS, [three, two, one]),
        _case("a block again changes nothing", _GENESIS, [one, one, two, one]),
        _case("of two tips at one height, the lowest hash", _GENESIS, [left[0], right[0]]),
        _case("of two tips at one height, in the other order", _GENESIS, [right[0], left[0]]),
        _case("the longer branch takes over", _GENESIS, [*left, *right]),
        _case("a shorter branch changes nothing", _GENESIS, [*right, *left]),
        _case("a longer branch of easier work does not take over", _WORKED, [*fast, *slow]),
        _case("more work in fewer blocks takes over", _WORKED, [*slow, *fast]),
        _case("two headers on one parent are kept, a third is set aside", _GENESIS, twins),
        _case("somebody builds on a third header", _GENESIS, [*twins, on_third, on_first]),
        _case("a third header that somebody has built on", _GENESIS, [on_third, *twins, on_first]),
        _case("whichever comes third, if somebody builds on each", _GENESIS, [*twins[::-1], on_first, on_third]),
        _case("a block that does not fit builds on nothing", _GENESIS, [*twins, resigned(on_third, CAT, height=3)]),
        _case("what waits for a bad block is refused with it", _GENESIS, [on_broken, broken, one, three, two]),
        _case("an orphan of a bad block that never waited stays one", _GENESIS, [on_broken, one, broken]),
        _case(
            "a block ahead of the clock is held until its time",
            _GENESIS,
            [one, two, Millis(START + 5499), Millis(START + 5500)],
            now=Millis(START + 3000),
        ),
        _case(
            "an orphan of a held block waits with it",
            _GENESIS,
            [one, three, two, Millis(START + 5500), Millis(START + 8500)],
            now=Millis(START + 3000),
        ),
        _case("a reorganisation as deep as allowed", _GENESIS, [*left, *right], max_reorg=2),
        _case("a reorganisation deeper than allowed", _GENESIS, [*left, *right], max_reorg=1),
    ]


def _chain(genesis: Genesis, producers: Sequence[Identity], gap: int | None = None) -> list[Block]:
    store, blocks = new_store(genesis, _LATER), list[Block]()
    for producer in producers:
        parent = parent_of(store)
        blocks.append(block_on(genesis, parent, producer, time=parent.link.time + gap if gap else None))
        store = on_block(store, blocks[-1])
    return blocks


def _siblings(producers: Sequence[Identity]) -> list[Block]:
    root = parent_of(new_store(_GENESIS, _LATER))
    return [block_on(_GENESIS, root, producer, salt=str(number)) for number, producer in enumerate(producers)]


def _after(block: Block) -> Parent:
    return parent_of(on_block(new_store(_GENESIS, _LATER), block))


def _case(
    name: str, genesis: Genesis, events: Sequence[Block | Millis], now: Millis = _LATER, max_reorg: int | None = None
) -> Case:
    store, told = new_store(genesis, now, max_reorg), list[Case]()
    for event in events:
        store, result = _happened(store, event)
        told.append(result)
    return {
        "name": name,
        "genesis": encode(genesis).hex(),
        "now": now,
        "max_reorg": max_reorg,
        "events": told,
    }


def _happened(store: Store, event: Block | Millis) -> tuple[Store, Case]:
    fault, changes = None, tuple[Change, ...]()
    try:
        store = on_block(store, event) if isinstance(event, Block) else on_tick(store, event)
        changes = store.changes
    except ProtocolError as error:
        fault = str(error.fault)
    what: Case = {"block": encode(event).hex()} if isinstance(event, Block) else {"tick": event}
    return store, what | {
        "head": store.head.hex(),
        "height": store.tip.link.height,
        "changes": [change_view(change) for change in changes],
        "fault": fault,
    }


def change_view(change: Change) -> Case:
    """Show a change of the store."""
    match change:
        case Accepted(name) | SetAside(name):
            return {"accepted" if isinstance(change, Accepted) else "set_aside": name.hex()}
        case Waiting(name, held):
            return {"held" if held else "orphan": name.hex()}
        case Refused(name, error):
            return {"refused": name.hex(), "fault": str(error.fault) if error else None}
        case HeadMoved(head, abandoned, adopted):
            return {
                "head": head.hex(),
                "abandoned": [name.hex() for name in abandoned],
                "adopted": [name.hex() for name in adopted],
            }
        case ReorgWithheld(tip, depth):
            return {"withheld": tip.hex(), "depth": depth}
        case Equivocated(producer, first, second):
            return {"equivocated": producer.hex(), "first": first.hex(), "second": second.hex()}
