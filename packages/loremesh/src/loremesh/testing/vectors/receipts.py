"""Vectors of receipts and vouchers, for another implementation to run against.

A case has a `rule`:
`receipt` and `voucher`: the `value`, the `domain` (chain id and contract), the EIP-712 `digest`, and its `signature` by
the `key`. An EVM adds 27 to the last byte of a signature.
`evidence`: `hex` is a `type` (`SignedReceipt` or `PartialReceipt`) of the call with this `request` and `answer`. Of it
`alone`, and of it `recounted` in o200k_base: `fault` is null where it holds, and `field` names what differs, if a field
does.
`next voucher`: `hex` is a signed voucher that shall follow the receipts in `before` and take in `receipt`; `heads` are
the heads of the vouchers before and after; `fault` and `field` as above.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial as bind
from typing import Any

from loremesh.backends.tokens import load_counter
from loremesh.errors import Mismatch, ProtocolError
from loremesh.primitives import Hash, Millis, Signature
from loremesh.protocol.codec import encode
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import CLOCK_SKEW
from loremesh.protocol.metering import amount_of
from loremesh.protocol.receipts import (
    CUT,
    STOP,
    Evidence,
    PartialReceipt,
    Receipt,
    check_evidence,
    check_receipt,
    make_receipt,
    receipt_digest,
    sign_receipt,
)
from loremesh.protocol.typed_data import LOCAL, Domain
from loremesh.protocol.vouchers import (
    Voucher,
    check_voucher,
    next_voucher,
    sign_voucher,
    voucher_digest,
)
from loremesh.testing.builders import START
from loremesh.testing.calls import CLIENT, EXECUTOR, PIECES, PRICE, answer, chat_request
from loremesh.testing.vectors.plain import Case, plain

_REQUEST = chat_request()
_TEXT = "".join(PIECES)
_TIME = Millis(START + 900)
_CHAIN = Domain(8453, bytes(range(20)))


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    return [*_digests(), *_evidence(), *_vouchers()]


def _receipt(number: int = 1, **changes: Any) -> Receipt:  # noqa: ANN401 - any field
    request = chat_request(number)
    right = make_receipt(request, _TEXT, load_counter(), price=PRICE, finish=STOP, time=_TIME)
    return replace(right, **changes)


def _digests() -> list[Case]:
    largest = _receipt(prompt_tokens=2**32 - 1, completion_tokens=2**32 - 1, price=10**12, amount=2**64 - 1)
    told = (
        ("an ordinary receipt", _receipt(), LOCAL),
        ("on a chain", _receipt(), _CHAIN),
        ("the largest numbers", largest, LOCAL),
        ("a model's name in Unicode", _receipt(model="ré灯🐉"), LOCAL),
        ("no model's name", _receipt(model=""), LOCAL),
    )
    voucher = next_voucher(None, _receipt())
    receipts: list[Case] = [
        {"rule": "receipt", "name": name, **_signed(value, domain, receipt_digest(value, domain), EXECUTOR)}
        for name, value, domain in told
    ]
    vouchers: list[Case] = [
        {"rule": "voucher", "name": name, **_signed(value, domain, voucher_digest(value, domain), CLIENT)}
        for name, value, domain in (
            ("an ordinary voucher", voucher, LOCAL),
            ("on a chain", voucher, _CHAIN),
            ("the largest numbers", replace(voucher, receipts=2**64 - 1, tokens=2**64 - 1, amount=2**64 - 1), LOCAL),
        )
    ]
    return receipts + vouchers


def _signed(value: Receipt | Voucher, domain: Domain, digest: Hash, signer: Identity) -> Case:
    return {
        "value": plain(value),
        "domain": [domain.chain_id, domain.contract.hex()],
        "key": signer.secret.hex(),
        "digest": digest.hex(),
        "signature": signer.sign(digest).hex(),
    }


def _partial() -> PartialReceipt:
    transcript, deltas = answer(_REQUEST, PIECES[:2])
    receipt = make_receipt(_REQUEST, transcript.text, load_counter(), price=PRICE, finish=CUT, time=_TIME)
    signature = CLIENT.sign(receipt_digest(receipt))
    return PartialReceipt(receipt, signature, transcript.progress, deltas[-1].signature)


def _evidence() -> list[Case]:
    partial, other = _partial(), Hash(bytes(32))
    delivered = "".join(PIECES[:2])
    uncut = replace(partial.receipt, finish=STOP)
    cheap = replace(partial.receipt, price=1, amount=amount_of(partial.receipt.tokens, 1))
    dear = _receipt(price=1001, amount=amount_of(_receipt().tokens, 1001))
    early = Millis(_REQUEST.time - CLOCK_SKEW - 1)
    told: tuple[tuple[str, Evidence, str], ...] = (
        ("a receipt", sign_receipt(EXECUTOR, _receipt()), _TEXT),
        ("a receipt of an answer that was cut", sign_receipt(EXECUTOR, _receipt(finish=CUT)), _TEXT),
        ("a partial receipt", partial, delivered),
        ("signed by the client", sign_receipt(CLIENT, _receipt()), _TEXT),
        ("signed for a chain", sign_receipt(EXECUTOR, _receipt(), _CHAIN), _TEXT),
        ("another answer", sign_receipt(EXECUTOR, _receipt()), _TEXT + "!"),
        ("another request", sign_receipt(EXECUTOR, _receipt(request=other)), _TEXT),
        ("another session", sign_receipt(EXECUTOR, _receipt(session=other)), _TEXT),
        ("another model", sign_receipt(EXECUTOR, _receipt(model="large-model")), _TEXT),
        ("another tokenizer", sign_receipt(EXECUTOR, _receipt(tokenizer="cl100k_base")), _TEXT),
        ("a token too many in the prompt", sign_receipt(EXECUTOR, _receipt(prompt_tokens=12)), _TEXT),
        ("a token too many in the answer", sign_receipt(EXECUTOR, _receipt(completion_tokens=20)), _TEXT),
        ("an amount that does not follow", sign_receipt(EXECUTOR, _receipt(amount=10**6)), _TEXT),
        ("a price above the one agreed to", sign_receipt(EXECUTOR, dear), _TEXT),
        ("a time before the request", sign_receipt(EXECUTOR, _receipt(time=early)), _TEXT),
        ("an unknown finish", sign_receipt(EXECUTOR, _receipt(finish="done")), _TEXT),
        ("a partial receipt of a whole answer", _resigned(partial, uncut), delivered),
        ("a partial receipt at another price", _resigned(partial, cheap), delivered),
        ("a partial receipt of more than was signed", partial, _TEXT),
        ("a partial receipt whose client did not sign", replace(partial, signature=Signature(bytes(65))), delivered),
        (
            "a partial receipt whose executor did not sign",
            replace(partial, progress_signature=partial.signature),
            delivered,
        ),
    )
    return [
        {
            "rule": "evidence",
            "name": name,
            "type": type(evidence).__name__,
            "hex": encode(evidence).hex(),
            "request": encode(_REQUEST).hex(),
            "answer": text,
            "alone": _result(bind(check_evidence, evidence)),
            "recounted": _result(bind(check_receipt, evidence, _REQUEST, text, load_counter())),
        }
        for name, evidence, text in told
    ]


def _resigned(partial: PartialReceipt, receipt: Receipt) -> PartialReceipt:
    return replace(partial, receipt=receipt, signature=CLIENT.sign(receipt_digest(receipt)))


def _vouchers() -> list[Case]:
    first, second = _receipt(1), _receipt(2)
    before = next_voucher(None, first)
    right = next_voucher(before, second)
    told = (
        ("the voucher that follows", sign_voucher(CLIENT, right)),
        ("the one before it again", sign_voucher(CLIENT, before)),
        ("a receipt left out", sign_voucher(CLIENT, next_voucher(None, second))),
        ("a token less", sign_voucher(CLIENT, replace(right, tokens=right.tokens - 1))),
        ("less money", sign_voucher(CLIENT, replace(right, amount=right.amount - 1))),
        ("another head", sign_voucher(CLIENT, replace(right, head=before.head))),
        ("another session", sign_voucher(CLIENT, replace(right, session=Hash(bytes(32))))),
        ("signed by the executor", sign_voucher(EXECUTOR, right)),
        ("signed for a chain", sign_voucher(CLIENT, right, _CHAIN)),
    )
    return [
        {
            "rule": "next voucher",
            "name": name,
            "before": [encode(first).hex()],
            "receipt": encode(second).hex(),
            "hex": encode(signed).hex(),
            "heads": [before.head.hex(), right.head.hex()],
            **_result(bind(check_voucher, signed, before, second)),
        }
        for name, signed in told
    ]


def _result(attempt: Callable[[], object]) -> Case:
    try:
        attempt()
    except Mismatch as error:
        return {"fault": str(error.fault), "field": error.field}
    except ProtocolError as error:
        return {"fault": str(error.fault), "field": None}
    return {"fault": None, "field": None}
