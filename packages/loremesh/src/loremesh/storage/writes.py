"""What can be written: values, so that several become one transaction in one call of `Store.commit`."""

from dataclasses import dataclass
from typing import Final, Protocol

import apsw

from loremesh.errors import UsageError
from loremesh.primitives import Hash, Height, Millis, PeerId, StoryId

MOST_PEERS: Final = 1024
"""Addresses remembered; whoever was seen longest ago makes room. Strangers choose them, so there must be an end."""


class Write(Protocol):
    """One change of the database."""

    def apply(self, connection: apsw.Connection) -> None:
        """Make the change inside the transaction that is open."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block as kept: `data` is its encoding, the rest is what replaying and serving need to know of it."""

    hash: Hash
    parent: Hash
    height: Height
    data: bytes


@dataclass(frozen=True, slots=True)
class SaveGenesis:
    """Say which story the directory keeps, once."""

    story: StoryId
    data: bytes

    def apply(self, connection: apsw.Connection) -> None:
        """Keep it, or find that it is kept already.

        Raises:
            UsageError: Another story is kept here.
        """
        kept = connection.execute("select hash from block where parent is null").fetchone()
        if kept is None:
            connection.execute(
                "insert into block (hash, parent, height, data) values (?, null, 0, ?)", (self.story, self.data)
            )
        elif kept[0] != self.story:
            raise UsageError(
                f"{connection.filename} keeps story {kept[0].hex()}, not {self.story.hex()}: choose another --data-dir"
            )


@dataclass(frozen=True, slots=True)
class SaveBlocks:
    """Keep blocks, parents before children (the database refuses others); those kept already stay as they are."""

    blocks: tuple[StoredBlock, ...]

    def apply(self, connection: apsw.Connection) -> None:
        """Keep them, in this order."""
        connection.executemany(
            "insert into block (hash, parent, height, data) values (?, ?, ?, ?) on conflict (hash) do nothing",
            [(block.hash, block.parent, block.height, block.data) for block in self.blocks],
        )


@dataclass(frozen=True, slots=True)
class SaveTransactions:
    """Keep transactions (hash and encoding) that wait for a block."""

    transactions: tuple[tuple[Hash, bytes], ...]

    def apply(self, connection: apsw.Connection) -> None:
        """Keep them, in this order."""
        connection.executemany(
            "insert into pending (hash, data) values (?, ?) on conflict (hash) do nothing", self.transactions
        )


@dataclass(frozen=True, slots=True)
class RemoveTransactions:
    """Forget transactions that wait no longer; unknown ones are no error."""

    hashes: tuple[Hash, ...]

    def apply(self, connection: apsw.Connection) -> None:
        """Forget them."""
        connection.executemany("delete from pending where hash = ?", [(hash_,) for hash_ in self.hashes])


@dataclass(frozen=True, slots=True)
class SetNote:
    """Keep one small fact under a name, in place of the one before."""

    key: str
    value: bytes

    def apply(self, connection: apsw.Connection) -> None:
        """Keep it."""
        connection.execute(
            "insert into note (key, value) values (?, ?) on conflict (key) do update set value = excluded.value",
            (self.key, self.value),
        )


@dataclass(frozen=True, slots=True)
class RememberPeer:
    """Keep where a peer was reached; an older sighting never replaces a newer one."""

    address: str
    peer_id: PeerId
    seen: Millis

    def apply(self, connection: apsw.Connection) -> None:
        """Keep it, and forget whoever no longer fits."""
        connection.execute(
            "insert into peer (address, peer_id, seen) values (?, ?, ?) on conflict (address) "
            "do update set peer_id = excluded.peer_id, seen = excluded.seen where excluded.seen >= seen",
            (self.address, self.peer_id, self.seen),
        )
        connection.execute(
            "delete from peer where address in (select address from peer order by seen desc limit -1 offset ?)",
            (MOST_PEERS,),
        )
