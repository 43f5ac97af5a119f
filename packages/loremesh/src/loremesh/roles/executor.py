"""The executor role: keeps and serves the chain like a validator, and races to write the next block."""

from collections.abc import Callable, Sequence
from functools import partial

import trio

from loremesh.config import Settings
from loremesh.roles.assembly import Story
from loremesh.roles.backends import open_backends
from loremesh.roles.mining import mine
from loremesh.roles.node import EXECUTOR, Node, run_node
from loremesh.roles.process import Start, run_until_stopped
from loremesh.services.happenings import Tell


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
        beside = partial(_mine, settings) if settings.mine else None
        models = tuple(model for backend in settings.backends for model in backend.models)
        await run_node(settings, EXECUTOR, tell, models=models, beside=beside, task_status=task_status)

    return start


async def _mine(settings: Settings, node: Node, story: Story) -> None:
    async with open_backends(settings.backends, node.disk) as backends:
        await mine(node.services, story, backends.writer(), settings.work_share)
