"""The whole exception tree on one screen, and every fault by name.

`ProtocolError`: a peer broke a rule; it costs that peer. `ServiceError`: the world failed; try again later.
`UsageError`: the person at the keyboard can mend it. A bug of ours is none of these; it stops the node.
"""

from collections.abc import Iterator
from enum import StrEnum, unique

from loremesh.primitives import Hash, Millis


@unique
class Fault(StrEnum):
    """Everything a block, a message or a peer can do wrong. The value is what logs, events and vectors show."""

    # encodings
    TRUNCATED = "truncated"
    TRAILING_BYTES = "trailing bytes"
    NOT_CANONICAL = "not canonical"
    TOO_LARGE = "too large"
    TOO_DEEP = "too deep"
    WRONG_SHAPE = "wrong shape"
    OUT_OF_RANGE = "out of range"
    NOT_NFC = "text not in NFC"
    UNKNOWN_VERSION = "unknown version"
    UNKNOWN_TYPE = "unknown type"
    # identities and signatures
    BAD_KEY = "bad key"
    BAD_SIGNATURE = "bad signature"
    WRONG_SENDER = "wrong sender"
    # blocks
    WRONG_STORY = "wrong story"
    WRONG_HEIGHT = "wrong height"
    TOO_EARLY = "before the minimum spacing"
    WRONG_TARGET = "wrong target"
    WORK_NOT_MET = "work not met"
    TRACKER_TOO_SOON = "tracker produced too soon"
    EQUIVOCATION = "more than two headers on one parent"
    PARENT_REFUSED = "parent was refused"
    WRONG_CONTENT_ROOT = "content does not match its root"
    WRONG_TRANSACTION_ROOT = "transactions do not match their root"
    WRONG_STATE_ROOT = "state does not match its root"
    TOO_MANY_TRANSACTIONS = "too many transactions"
    # content
    UNKNOWN_CONTENT = "unknown kind of content"
    EMPTY_TEXT = "no words"
    TOO_MANY_WORDS = "too many words"
    NOT_ONE_PARAGRAPH = "not exactly one paragraph"
    FORBIDDEN_CHARACTER = "forbidden character"
    WRONG_AUTHOR = "author is not the producer"
    WRONG_OUTPUT = "output digest does not match the text"
    WRONG_SERVING = "serving statement does not match the birth certificate"
    UNKNOWN_SUGGESTION = "suggestion is not open"
    # transactions
    WRONG_NONCE = "wrong nonce"
    DUPLICATE = "duplicate"
    QUOTA = "quota exceeded"
    # conversations
    FRAME_TOO_LONG = "frame too long"
    UNFINISHED = "message not finished"
    UNEXPECTED = "unexpected message"
    TOO_SLOW = "deadline passed"
    NOT_AS_ASKED = "answer does not match the request"
    NOT_THE_TRACKER = "not the tracker of that head"
    # calls to models
    EXPIRED = "expired"
    FROM_THE_FUTURE = "time lies ahead"
    REPLAYED = "replayed"
    FLOOD = "too many requests"
    WRONG_RECEIPT = "receipt does not match the recount"
    WRONG_VOUCHER = "voucher does not match its receipts"


@unique
class ErrorKind(StrEnum):
    """Why a call to a model ended without a complete answer. The value is what travels and what programs read."""

    UNSUPPORTED_MODEL = "unsupported_model"
    BUSY = "busy"
    CONTEXT_TOO_LONG = "context_too_long"
    BAD_REQUEST = "bad_request"
    BACKEND_FAILED = "backend_failed"
    UNAUTHORISED = "unauthorised"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    TOO_EXPENSIVE = "too_expensive"
    EXHAUSTED = "exhausted"


class LoremeshError(Exception):
    """Every error this library raises on purpose."""


class ProtocolError(LoremeshError):
    """A peer broke a rule. `fault` is for programs: vectors, metrics, peer scores."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault}: {detail}" if detail else str(fault))
        self.fault = fault
        self.detail = detail


class InvalidMessage(ProtocolError):
    """Bytes that are not the message they claim to be."""


class RequestRefused(InvalidMessage):
    """A peer does not do what it was asked, and says why: its right, and no fault."""


class InvalidTransaction(ProtocolError):
    """A transaction that its sender may not send, or not now."""


class InvalidContent(ProtocolError):
    """Content that breaks a rule of its kind, whoever sent it."""


class Mismatch(ProtocolError):
    """A field of a bill that is not what both sides must find: the typed refusal to sign it."""

    def __init__(self, fault: Fault, field: str, claimed: object, expected: object) -> None:
        super().__init__(fault, f"{field} is {_shown(claimed)}, expected {_shown(expected)}")
        self.field = field
        self.claimed = claimed
        self.expected = expected


class ReceiptMismatch(Mismatch):
    """A receipt that the recount does not confirm; `field` says where."""

    def __init__(self, field: str, claimed: object, expected: object) -> None:
        super().__init__(Fault.WRONG_RECEIPT, field, claimed, expected)


class VoucherMismatch(Mismatch):
    """A voucher that does not follow from the one before it and the receipt; `field` says where."""

    def __init__(self, field: str, claimed: object, expected: object) -> None:
        super().__init__(Fault.WRONG_VOUCHER, field, claimed, expected)


class InvalidBlock(ProtocolError):
    """A block that can never become valid, whatever arrives later."""

    def __init__(self, fault: Fault, block_hash: Hash, detail: str = "") -> None:
        super().__init__(fault, f"block {block_hash.hex()[:8]}" + (f", {detail}" if detail else ""))
        self.block_hash = block_hash


class ServiceError(LoremeshError):
    """The world failed: try again later, or elsewhere."""


class Unreachable(ServiceError):
    """No connection could be made, or it broke."""


class ConnectionRefused(Unreachable):
    """Nobody listens there: the peer is gone, not slow."""


class UnsupportedProtocol(Unreachable):
    """The peer is there but does not speak this protocol."""


class DeadlinePassed(ServiceError):
    """Nothing came in the time we were ready to wait."""


class BackendError(ServiceError):
    """What answers prompts did not answer this one."""


class BackendUnauthorised(BackendError):
    """The backend refused our key."""


class BackendBusy(BackendError):
    """The backend asks us to wait."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds; None when it did not say


class BackendFailed(BackendError):
    """The backend answered with an error, broke off, or is not there."""


class BackendGarbage(BackendError):
    """The backend answered, but out of its answer comes no paragraph."""


class BackendTimeout(BackendError):
    """The backend took longer than the whole call may take."""


class BackendRefused(BackendError):
    """The backend takes no such request; another one may pass."""


class BackendExhausted(BackendError):
    """Today's tokens are used up."""

    def __init__(self, message: str, resets_at: Millis) -> None:
        super().__init__(message)
        self.resets_at = resets_at


class PromptTooLong(BackendError):
    """What a prompt must contain does not fit under the model's token limit."""


class CallFailed(ServiceError):
    """An executor did not answer a call, and says why."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else str(kind))
        self.kind = kind


class UnsupportedModel(CallFailed):
    """Nobody serves this model; `served` names those that somebody does."""

    def __init__(self, model: str, served: tuple[str, ...]) -> None:
        super().__init__(ErrorKind.UNSUPPORTED_MODEL, f"nobody serves {model!r}; served: {', '.join(served) or 'none'}")
        self.served = served


class ExecutorBusy(CallFailed):
    """An executor asks us to wait."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(ErrorKind.BUSY, message)
        self.retry_after = retry_after  # seconds


class NoExecutor(ServiceError):
    """Nobody that we know of can serve the call; `tried` says who was asked, and what came of it."""

    def __init__(self, message: str, tried: tuple[str, ...] = ()) -> None:
        super().__init__("; ".join([message, *tried]))
        self.tried = tried


class StorageError(ServiceError):
    """The disk did not keep, or did not give back, what it was asked to."""


class UsageError(LoremeshError):
    """Wrong usage or configuration; the message says what would succeed. Exit code 2."""


class InvalidField(UsageError):
    """A field of a request over HTTP that cannot be used; `field` is None where it is the whole of it."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class InvalidKey(UsageError):
    """Bytes or text that are not a secp256k1 private key."""


class InvalidGenesis(UsageError):
    """A genesis file that describes no story."""


class MachineError(LoremeshError):
    """This machine refuses: port taken, data directory in use, disk full. Exit code 6."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Give the exceptions that are in a group and in the groups in it, or the one that is no group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
