"""What was exported is checked offline: everything that is signed or summed is found when it is changed."""

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from loremesh.errors import Fault, InvalidMessage, ProtocolError
from loremesh.primitives import Hash, Millis
from loremesh.protocol.exports import Checked, check_export, session_view
from loremesh.protocol.journal import Entry, accounts, refused
from loremesh.protocol.json_values import from_json, parse_json, to_json
from loremesh.protocol.llm import SignedRequest
from loremesh.protocol.metering import Count
from loremesh.protocol.receipts import PartialReceipt, SignedReceipt
from loremesh.protocol.vouchers import SignedVoucher
from loremesh.testing.bills import Lane
from loremesh.testing.calls import CLIENT, EXECUTOR, SESSION, count_words

OTHER = Hash(b"\x0e" * 32)


def entries() -> list[Entry]:
    """A session of five calls: two delivered, a partial one and one kept whole countersigned, the last one refused."""
    lane = Lane()
    found = list(lane.calls(1, 2))
    evidence, entry = lane.call(3, is_partial=True)
    found += [entry, lane.sign(evidence)[1]]
    evidence, entry = lane.call(4, is_kept=True)
    found += [entry, lane.sign(evidence)[1]]
    evidence, entry = lane.call(5)
    return [*found, entry, refused(CLIENT.peer_id, evidence.receipt, "too many tokens", Millis(evidence.receipt.time))]


def exported(only: Hash | None = None) -> dict[str, Any]:
    view = {"sessions": [session_view(account, only) for account in accounts([*entries(), *Lane(OTHER).calls(9, 9)])]}
    return dict(json.loads(json.dumps(view)))


def counter() -> Count:
    return count_words


def check(value: object) -> list[Checked]:
    return check_export(parse_json(json.dumps(value).encode()), counter)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value that holds no object and no array."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))
    else:
        yield path


def changed(value: Any, path: tuple[Any, ...], leaf: object) -> Any:
    new = copy.deepcopy(value)
    inner = new
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = leaf
    return new


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def others(leaf: Any) -> Iterator[object]:
    """Values of the same type as `leaf`, and some of another."""
    if isinstance(leaf, bool):
        return
    if isinstance(leaf, int):
        yield from (leaf + 1, max(leaf - 1, 0) or 7, -1, 2**64, float(leaf), str(leaf))
    if isinstance(leaf, str):
        yield from (leaf + "0", leaf[:-1] or "x", leaf.swapcase() or "y", leaf[::-1] or "z", "", 5)
    yield from ([], {}, True)
    if leaf is not None:
        yield None


# Nobody signs what a journal says of itself, nor a refusal.
UNSIGNED = {"journal", "refusals"}


def test_a_whole_export_is_right_and_says_what_was_checked() -> None:
    one, other = check(exported())
    tokens = [at(exported(), ("sessions", 0, "receipts", place, "receipt")) for place in range(5)]
    assert one == Checked(
        CLIENT.peer_id,
        EXECUTOR.peer_id,
        SESSION,
        receipts=5,
        partial=1,
        recounted=1,
        vouchers=4,
        tokens=sum(receipt["prompt_tokens"] + receipt["completion_tokens"] for receipt in tokens),
        amount=sum(receipt["amount"] for receipt in tokens),
        countersigned=sum(receipt["amount"] for receipt in tokens[:4]),
    )
    assert (other.session, other.receipts, other.vouchers) == (OTHER, 1, 1)


def test_each_part_of_an_export_can_be_checked_alone() -> None:
    session = exported()["sessions"][0]
    assert check(session) == check(exported())[:1]
    for receipt in session["receipts"]:
        [alone] = check(receipt)
        assert alone.receipts == 1
        bare = {
            key: receipt[key] for key in receipt.keys() & {"receipt", "signature", "progress", "progress_signature"}
        }
        assert check(bare)[0].amount == receipt["receipt"]["amount"]
        if receipt["voucher"]:
            assert check(receipt["voucher"])[0].countersigned == receipt["voucher"]["voucher"]["amount"]


def test_one_receipt_is_exported_with_the_voucher_it_continued_from() -> None:
    for number in range(1, 6):
        [session] = [one for one in exported(Hash(number.to_bytes(32, "big")))["sessions"] if one["receipts"]]
        assert (session["before"] is None) is (number == 1)
        [found] = check({"sessions": [session]})
        assert (found.receipts, found.vouchers) == (1, int(number < 5))
        if 1 < number < 5:
            with pytest.raises(ProtocolError, match="voucher does not match"):
                check({"sessions": [{**session, "before": None}]})


def parts() -> list[Any]:
    """Everything that can be checked by itself."""
    whole = exported()
    [session] = exported(Hash((2).to_bytes(32, "big")))["sessions"][:1]
    assert session["before"]
    return [whole, session, *whole["sessions"][0]["receipts"], session["before"]]


@pytest.mark.parametrize("right", parts())
def test_whatever_is_changed_in_any_field_is_found_and_said_in_one_line(right: Any) -> None:
    assert check(right)
    for path in places(right):
        if UNSIGNED & set(path):
            continue
        leaf = at(right, path)
        for other in others(leaf):
            if other == leaf and type(other) is type(leaf):
                continue
            with pytest.raises(ProtocolError) as caught:
                check(changed(right, path, other))
            assert "\n" not in str(caught.value)


def test_whatever_form_an_unsigned_note_has_that_it_cannot_have_is_found() -> None:
    right = exported()
    for path in places(right):
        if UNSIGNED & set(path):
            wrong: list[object] = [[], {}, None, 1.5, "\ud800", *([True] if path[-1] == "time" else [])]
            for other in wrong:
                with pytest.raises(ProtocolError):
                    check(changed(right, path, other))


def test_one_changed_byte_in_a_receipt_is_found() -> None:
    [receipt, partial] = [exported()["sessions"][0]["receipts"][place] for place in (0, 2)]
    for one, names in (
        (receipt, {"receipt", "signature"}),
        (partial, {"receipt", "signature", "progress", "progress_signature"}),
    ):
        data = json.dumps({key: one[key] for key in one if key in names}, ensure_ascii=False).encode()
        assert check_export(parse_json(data), counter)
        for place in range(len(data)):
            for bit in range(8):
                flipped = bytearray(data)
                flipped[place] ^= 1 << bit
                with pytest.raises(ProtocolError):
                    check_export(parse_json(bytes(flipped)), counter)


def test_receipts_that_are_left_out_doubled_or_swapped_are_found() -> None:
    session = exported()["sessions"][0]
    receipts = session["receipts"]
    for wrong in (
        receipts[1:],
        [receipts[0], *receipts[2:]],
        [*receipts, receipts[4]],
        [receipts[1], receipts[0], *receipts[2:]],
        [*receipts, *exported()["sessions"][1]["receipts"]],
        [],
    ):
        with pytest.raises(ProtocolError):
            check({"sessions": [{**session, "receipts": wrong}]})
    bill = receipts[4]["receipt"]  # which no voucher takes in, so that only the sums would tell
    twice = {
        **session,
        "receipts": [*receipts, receipts[4]],
        "tokens": session["tokens"] + bill["prompt_tokens"] + bill["completion_tokens"],
        "amount": session["amount"] + bill["amount"],
    }
    with pytest.raises(ProtocolError, match="receipt of the same request stands before"):
        check(twice)
    with pytest.raises(ProtocolError, match="session stands twice"):
        check({"sessions": [session, session]})


def test_the_voucher_that_a_receipt_continued_from_is_of_the_same_session() -> None:
    session = exported(Hash((5).to_bytes(32, "big")))["sessions"][0]
    assert check(session)[0].vouchers == 0
    other = exported()["sessions"][1]["receipts"][0]["voucher"]
    with pytest.raises(ProtocolError, match=r"session\.before: session is"):
        check({**session, "before": other})


def test_a_field_that_does_not_belong_there_or_is_missing_is_found() -> None:
    right = exported()
    objects = {path[:end] for path in places(right) for end in range(len(path))}
    for path in objects:
        inner = at(right, path)
        if not isinstance(inner, dict):
            continue
        with pytest.raises(ProtocolError, match="does not belong there"):
            check(changed({"": right}, ("", *path), {**inner, "extra": 1})[""])
        for name in inner:
            fewer = {key: value for key, value in inner.items() if key != name}
            with pytest.raises(ProtocolError):
                check(changed({"": right}, ("", *path), fewer)[""])


def test_a_recount_finds_an_answer_or_a_question_that_was_not_the_one() -> None:
    right = exported()
    path = ("sessions", 0, "receipts", 3)
    assert at(right, (*path, "answer"))
    with pytest.raises(InvalidMessage) as caught:
        check(changed(right, (*path, "answer"), "It keeps itself."))
    assert caught.value.fault is Fault.WRONG_RECEIPT
    assert "sessions[0].receipts[3]: completion_tokens" in str(caught.value)
    with pytest.raises(ProtocolError, match="half a character"):
        check_export(changed(right, (*path, "answer"), "\ud800"), counter)
    for name in ("asked", "answer"):
        with pytest.raises(InvalidMessage, match="one of asked and answer"):
            check(changed(right, (*path, name), None))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"5",
        b'"sessions"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"sessions": 5}',
        b'{"sessions": [5]}',
        b'{"sessions": [], "sessions": []}',
        b'{"receipts": []}',
        b'{"receipt": 1}',
        b'{"receipt": {}, "signature": ""}',
        b'{"voucher": {}, "signature": 1e999}',
        b'{"voucher": NaN, "signature": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1}',
        b"\xef\xbb\xbf{}",
    ],
)
def test_garbage_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_export(parse_json(data), counter)
    assert len(str(caught.value)) < 200


def test_random_nonsense_in_the_shape_of_an_export_never_ends_in_anything_but_a_refusal() -> None:
    chance, right = random.Random(7), exported()
    everywhere = [path[:end] for path in places(right) for end in range(1, len(path) + 1)]
    values = [at(right, path) for path in everywhere]
    for _ in range(500):
        wrong = right
        for _ in range(chance.choice((1, 1, 3))):
            path = chance.choice(everywhere)
            try:
                wrong = changed(wrong, path, chance.choice([*values, "\ud800", -1, 2**70, [[]]]))
            except (KeyError, IndexError, TypeError, AttributeError):
                continue  # an earlier change took the place away
        with contextlib.suppress(ProtocolError):  # and nothing else
            check_export(wrong, counter)


def test_what_is_written_as_json_is_read_back_the_same() -> None:
    lane = Lane()
    evidence, _ = lane.call(1)
    partial, entry = lane.call(2, is_partial=True)
    kept = lane.call(3, is_kept=True)[1].exchange
    signed, _ = lane.sign(evidence)
    assert kept
    assert entry.exchange is None
    for kind, value in (
        (SignedReceipt, evidence),
        (PartialReceipt, partial),
        (SignedVoucher, signed),
        (SignedRequest, kept.request),
    ):
        assert from_json(kind, json.loads(json.dumps(to_json(value))), "it") == value
