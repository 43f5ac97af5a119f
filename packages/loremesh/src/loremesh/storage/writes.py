"""What can be written: values, so that several become one transaction in one call of `Store.commit`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, groupby
from typing import Final, Protocol, cast

import apsw

from loremesh.errors import UsageError
from loremesh.primitives import Hash, Height, Millis, PeerId, StoryId

MOST_BANS: Final = 1000
"""Bans remembered; whichever ends first makes room. A name costs a stranger nothing, so there must be an end."""


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
class StoredSnapshot:
    """What a restart needs of the blocks that were saved after the snapshot before and up to `last`."""

    last: Hash
    head: Hash
    """The newest block of the canon then."""
    records: bytes
    """Of each of these blocks, in the order saved; made and read by whoever saves them."""
    state: bytes
    """After `head`, likewise."""


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


def joined(writes: Iterable[Write]) -> Iterator[Write]:
    """Give the same changes in the same order, with blocks that follow each other saved by one write.

    Callers who share a transaction then share a statement too, which saves a quarter of its time.
    """
    for kind, neighbours in groupby(writes, type):
        if kind is SaveBlocks:
            yield SaveBlocks(tuple(chain.from_iterable(cast("SaveBlocks", write).blocks for write in neighbours)))
        else:
            yield from neighbours


@dataclass(frozen=True, slots=True)
class SaveSnapshot:
    """Keep a snapshot, with a digest over it and the blocks that it stands for."""

    snapshot: StoredSnapshot
    after: Hash
    """The last block of the snapshot before, the genesis for none; later ones are forgotten."""

    def apply(self, connection: apsw.Connection) -> None:
        """Keep it; its blocks were saved before, be it in the same transaction."""
        one = self.snapshot
        before, last = (
            cast("int", connection.execute("select sequence from block where hash = ?", (name,)).get)
            for name in (self.after, one.last)
        )
        connection.execute("delete from snapshot where sequence > ?", (before,))
        connection.execute(
            "insert into snapshot (sequence, head, records, state, digest) values (?, ?, ?, ?, ?)",
            (last, one.head, one.records, one.state, digest_of(connection, before, last, one)),
        )


def digest_of(connection: apsw.Connection, before: int, last: int, snapshot: StoredSnapshot) -> bytes | None:
    """Give the digest over a snapshot and the blocks it stands for; None: they are not found by their hashes."""
    digest = sha256(snapshot.head + snapshot.records + snapshot.state)
    rows = connection.execute(
        "select sequence = (select named.sequence from block as named where named.hash = block.hash), "
        "cast(hash as blob), cast(parent as blob), cast(height as integer), cast(data as blob) "
        "from block where sequence > ? and sequence <= ? and parent is not null order by sequence",
        (before, last),
    )
    for is_found, name, parent, height, data in cast("Iterable[tuple[int | None, bytes, bytes, int, bytes]]", rows):
        if not is_found:
            return None
        digest.update(b"%b%b%d %b" % (name, parent, height, data))
    return digest.digest()


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
class Ban:
    """Until when a peer is kept out, and the how-manieth time in a row that is."""

    peer_id: PeerId
    ends: Millis
    number: int


@dataclass(frozen=True, slots=True)
class SaveBan:
    """Keep a ban, in place of the peer's one before; forget those that ended before `forget_before`."""

    ban: Ban
    forget_before: Millis

    def apply(self, connection: apsw.Connection) -> None:
        """Keep it, and forget what no longer matters or fits."""
        connection.execute(
            "insert into ban (peer_id, ends, number) values (?, ?, ?) on conflict (peer_id) "
            "do update set ends = excluded.ends, number = excluded.number",
            (self.ban.peer_id, self.ban.ends, self.ban.number),
        )
        connection.execute("delete from ban where ends < ?", (self.forget_before,))
        connection.execute(
            "delete from ban where peer_id in (select peer_id from ban order by ends desc limit -1 offset ?)",
            (MOST_BANS,),
        )
