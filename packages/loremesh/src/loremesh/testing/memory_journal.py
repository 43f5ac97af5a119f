"""A journal in memory: it costs no thread, so a clock may jump around it, and a test may let it fail."""

from loremesh.errors import Fault, InvalidMessage, LoremeshError, VoucherMismatch
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.codec import encode
from loremesh.protocol.journal import RECEIPTS, Entry, EntryKind
from loremesh.protocol.receipts import PartialReceipt, SignedReceipt
from loremesh.protocol.vouchers import SignedVoucher
from loremesh.storage.journal import Standing, Undelivered


class MemoryJournal:
    """What serving and paying need of `loremesh.storage.journal.Journal`, with its meaning."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.failure: LoremeshError | None = None
        """What the next `record` raises."""

    async def record(self, *entries: Entry) -> None:
        """Keep all entries, or none.

        Raises:
            InvalidMessage: REPLAYED, another receipt of the request is there.
            VoucherMismatch: Another voucher for so many receipts is there, or the one before is not.
        """
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        before = list(self.entries)
        try:
            for entry in entries:
                self._append(entry)
        except LoremeshError:
            self.entries = before
            raise

    def _append(self, entry: Entry) -> None:
        if entry.kind in RECEIPTS:
            same = [one for one in self.of(entry.kind) if (one.request, one.client) == (entry.request, entry.client)]
            if any(encode(one.fact) != encode(entry.fact) for one in same):
                raise InvalidMessage(Fault.REPLAYED, "another receipt of that request is kept")
        elif isinstance(entry.fact, SignedVoucher):
            known = {signed.voucher.receipts: signed for signed in self._vouchers(entry)}
            number = entry.fact.voucher.receipts
            if number > max(known, default=0) + 1 or known.get(number, entry.fact) != entry.fact:
                raise VoucherMismatch("receipts", number, max(known, default=0) + 1)
            same = [one for one in self.of(EntryKind.VOUCHER) if one.fact == entry.fact]
        else:
            same = [one for one in self.of(entry.kind) if one.request == entry.request]
        if not same:
            self.entries.append(entry)

    async def is_served(self, client: PeerId, request: Hash) -> bool:
        """Tell whether a receipt of a client's request is here."""
        return any((one.client, one.request) == (client, request) for kind in RECEIPTS for one in self.of(kind))

    async def session(self, client: PeerId, executor: PeerId, session: Hash) -> Standing:
        """Give where a session stands."""
        name = client, executor, session
        own = [one for one in self.entries if (one.client, one.executor, one.session) == name]
        vouchers = [one.fact for one in own if isinstance(one.fact, SignedVoucher)]
        signed = {one.request for one in own if one.kind is EntryKind.VOUCHER}
        unsigned = (
            one.fact
            for one in own
            if isinstance(one.fact, SignedReceipt | PartialReceipt) and one.request not in signed
        )
        return Standing(max(vouchers, key=lambda one: one.voucher.receipts, default=None), tuple(unsigned))

    async def undelivered(self, executor: PeerId) -> list[Undelivered]:
        """Give the vouchers that an executor has neither acknowledged nor refused, with what they were signed for."""
        evidence = {one.request: one.fact for one in self.of(*RECEIPTS)}
        told = {one.request for one in self.of(EntryKind.DELIVERED, EntryKind.REFUSED)}
        return [
            Undelivered(one.fact, fact)
            for one in self.of(EntryKind.VOUCHER)
            if one.executor == executor
            and one.request not in told
            and isinstance(one.fact, SignedVoucher)
            and isinstance(fact := evidence[one.request], SignedReceipt | PartialReceipt)
        ]

    def of(self, *kinds: EntryKind) -> list[Entry]:
        """List the entries of some kinds."""
        return [one for one in self.entries if one.kind in kinds]

    def _vouchers(self, entry: Entry) -> list[SignedVoucher]:
        name = entry.client, entry.executor, entry.session
        return [
            one.fact
            for one in self.entries
            if isinstance(one.fact, SignedVoucher) and (one.client, one.executor, one.session) == name
        ]
