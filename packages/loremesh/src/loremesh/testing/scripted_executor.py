"""Executors that answer as a script says: honest ones, and every way there is to be none."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import trio

from loremesh.errors import ErrorKind, Fault, InvalidMessage, Unreachable
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, Millis
from loremesh.protocol.cards import (
    CARD_LIFE,
    CARD_PROTOCOL,
    CapabilityCard,
    Cards,
    ModelOffer,
    SignedCard,
    sign_capability_card,
)
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import (
    LLM_PROTOCOL,
    Accepted,
    Busy,
    LlmError,
    LlmRequest,
    SignedRequest,
    SignedServing,
    Transcript,
    check_request,
    sign_serving,
)
from loremesh.protocol.metering import Count
from loremesh.protocol.receipts import (
    STOP,
    BackendUsage,
    LlmFinal,
    Receipt,
    make_receipt,
    sign_receipt,
)
from loremesh.protocol.vouchers import (
    HandIn,
    SignedVoucher,
    Voucher,
    VoucherAccepted,
    VoucherRefused,
    check_voucher,
)
from loremesh.protocol.wire import MessageType, Nothing, seal, unseal
from loremesh.services.happenings import Clock
from loremesh.testing.calls import PIECES, PRICE, count_words
from loremesh.testing.memory_node import MemoryNode

MODEL: Final = "small-model"
_HOUR: Final = 3600.0


class Line:
    """One stream of an executor, and the request on it that is being answered."""

    def __init__(self, executor: "ScriptedExecutor", stream: Stream) -> None:
        self.executor = executor
        self.stream = stream
        self.addressee = stream.peer_id
        self.request: LlmRequest
        self.voucher: Voucher | None = None
        self.owed: Receipt | None = None

    async def send(self, kind: MessageType, payload: object) -> None:
        """Say something."""
        me = self.executor
        await self.stream.send(seal(me.identity, kind, payload, me.clock(), self.addressee))

    async def accept(self, **changes: Any) -> Transcript:  # noqa: ANN401 - any field
        """Take the call; `changes` are fields that differ from the truth."""
        accepted = replace(Accepted(self.request.id, self.executor.offer.price), **changes)
        await self.send(MessageType.LLM_ACCEPTED, accepted)
        return Transcript(self.request.id, accepted.price)

    async def deliver(self, transcript: Transcript, pieces: Iterable[str]) -> None:
        """Send pieces, each signed."""
        for piece in pieces:
            await trio.sleep(self.executor.pause)
            await self.send(MessageType.LLM_DELTA, transcript.add(self.executor.identity, piece))

    async def end(self, transcript: Transcript, *, serving: SignedServing | None = None, **changes: Any) -> None:  # noqa: ANN401 - any field
        """Send the receipt; `serving` and `changes`, which are fields of it, differ from the truth."""
        me = self.executor
        receipt = make_receipt(
            self.request,
            transcript.text,
            me.count,
            price=transcript.progress.price,
            finish=STOP,
            time=Millis(me.clock()),
        )
        signed = sign_receipt(me.identity, replace(receipt, **changes))
        serving = serving or sign_serving(me.identity, self.request, transcript.text)
        self.owed = signed.receipt
        await self.send(
            MessageType.LLM_FINAL,
            LlmFinal(signed.receipt, signed.signature, (BackendUsage(7, 9),), (serving,) if serving else ()),
        )


Script = Callable[[Line], Awaitable[None]]
"""Answers one request; what it raises breaks the stream."""


@dataclass(slots=True)
class ScriptedExecutor:
    """An executor on a network in memory. It plays one of `scripts` for each request, and the last again and again."""

    identity: Identity
    clock: Clock
    scripts: list[Script] = field(default_factory=lambda: [honest])
    pieces: tuple[str, ...] = PIECES
    """The whole answer to every prompt; a continuation is the rest of it."""
    offer: ModelOffer = field(default_factory=lambda: ModelOffer(MODEL, 8192, PRICE))
    slots: int = 4
    pause: float = 0.0
    """Seconds before each piece."""
    count: Count = count_words
    knows: list[SignedCard] = field(default_factory=list)
    """Cards of others that it passes on."""
    requests: list[LlmRequest] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    """Of each request, whether its client reads no pieces."""
    vouchers: list[SignedVoucher] = field(default_factory=list)
    """Accepted."""
    handed_in: list[HandIn] = field(default_factory=list)
    refusals: list[VoucherRefused] = field(default_factory=list)
    broken: int = 0
    """Streams that ended in the middle of something."""
    changed: trio.Event = field(default_factory=trio.Event)
    answers_vouchers: Callable[[SignedVoucher], VoucherAccepted | VoucherRefused | None] = field(
        default_factory=lambda: accept
    )
    """What it says to a voucher; None: nothing."""

    def attach(self, node: MemoryNode) -> MemoryNode:
        """Answer what comes to a node."""
        node.serve(CARD_PROTOCOL, partial(self._serve_cards, node))
        node.serve(LLM_PROTOCOL, self._serve_calls)
        return node

    def card(self, addresses: tuple[str, ...], **changes: Any) -> SignedCard:  # noqa: ANN401 - any field
        """Give the card as of now; `changes` are fields that differ from the usual."""
        now = Millis(self.clock())
        usual = CapabilityCard(
            self.identity.peer_id, addresses, (self.offer,), 0, self.slots, now, Millis(now + CARD_LIFE)
        )
        return sign_capability_card(self.identity, replace(usual, **changes))

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    def rest(self, request: LlmRequest) -> list[str]:
        """Give the pieces that are to come of the answer, of which a continuation has some already."""
        delivered = request.messages[-1].content if request.continues else ""
        if not self.text.startswith(delivered):
            return [" (what was written before is not mine)"]
        skipped, pieces = len(delivered), []
        for piece in self.pieces:
            if skipped < len(piece):
                pieces.append(piece[skipped:])
            skipped = max(skipped - len(piece), 0)
        return pieces

    async def wait(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so that changes with what comes here.

        Raises:
            trio.TooSlowError: It does not happen.
        """
        with trio.fail_after(_HOUR):
            while not is_so():
                await self.changed.wait()

    def _on_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _serve_cards(self, node: MemoryNode, stream: Stream) -> None:
        frame = await stream.receive(_HOUR)
        assert frame is not None  # noqa: S101 - a test's client asks
        cards = (self.card(node.addresses()), *self.knows)
        await stream.send(seal(self.identity, MessageType.CARDS, Cards(cards), self.clock(), stream.peer_id))
        await stream.finish()

    async def _serve_calls(self, stream: Stream) -> None:
        line = Line(self, stream)
        try:
            while (frame := await stream.receive(_HOUR)) is not None:
                await self._take(line, *unseal(frame, stream.peer_id, self.identity.peer_id))
                self._on_change()
        except BaseException:
            self.broken += 1
            raise
        finally:
            self._on_change()

    async def _take(self, line: Line, kind: MessageType, payload: bytes) -> None:
        if kind in {MessageType.LLM_REQUEST, MessageType.LLM_REQUEST_WHOLE}:
            self.whole.append(kind is MessageType.LLM_REQUEST_WHOLE)
            signed = decode(SignedRequest, payload)
            line.request = check_request(signed, self.identity.peer_id, line.stream.peer_id, Millis(self.clock()))
            self.requests.append(line.request)
            self._on_change()
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
            await script(line)
        elif kind is MessageType.VOUCHER:
            assert line.owed is not None  # noqa: S101 - a client that pays for nothing fails its test
            voucher = decode(SignedVoucher, payload)
            line.voucher = check_voucher(voucher, line.voucher, line.owed)
            await self._accept(line, voucher)
        elif kind is MessageType.HAND_IN:
            handed = decode(HandIn, payload)
            self.handed_in.append(handed)
            await self._accept(line, handed.voucher)
        elif kind is MessageType.VOUCHER_REFUSED:
            self.refusals.append(decode(VoucherRefused, payload))
        else:
            raise InvalidMessage(Fault.UNEXPECTED, kind)

    async def _accept(self, line: Line, voucher: SignedVoucher) -> None:
        answer = self.answers_vouchers(voucher)
        if isinstance(answer, VoucherAccepted):
            self.vouchers.append(voucher)
            await line.send(MessageType.VOUCHER_ACCEPTED, answer)
        elif answer is not None:
            await line.send(MessageType.VOUCHER_REFUSED, answer)


# ---- Scripts --------------------------------------------------------------------------------------------------------


def accept(voucher: SignedVoucher) -> VoucherAccepted:
    """Say that a voucher was taken."""
    return VoucherAccepted(voucher.voucher.head)


async def honest(line: Line) -> None:
    """Answer."""
    transcript = await line.accept()
    await line.deliver(transcript, line.executor.rest(line.request))
    await line.end(transcript)


def busy(seconds: float = 1.0) -> Script:
    """Have no room."""

    async def script(line: Line) -> None:
        await line.send(MessageType.LLM_BUSY, Busy(Millis(int(seconds * 1000)), "every slot is taken"))

    return script


def refuses(kind: ErrorKind | str, pieces: int = 0) -> Script:
    """Fail, and say why, after so many pieces."""

    async def script(line: Line) -> None:
        if pieces:
            await line.deliver(await line.accept(), line.executor.rest(line.request)[:pieces])
        await line.send(MessageType.LLM_ERROR, LlmError(kind, "as the script says"))

    return script


def lost_after(pieces: int) -> Script:
    """Break the stream after so many pieces."""

    async def script(line: Line) -> None:
        transcript = await line.accept()
        await line.deliver(transcript, line.executor.rest(line.request)[:pieces])
        await trio.sleep(1)  # a reset takes back what was not read yet
        raise Unreachable("as the script says")

    return script


def silent_after(pieces: int | None) -> Script:
    """Say nothing more after so many pieces; None: not even that the call is accepted."""

    async def script(line: Line) -> None:
        if pieces is not None:
            await line.deliver(await line.accept(), line.executor.rest(line.request)[:pieces])
        await trio.sleep(_HOUR)

    return script


def shows_life(seconds: float, every: float = 5.0) -> Script:
    """Answer well after so many seconds, and say meanwhile that it is at it."""

    async def script(line: Line) -> None:
        transcript = await line.accept()
        for _ in range(int(seconds / every)):
            await trio.sleep(every)
            await line.send(MessageType.LLM_WAITING, Nothing())
        await line.deliver(transcript, line.executor.rest(line.request))
        await line.end(transcript)

    return script


def bills(**changes: Any) -> Script:  # noqa: ANN401 - any field
    """Answer well, and sign a receipt with fields that are wrong."""

    async def script(line: Line) -> None:
        transcript = await line.accept()
        await line.deliver(transcript, line.executor.rest(line.request))
        await line.end(transcript, **changes)

    return script


def accepts(**changes: Any) -> Script:  # noqa: ANN401 - any field
    """Answer well what was accepted wrongly."""

    async def script(line: Line) -> None:
        transcript = await line.accept(**changes)
        await line.deliver(transcript, line.executor.rest(line.request))
        await line.end(transcript)

    return script


async def signs_another(line: Line) -> None:
    """Sign the progress of a request that is not this one."""
    await line.accept()
    other = Transcript(Hash(b"\x0f" * 32), line.executor.offer.price)
    await line.deliver(other, line.executor.rest(line.request))
    await line.end(other)


async def lies_of_the_paragraph(line: Line) -> None:
    """Answer well, and sign that another text was served."""
    transcript = await line.accept()
    await line.deliver(transcript, line.executor.rest(line.request))
    other = Transcript(line.request.id, line.executor.offer.price)
    other.add(line.executor.identity, "Another text.")
    serving = sign_serving(line.executor.identity, line.request, other.text)
    await line.end(transcript, serving=serving)


async def talks_on(line: Line) -> None:
    """Send a piece after the end."""
    transcript = await line.accept()
    await line.deliver(transcript, line.executor.rest(line.request))
    await line.end(transcript)
    await line.deliver(transcript, [" And then?"])


async def repeats(line: Line) -> None:
    """Send the first piece twice."""
    transcript = await line.accept()
    delta = transcript.add(line.executor.identity, line.executor.pieces[0])
    await line.send(MessageType.LLM_DELTA, delta)
    await line.send(MessageType.LLM_DELTA, delta)


async def speaks_to_itself(line: Line) -> None:
    """Answer well, in envelopes that are for somebody else."""
    line.addressee = line.executor.identity.peer_id
    await honest(line)


async def answers_and_speaks_to_itself(line: Line) -> None:
    """Answer well; whatever comes after the receipt is for somebody else."""
    await honest(line)
    line.addressee = line.executor.identity.peer_id


async def babbles(line: Line) -> None:
    """Send what is no message."""
    await line.stream.send(b"\xc1 what is no envelope")


async def leaves(line: Line) -> None:
    """Finish the stream without a word."""
    await line.stream.finish()
    raise Unreachable("as the script says")
