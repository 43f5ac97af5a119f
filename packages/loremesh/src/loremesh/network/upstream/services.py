"""Tasks that take the node with them: `libp2p.tools.anyio_service.TrioManager.run_task`.

Symptom: any exception in any task of the swarm, of pubsub or of Kademlia cancels that whole service and comes out of
`host.run()` as an ExceptionGroup: one junk gossip frame, one message with a bad key, one raising handler or validator
ends the process. Leaving in the wrong moment raises "Nursery is closed to new arrivals" the same way.

Here a failed task is logged and is gone; a daemon (the gossip heartbeat) is started again after a second.
"""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from libp2p.tools.anyio_service.api import Service
from libp2p.tools.anyio_service.exceptions import LifecycleError
from libp2p.tools.anyio_service.trio_manager import TrioManager

_log = logging.getLogger("loremesh.network")
_RESTART_AFTER: Final = 1.0


class ContainedManager(TrioManager):
    """Runs a service whose tasks may fail without ending it."""

    def run_task(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,  # noqa: ANN401 - as upstream has it
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        """Start a task of the service. After the service has stopped this does nothing."""
        if not _internal:  # the service's own main task failing is the node failing
            async_fn = functools.partial(_restarted if daemon else _contained, async_fn)
        try:
            super().run_task(async_fn, *args, daemon=daemon, name=name or repr(async_fn), _internal=_internal)
        except (LifecycleError, RuntimeError) as error:  # RuntimeError: the nursery is closed to new arrivals
            _log.debug("a task came too late: %s", error)


async def _contained(async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:  # noqa: ANN401 - as above
    try:
        await async_fn(*args)
    except Exception as error:  # noqa: BLE001 - the purpose of this module
        _log.debug("a task of libp2p failed: %r: %r", async_fn, error)


async def _restarted(async_fn: Callable[..., Awaitable[Any]], *args: Any) -> None:  # noqa: ANN401 - as above
    while True:
        try:
            await async_fn(*args)
        except Exception:  # noqa: BLE001 - the purpose of this module
            _log.exception("a standing task of libp2p failed and starts again: %r", async_fn)
        await trio.sleep(_RESTART_AFTER)


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[None]:
    """Run a service of upstream's for as long as the block lasts; leaving it cancels whatever still runs."""
    async with trio.open_nursery() as nursery:
        manager = ContainedManager(service)
        service._manager = manager  # noqa: SLF001 - as upstream's own background_trio_service does
        nursery.start_soon(manager.run)
        await manager.wait_started()
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
