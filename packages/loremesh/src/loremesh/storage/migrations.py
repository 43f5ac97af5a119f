"""The versions of the database's shape, and the way from each to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

import apsw

from loremesh.errors import MachineError
from loremesh.storage.transaction import transaction

MIGRATIONS: Final[tuple[str, ...]] = (
    # 1. The genesis is the block without a parent, so that every other block's parent must be here before it.
    """
    create table block (
        sequence integer primary key,
        hash     blob    not null unique,
        parent   blob    references block (hash),
        height   integer not null,
        data     blob    not null
    );
    create unique index one_genesis on block (parent is null) where parent is null;
    create table pending (
        sequence integer primary key,
        hash     blob    not null unique,
        data     blob    not null
    );
    create table note (
        key   text primary key,
        value blob not null
    ) without rowid;
    create table peer (
        address text    primary key,
        peer_id blob    not null,
        seen    integer not null
    ) without rowid;
    create index peer_seen on peer (seen);
    """,
    # 2. What a restart needs of the blocks up to `sequence`, from the snapshot before on.
    """
    create table snapshot (
        sequence integer primary key references block (sequence),
        head     blob    not null,
        records  blob    not null,
        state    blob    not null,
        digest   blob    not null
    );
    create index snapshot_head on snapshot (head);
    """,
    # 3. Who is kept out, so that a restart opens no door. `ends` is Unix milliseconds.
    """
    create table ban (
        peer_id blob    primary key,
        ends    integer not null,
        number  integer not null
    ) without rowid;
    create index ban_ends on ban (ends);
    """,
    # 4. Nobody asked where peers were: bootstrap nodes and the cards of peers say so.
    "drop table peer;",
)
"""Element n brings version n to version n + 1. What has been released is never edited: add another."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kind of database consists of, and what can be done about one that is damaged."""

    migrations: Sequence[str]
    """As `MIGRATIONS`."""
    remedy: str
    """Follows "move it away and start again"."""


STORY: Final = Shape(MIGRATIONS, "the story comes back from the peers")


def migrate(connection: apsw.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the database to the newest version; each step is one transaction, so it happened or it did not.

    Raises:
        MachineError: The database was written by a newer program.
    """
    version = cast("int", connection.pragma("user_version"))
    if version > len(migrations):
        raise MachineError(
            f"{connection.filename} has version {version} and this program knows {len(migrations)}: "
            "run a newer loremesh, or choose another --data-dir"
        )
    for reached, statements in enumerate(migrations[version:], start=version + 1):
        with transaction(connection):
            connection.execute(statements)
            connection.pragma("user_version", reached)
