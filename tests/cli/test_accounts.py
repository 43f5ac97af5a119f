"""`loremesh receipts`, `loremesh-executor journal` and `loremesh verify`, run as a user runs them."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from loremesh.backends.tokens import load_counter
from loremesh.cli import executor, main
from loremesh.cli.errors import ExitCode, execute
from loremesh.errors import ReceiptMismatch
from loremesh.primitives import Hash
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.journal import Entry, refused
from loremesh.storage.journal import JOURNAL_NAME, Journal
from loremesh.testing.bills import Lane
from loremesh.testing.calls import CLIENT, EXECUTOR, SESSION

OTHER = Hash(b"\x0e" * 32)


def loremesh(*arguments: str) -> int:
    return execute(main.app, "loremesh", arguments)


def loremesh_executor(*arguments: str) -> int:
    return execute(executor.app, "loremesh-executor", arguments)


def write_down(directory: Path, entries: Sequence[Entry]) -> str:
    async def record() -> None:
        async with Journal.open(directory) as journal:
            await journal.record(*entries)

    trio.run(record)
    return str(directory)


def client_journal(directory: Path) -> str:
    lane = Lane(count=load_counter())
    entries = list(lane.calls(1, 1))
    evidence, entry = lane.call(2, is_kept=True)
    entries += [entry, lane.sign(evidence)[1]]
    entries.append(lane.call(3, is_partial=True)[1])
    claimed = Lane(OTHER).call(4)[0].receipt
    entries.append(refused(CLIENT.peer_id, claimed, ReceiptMismatch("prompt_tokens", 99, 9), claimed.time))
    return write_down(directory, entries)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return client_journal(tmp_path / "client")


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_receipts_explains_every_entry(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert loremesh("receipts", "--data-dir", data) == ExitCode.DONE
    said = capsys.readouterr().out
    assert f"session {SESSION.hex()} with executor …{peer_id_text(EXECUTOR.peer_id)[-8:]}" in said
    assert "3 receipts, 1 not countersigned" in said
    *_, bill = said.partition(f"      request {3:064x}\n")[0].splitlines()
    assert "  small-model  " in bill
    assert max(map(len, said.splitlines())) <= 100
    for words in (
        "receipt: signed by the executor",
        "partial receipt: signed by the client, on what the executor had signed as delivered",
        "countersigned by the client; the executor has the voucher",
        "countersigned by the client; the voucher is not delivered yet",
        "not countersigned: nothing is owed for it until the client does",
        "the client did not sign: receipt does not match the recount: prompt_tokens is 99, expected 9",
    ):
        assert words in said


def test_receipts_as_json_has_the_promised_form_and_verify_takes_it(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loremesh("receipts", "--data-dir", data, "--json") == ExitCode.DONE
    said = capsys.readouterr().out
    one, other = json.loads(said)["sessions"]
    assert one["executor"] == peer_id_text(EXECUTOR.peer_id)
    assert one["session"] == SESSION.hex()
    bills = [entry["receipt"] for entry in one["receipts"]]
    assert one["tokens"] == sum(bill["prompt_tokens"] + bill["completion_tokens"] for bill in bills) > 0
    assert (other["receipts"], len(other["refusals"])) == ([], 1)

    file = tmp_path / "receipts.json"
    file.write_text(said)
    assert loremesh("verify", str(file)) == ExitCode.DONE
    words = capsys.readouterr().out
    assert "3 receipts, 1 of them partial:" in words
    assert "1 counted again" in words
    assert words.endswith("all of it is right\n")
    assert loremesh("verify", str(file), "--json") == ExitCode.DONE
    [checked, _] = answer(capsys)["sessions"]
    assert (checked["receipts"], checked["vouchers"], checked["recounted"]) == (3, 2, 1)


def test_one_request_is_exported_and_verified_by_itself(
    data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = f"{2:064x}"
    assert loremesh("receipts", "--data-dir", data, "--request", request, "--json") == ExitCode.DONE
    said = capsys.readouterr().out
    [session] = json.loads(said)["sessions"]
    assert [entry["receipt"]["request"] for entry in session["receipts"]] == [request]
    stdin = io.TextIOWrapper(io.BytesIO(said.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert loremesh("verify", "-") == ExitCode.DONE
    assert "1 receipt:" in capsys.readouterr().out
    assert loremesh("receipts", "--data-dir", data, "--request", request) == ExitCode.DONE
    assert capsys.readouterr().out.count("request ") == 1


def test_an_executor_sees_whom_it_served_and_who_has_not_countersigned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = Lane(is_executor=True)
    evidence, entry = lane.call(4)
    claim = refused(EXECUTOR.peer_id, evidence.receipt, "no such receipt", evidence.receipt.time)
    data = write_down(tmp_path / "executor", [*lane.calls(1, 3), entry, claim])
    assert loremesh_executor("journal", "--data-dir", data) == ExitCode.DONE
    said = capsys.readouterr().out
    assert f"with client …{peer_id_text(CLIENT.peer_id)[-8:]}" in said
    assert "4 receipts, 1 not countersigned" in said
    assert "the voucher is not delivered" not in said
    assert "the executor did not take the voucher: no such receipt" in said
    assert loremesh_executor("journal", "--data-dir", data, "--json") == ExitCode.DONE
    [session] = answer(capsys)["sessions"]
    assert (session["client"], len(session["receipts"])) == (peer_id_text(CLIENT.peer_id), 4)


def test_the_journals_of_several_executors_of_one_file_are_shown_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, session in (("ann", SESSION), ("bob", OTHER)):
        write_down(tmp_path / "all" / name, list(Lane(session, is_executor=True).calls(1, 2)))
    file = tmp_path / "executors.toml"
    file.write_text(f'data_dir = "{tmp_path}/all"\n[[executor]]\nname = "ann"\n[[executor]]\nname = "bob"\n')
    assert loremesh_executor("journal", "--config", str(file), "--json") == ExitCode.DONE
    assert [session["session"] for session in answer(capsys)["sessions"]] == [SESSION.hex(), OTHER.hex()]


def test_a_journal_is_shown_while_another_process_has_it_open(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def show() -> int:
        async with Journal.open(Path(data)) as journal:
            await journal.record(*Lane(Hash(bytes(32))).calls(70, 70))
            return await trio.to_thread.run_sync(loremesh, "receipts", "--data-dir", data, "--json")

    assert trio.run(show) == ExitCode.DONE
    assert len(answer(capsys)["sessions"]) == 3


def test_where_nothing_was_asked_yet_there_is_nothing_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "none"
    assert loremesh("receipts", "--data-dir", str(data), "--json") == ExitCode.DONE
    assert answer(capsys) == {"sessions": []}
    assert loremesh("receipts", "--data-dir", str(data)) == ExitCode.DONE
    assert capsys.readouterr().out == f"nothing yet in {data}\n"
    assert not data.exists()


@pytest.mark.parametrize(("request_id", "reason"), [("12", "64 hexadecimal digits"), ("ab" * 32, "no receipt of it")])
def test_a_request_that_is_none_is_a_mistake_of_the_user(
    request_id: str, reason: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loremesh("receipts", "--data-dir", data, "--request", request_id) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_a_damaged_journal_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"nothing that a database begins with" * 30)
    assert loremesh("receipts", "--data-dir", str(tmp_path)) == ExitCode.MACHINE
    said = capsys.readouterr().err
    assert f"{tmp_path / JOURNAL_NAME} is damaged" in said
    assert said.count("\n") == 1


def test_what_a_model_is_called_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = Lane().call(1)[0]
    data = write_down(
        tmp_path, [refused(CLIENT.peer_id, evidence.receipt, "\x1b[2J\r\nfake line", evidence.receipt.time)]
    )
    assert loremesh("receipts", "--data-dir", data) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\\x1b[2J\\r\\nfake line" in said


def test_verify_ends_with_four_and_one_line_when_anything_is_changed(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loremesh("receipts", "--data-dir", data, "--json")
    said = capsys.readouterr().out
    file = tmp_path / "changed.json"
    for old, new in (
        ('"price": 250', '"price": 249'),
        ("small-model", "large-model"),
        ("Nobody", "No-one"),
        ("{", "["),
    ):
        assert old in said
        file.write_text(said.replace(old, new, 1))
        assert loremesh("verify", str(file)) == ExitCode.REFUSED
        reason = capsys.readouterr()
        assert reason.out == ""
        assert reason.err.count("\n") == 1
        assert "Traceback" not in reason.err


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 100, b"[" * 50_000, b"{}", b"nonsense\n\x1b[2J"])
def test_verify_refuses_garbage_in_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "garbage"
    file.write_bytes(content)
    assert loremesh("verify", str(file)) == ExitCode.REFUSED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_verify_reads_no_more_than_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "endless"
    with file.open("wb") as opened:
        opened.truncate(2**26)  # a hole: nothing is written
    assert loremesh("verify", str(file)) == ExitCode.REFUSED
    assert "too large" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.json", ".", "a\0b"])
def test_verify_of_what_is_no_file_is_a_mistake_of_the_user(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loremesh("verify", f"{tmp_path}/{name}") == ExitCode.USAGE
    assert capsys.readouterr().err.count("\n") == 1
