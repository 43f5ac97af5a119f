"""What writes an executor's paragraphs: a backend of its own, or the mesh, which the node joins as a client as well."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from loremesh.backends.base import Backend
from loremesh.config import Settings
from loremesh.roles.backends import Backends, cap_of
from loremesh.roles.mesh import entered
from loremesh.roles.networking import wall_clock
from loremesh.roles.node import Node
from loremesh.services.mesh_writer import MeshWriter
from loremesh.services.slots import MiningFirst
from loremesh.storage.journal import Journal

_PARTING: Final = 0.5
"""Seconds for bills to be settled when the node ends."""


@asynccontextmanager
async def open_writer(settings: Settings, node: Node, backends: Backends) -> AsyncIterator[Backend]:
    """Open what writes, with the first model of the first backend that names one.

    Args:
        settings: Of the executor. Configuration sees to it that one of its backends names a model.
        node: Its network carries calls, its data directory holds the journal of what they cost.
        backends: Its own.

    Raises:
        MachineError: The journal cannot be used.
    """
    chosen = next(one for one in settings.backends if one.models)
    if chosen.is_own:
        yield MiningFirst(backends.writer(), backends.mines_with.slots)
        return
    async with (
        Journal.open(settings.data_dir) as journal,
        entered(node.services.identity, node.network, journal, wall_clock, parting=_PARTING) as mesh,
    ):
        yield MeshWriter(
            mesh,
            next(iter(chosen.models.values())),
            context=chosen.context,
            max_price=chosen.max_price,
            cap=cap_of(chosen, node.disk),
        )
