"""The worker process: it finds nonces, stops at once, keeps to its share, and never outlives its node."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from loremesh.errors import MachineError
from loremesh.primitives import Hash
from loremesh.protocol.work import meets, search_prefix, target_of
from loremesh.services.search import Search
from loremesh.testing.builders import ANN

ProcessorTime = Callable[[int], float]
STORY = Hash(b"\x07" * 32)
IMPOSSIBLE = target_of(2**200)
PATIENCE = 60.0


def prefix(number: int) -> bytes:
    return search_prefix(STORY, Hash(number.to_bytes(32, "big")), ANN.peer_id)


async def wait_working(search: Search) -> int:
    """Wait until the worker has started, and has given up whatever it was told before; give its process."""
    with trio.fail_after(PATIENCE):
        await search.find(prefix(0), target_of(1))
    assert search._process is not None
    return search._process.pid


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


@pytest.fixture
async def search(nursery: trio.Nursery) -> Search:
    search = Search(1.0)
    await nursery.start(search.run)
    return search


async def test_what_it_finds_meets_the_target(search: Search) -> None:
    target = target_of(1000)
    for number in range(20):
        with trio.fail_after(PATIENCE):
            nonce = await search.find(prefix(number), target)
        assert meets(prefix(number), nonce, target)


async def test_a_cancelled_search_gives_way_at_once_and_its_answer_is_taken_for_no_other(search: Search) -> None:
    for number in range(31):
        with trio.move_on_after(0.01):
            await search.find(prefix(number), IMPOSSIBLE if number % 2 == 0 else target_of(2**12))
    with trio.fail_after(PATIENCE):
        nonce = await search.find(prefix(99), target_of(100))
    assert meets(prefix(99), nonce, target_of(100))


async def test_an_answer_that_comes_too_late_is_taken_for_no_other_jobs(search: Search) -> None:
    target = target_of(1000)
    assert not meets(prefix(0), 7, target)
    search._found.send_nowait((0, 7))
    with trio.fail_after(PATIENCE):
        assert meets(prefix(0), await search.find(prefix(0), target), target)


async def test_cancelling_takes_less_than_a_fifth_of_a_second_of_the_processor(
    search: Search, processor_time: ProcessorTime
) -> None:
    worker = await wait_working(search)
    for number in range(5):
        with trio.move_on_after(0.3):
            await search.find(prefix(number), IMPOSSIBLE)
        before = processor_time(worker)
        await wait_working(search)
        assert processor_time(worker) - before < 0.2


async def test_it_keeps_to_its_share_of_a_core(nursery: trio.Nursery, processor_time: ProcessorTime) -> None:
    search = Search(0.2)
    await nursery.start(search.run)
    worker = await wait_working(search)
    before, began = processor_time(worker), time.perf_counter()
    with trio.move_on_after(2):
        await search.find(prefix(0), IMPOSSIBLE)
    used, took = processor_time(worker) - before, time.perf_counter() - began
    assert used < took * 0.25 + 0.05
    await wait_working(search)
    idle = processor_time(worker)
    await trio.sleep(0.5)
    assert processor_time(worker) - idle <= 0.05


async def test_it_ends_with_the_task_that_runs_it() -> None:
    search = Search(1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(search.run)
        assert search._process is not None
        nursery.cancel_scope.cancel()
    assert search._process.returncode is not None


async def run_and_lose_the_worker() -> None:
    search = Search(1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(search.run)
        assert search._process is not None
        search._process.kill()


async def test_a_worker_that_dies_is_this_machines_fault() -> None:
    with pytest.raises(ExceptionGroup) as failed:
        await run_and_lose_the_worker()
    assert failed.group_contains(MachineError)


PARENT = """
import sys, trio
from loremesh.services.search import Search
from loremesh.protocol.work import target_of

async def main():
    search = Search(1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(search.run)
        await search.find(b"x", target_of(1))
        print(search._process.pid, flush=True)
        await search.find(b"x", target_of(2 ** 200))

trio.run(main)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux says whether a stranger's child runs")
async def test_it_ends_when_its_node_is_killed() -> None:
    parent = await trio.lowlevel.open_process([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        with trio.fail_after(PATIENCE):
            worker = int(await parent.stdout.receive_some())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
        with trio.fail_after(PATIENCE):
            while is_running(worker):  # noqa: ASYNC110 - nobody tells that a grandchild ended
                await trio.sleep(0.02)
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()
