"""The executor role: keeps and serves the chain like a validator, and races to write the next block."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from loremesh.backends.base import Backend
from loremesh.backends.budget import DailyCap
from loremesh.backends.builtin import BuiltinBackend
from loremesh.config import DEFAULT_MODEL, Settings
from loremesh.roles.assembly import Story
from loremesh.roles.mining import mine
from loremesh.roles.networking import wall_clock
from loremesh.roles.node import EXECUTOR, Node, run_node
from loremesh.roles.process import Start, run_until_stopped
from loremesh.services.happenings import Tell
from loremesh.storage.store import Store as Disk

BUILTIN_MODEL: Final = "builtin"
_OPENAI: Final = "https://api.openai.com/v1"
_CLOSE_TIMEOUT: Final = 1.0


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
        models = _models(settings)
        await run_node(settings, EXECUTOR, tell, models=models, beside=beside, task_status=task_status)

    return start


def _models(settings: Settings) -> tuple[str, ...]:
    if settings.backend == "builtin":
        return (BUILTIN_MODEL,)
    names = settings.models or (DEFAULT_MODEL,)
    return tuple(settings.model_aliases.get(name, name) for name in names)


async def _mine(settings: Settings, node: Node, story: Story) -> None:
    async with _backend_of(settings, node) as backend:
        await mine(node.services, story, backend, settings.work_share)


@asynccontextmanager
async def _backend_of(settings: Settings, node: Node) -> AsyncIterator[Backend]:
    """Open what answers prompts, as the settings say."""
    backend = _open_backend(settings, node)
    try:
        yield backend
    finally:
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await backend.aclose()


def _open_backend(settings: Settings, node: Node) -> Backend:
    if settings.backend == "builtin":
        return BuiltinBackend(latency=settings.latency)
    # The SDK costs 0.4 s and 48 MB: only for those who use it.
    from loremesh.backends.openai import OpenAIBackend

    cap = None
    if settings.max_tokens_per_day is not None:
        cap = DailyCap(settings.max_tokens_per_day, _DiskTokenCounter(node.disk), wall_clock)
    return OpenAIBackend(
        model=_models(settings)[0],
        aliases=settings.model_aliases,
        base_url=settings.base_url or _OPENAI,
        api_key=settings.api_key.get_secret_value() if settings.api_key else "",
        cap=cap,
    )


@dataclass(frozen=True, slots=True)
class _DiskTokenCounter:
    """Keeps the day's tokens among the node's notes, so that a restart does not open the purse again."""

    disk: Disk
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def used(self, day: int) -> int:
        """Tell the sum of `day`."""
        return int(await self.disk.note(f"tokens/{day}") or b"0")

    async def add(self, day: int, tokens: int) -> None:
        """Add to the sum of `day`."""
        async with self.lock:
            await self.disk.set_note(f"tokens/{day}", b"%d" % (await self.used(day) + tokens))
