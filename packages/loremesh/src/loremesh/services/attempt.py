"""One call on one lane, as the client: the request goes out, and what comes back is checked as it comes.

Source: docs/protocol/llm.md, "A call".
"""

from typing import Final

import trio

from loremesh.backends.chat import Deliver
from loremesh.errors import CallFailed, ExecutorBusy, Fault, InvalidMessage, Unreachable
from loremesh.primitives import KIB
from loremesh.protocol.codec import decode
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import (
    Accepted,
    Busy,
    Delta,
    LlmError,
    SignedRequest,
    Transcript,
    answer_limit,
    kind_of,
)
from loremesh.protocol.receipts import LlmFinal
from loremesh.protocol.wire import MessageType, seal, unseal
from loremesh.services.happenings import Clock
from loremesh.services.lanes import Lane

ACCEPT: Final = 10.0
"""Seconds for an executor to say whether it takes a call."""
SILENCE: Final = 30.0
"""Seconds without a piece of the answer, or a sign that one is waited for, after which it is given up."""
_SEND: Final = 10.0
_MOST_BYTES: Final = 67 * KIB


class Attempt:
    """One request to one executor.

    Args:
        identity: Ours, the client's.
        lane: Ours alone for as long as this runs.
        signed: The request.
        clock: For the envelope's log timestamp.
        is_whole: Nobody reads the pieces as they come.
    """

    def __init__(
        self, identity: Identity, lane: Lane, signed: SignedRequest, clock: Clock, *, is_whole: bool = False
    ) -> None:
        self.lane = lane
        self.signed = signed
        self.request = signed.request
        self.transcript = Transcript(self.request.id, 0)
        """What came."""
        self.first: float | None = None
        """Seconds to the first piece."""
        self.last: float = 0
        """Seconds to the end, so far."""
        self.was_heard = False
        """The executor has answered something."""
        self._identity = identity
        self._clock = clock
        self._is_whole = is_whole

    @property
    def has_text(self) -> bool:
        """Something of the answer was delivered."""
        return self.transcript.signature is not None

    @property
    def text(self) -> str:
        """What was delivered."""
        return self.transcript.text

    @property
    def rate(self) -> float | None:
        """Bytes of UTF-8 a second after the first piece; None where there was but one."""
        if self.first is None or self.transcript.progress.sequence <= 1:
            return None
        return self.transcript.progress.size / max(self.last - self.first, 1e-3)

    async def run(self, deliver: Deliver) -> LlmFinal:
        """Make the call; each piece is delivered as soon as it was checked.

        Raises:
            ExecutorBusy: Nothing was done.
            CallFailed: The executor says why, before or in the middle of the answer.
            ProtocolError: It broke a rule.
            Unreachable, DeadlinePassed: It is gone, or silent.
        """
        started = trio.current_time()
        self.lane.calls += 1
        asks = MessageType.LLM_REQUEST_WHOLE if self._is_whole else MessageType.LLM_REQUEST
        frame = seal(self._identity, asks, self.signed, self._clock(), self.lane.executor)
        await self.lane.stream.send(frame, _SEND)
        self.transcript = self._accepted(*await self._next(ACCEPT))
        while True:
            kind, payload = await self._next(SILENCE)
            self.last = trio.current_time() - started
            if kind is MessageType.LLM_DELTA:
                text = self.transcript.accept(decode(Delta, payload), self.lane.executor)
                if self.first is None:
                    self.first = self.last
                await deliver(text)
            elif kind is MessageType.LLM_FINAL:
                return decode(LlmFinal, payload)
            elif kind is not MessageType.LLM_WAITING or not self._is_whole:
                raise _failure(kind, payload)

    def _accepted(self, kind: MessageType, payload: bytes) -> Transcript:
        if kind is MessageType.LLM_BUSY:
            busy = decode(Busy, payload)
            raise ExecutorBusy(busy.reason, busy.retry_after / 1000)
        if kind is not MessageType.LLM_ACCEPTED:
            raise _failure(kind, payload)
        accepted = decode(Accepted, payload)
        if accepted.request != self.request.id:
            raise InvalidMessage(Fault.NOT_AS_ASKED, "another request is accepted")
        if accepted.price > self.request.max_price:
            raise InvalidMessage(Fault.NOT_AS_ASKED, f"the price is {accepted.price}, above {self.request.max_price}")
        return Transcript(self.request.id, accepted.price, answer_limit(self.request.max_tokens))

    async def _next(self, seconds: float) -> tuple[MessageType, bytes]:
        frame = await self.lane.stream.receive(seconds, _MOST_BYTES)
        if frame is None:
            raise Unreachable("the executor has ended the stream")
        self.was_heard = True
        return unseal(frame, self.lane.executor, self._identity.peer_id)


def _failure(kind: MessageType, payload: bytes) -> CallFailed | InvalidMessage:
    if kind is MessageType.LLM_ERROR:
        error = decode(LlmError, payload)
        return CallFailed(kind_of(error), error.message)
    return InvalidMessage(Fault.UNEXPECTED, f"{kind} in the middle of a call")
