"""The terms of a call, on the executor's side: what is offered, what is taken, what is said when it fails."""

import json
import logging
from dataclasses import dataclass
from typing import NamedTuple

from loremesh.backends.budget import DailyCap
from loremesh.backends.chat import ChatBackend, ChatRequest
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendExhausted,
    BackendRefused,
    ErrorKind,
    PromptTooLong,
    ProtocolError,
)
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.llm import LlmRequest
from loremesh.protocol.metering import Count
from loremesh.services.slots import SOONEST, Slots

logger = logging.getLogger("loremesh.serving")


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that clients can call, and what answers."""

    offer: ModelOffer
    model: str
    """Its name for the backend."""
    backend: ChatBackend
    slots: Slots
    """Of the backend, whichever of its models is called."""
    cap: DailyCap | None
    """The backend's tokens of a day; None: any number."""


class Refused(Exception):
    """A call is not taken, or has failed; `fault` where a rule was broken."""

    def __init__(self, kind: ErrorKind, message: str, fault: ProtocolError | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fault = fault


class TakenCall(NamedTuple):
    """A call that is being answered."""

    request: LlmRequest
    offered: Offered
    tokens: dict[str, int]
    """Of the texts that were counted already."""
    prompt: int
    """Tokens."""
    is_whole: bool
    """Its client does not read pieces as they come."""

    @property
    def most(self) -> int:
        """Tokens that the answer may have: what was asked for, and there is room for."""
        return min(self.request.max_tokens, self.offered.offer.context - self.prompt)


def wanted(call: TakenCall) -> ChatRequest:
    """Put a call into the backend's words."""
    request = call.request
    return ChatRequest(
        model=call.offered.model,
        messages=request.messages,
        continues=bool(request.continues),
        max_tokens=call.most,
        temperature=request.temperature[0] / 1000 if request.temperature else None,
        top_p=request.top_p[0] / 1000 if request.top_p else None,
        seed=request.seed[0] if request.seed else None,
        stop=request.stop,
        response_format=json.loads(request.response_format) if request.response_format else None,
        is_whole=call.is_whole,
    )


def told(error: BackendError, call: TakenCall) -> tuple[ErrorKind, str]:
    """Say to a client why a backend failed, without what it says itself: addresses and names are the operator's."""
    model = call.request.model
    logger.info("%s did not answer a call of %s: %s", call.offered.model, peer_id_text(call.request.client), error)
    match error:
        case BackendBusy():
            call.offered.slots.close_for(error.retry_after or SOONEST)
            return ErrorKind.BUSY, f"{model} is busy"
        case BackendExhausted():
            return ErrorKind.EXHAUSTED, f"{model} has no tokens left today"
        case PromptTooLong():
            return ErrorKind.CONTEXT_TOO_LONG, f"the messages are too long for {model}"
        case BackendRefused():
            return ErrorKind.BAD_REQUEST, f"{model} takes no such request"
        case _:
            return ErrorKind.BACKEND_FAILED, f"{model} gave no answer, or no whole one"


def remembering(count: Count, known: dict[str, int]) -> Count:
    """Count no text twice in one call."""

    def count_once(text: str) -> int:
        if text not in known:
            known[text] = count(text)
        return known[text]

    return count_once
