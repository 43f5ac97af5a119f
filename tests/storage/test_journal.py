import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
import trio

from loremesh.errors import Fault, InvalidMessage, MachineError, ReceiptMismatch, VoucherMismatch
from loremesh.primitives import Hash, Millis
from loremesh.protocol.journal import Dispute, Entry, EntryKind, SessionAccount, accounts, delivered, refused
from loremesh.protocol.receipts import SignedReceipt
from loremesh.protocol.vouchers import sign_voucher
from loremesh.storage.journal import JOURNAL, JOURNAL_NAME, Journal, Standing, has_journal
from loremesh.testing.bills import Lane, unwritten
from loremesh.testing.builders import START
from loremesh.testing.calls import CLIENT, EXECUTOR, SESSION

OTHER = Hash(b"\x0e" * 32)
NAMES = CLIENT.peer_id, EXECUTOR.peer_id, SESSION


async def all_of(journal: Journal) -> list[Entry]:
    return [unwritten(entry) async for entry in journal.all_entries(batch=7)]


async def test_what_was_recorded_is_there_in_order_when_it_is_opened_again(tmp_path: Path) -> None:
    lane = Lane()
    evidence, kept = lane.call(11, is_kept=True)
    _, cut = lane.call(12, is_partial=True)
    entries = [*lane.calls(1, 10), kept, cut, refused(CLIENT.peer_id, evidence.receipt, "why not", Millis(START))]
    async with Journal.open(tmp_path) as journal:
        for entry in entries:
            await journal.record(entry)
    async with Journal.open(tmp_path) as journal:
        assert await all_of(journal) == entries
        assert [entry.sequence for entry in await journal.entries(after=3, limit=4)] == [4, 5, 6, 7]


async def test_the_file_is_its_owners_alone_and_nothing_is_made_by_looking_for_it(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    assert not has_journal(directory)
    assert not directory.exists()
    async with Journal.open(directory) as journal:
        await journal.record(*Lane().calls(1, 1))
        modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
        assert modes == dict.fromkeys([JOURNAL_NAME, f"{JOURNAL_NAME}-wal", f"{JOURNAL_NAME}-shm"], 0o600)
    assert has_journal(directory)


async def test_an_entry_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    entries = list(Lane().calls(1, 3))
    async with Journal.open(tmp_path) as journal:
        await journal.record(*entries)
        await journal.record(*entries)
        for entry in entries:
            await journal.record(replace(entry, time=Millis(entry.time + 99)))
        assert await all_of(journal) == entries


async def test_a_second_receipt_of_one_request_is_refused_and_what_came_with_it_too(tmp_path: Path) -> None:
    for is_executor in (True, False):
        lane = Lane(is_executor=is_executor)
        async with Journal.open(tmp_path / str(is_executor)) as journal:
            await journal.record(lane.call(1)[1])
            with pytest.raises(InvalidMessage) as caught:
                await journal.record(lane.call(2)[1], lane.call(1, is_partial=True)[1])
            assert caught.value.fault is Fault.REPLAYED
            assert await all_of(journal) == [lane.call(1)[1]]
            with pytest.raises(InvalidMessage):
                await journal.record(Lane(OTHER, is_executor=is_executor).call(1)[1])


async def test_requests_of_two_clients_may_have_one_id(tmp_path: Path) -> None:
    [one] = [Lane(is_executor=True).call(1)[1]]
    async with Journal.open(tmp_path) as journal:
        await journal.record(one)
        await journal.record(replace(one, client=EXECUTOR.peer_id))
        assert len(await journal.entries()) == 2
        assert await journal.is_served(CLIENT.peer_id, one.request)
        assert not await journal.is_served(CLIENT.peer_id, OTHER)


async def test_the_vouchers_of_a_session_follow_one_another_and_none_is_replaced(tmp_path: Path) -> None:
    lane = Lane()
    evidence, entries = zip(*(lane.call(number) for number in range(1, 4)), strict=True)
    (first, one), (_, two), (_, three) = (lane.sign(one) for one in evidence)
    async with Journal.open(tmp_path) as journal:
        await journal.record(*entries)
        with pytest.raises(VoucherMismatch, match="receipts is 2, expected 1"):
            await journal.record(two)
        none = sign_voucher(CLIENT, replace(first.voucher, receipts=0))
        with pytest.raises(VoucherMismatch, match="receipts is 0, expected 1"):
            await journal.record(replace(one, fact=none))
        await journal.record(one)
        changed = sign_voucher(CLIENT, replace(first.voucher, amount=first.voucher.amount + 1))
        with pytest.raises(VoucherMismatch):
            await journal.record(replace(one, fact=changed))
        with pytest.raises(VoucherMismatch, match="receipts is 3, expected 2"):
            await journal.record(three)
        await journal.record(two, three)
        await journal.record(one)
        assert await all_of(journal) == [*entries, one, two, three]


async def test_a_voucher_needs_its_receipt_and_a_delivery_its_voucher(tmp_path: Path) -> None:
    lane = Lane()
    evidence, entry = lane.call(1)
    signed, voucher = lane.sign(evidence)
    async with Journal.open(tmp_path) as journal:
        with pytest.raises(ValueError, match="receipt that is not in the journal"):
            await journal.record(voucher)
        await journal.record(entry)
        with pytest.raises(ValueError, match="voucher that is not in the journal"):
            await journal.record(delivered(signed, evidence.receipt, START))
        assert len(await journal.entries()) == 1


async def test_a_session_goes_on_from_its_newest_voucher_and_what_none_takes_in(tmp_path: Path) -> None:
    lane, other = Lane(), Lane(OTHER)
    async with Journal.open(tmp_path) as journal:
        assert await journal.session(*NAMES) == Standing(None, ())
        await journal.record(*other.calls(1, 1), *lane.calls(2, 4))
        signed, (evidence, entry) = sign_voucher(CLIENT, lane.voucher) if lane.voucher else None, lane.call(5)
        await journal.record(entry)
        assert await journal.session(*NAMES) == Standing(signed, (evidence,))
        assert await journal.session(EXECUTOR.peer_id, EXECUTOR.peer_id, SESSION) == Standing(None, ())


async def test_vouchers_are_undelivered_until_their_executor_has_that_one_or_a_later_one(tmp_path: Path) -> None:
    lane, other = Lane(), Lane(OTHER)
    async with Journal.open(tmp_path) as journal:
        await journal.record(*lane.calls(1, 2))
        assert await journal.undelivered(EXECUTOR.peer_id) == []
        signed = []
        for number, one in ((3, lane), (4, lane), (5, other)):
            evidence, entry = one.call(number)
            voucher, vouched = one.sign(evidence)
            await journal.record(entry, vouched)
            signed.append((voucher, evidence))
        found = await journal.undelivered(EXECUTOR.peer_id)
        assert [(one.voucher, one.evidence) for one in found] == signed
        assert [one.voucher for one in await journal.undelivered(EXECUTOR.peer_id, limit=1)] == [signed[0][0]]
        assert await journal.undelivered(CLIENT.peer_id) == []

        await journal.record(delivered(signed[1][0], signed[1][1].receipt, START))
        assert [one.voucher for one in await journal.undelivered(EXECUTOR.peer_id)] == [signed[2][0]]
        await journal.record(refused(EXECUTOR.peer_id, signed[2][1].receipt, "not mine", START))
        assert await journal.undelivered(EXECUTOR.peer_id) == []


async def test_a_refusal_names_the_field_both_values_and_who_refused_and_is_kept_once(tmp_path: Path) -> None:
    evidence, _ = Lane().call(1)
    error = ReceiptMismatch("output_digest", b"\x01\x02", "é" * 400)
    async with Journal.open(tmp_path) as journal:
        await journal.record(refused(CLIENT.peer_id, evidence.receipt, error, START))
        await journal.record(refused(CLIENT.peer_id, evidence.receipt, "again", START))
        [entry] = await journal.entries()
    assert isinstance(entry.fact, Dispute)
    assert (entry.fact.by, entry.fact.field, entry.fact.claimed) == (CLIENT.peer_id, "output_digest", "0102")
    assert entry.fact.expected == "é" * 128
    assert entry.fact.reason.startswith("receipt does not match the recount: output_digest is 0102, expected ")


async def test_entries_are_neither_changed_nor_removed_by_whoever_opens_the_file(tmp_path: Path) -> None:
    async with Journal.open(tmp_path) as journal:
        await journal.record(*Lane().calls(1, 1))
    connection = apsw.Connection(str(tmp_path / JOURNAL_NAME))
    for statement in ("update entry set time = 1", "delete from entry"):
        with pytest.raises(apsw.ConstraintError):
            connection.execute(statement)
    connection.close()


async def test_a_caller_who_is_cancelled_leaves_all_of_its_entries_or_none(tmp_path: Path) -> None:
    lane = Lane()
    batches = [list(lane.calls(number, number)) for number in range(1, 41)]
    async with Journal.open(tmp_path) as journal:
        for place, batch in enumerate(batches):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(journal.record, *batch)
                    for _ in range(place % 5):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            there = await all_of(journal)
            assert there[-3:] == batch or not any(entry in there for entry in batch)
            await journal.record(*batch)
        assert await all_of(journal) == [entry for batch in batches for entry in batch]


async def accounts_in(directory: Path) -> list[SessionAccount]:
    async with Journal.open(directory) as journal:
        return accounts(await all_of(journal))


APPENDER = """
import sys, trio
from pathlib import Path
from loremesh.primitives import Hash
from loremesh.storage.journal import Journal
from loremesh.testing.bills import Lane

async def main(number):
    lane = Lane(Hash(bytes([number]) * 32))
    print("ready", flush=True)
    sys.stdin.readline()
    async with Journal.open(Path(sys.argv[1])) as journal:
        for entry in lane.calls(1000 * number + 1, 1000 * number + 40):
            await journal.record(entry)

trio.run(main, int(sys.argv[2]))
"""


def test_several_processes_make_and_fill_one_journal_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", APPENDER, directory, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(1, 4)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    found = trio.run(accounts_in, directory)
    assert [len(one.vouchers) for one in found] == [40, 40, 40]
    assert all(one.countersigned == one.amount and not one.unsigned for one in found)


async def test_a_journal_is_open_twice_in_one_process_and_each_sees_what_the_other_wrote(tmp_path: Path) -> None:
    async with Journal.open(tmp_path) as one, Journal.open(tmp_path) as two:
        for number in range(1, 11):
            await (one if number % 2 else two).record(Lane().call(number)[1])
            assert len(await two.entries()) == len(await one.entries()) == number
    async with Journal.open(tmp_path) as three:
        assert len(await three.entries()) == 10


async def test_ten_thousand_entries_are_no_burden(tmp_path: Path) -> None:
    async with Journal.open(tmp_path) as journal:
        transactions = list[None]()

        def on_commit() -> bool:
            transactions.append(None)
            return False

        journal._database.writer.set_commit_hook(on_commit)
        entries = [Lane().call(number)[1] for number in range(1, 101)]
        many = [replace(entry, request=Hash(place.to_bytes(32, "big"))) for place, entry in enumerate(entries * 100)]
        async with trio.open_nursery() as nursery:
            for start in range(0, len(many), 10):
                nursery.start_soon(journal.record, *many[start : start + 10])
        assert len(transactions) <= 10
        with trio.fail_after(60):
            assert len(await all_of(journal)) == 10_000
            assert await journal.is_served(CLIENT.peer_id, many[-1].request)
        plan = journal._database.reader.execute(
            "explain query plan select 1 from entry "
            "where request = ? and client = ? and kind in ('served', 'received')",
            (many[0].request, CLIENT.peer_id),
        ).fetchall()
        assert "one_receipt" in str(plan)


async def test_the_thousandth_call_of_a_session_is_written_down_and_looked_up_at_the_cost_of_the_tenth(
    tmp_path: Path,
) -> None:
    lane = Lane()
    async with Journal.open(tmp_path) as journal:
        steps = 0

        def on_steps() -> bool:
            nonlocal steps
            steps += 1
            return False

        async def cost_of(number: int) -> int:
            """Count what SQLite does for one call, in steps of its machine: no clock is asked."""
            nonlocal steps
            steps = 0
            for connection in (journal._database.writer, journal._database.reader):
                connection.set_progress_handler(on_steps, 1)
            await journal.record(*lane.calls(number, number))
            assert await journal.is_served(CLIENT.peer_id, lane.call(number)[1].request)
            for connection in (journal._database.writer, journal._database.reader):
                connection.set_progress_handler(None)
            return steps

        await journal.record(*lane.calls(1, 9))
        tenth = await cost_of(10)
        assert tenth > 100
        await journal.record(*lane.calls(11, 999))
        assert await cost_of(1000) < 1.5 * tenth


async def test_a_full_disk_is_said_with_the_files_name_and_what_was_kept_stays(tmp_path: Path) -> None:
    lane = Lane()
    async with Journal.open(tmp_path) as journal:
        await journal.record(*lane.calls(1, 1))
        writer = journal._database.writer
        pages = writer.pragma("page_count")
        writer.pragma("max_page_count", pages)
        with pytest.raises(MachineError, match=rf"no space left for .*{JOURNAL_NAME}"):
            await journal.record(*lane.calls(2, 200))
        assert len(await all_of(journal)) == 3
        writer.pragma("max_page_count", 1_000_000)
        lane = Lane()
        await journal.record(*lane.calls(1, 200))
        assert len(await all_of(journal)) == 600


async def test_a_disk_that_takes_no_writes_is_said_with_the_files_name(tmp_path: Path) -> None:
    async with Journal.open(tmp_path) as journal:
        journal._database.writer.pragma("query_only", value=True)
        with pytest.raises(MachineError, match=rf"cannot write .*{JOURNAL_NAME}"):
            await journal.record(*Lane().calls(1, 1))


async def test_a_journal_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / JOURNAL_NAME))
    connection.pragma("user_version", len(JOURNAL.migrations) + 1)
    connection.close()
    with pytest.raises(MachineError, match="run a newer loremesh"):
        async with Journal.open(tmp_path):
            pass


@pytest.mark.parametrize(
    "damage",
    [
        "data = x'00'",
        "kind = 'stolen'",
        "form = 'Genesis'",
        "asked = x'00'",
        "data = cast('text' as text)",
        "form = 5",
        "time = time + 1",
        "digest = x''",
        "number = 7",
        "sequence = 9",
    ],
)
async def test_a_row_that_is_no_entry_is_said_to_be_damage(damage: str, tmp_path: Path) -> None:
    async with Journal.open(tmp_path) as journal:
        await journal.record(*Lane().calls(1, 2))
        connection = apsw.Connection(str(tmp_path / JOURNAL_NAME))
        trigger = connection.execute("select sql from sqlite_schema where name = 'never_changed'").get
        connection.execute("drop trigger never_changed")
        connection.execute(f"update entry set {damage} where sequence = 4")  # noqa: S608 - of the test
        connection.execute(trigger)
        connection.close()
        with pytest.raises(MachineError, match=r"is damaged .* move it away and start again, the bills in it are lost"):
            await all_of(journal)
        with pytest.raises(MachineError, match="is damaged"):
            await journal.entries()


async def test_garbage_in_place_of_a_journal_is_said_to_be_damage(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"no database at all, and long enough to be one" * 20)
    with pytest.raises(MachineError, match=r"is damaged .* the bills in it are lost here"):
        async with Journal.open(tmp_path):
            pass
    (tmp_path / JOURNAL_NAME).unlink()
    (tmp_path / JOURNAL_NAME).mkdir()
    with pytest.raises(MachineError):
        async with Journal.open(tmp_path):
            pass


def test_evidence_of_both_kinds_is_told_apart() -> None:
    assert isinstance(Lane().call(1)[0], SignedReceipt)
    assert not isinstance(Lane().call(1, is_partial=True)[0], SignedReceipt)
    assert Lane().call(1)[1].kind is EntryKind.RECEIVED
    assert Lane(is_executor=True).call(1)[1].kind is EntryKind.SERVED
