"""Several nodes in one process: one that fails is not the others' end, and signals reach all of them."""

import logging
import os
import signal

import pytest
import trio
import trio.testing

from loremesh.errors import LoremeshError, MachineError, Unreachable
from loremesh.roles.node import Node
from loremesh.roles.process import run_until_stopped


class FakeNode:
    """Runs until cancelled; counts how often it read its deny file."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.reloaded = trio.Event()
        self.was_cancelled = False
        self.leaving = trio.Event()
        self.may_go = trio.Event()
        self.may_go.set()

    async def leave(self) -> None:
        self.leaving.set()
        await self.may_go.wait()

    def reload(self) -> None:
        self.reloaded.set()

    async def start(self, task_status: "trio.TaskStatus[Node]") -> None:
        task_status.started(self)  # type: ignore[arg-type]  # a fake
        self.started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.was_cancelled = True
            raise


def failing(error: Exception, *, after: trio.Event | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a Start
    async def start(task_status: "trio.TaskStatus[Node]") -> None:
        if after is not None:
            task_status.started(FakeNode())  # type: ignore[arg-type]  # a fake
            await after.wait()
        raise error

    return start


async def stop_when(event: trio.Event) -> None:
    await event.wait()
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_all_nodes_cleanly(number: signal.Signals) -> None:
    nodes = [FakeNode(), FakeNode()]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_stopped, [node.start for node in nodes])
            for node in nodes:
                await node.started.wait()
            os.kill(os.getpid(), number)
    assert all(node.was_cancelled for node in nodes)


async def test_nodes_are_ended_once_all_have_done_what_there_was_to_do() -> None:
    nodes = [FakeNode(), FakeNode()]
    nodes[0].may_go = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_stopped, [node.start for node in nodes])
            for node in nodes:
                await node.started.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            for node in nodes:
                await node.leaving.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not any(node.was_cancelled for node in nodes)
            nodes[0].may_go.set()
    assert all(node.was_cancelled for node in nodes)


async def test_a_hangup_makes_every_node_read_its_deny_file_again() -> None:
    nodes = [FakeNode(), FakeNode()]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_stopped, [node.start for node in nodes])
            for node in nodes:
                await node.started.wait()
            os.kill(os.getpid(), signal.SIGHUP)
            for node in nodes:
                await node.reloaded.wait()
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("running", [False, True], ids=["at its start", "while it runs"])
async def test_one_node_that_fails_leaves_the_others_running(
    running: bool,  # noqa: FBT001 - a parameter of a test
    caplog: pytest.LogCaptureFixture,
) -> None:
    node, failed = FakeNode(), MachineError("the port is taken")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            starts = [failing(failed, after=node.started if running else None), node.start]
            nursery.start_soon(run_until_stopped, starts)
            await node.started.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert not node.was_cancelled
            os.kill(os.getpid(), signal.SIGTERM)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "one of the nodes ended, the others go on: the port is taken"
    ]


async def test_a_bug_in_one_node_leaves_the_others_running_and_shows_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = FakeNode()
    both = ExceptionGroup("", [MachineError("the port is taken"), KeyError("oops")])
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_until_stopped, [failing(both), node.start])
            nursery.start_soon(stop_when, node.started)
    assert "bug of ours" in caplog.text
    assert "KeyError: 'oops'" in caplog.text


async def test_when_the_last_node_fails_so_does_the_process() -> None:
    first, last = MachineError("the port is taken"), Unreachable("nobody is there")
    with pytest.raises(ExceptionGroup) as failed, trio.fail_after(30):
        await run_until_stopped([failing(first), failing(last)])
    assert failed.group_contains(LoremeshError)


async def test_the_only_node_that_fails_is_the_processes_failure() -> None:
    with pytest.raises(ExceptionGroup) as failed, trio.fail_after(30):
        await run_until_stopped([failing(MachineError("the port is taken"))])
    assert failed.group_contains(MachineError, match="the port is taken")
