"""The executor role: serves calls to its models, keeps the chain, and races to write the next block."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import trio

from loremesh.config import Settings
from loremesh.roles.backends import Backends, open_backends
from loremesh.roles.mining import mine
from loremesh.roles.networking import wall_clock
from loremesh.roles.node import EXECUTOR, Node, run_node
from loremesh.roles.process import Start, run_until_stopped
from loremesh.roles.writing import open_writer
from loremesh.services.call_terms import Offered
from loremesh.services.happenings import Tell
from loremesh.services.llm_server import LlmServer
from loremesh.storage.journal import Journal

_LAST_WORD: Final = 0.5


async def run(executors: Sequence[Settings], tell: Callable[[str], Tell]) -> None:
    """Run executors side by side until a signal ends them; one failing does not stop the others.

    Args:
        executors: The settings of each.
        tell: Gives, for an executor's name, what hears of its happenings.

    Raises:
        LoremeshError: The last one that was left failed, as `run_node`.
    """
    await run_until_stopped([_starter(settings, tell(settings.name)) for settings in executors])


def _starter(settings: Settings, tell: Tell) -> Start:
    async def start(task_status: "trio.TaskStatus[Node]") -> None:
        beside = partial(_work, settings) if settings.mine or settings.serve else None
        models = settings.served_models
        await run_node(settings, EXECUTOR, tell, models=models, beside=beside, task_status=task_status)

    return start


async def _work(settings: Settings, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
    """Open the backends, and let them serve clients and the node's own mining until cancelled."""
    async with open_backends(settings.backends, node.disk) as backends, trio.open_nursery() as nursery:
        if settings.serve:
            await nursery.start(_serve, settings, node, partial(_offered, backends))
        if settings.mine and node.services.story is not None:
            nursery.start_soon(_mine, settings, node, backends)
        task_status.started()


async def _serve(
    settings: Settings,
    node: Node,
    models: Callable[[], Mapping[str, Offered]],
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    async with Journal.open(settings.data_dir) as journal:
        services = node.services
        server = LlmServer(
            identity=services.identity, models=models, journal=journal, clock=wall_clock, tell=services.tell
        )

        async def leave() -> None:
            server.close()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain, settings.drain)
                with trio.move_on_after(_LAST_WORD):
                    await services.cards.publish()  # so that nobody asks us any more

        node.leaving.append(leave)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(services.serve_calls, server)
            task_status.started()


async def _mine(settings: Settings, node: Node, backends: Backends) -> None:
    assert node.services.story is not None  # noqa: S101 - for the type checker: our caller has looked
    with trio.CancelScope() as scope:

        async def leave() -> None:
            scope.cancel()
            await trio.lowlevel.checkpoint()

        node.leaving.append(leave)
        async with open_writer(settings, node, backends) as writer:
            await mine(node.services, node.services.story, writer, settings.work_share)


def _offered(backends: Backends) -> dict[str, Offered]:
    """Give what clients can call now."""
    return {
        name: Offered(one.offer, one.model, one.backend.chat, one.backend.slots, one.backend.cap)
        for name, one in backends.models.items()
    }
