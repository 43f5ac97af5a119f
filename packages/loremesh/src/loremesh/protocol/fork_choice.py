"""Fork choice as a reducer: `on_block` and `on_tick` take a store and an event and give the next store.

The head is the tip with the most accumulated work, then the lowest hash: at equal difficulty, S0's greatest length.
Nothing is pruned: abandoned branches stay, orphans wait for their parents, blocks from the near future wait for their
time. The order in which the same blocks arrive never changes the head. A refused event raises and leaves the store,
which is immutable, as it was.

Source: docs/protocol/fork-choice.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from loremesh.errors import Fault, InvalidBlock, LoremeshError
from loremesh.primitives import Hash, Millis, PeerId, StoryId
from loremesh.protocol.block import Block, Header, header_hash
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
from loremesh.protocol.genesis import GENESIS_HEIGHT, Genesis, story_id
from loremesh.protocol.path import Path, path_of
from loremesh.protocol.persistent import Map
from loremesh.protocol.state import State
from loremesh.protocol.validation import (
    Link,
    check_block_alone,
    check_header_link,
    genesis_link,
    link_of,
    state_after,
)
from loremesh.protocol.work import work_of

MAX_ORPHANS: Final = 256
MAX_HELD: Final = 64
MAX_SURPLUS: Final = 64
KEEP_STATES: Final = 100
"""States of the last this many heights are kept; below, every 64th, and far below every 1024th."""
STATE_EVERY: Final = 64
FAR_BELOW: Final = 4096
FAR_STATE_EVERY: Final = 1024
MAX_HEADERS_PER_PARENT: Final = 2
"""A producer who signs two headers on one parent gives evidence; a further one counts once somebody builds on it."""


class Entry(NamedTuple):
    """A valid block in the tree. No more than its children need: all of it is on the disk."""

    link: Link
    parent: Hash
    """The genesis' own is itself."""
    work: int
    """Hashes spent on the chain from the genesis up to here."""

    @property
    def is_genesis(self) -> bool:
        """Tell the root of the tree, which is no block."""
        return self.link.height == GENESIS_HEIGHT


class StateMissing(LoremeshError):
    """The state of a block's parent is not kept: replay `path` (oldest first) with `on_replay`, then try again."""

    def __init__(self, path: tuple[Hash, ...]) -> None:
        super().__init__(f"replay of {len(path)} blocks needed")
        self.path = path


class Store(NamedTuple):
    """All that fork choice knows. `changes` says what the last event did.

    A named tuple, as is all that is made anew with every block: a frozen dataclass takes three times as long to make.
    """

    genesis: Genesis
    story: StoryId
    now: Millis
    head: Hash
    entries: Map[Hash, Entry]
    states: Map[Hash, State]
    canon: Path
    """The canonical path, a cache of walking back from the head."""
    beside: Map[int, tuple[Hash, ...]]
    """Of each height the blocks off the canonical path, and some that came back to it; with `canon` all of a height."""
    orphans: Map[Hash, Block]
    orphans_of: Map[Hash, tuple[Hash, ...]]
    orphan_order: tuple[Hash, ...]
    held: Map[Hash, Block]
    surplus: Mapping[Hash, Block]
    """Headers beyond `MAX_HEADERS_PER_PARENT` that nobody has built on, the oldest first; never changed in place."""
    max_reorg: int | None
    changes: tuple[Change, ...]

    @property
    def tip(self) -> Entry:
        """The head's entry."""
        return self.entries[self.head]

    @property
    def tips(self) -> frozenset[Hash]:
        """The blocks without children: the head and the ends of all other branches."""
        names = (self.head, *(name for names in self.beside.values() for name in names))
        return frozenset(name for name in names if not children(self, name))


def new_store(genesis: Genesis, now: Millis, max_reorg: int | None = None) -> Store:
    """Give the store that knows only the genesis.

    Args:
        genesis: Where the story begins.
        now: The local clock.
        max_reorg: Deepest automatic reorganisation in blocks; None: any depth.
    """
    story, link = story_id(genesis), genesis_link(genesis)
    return Store(
        genesis=genesis,
        story=story,
        now=now,
        head=story,
        entries=Map({story: Entry(link, story, 0)}),
        states=Map({story: State()}),
        canon=path_of((story,)),
        beside=Map(),
        orphans=Map(),
        orphans_of=Map(),
        orphan_order=(),
        held=Map(),
        surplus={},
        max_reorg=max_reorg,
        changes=(),
    )


def on_limit(store: Store, max_reorg: int | None) -> Store:
    """Let another `max_reorg` hold: the heaviest branch that was withheld and need not be any more becomes the canon.

    Raises:
        StateMissing: As `on_block`.
    """
    store = store._replace(max_reorg=max_reorg, changes=())
    for tip in sorted(store.tips, key=lambda name: _weight(store.entries[name]), reverse=True):
        head, canon, beside, moves = _choose(store, store.entries[tip])
        if head == tip:
            if head not in store.states:
                raise StateMissing(_path_to_state(store, head))
            states = _recent_states(store, canon, beside, ())
            return store._replace(head=head, canon=canon, beside=beside, states=states, changes=moves)
    return store


def on_tick(store: Store, now: Millis) -> Store:
    """Let time pass: held blocks whose time has come join the tree."""
    store = store._replace(now=now, changes=())
    due = [
        (block.header.time, name)
        for name, block in store.held.items()
        if block.header.time <= now + store.genesis.parameters.max_ahead
    ]
    for _, name in sorted(due):
        block = store.held[name]
        store = _try_to_join(store._replace(held=store.held.remove(name)), name, block)
        store = _settle(store, name)
    return store


def on_block(store: Store, block: Block, *, is_kept: bool = False) -> Store:
    """Take in a block, and every orphan that was waiting for it.

    A block that is known, waiting or not, changes nothing. One with an unknown parent waits as an orphan; one from
    the near future is held; a producer's third on one parent, or a later one, is set aside until a block is built on
    it. These pools are bounded, and none costs its sender anything.

    Args:
        store: With all that came before.
        block: Well-formed.
        is_kept: It was in the tree once, so what was built on it follows, if it is a surplus one.

    Raises:
        InvalidBlock: The block breaks a rule; the store is as it was.
        StateMissing: Not a fault: the caller must replay first.
    """
    name = check_block_alone(store.genesis, store.story, block)
    if is_known(store, name):
        return store._replace(changes=())
    if block.header.parent not in store.entries:
        return _take_back(_wait_for_parent(store._replace(changes=()), name, block), block.header.parent)
    return _settle(_join(store, name, block, (), is_kept=is_kept), name)


def on_replay(store: Store, blocks: tuple[Block, ...]) -> Store:
    """Recompute the states along blocks of the tree, oldest first, the first one's parent state being kept."""
    for block in blocks:
        name = header_hash(block.header)
        state = state_after(store.story, block, store.states[block.header.parent], name)
        store = store._replace(states=store.states.insert(name, state))
    return store


def on_recall(store: Store, name: Hash, state: State) -> Store:
    """Take back the state after a block of the tree; the caller has checked its root."""
    return store._replace(states=store.states.insert(name, state))


def is_known(store: Store, name: Hash) -> bool:
    """Tell whether a block is in the tree or waiting."""
    return name in store.entries or name in store.orphans or name in store.held or name in store.surplus


def is_one_too_many(store: Store, header: Header) -> bool:
    """Tell whether two other headers by its producer on its parent are in the tree, or wait, and nobody builds on it.

    All of them took the work of one: without this any number of orphans would cost no more than that.
    """
    waiting = {**{one: store.orphans[one] for one in store.orphans_of.get(header.parent) or ()}, **dict(store.held)}
    said = header.parent, header.producer
    late = [one for one, block in waiting.items() if (block.header.parent, block.header.producer) == said]
    siblings = children(store, header.parent) if header.parent in store.entries else ()
    rivals = _by(store, header.producer, siblings) + late
    name = header_hash(header)
    return len(rivals) >= MAX_HEADERS_PER_PARENT and name not in rivals and not _is_built_on(store, header, name)


def children(store: Store, name: Hash) -> tuple[Hash, ...]:
    """Give the blocks of the tree on a block of the tree, the canonical one first."""
    height = store.entries[name].link.height + 1
    canonical = store.canon.get(height)
    above = store.beside.get(height)
    if not above:
        return () if canonical is None or store.entries[canonical].parent != name else (canonical,)
    names = above if canonical is None else dict.fromkeys((canonical, *above))
    return tuple(child for child in names if store.entries[child].parent == name)


def chain(store: Store, tip: Hash) -> Iterator[Entry]:
    """Walk from `tip` back to the genesis: S0's traversal. The length of the walk is the tip's height plus one."""
    entry = store.entries[tip]
    while not entry.is_genesis:
        yield entry
        entry = store.entries[entry.parent]
    yield entry


def is_canonical(store: Store, name: Hash) -> bool:
    """Tell whether a block of the tree is on the head's chain."""
    entry = store.entries.get(name)
    return entry is not None and store.canon.get(entry.link.height) == name


def missing_parents(store: Store) -> tuple[Hash, ...]:
    """Name the blocks that orphans are waiting for, and that are not waiting themselves."""
    return tuple(parent for parent in store.orphans_of if not is_known(store, parent))


def _settle(store: Store, name: Hash) -> Store:
    """Let the orphans that waited for `name` join, and those that waited for them."""
    parents = [name]
    while parents and store.orphans:
        parent = parents.pop()
        if parent not in store.entries:
            continue  # held, or refused together with its descendants
        for orphan, block in _freed_by(store, parent):
            store = _try_to_join(_without_orphan(store, orphan, block), orphan, block)
            parents.append(orphan)
    return store


def _try_to_join(store: Store, name: Hash, block: Block) -> Store:
    """Let a block that had been waiting join, or refuse it with all that waited for it."""
    try:
        return _join(store, name, block, store.changes)
    except InvalidBlock as error:
        return _drop_descendants(_with(store, Refused(name, error)), name)


def _freed_by(store: Store, name: Hash) -> list[tuple[Hash, Block]]:
    return [(orphan, store.orphans[orphan]) for orphan in store.orphans_of.get(name) or ()]


def _join(store: Store, name: Hash, block: Block, changes: tuple[Change, ...], *, is_kept: bool = False) -> Store:
    """Let a block whose parent is in the tree join it, or wait; `changes` are those of this event so far."""
    header = block.header
    parent = store.entries[header.parent]
    check_header_link(store.genesis, header, parent.link, name)
    siblings = () if header.parent == store.head else children(store, header.parent)
    rivals = _by(store, header.producer, siblings) if siblings else []
    if len(rivals) >= MAX_HEADERS_PER_PARENT and not is_kept and not _is_built_on(store, header, name):
        return _set_aside(store._replace(changes=changes), name, block)
    if header.time > store.now + store.genesis.parameters.max_ahead:
        return _hold(store._replace(changes=changes), name, block)
    before = store.states.get(header.parent)
    if before is None:
        raise StateMissing(_path_to_state(store, header.parent))
    state = state_after(store.story, block, before, name)
    work = parent.work + work_of(header.target)
    entry = Entry(link_of(header, parent.link, name), parent.link.hash, work)
    head, canon, beside, moves = _choose(store, entry)
    # All fields in their order: `_replace` would take longer than two of the insertions.
    return Store(
        store.genesis,
        store.story,
        store.now,
        head,
        store.entries.insert(name, entry),
        _recent_states(store, canon, beside, changes).insert(name, state),
        canon,
        beside,
        store.orphans,
        store.orphans_of,
        store.orphan_order,
        store.held,
        store.surplus,
        store.max_reorg,
        (
            *changes,
            Accepted(name, block),
            *[Equivocated(header.producer, rival, name) for rival in rivals],
            *moves,
        ),
    )


def _by(store: Store, producer: PeerId, names: tuple[Hash, ...]) -> list[Hash]:
    return [name for name in names if store.entries[name].link.producer == producer]


def _choose(store: Store, tip: Entry) -> tuple[Hash, Path, Map[int, tuple[Hash, ...]], tuple[Change, ...]]:
    """Give the head, its canonical path and what is beside it once `tip` has joined, and say if that is a change."""
    name, canon, beside = tip.link.hash, store.canon, store.beside
    if tip.parent == store.head != name:  # as nearly always; the genesis is its own parent
        return name, canon.append(name), beside, (HeadMoved(name, (), (name,)),)
    head = store.tip
    if _weight(tip) <= _weight(head):
        return store.head, canon, _put_beside(beside, tip.link.height, name), ()
    adopted = []
    entry = tip
    while canon.get(entry.link.height) != entry.link.hash:
        adopted.append(entry.link.hash)
        entry = store.entries[entry.parent]
    depth = head.link.height - entry.link.height
    if store.max_reorg is not None and depth > store.max_reorg:
        return store.head, canon, _put_beside(beside, tip.link.height, name), (ReorgWithheld(name, depth),)
    abandoned = []
    for height in range(head.link.height, entry.link.height, -1):
        abandoned.append(canon[height])
        beside = _put_beside(beside, height, canon[height])
    canon = canon.cut(entry.link.height + 1)
    adopted.reverse()
    for block_hash in adopted:
        canon = canon.append(block_hash)
    return name, canon, beside, (HeadMoved(name, tuple(abandoned), tuple(adopted)),)


def _put_beside(beside: Map[int, tuple[Hash, ...]], height: int, name: Hash) -> Map[int, tuple[Hash, ...]]:
    known = beside.get(height) or ()
    return beside if name in known else beside.insert(height, (*known, name))


def _weight(entry: Entry) -> tuple[int, int]:
    """Order blocks as the rule for the head does: the most work, then the lowest hash, is the greatest."""
    return entry.work, -int.from_bytes(entry.link.hash, "big")


def _recent_states(
    store: Store, canon: Path, beside: Map[int, tuple[Hash, ...]], changes: tuple[Change, ...]
) -> Map[Hash, State]:
    """Give the states that are kept when the canonical path becomes `canon`.

    Those of blocks that joined in this same event stay: nobody could replay them before it is over.
    """
    new = {change.hash for change in changes if isinstance(change, Accepted)}
    states, before, height = store.states, len(store.canon) - 1, len(canon) - 1
    for old in range(max(1, before + 1 - KEEP_STATES), height + 1 - KEEP_STATES):
        if old % STATE_EVERY:
            for name in (canon[old], *(beside.get(old) or ())):
                states = states if name in new else states.discard(name)
    if height // STATE_EVERY > before // STATE_EVERY:
        # Now and then, those that replays and late forks have left further down, and those that are far below now.
        for name in store.states:
            old = store.entries[name].link.height
            every = STATE_EVERY if old > height - FAR_BELOW else FAR_STATE_EVERY
            if old <= height - KEEP_STATES and old % every and name not in new:
                states = states.discard(name)
    return states


def _path_to_state(store: Store, name: Hash) -> tuple[Hash, ...]:
    path = []
    while name not in store.states:
        path.append(name)
        name = store.entries[name].parent
    return tuple(reversed(path))


def _wait_for_parent(store: Store, name: Hash, block: Block) -> Store:
    """Keep an orphan; the oldest makes room."""
    parent = block.header.parent
    if len(store.orphan_order) >= MAX_ORPHANS:
        oldest = store.orphan_order[0]
        store = _with(_without_orphan(store, oldest, store.orphans[oldest]), Refused(oldest, None))
    store = store._replace(
        orphans=store.orphans.insert(name, block),
        orphans_of=store.orphans_of.insert(parent, (*(store.orphans_of.get(parent) or ()), name)),
        orphan_order=(*store.orphan_order, name),
    )
    return _with(store, Waiting(name, held=False))


def _hold(store: Store, name: Hash, block: Block) -> Store:
    """Keep a block from the future; the one furthest ahead makes room."""
    held = store.held.insert(name, block)
    store = _with(store._replace(held=held), Waiting(name, held=True))
    if len(held) > MAX_HELD:
        furthest = max(held.items(), key=lambda item: (item[1].header.time, item[0]))[0]
        store = _with(store._replace(held=held.remove(furthest)), Refused(furthest, None))
    return store


def _set_aside(store: Store, name: Hash, block: Block) -> Store:
    """Keep a surplus header until somebody builds on it; the oldest makes room."""
    surplus = {**store.surplus, name: block}
    oldest = next(iter(surplus)) if len(surplus) > MAX_SURPLUS else None
    if oldest is not None:
        del surplus[oldest]
    store = _with(store._replace(surplus=surplus), SetAside(name))
    return store if oldest is None else _with(store, Refused(oldest, None))


def _take_back(store: Store, name: Hash) -> Store:
    """Let a surplus header join, with what waits for it, if an orphan that has just come is built on it."""
    block = store.surplus.get(name)
    if block is None or not _is_built_on(store, block.header, name):
        return store
    surplus = {other: kept for other, kept in store.surplus.items() if other != name}
    return _settle(_try_to_join(store._replace(surplus=surplus), name, block), name)


def _is_built_on(store: Store, header: Header, name: Hash) -> bool:
    """Tell whether an orphan waits for this header and fits it.

    That orphan took work of its own, and not the easiest that a story allows: who adds surplus headers pays for each.
    """
    parent = store.entries.get(header.parent)
    if parent is None:
        return False
    link = link_of(header, parent.link, name)
    for orphan, block in _freed_by(store, name):
        try:
            check_header_link(store.genesis, block.header, link, orphan)
        except InvalidBlock:
            continue
        return True
    return False


def _drop_descendants(store: Store, name: Hash) -> Store:
    """Refuse the orphans that were waiting for a block that is now known to be invalid."""
    doomed = _freed_by(store, name)
    while doomed:
        orphan, block = doomed.pop()
        store = _without_orphan(store, orphan, block)
        doomed += _freed_by(store, orphan)
        store = _with(store, Refused(orphan, InvalidBlock(Fault.PARENT_REFUSED, orphan)))
    return store


def _without_orphan(store: Store, name: Hash, block: Block) -> Store:
    parent = block.header.parent
    rest = tuple(other for other in store.orphans_of[parent] if other != name)
    return store._replace(
        orphans=store.orphans.remove(name),
        orphans_of=store.orphans_of.insert(parent, rest) if rest else store.orphans_of.remove(parent),
        orphan_order=tuple(other for other in store.orphan_order if other != name),
    )


def _with(store: Store, change: Change) -> Store:
    return store._replace(changes=(*store.changes, change))
