"""Journal entries for tests: sessions of calls as a client or an executor writes them down."""

from collections.abc import Iterator
from dataclasses import replace

from loremesh.primitives import Hash, Millis
from loremesh.protocol.journal import Entry, Exchange, delivered, received, served, vouched
from loremesh.protocol.llm import LlmRequest, sign_request
from loremesh.protocol.metering import Count
from loremesh.protocol.receipts import STOP, Evidence, make_receipt, partial_receipt, sign_receipt
from loremesh.protocol.vouchers import SignedVoucher, Voucher, next_voucher, sign_voucher
from loremesh.testing.builders import START
from loremesh.testing.calls import CLIENT, EXECUTOR, PRICE, SESSION, answer, chat_request, count_words


def bill(request: LlmRequest, *, count: Count = count_words, is_partial: bool = False) -> Evidence:
    """Give the evidence of a request of `CLIENT` that `EXECUTOR` has answered as usual."""
    transcript, _ = answer(request)
    if is_partial:
        partial = partial_receipt(CLIENT, request, transcript, count, time=request.time)
        if partial is None:
            raise ValueError("nothing was delivered")
        return partial
    receipt = make_receipt(request, transcript.text, count, price=PRICE, finish=STOP, time=request.time)
    return sign_receipt(EXECUTOR, receipt)


class Lane:
    """One session, call after call."""

    def __init__(self, session: Hash = SESSION, *, is_executor: bool = False, count: Count = count_words) -> None:
        """Begin a session.

        Args:
            session: Its id.
            is_executor: Whether the executor writes it down, or the client.
            count: Of tokens.
        """
        self.session = session
        self.is_executor = is_executor
        self.count = count
        self.voucher: Voucher | None = None

    def call(self, number: int, *, is_partial: bool = False, is_kept: bool = False) -> tuple[Evidence, Entry]:
        """Give the evidence of a call, and the entry that says so; `is_kept`: with request and answer."""
        request = chat_request(number, session=self.session)
        evidence = bill(request, count=self.count, is_partial=is_partial)
        time = Millis(START + number)
        if self.is_executor:
            return evidence, served(evidence, time)
        exchange = Exchange(sign_request(CLIENT, request), answer(request)[0].text)
        return evidence, received(evidence, time, exchange if is_kept else None)

    def sign(self, evidence: Evidence) -> tuple[SignedVoucher, Entry]:
        """Give the voucher that takes in one more receipt, and the entry that says so."""
        self.voucher = next_voucher(self.voucher, evidence.receipt)
        signed = sign_voucher(CLIENT, self.voucher)
        return signed, vouched(signed, evidence.receipt, Millis(evidence.receipt.time + 1))

    def calls(self, first: int, last: int) -> Iterator[Entry]:
        """Give the entries of calls `first` to `last`, each countersigned; a client's also delivered."""
        for number in range(first, last + 1):
            evidence, entry = self.call(number)
            yield entry
            signed, entry = self.sign(evidence)
            yield entry
            if not self.is_executor:
                yield delivered(signed, evidence.receipt, Millis(START + number))


def unwritten(entry: Entry) -> Entry:
    """Give an entry as it was before the journal gave it a place."""
    return replace(entry, sequence=0)
