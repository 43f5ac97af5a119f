import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest
import trio

from loremesh.errors import MachineError
from loremesh.primitives import KIB
from loremesh.storage.migrations import MIGRATIONS, migrate
from loremesh.storage.store import DATABASE_NAME, Store
from loremesh.storage.writes import SetNote, Write


class Broken(Exception):
    pass


@dataclass(frozen=True)
class Raises:
    """A write with a bug, made after something was already changed."""

    def apply(self, connection: apsw.Connection) -> None:
        connection.execute("delete from note")
        raise Broken


@dataclass(frozen=True)
class Calls:
    """A write during which something happens."""

    action: Callable[[], object]

    def apply(self, _connection: apsw.Connection) -> None:
        self.action()


def count_transactions(store: Store) -> list[None]:
    """Give a list that grows by one with each transaction that reaches the disk."""
    seen: list[None] = []

    def on_commit() -> bool:
        seen.append(None)
        return False

    store._database.writer.set_commit_hook(on_commit)
    return seen


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def hold_the_turn(store: Store, *, task_status: trio.TaskStatus[Callable[[], None]]) -> None:
    """Keep the disk busy with one write until the function handed over is called."""
    token = trio.lowlevel.current_trio_token()
    started, released = trio.Event(), trio.Event()

    def wait() -> None:
        trio.from_thread.run_sync(started.set, trio_token=token)
        trio.from_thread.run(released.wait, trio_token=token)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, Calls(wait))
        await started.wait()
        task_status.started(released.set)


async def test_a_hundred_callers_share_a_few_transactions(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        transactions = count_transactions(store)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(store.set_note, str(number), b"%d" % number)

        assert len(transactions) <= 10
        for number in range(100):
            assert await store.note(str(number)) == b"%d" % number


async def test_callers_who_ask_again_at_once_share_the_next_transaction_too(tmp_path: Path) -> None:
    async def save(store: Store, caller: int) -> None:
        for number in range(5):
            await store.set_note(f"{caller} {number}", b"x")

    async with Store.open(tmp_path) as store:
        transactions = count_transactions(store)
        async with trio.open_nursery() as nursery:
            for caller in range(50):
                nursery.start_soon(save, store, caller)
    assert len(transactions) == 5


async def test_nobody_returns_before_the_transaction_is_on_disk(tmp_path: Path) -> None:
    returned = []

    async def save(store: Store, key: str) -> None:
        await store.set_note(key, b"")
        returned.append(key)

    async with Store.open(tmp_path) as store, trio.open_nursery() as nursery:
        release = await nursery.start(hold_the_turn, store)
        for key in ("a", "b", "c"):
            nursery.start_soon(save, store, key)
        await trio.testing.wait_all_tasks_blocked()
        assert returned == []
        release()
    assert sorted(returned) == ["a", "b", "c"]


async def test_reads_do_not_wait_for_a_commit_under_way(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store, trio.open_nursery() as nursery:
        await store.set_note("key", b"old")
        release = await nursery.start(hold_the_turn, store)
        try:
            with trio.fail_after(30):
                assert await store.note("key") == b"old"
        finally:
            release()


async def test_one_callers_failing_write_fails_nobody_else(tmp_path: Path) -> None:
    outcomes: dict[str, str] = {}

    async def save(store: Store, key: str, *more: Write) -> None:
        try:
            await store.commit(SetNote(key, b"x"), *more)
        except Broken:
            outcomes[key] = "refused"
        else:
            outcomes[key] = "kept"

    async with Store.open(tmp_path) as store:
        await store.set_note("before", b"x")
        async with trio.open_nursery() as nursery:
            release = await nursery.start(hold_the_turn, store)
            for number in range(6):
                nursery.start_soon(save, store, str(number), *([Raises()] if number % 3 == 0 else []))
            await trio.testing.wait_all_tasks_blocked()
            release()

        assert outcomes == {str(n): "refused" if n % 3 == 0 else "kept" for n in range(6)}
        for key, outcome in outcomes.items():
            assert (await store.note(key) is not None) == (outcome == "kept")
        assert await store.note("before") == b"x"


async def test_a_caller_cancelled_before_its_turn_writes_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            release = await nursery.start(hold_the_turn, store)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as doomed:
                    doomed.start_soon(store.set_note, "doomed", b"x")
                    nursery.start_soon(store.set_note, "other", b"x")
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            release()

        assert await store.note("doomed") is None
        assert await store.note("other") == b"x"


async def test_a_caller_cancelled_while_writing_for_others_does_not_take_their_writes_along(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as doomed:
                    release = await doomed.start(hold_the_turn, store)
                    nursery.start_soon(store.set_note, "other", b"x")
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    release()

        assert await store.note("other") == b"x"


async def test_a_cancelled_owner_closes_the_store_so_that_it_can_be_opened_again(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with Store.open(tmp_path) as store:
            await store.set_note("key", b"x")
            scope.cancel()
            await trio.lowlevel.checkpoint()

    assert names_in(tmp_path) == {"lock", DATABASE_NAME}  # the log was folded in
    async with Store.open(tmp_path) as store:
        assert await store.note("key") == b"x"


async def test_every_commit_is_synced_to_the_disk(tmp_path: Path) -> None:
    full = 2  # https://sqlite.org/pragma.html#pragma_synchronous
    async with Store.open(tmp_path) as store:
        assert store._database.writer.pragma("synchronous") == full
        assert store._database.writer.pragma("journal_mode") == "wal"


async def test_a_connection_keeps_a_quarter_of_a_mebibyte_of_pages_however_much_is_written_and_read(
    tmp_path: Path,
) -> None:
    async with Store.open(tmp_path) as store:
        for number in range(400):
            await store.commit(SetNote(str(number), bytes(4 * KIB)))
            assert await store.note(str(number)) == bytes(4 * KIB)
        for connection in (store._database.writer, store._database.reader):
            assert connection.status(apsw.SQLITE_DBSTATUS_CACHE_USED)[0] < 512 * KIB


async def test_a_full_disk_fails_only_whom_it_has_no_room_for_and_the_store_stays_usable(tmp_path: Path) -> None:
    refused: list[str] = []

    async def save_too_much(store: Store) -> None:
        try:
            await store.set_note("big", bytes(1_000_000))
        except MachineError as error:
            refused.append(str(error))

    async with Store.open(tmp_path) as store:
        await store.set_note("kept", b"x")
        store._database.writer.pragma("max_page_count", store._database.writer.pragma("page_count"))

        async with trio.open_nursery() as nursery:
            release = await nursery.start(hold_the_turn, store)
            nursery.start_soon(store.set_note, "small", b"x")
            nursery.start_soon(save_too_much, store)
            await trio.testing.wait_all_tasks_blocked()
            release()

        assert refused == [f"no space left for {tmp_path / DATABASE_NAME}: free some and start again"]
        assert [await store.note(key) for key in ("kept", "small", "big")] == [b"x", b"x", None]


async def test_on_a_disk_that_is_really_full_the_reason_is_named(tmp_path: Path) -> None:
    program = f"""
import trio
from pathlib import Path
from loremesh.errors import MachineError
from loremesh.storage.store import Store

async def main():
    async with Store.open(Path({str(tmp_path)!r})) as store:
        await store.set_note("kept", b"x")
        try:
            await store.set_note("big", bytes(2_000_000))
        except MachineError as error:
            print(error)
        await store.set_note("after", b"x")
        print(await store.note("kept"), await store.note("big"), await store.note("after"))

trio.run(main)
"""
    mount = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, str(tmp_path)]
    possible = await trio.run_process([*unshare, "true"], check=False, capture_stderr=True)
    if possible.returncode != 0:
        pytest.skip(f"no small disk can be made here: {possible.stderr.decode()}")

    finished = await trio.run_process([*unshare, sys.executable, "-c", program], capture_stdout=True)

    assert finished.stdout.decode().splitlines() == [
        f"no space left for {tmp_path / DATABASE_NAME}: free some and start again",
        "b'x' None b'x'",
    ]


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / DATABASE_NAME))
    connection.pragma("user_version", len(MIGRATIONS) + 1)

    with pytest.raises(MachineError, match="run a newer loremesh"):
        migrate(connection)

    assert connection.pragma("user_version") == len(MIGRATIONS) + 1
    connection.close()


def test_a_migration_that_fails_halfway_leaves_the_version_before(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / DATABASE_NAME))
    migrate(connection)
    connection.execute("insert into note values ('key', x'00')")

    with pytest.raises(apsw.SQLError):
        migrate(connection, [*MIGRATIONS, "create table new (x)", "drop table note; select nonsense"])

    assert connection.pragma("user_version") == len(MIGRATIONS) + 1
    assert connection.execute("select count(*) from note").get == 1
    migrate(connection, [*MIGRATIONS, "create table new (x)", "drop table new"])
    assert connection.pragma("user_version") == len(MIGRATIONS) + 2
    connection.close()


async def test_a_file_that_is_no_database_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / DATABASE_NAME).write_bytes(b"not a database at all" * 1000)

    with pytest.raises(MachineError, match=f"{tmp_path / DATABASE_NAME} is damaged .* move it away"):
        async with Store.open(tmp_path):
            raise AssertionError("opened garbage")


async def test_damage_found_while_reading_is_named_with_the_remedy(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        for number in range(50):
            await store.set_note(str(number), bytes(3000))
    path = tmp_path / DATABASE_NAME
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xff" * (len(data) - 8192))

    async with Store.open(tmp_path) as store:
        with pytest.raises(MachineError, match=r"is damaged .* move it away"):
            await store.note("7")
        with pytest.raises(MachineError, match=r"is damaged .* move it away"):
            await store.set_note("7", b"")


async def test_a_torn_end_of_the_log_costs_the_last_commit_only(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    async with Store.open(tmp_path / "data") as store:
        await store.set_note("first", b"x")
        await store.set_note("second", b"x")
        for file in (tmp_path / "data").glob(f"{DATABASE_NAME}*"):
            shutil.copy(file, copy)
    log = copy / f"{DATABASE_NAME}-wal"
    log.write_bytes(log.read_bytes()[:-100])

    async with Store.open(copy) as store:
        assert await store.note("first") == b"x"
        assert await store.note("second") is None
        await store.set_note("second", b"again")
        assert await store.note("second") == b"again"
