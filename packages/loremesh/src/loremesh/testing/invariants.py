"""What must hold at every moment of every honest node, checked against an independent copy of the rules."""

from collections.abc import Callable
from dataclasses import dataclass, field

from loremesh.errors import InvalidBlock
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.fork_choice import (
    MAX_HEADERS_PER_PARENT,
    MAX_HELD,
    MAX_ORPHANS,
    MAX_SURPLUS,
    Store,
    children,
    is_canonical,
)
from loremesh.protocol.identity import peer_id_text
from loremesh.services.happenings import Banned, Evidence, Happening, Head, Rejected
from loremesh.storage.writes import SaveBlocks
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard
from loremesh.testing.small_network import SmallNode


@dataclass(slots=True)
class _Kept:
    """What one disk was seen to have made durable."""

    commits: int = 0
    names: set[Hash] = field(default_factory=set)


class Invariants:
    """Watches nodes; a node that is killed and started again on its disk is the same one.

    Args:
        orchard: Grows with every block that any node keeps: all valid ones, judged a second time.
        broken: Hears what does not hold.
    """

    def __init__(self, orchard: Orchard, broken: Callable[[str], None]) -> None:
        self.orchard = orchard
        self.liars = frozenset[PeerId]()
        """Peers who may be penalised, and may sign what they like."""
        self.banned: dict[PeerId, set[PeerId]] = {}
        """Who was shut out by whom."""
        self._broken = broken
        self._kept: dict[PeerId, _Kept] = {}
        self._signed: dict[tuple[PeerId, Hash], Hash] = {}

    def on_happening(self, node: SmallNode, happening: Happening) -> None:
        """Check what a node tells."""
        match happening:
            case Head(height, name):
                self.check(node)
                if name not in self._kept[node.peer_id].names:
                    self._break(node, f"told of head {name.hex()[:8]} at {height}, which is not durable")
            case Rejected(what, fault, peer_id, detail) if peer_id not in self.liars:
                self._break(node, f"penalised the honest {_short(peer_id)} for a {what}: {fault} ({detail})")
            case Banned(peer_id) if peer_id not in self.liars:
                self._break(node, f"shut the honest {_short(peer_id)} out")
            case Banned(peer_id):
                self.banned.setdefault(peer_id, set()).add(node.peer_id)
            case Evidence(producer, kind) if producer not in self.liars:
                self._break(node, f"holds evidence against the honest {_short(producer)}: {kind}")
            case _:
                pass

    def check(self, node: SmallNode) -> None:
        """Check one node as it is now."""
        kept = self._read_disk(node)
        store = node.chain.store
        self._check_head(node, store, kept)
        if not set(store.entries) - {store.story} <= kept.names:
            self._break(node, "has a block that is not durable")
        pool = node.chain.pool
        sizes = {
            "orphans": (len(store.orphans), MAX_ORPHANS),
            "held blocks": (len(store.held), MAX_HELD),
            "surplus headers": (len(store.surplus), MAX_SURPLUS),
            "waiting transactions": (len(pool.waiting), pool.capacity),
            "transactions of one sender": (max((len(of) for of in pool.of_sender.values()), default=0), pool.quota),
        }
        for what, (size, most) in sizes.items():
            if size > most:
                self._break(node, f"keeps {size} {what}, more than {most}")

    def missing(self, node: SmallNode) -> set[Hash]:
        """Name the valid blocks that a node does not keep and should."""
        kept = self._read_disk(node).names
        return {name for name in self.orchard.blocks if name not in kept and not self._is_surplus(name, kept)}

    def _is_surplus(self, name: Hash, kept: set[Hash]) -> bool:
        """Tell whether nobody builds on a block of which a node keeps two others by its producer on its parent."""
        store = self.orchard.store
        link, parent = store.entries[name].link, store.entries[name].parent
        rivals = [one for one in children(store, parent) if store.entries[one].link.producer == link.producer]
        return len(kept.intersection(rivals)) >= MAX_HEADERS_PER_PARENT and not children(store, name)

    def _check_head(self, node: SmallNode, store: Store, kept: _Kept) -> None:
        tip = store.entries.get(store.head)
        tips = [name for name in store.entries if not children(store, name)]
        if tip is None or store.head not in tips or store.canon.get(tip.link.height) != store.head:
            self._break(node, "has a head that is no tip of its tree")
        elif store.head != store.story and store.head not in kept.names:
            self._break(node, "has a head that is not durable")
        elif any(store.entries[name].work > tip.work and not _is_withheld(store, name) for name in tips):
            self._break(node, "has a heavier branch than its head's")

    def _read_disk(self, node: SmallNode) -> _Kept:
        kept = self._kept.setdefault(node.peer_id, _Kept())
        assert isinstance(node.disk, MemoryDisk)  # noqa: S101 - those are the nodes that are watched
        new, kept.commits = node.disk.commits[kept.commits :], len(node.disk.commits)
        for writes in new:
            for write in writes:
                for stored in write.blocks if isinstance(write, SaveBlocks) else ():
                    if stored.parent not in kept.names and stored.parent != self.orchard.root:
                        self._break(node, f"keeps block {stored.hash.hex()[:8]} without its parent")
                    elif stored.hash not in self.orchard.blocks:
                        self._judge(node, decode(Block, stored.data))
                    kept.names.add(stored.hash)
        return kept

    def _judge(self, node: SmallNode, block: Block) -> None:
        header = block.header
        try:
            name = self.orchard.add(block)
        except InvalidBlock as error:
            self._break(node, f"keeps an invalid block: {error}")
            return
        ahead = header.time - node.clock() - self.orchard.genesis.parameters.max_ahead
        if ahead > 0:
            self._break(node, f"keeps block {name.hex()[:8]}, {ahead} ms too early")
        other = self._signed.setdefault((header.producer, header.parent), name)
        if other != name and header.producer not in self.liars:
            self._break(node, f"{_short(header.producer)} signed two headers on {header.parent.hex()[:8]}")

    def _break(self, node: SmallNode, what: str) -> None:
        self._broken(f"{_short(node.peer_id)}: {what}")


def _is_withheld(store: Store, name: Hash) -> bool:
    """Tell whether a branch forks off too deep to switch to it without being told to."""
    while not is_canonical(store, name):
        name = store.entries[name].parent
    depth = store.tip.link.height - store.entries[name].link.height
    return store.max_reorg is not None and depth > store.max_reorg


def _short(peer_id: PeerId) -> str:
    return "…" + peer_id_text(peer_id)[-8:]
