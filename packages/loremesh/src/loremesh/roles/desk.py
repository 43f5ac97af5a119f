"""The operator's desk of a node: counts what happens, and with `--http` answers health checks and Prometheus.

Source: docs/metrics.md.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from loremesh.config import Settings
from loremesh.errors import UsageError
from loremesh.primitives import Millis
from loremesh.roles.assembly import Services
from loremesh.roles.figures import figures_of
from loremesh.roles.networking import wall_clock
from loremesh.services.happenings import Clock, Happening, Ready, Tell
from loremesh.services.tally import Tally
from loremesh.web.report import Figure, Kind, Report

_MAY_LAG: Final = 2
"""Blocks that a node in sync may be behind: they are on their way."""


@dataclass(slots=True)
class Desk:
    """What one node's operator may ask of it, from its first moment on.

    Attributes:
        address: HOST:PORT at which it answers; None without `--http`.
        tally: What has happened since the start.
        clock: Unix milliseconds.
    """

    address: str | None = None
    clock: Clock = wall_clock
    tally: Tally = field(default_factory=Tally)
    _services: Services | None = None
    _restored: int = 0

    def hearing(self, tell: Tell) -> Tell:
        """Give what counts each happening and passes it on to `tell`."""

        def hear(happening: Happening) -> None:
            self.tally.take(happening)
            tell(replace(happening, http=self.address) if isinstance(happening, Ready) else happening)

        return hear

    def open(self, services: Services) -> None:
        """Take in the node, once its services are put together."""
        self._services = services
        self._restored = _blocks_kept(services)

    def report(self) -> Report:
        """Look at the node."""
        reasons = self._reasons()
        ready = Figure("loremesh_ready", Kind.GAUGE, "1 when /readyz answers 200.", (), {(): float(not reasons)})
        if self._services is None:
            return Report(reasons, (ready,))
        accepted = _blocks_kept(self._services) - self._restored
        return Report(reasons, (ready, *figures_of(self._services, self.tally, accepted, Millis(self.clock()))))

    def _reasons(self) -> tuple[str, ...]:
        services = self._services
        if services is None:
            return ("it is starting: its story is not loaded yet",)
        reasons = []
        if not services.ready.is_set():
            reasons.append("it is starting: nobody has been asked yet")
        if services.bootstrap and not services.network.connected():
            reasons.append("no peer is connected")
        behind = _blocks_behind(services)
        if behind > _MAY_LAG:
            reasons.append(f"it is {behind} blocks behind its peers")
        return tuple(reasons)


@asynccontextmanager
async def desk_of(settings: Settings) -> AsyncIterator[Desk]:
    """Run a node's desk around it; it serves HTTP if the settings ask for that.

    Raises:
        UsageError: What an HTTP server needs is not installed, or there is no such host.
        MachineError: The port is taken.
    """
    desk = Desk()
    if settings.http is None:
        yield desk
        return
    try:
        from loremesh.web.operating import operating_app
        from loremesh.web.server import bound_address, listen, serve
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise UsageError(f"--http needs {missing}: pip install 'loremesh[http]'") from error
    listeners = await listen(settings.http)
    desk.address = bound_address(listeners[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, operating_app(desk.report), listeners)
        yield desk
        nursery.cancel_scope.cancel()


def reported_height(heights: Sequence[int]) -> int:
    """Give the height that at least half of the peers say they have reached, 0 without peers.

    Not the greatest: a card is only a peer's word, and one liar could keep a node from ever being ready.
    """
    return sorted(heights)[len(heights) // 2] if heights else 0


def _blocks_behind(services: Services) -> int:
    if services.story is None:
        return 0
    store = services.story.chain.store
    return reported_height(services.peers.heights(store.story)) - store.tip.link.height


def _blocks_kept(services: Services) -> int:
    return len(services.story.chain.store.entries) if services.story else 0
