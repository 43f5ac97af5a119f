"""Discovery: which executors there are, of whom a client knows one address only.

Connected nodes are asked for the cards they know, all at once; the DHT where they know none, or are slow. Only fresh
cards count, whoever passed them on.

Source: docs/protocol/llm.md, "Cards".
"""

import logging
from collections.abc import Iterable
from typing import Final, Protocol

import trio

from loremesh.errors import (
    Fault,
    InvalidMessage,
    NoExecutor,
    ProtocolError,
    ServiceError,
    Unreachable,
    UnsupportedModel,
    UsageError,
)
from loremesh.logs import printable
from loremesh.network.events import ProviderRecord
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.cards import (
    CARD_PROTOCOL,
    EXECUTOR_KEY,
    MAX_CARDS,
    CapabilityCard,
    Cards,
    CardsRequest,
    check_capability_card,
    is_fresh,
    model_key,
)
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import MessageType, expect, seal
from loremesh.services.happenings import Clock
from loremesh.services.routing import short_name

logger = logging.getLogger("loremesh.discovery")

PATIENCE: Final = 10.0
"""Seconds to look for an executor before there is none."""
REFRESH: Final = 20.0
"""Seconds between two looks of a client that stays: executors make a card as often."""
SURE: Final = 3.0
"""Seconds after which nobody who came up with us can still be unheard of."""
_HEDGE: Final = 1.0
_GRACE: Final = 0.1
_ANSWER: Final = 3.0
_LOOKUP: Final = 5.0
_DIAL: Final = 5.0
_BACK_OFF: Final = (0.2, 0.5, 1.0, 2.0)
_MOST_KEPT: Final = 1024
_MOST_DIALLED: Final = 20
_MOST_TRIED: Final = 64


class Network(Protocol):
    """What discovery needs of the network."""

    def connected(self) -> tuple[PeerId, ...]:
        """Give the peers we have a connection to."""

    async def connect(self, address: str, timeout: float = 5) -> PeerId:  # noqa: ASYNC109 - the surface takes seconds
        """Dial."""

    async def call(self, peer_id: PeerId, protocol: str, frame: bytes, timeout: float) -> bytes:  # noqa: ASYNC109 - as above
        """Send one frame and receive one."""

    async def find_providers(self, key: str, timeout: float = 5) -> tuple[ProviderRecord, ...]:  # noqa: ASYNC109 - as above
        """Ask the DHT."""


class Discovery:
    """Sole owner of the cards that a client knows.

    Args:
        identity: Ours.
        network: Carries questions.
        clock: Unix milliseconds.
        bootstrap: Addresses to dial whenever nobody is connected.
        patience: Seconds to look for an executor before there is none.
    """

    def __init__(
        self,
        identity: Identity,
        network: Network,
        clock: Clock,
        *,
        bootstrap: tuple[str, ...] = (),
        patience: float = PATIENCE,
    ) -> None:
        self._identity = identity
        self._network = network
        self._clock = clock
        self._bootstrap = bootstrap
        self._patience = patience
        self._cards: dict[PeerId, CapabilityCard] = {}
        self._tried: dict[str, str] = {}
        self._began: float | None = None
        self._looks: dict[str, trio.Event] = {}
        self.looked: float | None = None
        """When all were looked for last, by trio's clock."""

    @property
    def tried(self) -> tuple[str, ...]:
        """Say whom we asked for executors, and what came of it last: a line each."""
        return tuple(f"{name}: {outcome}" for name, outcome in self._tried.items())

    def fresh(self, model: str = "") -> tuple[CapabilityCard, ...]:
        """Give the fresh cards that we know: of all, or of those who serve a model."""
        now = Millis(self._clock())
        self._cards = {peer: card for peer, card in self._cards.items() if is_fresh(card, now)}
        cards = self._cards.values()
        return tuple(card for card in cards if not model or any(offer.id == model for offer in card.models))

    async def find(self, model: str) -> tuple[CapabilityCard, ...]:
        """Give the fresh cards of those who serve a model, at least one.

        Raises:
            UnsupportedModel: There are executors, and none serves it.
            NoExecutor: There was none within the patience; with what was tried.
        """
        if found := self.fresh(model):
            return found
        now = trio.current_time()
        self._began = now if self._began is None else self._began
        until, turn = now + self._patience, 0
        while True:
            with trio.move_on_at(until):
                await self.look(model)
            if found := self.fresh(model):
                return found
            now = trio.current_time()
            if (others := self.fresh()) and now >= min(self._began + SURE, until):
                raise UnsupportedModel(model, tuple(sorted({offer.id for card in others for offer in card.models})))
            if now >= until:
                raise NoExecutor(f"no executor was found within {self._patience:g} s", self.tried)
            await trio.sleep(min(_BACK_OFF[min(turn, len(_BACK_OFF) - 1)], until - now))
            turn += 1

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await trio.sleep(REFRESH)
            await self.look()

    async def look(self, model: str = "") -> None:
        """Look once for executors of a model, or for all; who looks for the same at the same time shares it."""
        under_way = self._looks.get(model)
        if under_way is not None:
            await under_way.wait()
            return
        done = self._looks[model] = trio.Event()
        try:
            await self._look(model)
            if not model:
                self.looked = trio.current_time()
        finally:
            del self._looks[model]
            done.set()

    async def reach(self, executor: PeerId) -> None:
        """See to it that an executor is connected.

        Raises:
            Unreachable: At none of the addresses on its card.
        """
        if executor not in self._network.connected():
            card = self._cards.get(executor)
            await self._dial(executor, card.addresses if card is not None else ())

    # looking

    async def _look(self, model: str) -> None:
        if not self._network.connected():
            await self._come_back()
        asked = set(self._network.connected())
        answered, enough, done = trio.Event(), trio.Event(), trio.Event()

        async def ask_all() -> None:
            async with trio.open_nursery() as asking:
                for peer in asked:
                    asking.start_soon(self._ask, peer, model, enough)
            answered.set()

        async def work() -> None:
            async with trio.open_nursery() as both:
                both.start_soon(ask_all)
                with trio.move_on_after(_HEDGE):
                    await answered.wait()
                if not self.fresh(model):
                    await self._ask_the_dht(model, asked, enough)
            done.set()
            enough.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            if model:
                await enough.wait()
                with trio.move_on_after(_GRACE):  # others may know more
                    await done.wait()
                nursery.cancel_scope.cancel()

    async def _come_back(self) -> None:
        async def dial(address: str) -> None:
            try:
                await self._network.connect(address)
            except (ServiceError, ProtocolError, UsageError) as error:
                self._note(address, str(error))

        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(dial, address)

    async def _ask(self, peer: PeerId, model: str, enough: trio.Event) -> None:
        """Ask a connected node for the cards it knows: of a model, and if there are none, of all."""
        try:
            cards = await self._cards_of(peer, model)
            if model and not cards:
                cards = await self._cards_of(peer, "")
        except (ServiceError, ProtocolError) as error:
            self._note(short_name(peer), str(error))
            return
        self._note(short_name(peer), f"knows {len(cards)} executors")
        if self.fresh(model):
            enough.set()

    async def _cards_of(self, peer: PeerId, model: str) -> list[CapabilityCard]:
        frame = seal(self._identity, MessageType.CARDS_REQUEST, CardsRequest(model), self._clock(), peer)
        answer = expect(await self._network.call(peer, CARD_PROTOCOL, frame, _ANSWER), peer, MessageType.CARDS, Cards)
        now = Millis(self._clock())
        checked = []
        for signed in answer.cards:
            try:
                checked.append(check_capability_card(signed, now))
            except InvalidMessage as error:
                if error.fault not in {Fault.EXPIRED, Fault.FROM_THE_FUTURE}:
                    raise
        for card in checked:
            self._keep(card)
        return checked

    def _keep(self, card: CapabilityCard) -> None:
        known = self._cards.get(card.peer_id)
        if card.peer_id == self._identity.peer_id or (known is not None and known.time >= card.time):
            return
        if known is None and len(self._cards) >= _MOST_KEPT:
            return
        self._cards[card.peer_id] = card

    async def _ask_the_dht(self, model: str, asked: set[PeerId], enough: trio.Event) -> None:
        limit = trio.CapacityLimiter(_MOST_DIALLED)

        async def visit(record: ProviderRecord) -> None:
            async with limit:
                try:
                    await self._dial(record.peer_id, record.addresses)
                except ServiceError as error:
                    self._note(short_name(record.peer_id), str(error))
                else:
                    await self._ask(record.peer_id, model, enough)

        async def look_up(key: str) -> None:
            try:
                records = await self._network.find_providers(key, _LOOKUP)
            except ServiceError as error:
                self._note(f"the DHT, for {key}", str(error))
                return
            self._note(f"the DHT, for {key}", f"knows {len(records)} nodes")
            for record in records[:MAX_CARDS]:
                if record.peer_id not in asked and record.peer_id != self._identity.peer_id:
                    asked.add(record.peer_id)
                    nursery.start_soon(visit, record)

        async with trio.open_nursery() as nursery:
            for key in (model_key(model), EXECUTOR_KEY) if model else (EXECUTOR_KEY,):
                nursery.start_soon(look_up, key)

    async def _dial(self, peer: PeerId, addresses: Iterable[str]) -> None:
        failures = []
        for address in addresses:
            try:
                if await self._network.connect(address, _DIAL) == peer:
                    return
                failures.append(f"{address}: somebody else is there")
            except (ServiceError, ProtocolError, UsageError) as error:
                failures.append(str(error))
        raise Unreachable("; ".join(failures) or "it has no address")

    def _note(self, name: str, outcome: str) -> None:
        self._tried.pop(name, None)
        self._tried[name] = printable(outcome)
        while len(self._tried) > _MOST_TRIED:
            del self._tried[next(iter(self._tried))]
