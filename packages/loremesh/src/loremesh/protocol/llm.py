"""Calls to language models between nodes: the signed request, what answers it, and what is signed while it streams.

Source: docs/protocol/llm.md.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Final

from loremesh.errors import ErrorKind, Fault, InvalidMessage
from loremesh.primitives import KIB, MIB, Hash, Millis, PeerId, Signature
from loremesh.protocol.codec import (
    U64,
    HashField,
    Int,
    Many,
    MillisField,
    PeerIdField,
    SignatureField,
    Text,
    Verbatim,
    encode,
    schema,
)
from loremesh.protocol.content.paragraph import fold_paragraph
from loremesh.protocol.identity import NO_STORY, Identity, check_peer_id, digest, verify

LLM_PROTOCOL: Final = "/loremesh/llm/1"
MAX_CONTENT_BYTES: Final = 512 * KIB
"""Of UTF-8, all messages of a request together."""
MAX_ANSWER_BYTES: Final = 512 * KIB
"""Of UTF-8, one answer."""
MAX_DELTA_BYTES: Final = 64 * KIB
LONGEST_TOKEN: Final = 128
"""Bytes of UTF-8: of a token that vocabularies have for blanks."""
MAX_TOKENS: Final = 2**20
MAX_PRICE: Final = 10**12
"""Gwei per 1,000 tokens: so that no amount leaves 64 bits."""
LONGEST_CALL: Final = Millis(10 * 60 * 1000)
CLOCK_SKEW: Final = Millis(60 * 1000)
ROLES: Final = ("system", "user", "assistant")

PriceField = Annotated[int, Int(0, MAX_PRICE)]
ModelField = Annotated[str, Text(128)]


@schema(version=1, limit=MIB)
@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat."""

    role: Annotated[str, Text(16)]
    """`system`, `user` or `assistant`."""
    content: Annotated[str, Verbatim(MAX_CONTENT_BYTES)]


@schema(version=1, limit=MIB)
@dataclass(frozen=True, slots=True)
class _Prompt:
    messages: Annotated[tuple[ChatMessage, ...], Many(256)]


@schema(version=1, limit=640 * KIB)
@dataclass(frozen=True, slots=True)
class LlmRequest:
    """What a client asks one executor, before it signs it. An empty tuple: the executor's default."""

    id: HashField
    """32 random bytes; served once."""
    client: PeerIdField
    executor: PeerIdField
    session: HashField
    """32 random bytes: the lane whose vouchers this call's receipt enters."""
    model: ModelField
    messages: Annotated[tuple[ChatMessage, ...], Many(256)]
    continues: Annotated[int, Int(0, 1)]
    """1: the last message is the beginning of the answer, and the model carries on from its last character."""
    max_tokens: Annotated[int, Int(1, MAX_TOKENS)]
    """As the backend counts."""
    temperature: Annotated[tuple[Annotated[int, Int(0, 2000)], ...], Many(1)]
    """Thousandths."""
    top_p: Annotated[tuple[Annotated[int, Int(0, 1000)], ...], Many(1)]
    """Thousandths."""
    seed: Annotated[tuple[U64, ...], Many(1)]
    stop: Annotated[tuple[Annotated[str, Verbatim(256)], ...], Many(4)]
    response_format: Annotated[str, Verbatim(16 * KIB)]
    """A JSON object as OpenAI's API has it; empty: none."""
    max_price: PriceField
    """Gwei per 1,000 tokens that the client agrees to."""
    fold_words: Annotated[int, Int(0, 140)]
    """Above 0: the executor signs what the answer folds to in so many words."""
    time: MillisField
    """The client's clock."""
    expires: MillisField
    """The client's clock: nothing is answered after this, and nothing is waited for."""


@schema(version=1, limit=641 * KIB)
@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request and its client's signature."""

    request: LlmRequest
    signature: SignatureField


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Accepted:
    """The executor takes the call, for this price."""

    request: HashField
    price: PriceField


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Busy:
    """No room now; nothing was done and nothing is billed."""

    retry_after: MillisField
    """A span: when there should be room."""
    reason: Annotated[str, Text(512)]


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class LlmError:
    """The call has failed; nothing is billed but what was delivered and signed before. Read `kind_of`."""

    kind: Annotated[str, Text(32)]
    message: Annotated[str, Text(512)]


@schema(version=1, limit=192)
@dataclass(frozen=True, slots=True)
class Progress:
    """What the executor signs with each piece of the answer: so much was delivered."""

    request: HashField
    sequence: U64
    """How many pieces there were, this one included."""
    size: U64
    """Bytes of UTF-8 in all pieces so far."""
    digest: HashField
    """SHA-256 of all pieces so far in UTF-8."""
    price: PriceField
    """As accepted."""


@schema(version=1, limit=65 * KIB)
@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of the answer, and the executor's signature of the progress that it makes."""

    sequence: U64
    """1, 2, 3, …"""
    text: Annotated[str, Verbatim(MAX_DELTA_BYTES)]
    """Not empty."""
    signature: SignatureField


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Serving:
    """An executor's word that it served a paragraph: a birth certificate may carry it."""

    executor: PeerIdField
    request: HashField
    model: ModelField
    prompt_digest: HashField
    output_digest: HashField
    """SHA-256 of the answer, folded as the request asked, in UTF-8."""


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class SignedServing:
    """A serving statement and its executor's signature."""

    serving: Serving
    signature: SignatureField


def prompt_digest(messages: tuple[ChatMessage, ...]) -> Hash:
    """Hash a prompt: SHA-256 of the canonical encoding `[1, [[1, role, content], …]]`."""
    return Hash(hashlib.sha256(encode(_Prompt(messages))).digest())


def text_digest(text: str) -> Hash:
    """Hash a text: SHA-256 of its UTF-8."""
    return Hash(hashlib.sha256(text.encode()).digest())


def whole_characters(text: str) -> str:
    """Replace what UTF-8 cannot say (halves of surrogate pairs, which JSON can carry) by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def kind_of(error: LlmError) -> ErrorKind:
    """Read why a call failed.

    Raises:
        InvalidMessage: OUT_OF_RANGE, a kind that is not one.
    """
    try:
        return ErrorKind(error.kind)
    except ValueError:
        raise InvalidMessage(Fault.OUT_OF_RANGE, f"kind of error {error.kind!r}") from None


# ---- The request ----------------------------------------------------------------------------------------------------


def request_digest(request: LlmRequest) -> Hash:
    """Give what a client signs."""
    return digest("llm-request", NO_STORY, encode(request))


def sign_request(identity: Identity, request: LlmRequest) -> SignedRequest:
    """Sign a request as its client."""
    return SignedRequest(request, identity.sign(request_digest(request)))


def check_request(signed: SignedRequest, executor: PeerId, client: PeerId, now: Millis) -> LlmRequest:
    """Check everything about a request that needs no backend; that its id is new is for the caller to see to.

    Args:
        signed: As it came.
        executor: Us.
        client: Whom the connection proves.
        now: Our clock.

    Raises:
        InvalidMessage: WRONG_SENDER, another client's or for another executor. BAD_SIGNATURE. OUT_OF_RANGE, EXPIRED or
            FROM_THE_FUTURE, its times. WRONG_SHAPE or TOO_LARGE, what it asks.
    """
    request = signed.request
    if request.client != client:
        raise InvalidMessage(Fault.WRONG_SENDER, "the request is another client's")
    if request.executor != executor:
        raise InvalidMessage(Fault.WRONG_SENDER, "the request is for another executor")
    verify(signed.signature, request_digest(request), client)
    check_times(request.time, request.expires, LONGEST_CALL, now)
    check_chat(request)
    return request


def check_times(time: Millis, expires: Millis, longest: Millis, now: Millis) -> None:
    """Check that something lives no longer than it may, and lives now.

    Raises:
        InvalidMessage: OUT_OF_RANGE, EXPIRED or FROM_THE_FUTURE.
    """
    if not 0 < expires - time <= longest:
        raise InvalidMessage(Fault.OUT_OF_RANGE, f"lives {expires - time} ms, at most {longest}")
    if now > expires:
        raise InvalidMessage(Fault.EXPIRED, f"{now - expires} ms ago")
    if time > now + CLOCK_SKEW:
        raise InvalidMessage(Fault.FROM_THE_FUTURE, f"{time - now} ms")


def check_chat(request: LlmRequest) -> None:
    """Check that a request asks something that can be asked.

    Raises:
        InvalidMessage: WRONG_SHAPE: no message, a role that is none, a continuation of what is no answer, an empty stop
            word, a response format that is no JSON object. TOO_LARGE: more text than all messages may have.
    """
    if not request.messages:
        raise InvalidMessage(Fault.WRONG_SHAPE, "no message")
    if any(message.role not in ROLES for message in request.messages):
        raise InvalidMessage(Fault.WRONG_SHAPE, f"a role is one of {', '.join(ROLES)}")
    if request.continues and request.messages[-1].role != "assistant":
        raise InvalidMessage(Fault.WRONG_SHAPE, "only an assistant's message can be continued")
    if not all(request.stop):
        raise InvalidMessage(Fault.WRONG_SHAPE, "an empty stop word")
    size = sum(len(message.content.encode()) for message in request.messages)
    if size > MAX_CONTENT_BYTES:
        raise InvalidMessage(Fault.TOO_LARGE, f"messages of {size} bytes, at most {MAX_CONTENT_BYTES}")
    if request.response_format:
        _check_json_object(request.response_format)


def _check_json_object(text: str) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(Fault.WRONG_SHAPE, "the response format is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidMessage(Fault.WRONG_SHAPE, "the response format is no JSON object")


# ---- The answer as it streams ---------------------------------------------------------------------------------------


def answer_limit(max_tokens: int) -> int:
    """Tell how many bytes of UTF-8 an answer of so many tokens may have, whatever its model's vocabulary is.

    Nobody reads on beyond that, or pays. An executor whose backend does not keep to `max_tokens` ends the answer there.
    """
    return min(max_tokens * LONGEST_TOKEN + KIB, MAX_ANSWER_BYTES)


class Transcript:
    """The answer so far, on either side: `add` what a backend gives, or `accept` what an executor sends."""

    __slots__ = ("_hash", "_limit", "_parts", "progress", "signature")

    def __init__(self, request: Hash, price: int, limit: int = MAX_ANSWER_BYTES) -> None:
        """Begin the answer to one request.

        Args:
            request: Its id.
            price: As accepted.
            limit: Most bytes of UTF-8 that the answer may have.
        """
        self._hash = hashlib.sha256()
        self._limit = limit
        self._parts: list[str] = []
        self.progress = Progress(request, 0, 0, Hash(self._hash.digest()), price)
        self.signature: Signature | None = None
        """The executor's, of `progress`; None before the first piece."""

    @property
    def room(self) -> int:
        """Bytes of UTF-8 that may still come."""
        return self._limit - self.progress.size

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self._parts)

    def release(self) -> str:
        """Give all pieces and keep none; nothing can be added any more."""
        text = self.text
        self._parts, self._limit = [], 0
        return text

    def add(self, identity: Identity, text: str) -> Delta:
        """Add a piece and sign the progress, as the executor.

        Args:
            identity: The executor's.
            text: Not empty, at most 64 KiB of UTF-8, whole characters only.

        Raises:
            InvalidMessage: TOO_LARGE, the answer has grown beyond its limit; OUT_OF_RANGE, an empty piece. It is not
                added.
        """
        progress, hasher = self._grown(text)
        signature = identity.sign(progress_digest(progress))
        self._take(text, progress, hasher, signature)
        return Delta(progress.sequence, text, signature)

    def accept(self, delta: Delta, executor: PeerId) -> str:
        """Add a piece that came, as the client; give its text.

        Raises:
            InvalidMessage: UNEXPECTED, not the next piece; TOO_LARGE; OUT_OF_RANGE; BAD_SIGNATURE. It is not added.
        """
        if delta.sequence != self.progress.sequence + 1:
            raise InvalidMessage(Fault.UNEXPECTED, f"piece {delta.sequence} after {self.progress.sequence}")
        progress, hasher = self._grown(delta.text)
        check_progress(progress, delta.signature, executor)
        self._take(delta.text, progress, hasher, delta.signature)
        return delta.text

    def _grown(self, text: str) -> tuple[Progress, "hashlib._Hash"]:
        data = text.encode()
        if not data:
            raise InvalidMessage(Fault.OUT_OF_RANGE, "an empty piece")
        before = self.progress
        if len(data) > self.room:
            raise InvalidMessage(Fault.TOO_LARGE, f"an answer of more than {self._limit} bytes")
        hasher = self._hash.copy()
        hasher.update(data)
        size, now = before.size + len(data), Hash(hasher.digest())
        return Progress(before.request, before.sequence + 1, size, now, before.price), hasher

    def _take(self, text: str, progress: Progress, hasher: "hashlib._Hash", signature: Signature) -> None:
        # A list of pieces would take fifty bytes for each: each part is longer than the next, so there are few.
        parts = self._parts
        parts.append(text)
        while len(parts) > 1 and len(parts[-2]) <= len(parts[-1]):
            last = parts.pop()
            parts[-1] += last
        self._hash = hasher
        self.progress = progress
        self.signature = signature


def progress_digest(progress: Progress) -> Hash:
    """Give what an executor signs with a piece."""
    return digest("llm-progress", NO_STORY, encode(progress))


def check_progress(progress: Progress, signature: Signature, executor: PeerId) -> None:
    """Check that an executor signed a progress.

    Raises:
        InvalidMessage: BAD_SIGNATURE.
    """
    verify(signature, progress_digest(progress), executor)


# ---- What a birth certificate may carry -----------------------------------------------------------------------------


def sign_serving(identity: Identity, request: LlmRequest, answer: str) -> SignedServing | None:
    """Sign what an answer folds to, as its executor; None when no folding was asked, or no paragraph is in it."""
    folded = fold_paragraph(answer, request.fold_words) if request.fold_words else None
    if folded is None:
        return None
    serving = Serving(identity.peer_id, request.id, request.model, prompt_digest(request.messages), text_digest(folded))
    return SignedServing(serving, identity.sign(serving_digest(serving)))


def serving_digest(serving: Serving) -> Hash:
    """Give what an executor signs of a paragraph that it served."""
    return digest("llm-serving", NO_STORY, encode(serving))


def check_serving(signed: SignedServing) -> Serving:
    """Check the signature of a serving statement; give the statement.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    check_peer_id(signed.serving.executor)
    verify(signed.signature, serving_digest(signed.serving), signed.serving.executor)
    return signed.serving
