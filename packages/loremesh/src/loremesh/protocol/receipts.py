"""Receipts: what a call took, in a form that both sides count again and a contract could read.

An executor signs a *receipt* of each call: EIP-712 typed data, with the EVM addresses of both sides. When an executor
dies in the middle of an answer, the client makes and signs a *partial receipt* out of the last progress that the
executor signed.

Source: docs/protocol/llm.md.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Final

from loremesh.errors import ReceiptMismatch
from loremesh.primitives import KIB, Hash, Millis
from loremesh.protocol.codec import (
    U64,
    HashField,
    Int,
    Many,
    MillisField,
    PeerIdField,
    SignatureField,
    Text,
    schema,
)
from loremesh.protocol.identity import Identity, check_peer_id, evm_address_of, verify
from loremesh.protocol.llm import (
    CLOCK_SKEW,
    LlmRequest,
    ModelField,
    PriceField,
    Progress,
    SignedServing,
    Transcript,
    check_progress,
    prompt_digest,
    text_digest,
)
from loremesh.protocol.metering import TOKENIZER, Count, amount_of, completion_tokens, prompt_tokens
from loremesh.protocol.typed_data import LOCAL, Domain, signing_digest, struct_type

STOP: Final = "stop"
"""The model ended its answer."""
LENGTH: Final = "length"
"""The model came to a limit."""
CUT: Final = "cut"
"""The answer broke off: what was delivered counts."""
FINISHES: Final = (STOP, LENGTH, CUT)

TokensField = Annotated[int, Int(0, 2**32 - 1)]


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Receipt:
    """What one call took."""

    request: HashField
    """The request's id: there is one receipt for it at most."""
    client: PeerIdField
    executor: PeerIdField
    session: HashField
    model: ModelField
    tokenizer: Annotated[str, Text(32)]
    prompt_tokens: TokensField
    completion_tokens: TokensField
    prompt_digest: HashField
    output_digest: HashField
    """SHA-256 of the whole answer in UTF-8."""
    price: PriceField
    """Gwei per 1,000 tokens, as accepted."""
    amount: U64
    """Gwei: tokens times price, rounded up."""
    finish: Annotated[str, Text(8)]
    """`stop`, `length` or `cut`."""
    time: MillisField
    """The clock of whoever made the receipt."""

    @property
    def tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt and its executor's signature."""

    receipt: Receipt
    signature: SignatureField


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class PartialReceipt:
    """A receipt that its client made, of an answer that broke off, and what the executor had signed of that."""

    receipt: Receipt
    signature: SignatureField
    """The client's, of the receipt."""
    progress: Progress
    progress_signature: SignatureField
    """The executor's, of `progress`."""


Evidence = SignedReceipt | PartialReceipt
"""What either side keeps of a call."""


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class BackendUsage:
    """What a backend says it used, in tokens of its own: shown, never billed."""

    prompt_tokens: U64
    completion_tokens: U64


@schema(version=1, limit=4 * KIB)
@dataclass(frozen=True, slots=True)
class LlmFinal:
    """The end of an answer."""

    receipt: Receipt
    signature: SignatureField
    """The executor's, of the receipt."""
    usage: Annotated[tuple[BackendUsage, ...], Many(1)]
    served: Annotated[tuple[SignedServing, ...], Many(1)]
    """When the request asked for folding, and a paragraph is in the answer."""


_RECEIPT: Final = struct_type(
    "Receipt",
    ("bytes32", "request"),
    ("address", "client"),
    ("address", "executor"),
    ("bytes32", "session"),
    ("string", "model"),
    ("string", "tokenizer"),
    ("uint64", "promptTokens"),
    ("uint64", "completionTokens"),
    ("bytes32", "promptDigest"),
    ("bytes32", "outputDigest"),
    ("uint64", "price"),
    ("uint64", "amount"),
    ("string", "finish"),
    ("uint64", "time"),
)


def receipt_digest(receipt: Receipt, domain: Domain = LOCAL) -> Hash:
    """Give what an executor signs of a call: the EIP-712 digest."""
    return signing_digest(
        domain,
        _RECEIPT,
        receipt.request,
        evm_address_of(receipt.client),
        evm_address_of(receipt.executor),
        receipt.session,
        receipt.model,
        receipt.tokenizer,
        receipt.prompt_tokens,
        receipt.completion_tokens,
        receipt.prompt_digest,
        receipt.output_digest,
        receipt.price,
        receipt.amount,
        receipt.finish,
        receipt.time,
    )


def make_receipt(request: LlmRequest, answer: str, count: Count, *, price: int, finish: str, time: Millis) -> Receipt:
    """Count a call.

    Args:
        request: What was asked.
        answer: The whole answer, or as much as was delivered.
        count: Of `o200k_base`.
        price: As accepted.
        finish: `stop`, `length` or `cut`.
        time: The clock of whoever makes the receipt.
    """
    prompt, completion = prompt_tokens(request.messages, count), completion_tokens(answer, count)
    return Receipt(
        request.id,
        request.client,
        request.executor,
        request.session,
        request.model,
        TOKENIZER,
        prompt,
        completion,
        prompt_digest(request.messages),
        text_digest(answer),
        price,
        amount_of(prompt + completion, price),
        finish,
        time,
    )


def sign_receipt(identity: Identity, receipt: Receipt, domain: Domain = LOCAL) -> SignedReceipt:
    """Sign a receipt as its executor."""
    return SignedReceipt(receipt, identity.sign(receipt_digest(receipt, domain)))


def partial_receipt(
    identity: Identity,
    request: LlmRequest,
    transcript: Transcript,
    count: Count,
    *,
    time: Millis,
    domain: Domain = LOCAL,
) -> PartialReceipt | None:
    """Make and sign the receipt of an answer that broke off, as the client; None when nothing of it came."""
    if transcript.signature is None:
        return None
    price = transcript.progress.price
    receipt = make_receipt(request, transcript.text, count, price=price, finish=CUT, time=time)
    signature = identity.sign(receipt_digest(receipt, domain))
    return PartialReceipt(receipt, signature, transcript.progress, transcript.signature)


def check_evidence(evidence: Evidence, domain: Domain = LOCAL) -> Receipt:
    """Check what evidence shows by itself, without request and answer: its signatures, and that it adds up.

    Raises:
        InvalidMessage: BAD_KEY; BAD_SIGNATURE.
        ReceiptMismatch: Another tokenizer, an amount that is not tokens times price, an unknown finish; of a partial
            receipt, anything that the signed progress does not say.
    """
    receipt = evidence.receipt
    check_peer_id(receipt.client)
    check_peer_id(receipt.executor)
    if isinstance(evidence, PartialReceipt):
        signer, progress = receipt.client, evidence.progress
        check_progress(progress, evidence.progress_signature, receipt.executor)
        _must_be("request", receipt.request, progress.request)
        _must_be("output_digest", receipt.output_digest, progress.digest)
        _must_be("price", receipt.price, progress.price)
        _must_be("finish", receipt.finish, CUT)
    else:
        signer = receipt.executor
    verify(evidence.signature, receipt_digest(receipt, domain), signer)
    _must_be("tokenizer", receipt.tokenizer, TOKENIZER)
    _must_be("amount", receipt.amount, amount_of(receipt.tokens, receipt.price))
    if receipt.finish not in FINISHES:
        raise ReceiptMismatch("finish", receipt.finish, " or ".join(FINISHES))
    return receipt


def check_receipt(
    evidence: Evidence, request: LlmRequest, answer: str, count: Count, domain: Domain = LOCAL
) -> Receipt:
    """Count a call again: give the receipt if it says exactly what the request and the answer say.

    Args:
        evidence: Of the call.
        request: What was asked.
        answer: What came, all of it.
        count: Of `o200k_base`.
        domain: Where the executor's signature must hold.

    Raises:
        InvalidMessage: As `check_evidence`.
        ReceiptMismatch: The first field that differs; a price above the one agreed to; a time outside the request's.
    """
    receipt = evidence.receipt
    # First of all: an executor that signed another request's receipt is told so.
    expected = make_receipt(request, answer, count, price=receipt.price, finish=receipt.finish, time=receipt.time)
    for field in fields(Receipt):
        _must_be(field.name, getattr(receipt, field.name), getattr(expected, field.name))
    if receipt.price > request.max_price:
        raise ReceiptMismatch("price", receipt.price, f"at most {request.max_price}")
    if not request.time - CLOCK_SKEW <= receipt.time <= request.expires + CLOCK_SKEW:
        raise ReceiptMismatch("time", receipt.time, f"about {request.time}..{request.expires}")
    return check_evidence(evidence, domain)


def _must_be(field: str, claimed: object, expected: object) -> None:
    if claimed != expected:
        raise ReceiptMismatch(field, claimed, expected)
