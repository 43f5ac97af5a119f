"""The journal: what a client or an executor must not forget of its calls, written down before anybody is told.

Append-only: entries are never changed, and the file itself refuses to. Several processes may have one journal open.

Source: docs/receipts.md.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import apsw

from loremesh.errors import Fault, InvalidMessage, MachineError, VoucherMismatch
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.journal import RECEIPTS, Dispute, Entry, EntryKind, Exchange, Fact
from loremesh.protocol.llm import SignedRequest
from loremesh.protocol.receipts import Evidence, PartialReceipt, SignedReceipt
from loremesh.protocol.vouchers import SignedVoucher, VoucherAccepted
from loremesh.storage.database import Database, damaged
from loremesh.storage.files import make_directory
from loremesh.storage.migrations import Shape

JOURNAL_NAME: Final = "journal.sqlite"
MOST_UNDELIVERED: Final = 256

JOURNAL: Final = Shape(
    (
        # 1. `number` is how many receipts a voucher takes in, 0 of all else. `digest` is over all that stands in a row
        # but its place. Nothing is changed, so nothing may be.
        """
        create table entry (
            sequence integer primary key,
            time     integer not null,
            kind     text    not null,
            client   blob    not null,
            executor blob    not null,
            session  blob    not null,
            request  blob    not null,
            number   integer not null,
            form     text    not null,
            data     blob    not null,
            asked    blob,
            answer   text,
            digest   blob    not null
        );
        create unique index one_receipt on entry (request, client, kind) where kind in ('served', 'received');
        create unique index one_voucher on entry (session, client, executor, kind, number)
            where number > 0;
        create unique index one_refusal on entry (request, session, client, executor) where kind = 'refused';
        create index receipts on entry (session, client, executor) where kind in ('served', 'received');
        create index vouchers on entry (executor, session, client, number) where kind = 'voucher';
        create index of_request on entry (request, kind);
        create trigger never_changed before update on entry begin select raise(abort, 'append-only'); end;
        create trigger never_removed before delete on entry begin select raise(abort, 'append-only'); end;
        """,
    ),
    "the bills in it are lost here; whoever has the other side's journal has them still",
)

_FORMS: Final[dict[str, type[Fact]]] = {
    one.__name__: one for one in (SignedReceipt, PartialReceipt, SignedVoucher, VoucherAccepted, Dispute)
}
_COLUMNS: Final = (
    "sequence, time, kind, cast(client as blob), cast(executor as blob), cast(session as blob), "
    "cast(request as blob), number, form, cast(data as blob), cast(asked as blob), answer, cast(digest as blob)"
)
_IN_SESSION: Final = "session = ? and client = ? and executor = ?"
_IS_SIGNED: Final = (
    "exists (select 1 from entry as voucher indexed by of_request "
    "where voucher.request = entry.request and voucher.kind = 'voucher' "
    "and voucher.session = entry.session and voucher.client = entry.client and voucher.executor = entry.executor)"
)
# By session first: most have nothing to deliver, and their vouchers are not looked at one by one.
_OWED: Final = """
    sequence in (
        select voucher.sequence
        from (
            select session, client, executor, (
                select coalesce(max(number), 0) from entry as one
                where one.session = lane.session and one.client = lane.client and one.executor = lane.executor
                and one.kind = 'delivered' and one.number > 0
            ) as reached
            from (
                select distinct session, client, executor from entry where kind = 'voucher' and executor = ?
            ) as lane
        ) as lane
        join entry as voucher using (session, client, executor)
        where voucher.kind = 'voucher' and voucher.number > reached and voucher.number > 0
    )
    and not exists (
        select 1 from entry as refusal where refusal.request = entry.request and refusal.kind = 'refused'
        and refusal.session = entry.session and refusal.client = entry.client and refusal.executor = entry.executor
    )
    order by sequence limit ?
"""


def has_journal(directory: Path) -> bool:
    """Tell whether anything was ever written down in `directory`; makes nothing.

    Raises:
        MachineError: It cannot be looked at.
    """
    try:
        (directory / JOURNAL_NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise MachineError(f"cannot read in {directory}: {error.strerror}") from error
    return True


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a session stands: what it takes to go on with it."""

    voucher: SignedVoucher | None
    """The newest."""
    unsigned: tuple[Evidence, ...]
    """The receipts that no voucher takes in yet, in order."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A voucher that its executor has not acknowledged, and the evidence that it was signed for."""

    voucher: SignedVoucher
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Journal:
    """One data directory's journal. Unlike `Store` it locks nothing: other processes may have it open too.

    All methods raise `MachineError` (disk full or read-only, damaged file) or `StorageError` (the disk failed, or
    another process wrote for five seconds); afterwards the journal is still usable.
    """

    path: Path
    _database: Database

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Self]:
        """Open the journal of `directory`; both are made if missing, for their owner alone.

        Raises:
            MachineError: Not writable, damaged, or written by a newer program.
            StorageError: The disk failed.
        """
        make_directory(directory)
        path = directory / JOURNAL_NAME
        async with Database.open(path, JOURNAL) as database:
            yield cls(path, database)

    async def record(self, *entries: Entry) -> None:
        """Make all of `entries` durable, or none of them; concurrent callers share one trip to the disk.

        What is there already, to the byte, is not written again and is no error, and of the refusals of one bill the
        first is kept. When cancelled, all are kept or none.

        Raises:
            InvalidMessage: REPLAYED, another receipt of this client's request is there.
            VoucherMismatch: Another voucher for so many receipts of the session is there, or the one before is not.
            ValueError: A voucher or a delivery without what it is about: a bug of ours.
        """
        if entries:
            await self._database.commit(tuple(map(_Append, entries)))

    async def is_served(self, client: PeerId, request: Hash) -> bool:
        """Tell whether a receipt of this client's request is here: it is not served again."""

        def query(connection: apsw.Connection) -> bool:
            found = connection.execute(
                "select 1 from entry where request = ? and client = ? and kind in ('served', 'received')",
                (request, client),
            )
            return found.fetchone() is not None

        return await self._database.read(query)

    async def session(self, client: PeerId, executor: PeerId, session: Hash) -> Standing:
        """Give where a session stands, to go on with it; nothing at all of one that is unknown."""
        names = session, client, executor

        def query(connection: apsw.Connection) -> list[Entry]:
            newest = f"kind = 'voucher' and number > 0 and {_IN_SESSION} order by number desc limit 1"
            unsigned = f"kind in ('served', 'received') and {_IN_SESSION} and not {_IS_SIGNED} order by sequence"
            return [*self._select(connection, newest, names), *self._select(connection, unsigned, names)]

        facts = [entry.fact for entry in await self._database.read(query)]
        vouchers = [fact for fact in facts if isinstance(fact, SignedVoucher)]
        receipts = tuple(fact for fact in facts if isinstance(fact, SignedReceipt | PartialReceipt))
        return Standing(vouchers[0] if vouchers else None, receipts)

    async def undelivered(self, executor: PeerId, limit: int = MOST_UNDELIVERED) -> list[Undelivered]:
        """Give the vouchers that an executor has not acknowledged and not refused, in the order they were signed."""
        evidence = "kind in ('served', 'received') and request = ? and client = ? limit 1"

        def query(connection: apsw.Connection) -> list[tuple[Entry, Entry]]:
            return [
                (voucher, receipt)
                for voucher in self._select(connection, _OWED, (executor, limit))
                for receipt in self._select(connection, evidence, (voucher.request, voucher.client))
            ]

        return [
            Undelivered(voucher.fact, receipt.fact)
            for voucher, receipt in await self._database.read(query)
            if isinstance(voucher.fact, SignedVoucher) and isinstance(receipt.fact, SignedReceipt | PartialReceipt)
        ]

    async def entries(self, after: int = 0, limit: int = 1000) -> list[Entry]:
        """Give the `limit` entries behind the one of sequence `after`, in the order they were written."""
        where = "sequence > ? order by sequence limit ?"
        found = await self._database.read(lambda connection: self._select(connection, where, (after, limit)))
        if [entry.sequence for entry in found] != list(range(after + 1, after + 1 + len(found))):
            raise damaged(self.path, "entries are missing", JOURNAL)
        return found

    async def all_entries(self, batch: int = 1000) -> AsyncGenerator[Entry, None]:
        """Give every entry in the order they were written, with `batch` in memory at once.

        Raises:
            MachineError: The file is damaged, be it in a way that would only hide entries.
        """
        last = 0
        while found := await self.entries(last, batch):
            for entry in found:
                yield entry
            last = found[-1].sequence
        if not await self._database.read(_is_whole):
            raise damaged(self.path, "entries are missing", JOURNAL)

    def _select(self, connection: apsw.Connection, where: str, values: Sequence[bytes | int]) -> list[Entry]:
        rows = connection.execute(f"select {_COLUMNS} from entry where {where}", tuple(values))  # noqa: S608 - our own text
        try:
            return [_entry(row) for row in rows.fetchall()]
        except (InvalidMessage, KeyError, ValueError, TypeError, AttributeError) as error:
            raise damaged(self.path, f"an entry that is none: {error}", JOURNAL) from error


def _is_whole(connection: apsw.Connection) -> bool:
    """Tell whether table and index agree on how many entries there are, and the last has that number."""
    counted = connection.execute(
        "select (select count(*) from entry not indexed), (select count(*) from entry indexed by of_request), "
        "(select coalesce(max(sequence), 0) from entry)"
    ).fetchall()
    return len(set(counted[0])) == 1


def _digest_of(values: Iterable[bytes | int | str | None]) -> bytes:
    """Hash what stands in a row: a disk may change what SQLite then takes for good."""
    digest = sha256()
    for value in values:
        data = value if isinstance(value, bytes) else str(value).encode()
        digest.update(b"%d:%b" % (len(data), data))
    return digest.digest()


def _entry(row: tuple[Any, ...]) -> Entry:
    sequence, *values, digest = row
    if _digest_of(values) != digest:
        raise ValueError("it has changed")
    time, kind, client, executor, session, request, _, form, data, asked, answer = values
    exchange = None if asked is None else Exchange(decode(SignedRequest, asked), answer)
    fact = decode(_FORMS[form], data)
    return Entry(EntryKind(kind), time, client, executor, session, request, fact, exchange, sequence)


@dataclass(frozen=True, slots=True)
class _Append:
    """Write one entry behind all others."""

    entry: Entry

    def apply(self, connection: apsw.Connection) -> None:
        """Write it unless it is there; refuse it where something else is.

        Raises:
            ProtocolError: As `Journal.record`.
            ValueError: Likewise.
        """
        entry = self.entry
        number = self._number(connection)
        data, exchange = encode(entry.fact), entry.exchange
        values = (
            int(entry.time),
            entry.kind.value,
            entry.client,
            entry.executor,
            entry.session,
            entry.request,
            number,
            type(entry.fact).__name__,
            data,
            encode(exchange.request) if exchange else None,
            exchange.answer if exchange else None,
        )
        rows = connection.execute(
            "insert into entry (time, kind, client, executor, session, request, number, form, data, asked, answer, "
            "digest) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing returning sequence",
            (*values, _digest_of(values)),
        )
        if not rows.fetchall():
            self._check_same(connection, number, data)

    def _number(self, connection: apsw.Connection) -> int:
        """Find the entry's number; see that what it is about is there.

        Raises:
            VoucherMismatch: The voucher before it is missing.
            ValueError: Its receipt, or the voucher that was delivered, is.
        """
        entry = self.entry
        if isinstance(entry.fact, SignedVoucher):
            if not self._find(connection, "kind in ('served', 'received') and request = ?", entry.request):
                raise ValueError("a voucher for a receipt that is not in the journal")
            number = entry.fact.voucher.receipts
            [(newest,)] = self._find(connection, "kind = 'voucher'", columns="coalesce(max(number), 0)")
            if not 0 < number <= newest + 1:
                raise VoucherMismatch("receipts", number, newest + 1)
            return number
        if isinstance(entry.fact, VoucherAccepted):
            found = self._find(
                connection, "kind = 'voucher' and request = ?", entry.request, columns="number", index="of_request"
            )
            if not found:
                raise ValueError("a delivery of a voucher that is not in the journal")
            return int(found[0][0])
        return 0

    def _check_same(self, connection: apsw.Connection, number: int, data: bytes) -> None:
        entry = self.entry
        if entry.kind in RECEIPTS:
            same = "select cast(data as blob) from entry where request = ? and client = ? and kind = ?"
            if connection.execute(same, (entry.request, entry.client, entry.kind)).fetchall() != [(data,)]:
                raise InvalidMessage(Fault.REPLAYED, f"another receipt of request {entry.request.hex()[:8]} is kept")
        elif entry.kind is not EntryKind.REFUSED and self._find(
            connection, "kind = ? and number = ? and number > 0", entry.kind, number, columns="cast(data as blob)"
        ) != [(data,)]:
            raise VoucherMismatch("receipts", number, number + 1)

    def _find(
        self,
        connection: apsw.Connection,
        where: str,
        *values: bytes | int | str,
        columns: str = "1",
        index: str = "",
    ) -> list[tuple[Any, ...]]:
        entry = self.entry
        return connection.execute(
            f"select {columns} from entry {index and 'indexed by '}{index} where {_IN_SESSION} and {where}",  # noqa: S608 - our own text
            (entry.session, entry.client, entry.executor, *values),
        ).fetchall()
