"""The client's end of a stream of calls, by hand: says whatever a test wants it to say, in order or not."""

from dataclasses import dataclass, field
from typing import Final, TypeVar

from loremesh.network.frames import Stream
from loremesh.primitives import Hash, Millis, PeerId
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import (
    Accepted,
    Busy,
    ChatMessage,
    Delta,
    LlmError,
    LlmRequest,
    Transcript,
    sign_request,
)
from loremesh.protocol.receipts import LlmFinal, Receipt, SignedReceipt
from loremesh.protocol.vouchers import (
    HandIn,
    SignedVoucher,
    Voucher,
    VoucherAccepted,
    VoucherRefused,
    next_voucher,
    sign_voucher,
)
from loremesh.protocol.wire import MessageType, Nothing, seal, unseal
from loremesh.services.happenings import Clock
from loremesh.testing.calls import SESSION

T = TypeVar("T")

_PATIENCE: Final = 700.0
"""Seconds: longer than any call may take."""
_PAYLOADS: Final[dict[MessageType, type]] = {
    MessageType.LLM_ACCEPTED: Accepted,
    MessageType.LLM_BUSY: Busy,
    MessageType.LLM_WAITING: Nothing,
    MessageType.LLM_ERROR: LlmError,
    MessageType.LLM_DELTA: Delta,
    MessageType.LLM_FINAL: LlmFinal,
    MessageType.VOUCHER_ACCEPTED: VoucherAccepted,
    MessageType.VOUCHER_REFUSED: VoucherRefused,
}

Reply = Accepted | Busy | Nothing | LlmError | Delta | LlmFinal | VoucherAccepted | VoucherRefused


@dataclass(slots=True)
class Caller:
    """One stream of a client."""

    identity: Identity
    executor: PeerId
    stream: Stream
    clock: Clock
    session: Hash = SESSION
    is_whole: bool = False
    """Asks for answers that nobody reads before they are whole."""
    voucher: Voucher | None = None
    made: int = 0
    """Requests so far; the next one's id."""
    replies: list[Reply] = field(default_factory=list)

    def request(self, text: str = "Who keeps the lamp?", /, **changes: object) -> LlmRequest:
        """Make the next request; `changes` are fields that differ from the usual."""
        self.made += 1
        now = Millis(self.clock())
        usual: dict[str, object] = {
            "id": Hash(self.identity.peer_id[-8:] + self.session[:16] + self.made.to_bytes(8, "big")),
            "client": self.identity.peer_id,
            "executor": self.executor,
            "session": self.session,
            "model": "small-model",
            "messages": (ChatMessage("user", text),),
            "continues": 0,
            "max_tokens": 200,
            "temperature": (),
            "top_p": (),
            "seed": (),
            "stop": (),
            "response_format": "",
            "max_price": 1000,
            "fold_words": 0,
            "time": now,
            "expires": Millis(now + 60_000),
        }
        return LlmRequest(**{**usual, **changes})  # type: ignore[arg-type]  # a test names fields and gives their values

    async def send(self, kind: MessageType, payload: object) -> None:
        """Say something."""
        await self.stream.send(seal(self.identity, kind, payload, self.clock(), self.executor))

    async def ask(self, request: LlmRequest | None = None) -> LlmRequest:
        """Send a request, signed; None: the usual one."""
        request = request or self.request()
        kind = MessageType.LLM_REQUEST_WHOLE if self.is_whole else MessageType.LLM_REQUEST
        await self.send(kind, sign_request(self.identity, request))
        return request

    async def reply(self) -> Reply | None:
        """Take the next frame; None when the executor has finished.

        Raises:
            ProtocolError: It is no frame.
            ServiceError: The stream broke.
        """
        frame = await self.stream.receive(_PATIENCE)
        if frame is None:
            return None
        kind, payload = unseal(frame, self.executor, self.identity.peer_id)
        reply: Reply = decode(_PAYLOADS[kind], payload)
        self.replies.append(reply)
        return reply

    async def expect(self, kind: type[T]) -> T:
        """Take the next frame, which must be of a kind.

        Raises:
            AssertionError: It is of another.
        """
        reply = await self.reply()
        if not isinstance(reply, kind):
            raise AssertionError(f"{reply} instead of a {kind.__name__}")  # noqa: TRY004 - a test failed
        return reply

    async def answer(self, request: LlmRequest | None = None) -> tuple[Transcript, LlmFinal | LlmError]:
        """Ask, and take the whole answer, every piece checked.

        Raises:
            AssertionError: The call was not accepted, or breaks off.
        """
        request = await self.ask(request)
        accepted = await self.expect(Accepted)
        transcript = Transcript(request.id, accepted.price)
        while isinstance(reply := await self.reply(), Delta | Nothing):
            if isinstance(reply, Delta):
                transcript.accept(reply, self.executor)
        if not isinstance(reply, LlmFinal | LlmError):
            raise AssertionError(f"{reply} at the end of an answer")  # noqa: TRY004 - a test failed
        return transcript, reply

    def signed(self, receipt: Receipt) -> SignedVoucher:
        """Sign the voucher that follows with a receipt."""
        self.voucher = next_voucher(self.voucher, receipt)
        return sign_voucher(self.identity, self.voucher)

    async def pay(self, final: LlmFinal) -> Reply | None:
        """Countersign a receipt; give what the executor says to that."""
        await self.send(MessageType.VOUCHER, self.signed(final.receipt))
        return await self.reply()

    async def hand_in(self, final: LlmFinal, voucher: SignedVoucher) -> Reply | None:
        """Hand in a voucher of long ago; give what the executor says to that."""
        evidence = SignedReceipt(final.receipt, final.signature)
        await self.send(MessageType.HAND_IN, HandIn.of(evidence, voucher))
        return await self.reply()
