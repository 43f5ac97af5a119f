"""Everything that answers prompts in one executor: opened as its settings say, closed with it."""

import logging
import unicodedata
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from loremesh.backends.base import Backend
from loremesh.backends.budget import DailyCap
from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.chat import ChatBackend
from loremesh.backends.writer import ChatWriter
from loremesh.config import models_directory
from loremesh.errors import BackendError, UsageError
from loremesh.protocol.cards import ModelOffer
from loremesh.roles.networking import wall_clock
from loremesh.services.slots import Slots
from loremesh.settings_tables import BackendSettings
from loremesh.storage.store import Store as Disk
from loremesh.storage.weights import find_weights

logger = logging.getLogger("loremesh.backends")

MAX_MODELS: Final = 64  # as many as a card can name
_OPENAI: Final = "https://api.openai.com/v1"
_CLOSE_SECONDS: Final = 1.0
_LIST_EVERY: Final = 60.0
_FIRST_LIST: Final = 5.0
_LONGEST_NAME: Final = 128


@dataclass(frozen=True, slots=True)
class OpenBackend:
    """A backend that is open, and its limits."""

    settings: BackendSettings
    chat: ChatBackend
    slots: Slots
    """Calls at once, of mining and of clients together; and what one client may do."""
    cap: DailyCap | None
    """The day's tokens, of mining and of clients together; None: any number."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that clients can call."""

    offer: ModelOffer
    """Its name for them, its context and its price."""
    model: str
    """Its name for the backend."""
    backend: OpenBackend


@dataclass(slots=True)
class Backends:
    """What an executor has open."""

    opened: tuple[OpenBackend, ...]
    listed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By a backend's name, what its server listed the last time, where that is wanted."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What clients can call, by the name they call it: at most 64; of two with one name, the first backend's."""
        served = dict[str, ServedModel]()
        for backend in self.opened:
            settings = backend.settings
            listed = [name for name in self.listed.get(settings.name, ()) if _can_be_offered(name)]
            for name, model in [*settings.models.items(), *zip(listed, listed, strict=True)]:
                if name not in served and len(served) < MAX_MODELS:
                    offer = ModelOffer(name, settings.context, settings.price)
                    served[name] = ServedModel(offer, model, backend)
        return served

    @property
    def mines_with(self) -> OpenBackend:
        """The backend that writes paragraphs: the first that names a model. Configuration sees to it that there is one.

        Raises:
            LookupError: None names any.
        """
        for backend in self.opened:
            if backend.settings.models:
                return backend
        raise LookupError("no backend names a model")

    def writer(self) -> Backend:
        """Give what writes paragraphs, with the first model of `mines_with`; within the cap, beside its slots."""
        backend = self.mines_with
        if isinstance(backend.chat, BuiltinBackend):
            return backend.chat
        model = next(iter(backend.settings.models.values()))
        return ChatWriter(backend.chat, model, context=backend.settings.context, cap=backend.cap)


@asynccontextmanager
async def open_backends(settings: Sequence[BackendSettings], disk: Disk) -> AsyncIterator[Backends]:
    """Open every backend, and keep the lists of those that list their models up to date.

    Args:
        settings: One of each; those that are others' are left out.
        disk: Remembers how many tokens a day took.

    Raises:
        UsageError: The extra, the weights, the URL or the key of a backend is missing or wrong.
        MachineError: This machine cannot run it.
    """
    opened: list[OpenBackend] = []
    try:
        for one in (one for one in settings if one.is_own):
            chat = await _open(one)
            opened.append(OpenBackend(one, chat, _slots_of(one), cap_of(one, disk)))
        backends = Backends(tuple(opened))
        async with trio.open_nursery() as nursery:
            for backend in opened:
                if backend.settings.list_models:
                    first = trio.Event()
                    nursery.start_soon(_keep_listed, backend, backends, first)
                    with trio.move_on_after(_FIRST_LIST):
                        await first.wait()
            yield backends
            nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            for backend in opened:
                await backend.chat.aclose()


def cap_of(settings: BackendSettings, disk: Disk) -> DailyCap | None:
    """Give the cap on a backend's tokens, if it has one; the disk remembers how many a day took."""
    if settings.max_tokens_per_day is None:
        return None
    return DailyCap(settings.max_tokens_per_day, _DiskTokenCounter(disk, settings.name), wall_clock)


def _slots_of(settings: BackendSettings) -> Slots:
    return Slots(
        settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        per_client=settings.concurrency_per_client,
    )


async def _open(settings: BackendSettings) -> ChatBackend:
    if settings.kind == "builtin":
        return BuiltinBackend(settings.latency, seed=settings.seed)
    if settings.kind == "local":
        from loremesh.backends.local import LocalBackend

        weights = find_weights(next(iter(settings.models.values())), settings.weights, models_directory())
        return await LocalBackend.open(
            weights, threads=settings.threads, context=settings.context, slots=settings.concurrency
        )
    if settings.base_url is None and settings.api_key is None:
        hint = "set OPENAI_API_KEY, or name another server with --base-url"
        raise UsageError(f"the backend {settings.name}: OpenAI's own server wants a key: {hint}")
    # The SDK costs 0.4 s and 48 MB: only for those who use it.
    from loremesh.backends.openai import OpenAIBackend

    return OpenAIBackend(
        base_url=settings.base_url or _OPENAI,
        api_key=settings.api_key.get_secret_value() if settings.api_key else "",
        continue_final_message=settings.continue_final_message,
    )


async def _keep_listed(backend: OpenBackend, backends: Backends, first: trio.Event) -> None:
    """Ask a server for its models now and every minute; while it does not answer, what it said before holds."""
    from loremesh.backends.openai import OpenAIBackend

    if not isinstance(backend.chat, OpenAIBackend):
        raise TypeError("configuration lets only such backends list their models")
    name, failing = backend.settings.name, False
    while True:
        try:
            backends.listed[name] = await backend.chat.served_models()
            failing = False
        except BackendError as error:
            if not failing:
                logger.warning("backend %s does not list its models: %s", name, error)
            failing = True
        first.set()
        await trio.sleep(_LIST_EVERY)


def _can_be_offered(name: str) -> bool:
    """Tell whether a card can carry a name that a server gives a model."""
    fits = 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME
    return fits and name.isprintable() and unicodedata.is_normalized("NFC", name)


@dataclass(frozen=True, slots=True)
class _DiskTokenCounter:
    """Keeps the day's tokens among the node's notes, so that a restart does not open the purse again."""

    disk: Disk
    backend: str
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def used(self, day: int) -> int:
        """Tell the sum of `day`."""
        return int(await self.disk.note(f"tokens/{self.backend}/{day}") or b"0")

    async def add(self, day: int, tokens: int) -> None:
        """Add to the sum of `day`."""
        async with self.lock:
            await self.disk.set_note(f"tokens/{self.backend}/{day}", b"%d" % (await self.used(day) + tokens))
