"""The validator role: a fixed address that others join through. With a story it keeps and serves the chain too."""

import trio

from loremesh.config import Settings
from loremesh.roles.node import VALIDATOR, Node, run_node
from loremesh.roles.process import run_until_stopped
from loremesh.services.happenings import Tell


async def run(settings: Settings, tell: Tell) -> None:
    """Run a validator until a signal ends it.

    Raises:
        LoremeshError: As `run_node`.
    """

    async def start(task_status: "trio.TaskStatus[Node]") -> None:
        await run_node(settings, VALIDATOR, tell, task_status=task_status)

    await run_until_stopped([start])
