from hypothesis import example, given
from hypothesis import strategies as st

from loremesh.errors import VoucherMismatch
from loremesh.primitives import Hash, Millis
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.journal import Dispute, Entry, EntryKind, accounts, delivered, evidence_of, refused
from loremesh.protocol.vouchers import SignedVoucher
from loremesh.testing.bills import Lane
from loremesh.testing.builders import START
from loremesh.testing.calls import CLIENT, EXECUTOR

SESSIONS = [Hash(bytes([number]) * 32) for number in range(3)]
steps = st.lists(
    st.tuples(st.sampled_from(SESSIONS), st.booleans(), st.sampled_from(["call", "sign", "deliver", "refuse"])),
    max_size=25,
)


def journal_of(done: list[tuple[Hash, bool, str]]) -> list[Entry]:
    """Give what a client writes down that does these things in this order, where they can be done."""
    lanes = {session: Lane(session) for session in SESSIONS}
    calls = {session: list[Entry]() for session in SESSIONS}
    signed = {session: list[tuple[SignedVoucher, Entry]]() for session in SESSIONS}
    entries = list[Entry]()
    for number, (session, is_partial, what) in enumerate(done):
        if what == "call":
            calls[session].append(lanes[session].call(number, is_partial=is_partial)[1])
            entries.append(calls[session][-1])
        elif what == "sign" and len(signed[session]) < len(calls[session]):
            call = calls[session][len(signed[session])]
            voucher, entry = lanes[session].sign(evidence_of(call))
            signed[session].append((voucher, call))
            entries.append(entry)
        elif what == "deliver" and signed[session]:
            voucher, call = signed[session][-1]
            entries.append(delivered(voucher, evidence_of(call).receipt, START))
        elif what == "refuse" and calls[session]:
            entries.append(refused(CLIENT.peer_id, evidence_of(calls[session][-1]).receipt, "no", START))
    return entries


ALL_AT_ONCE = [(SESSIONS[0], False, what) for what in ("call", "call", "sign", "sign", "deliver", "call", "sign")]


@given(steps)
@example(ALL_AT_ONCE)
def test_the_accounts_are_what_counting_entry_by_entry_gives(done: list[tuple[Hash, bool, str]]) -> None:
    entries = journal_of(done)
    found = {account.session: account for account in accounts(entries)}
    assert list(found) == list(dict.fromkeys(entry.session for entry in entries))
    for session, account in found.items():
        tokens = amount = countersigned = 0
        unsigned, owed = list[Hash](), list[Hash]()
        for entry in entries:
            if entry.session != session:
                continue
            match entry.kind:
                case EntryKind.RECEIVED:
                    receipt = evidence_of(entry).receipt
                    tokens += receipt.prompt_tokens + receipt.completion_tokens
                    amount += receipt.amount
                    unsigned.append(receipt.request)
                case EntryKind.VOUCHER:
                    assert isinstance(entry.fact, SignedVoucher)
                    countersigned = entry.fact.voucher.amount
                    owed.append(unsigned.pop(0))
                case EntryKind.DELIVERED:
                    owed.clear()
                case _:
                    pass
        assert (account.tokens, account.amount, account.countersigned) == (tokens, amount, countersigned)
        assert [entry.request for entry in account.unsigned] == unsigned
        assert account.signed_requests - account.delivered_requests == set(owed)


def test_a_reason_of_any_length_fits_and_stays_in_nfc() -> None:
    evidence, _ = Lane().call(1)
    for text in ("e\u0301" * 400, "\u1100\u1161" * 300, "x" + "🐉" * 200, "a\ud800b", ""):
        for error in (text, VoucherMismatch("head", text, b"\xff" * 500)):
            fact = refused(EXECUTOR.peer_id, evidence.receipt, error, Millis(START)).fact
            assert isinstance(fact, Dispute)
            assert decode(Dispute, encode(fact)) == fact
