"""`network/locks.py`: one at a time, and no pause where there is no need of one."""

from contextlib import suppress

import trio
import trio.testing

from loremesh.network.locks import EagerLock


async def test_a_free_lock_is_taken_and_left_without_a_pause() -> None:
    lock = EagerLock()
    with trio.testing.assert_no_checkpoints():
        async with lock:
            pass
        async with lock:
            pass


async def test_one_task_at_a_time_holds_a_lock_and_they_come_in_turn() -> None:
    lock, order = EagerLock(), list[str]()

    async def hold(name: str) -> None:
        async with lock:
            order.append(f"{name} comes")
            await trio.testing.wait_all_tasks_blocked()
            order.append(f"{name} goes")

    async with trio.open_nursery() as nursery:
        for name in ("ann", "bob", "cat"):
            nursery.start_soon(hold, name)
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert order == [f"{name} {does}" for name in ("ann", "bob", "cat") for does in ("comes", "goes")]


async def test_a_task_that_fails_or_gives_up_leaves_the_lock_to_others(nursery: trio.Nursery) -> None:
    lock, gave_up = EagerLock(), trio.Event()

    async def give_up() -> None:
        with trio.move_on_after(0.01):
            async with lock:
                pass
        gave_up.set()

    with suppress(KeyError):
        async with lock:
            nursery.start_soon(give_up)
            await gave_up.wait()
            {}.popitem()
    with trio.testing.assert_no_checkpoints():
        async with lock:
            pass
