"""Bills: EIP-712 sign and recover against eth_account, on the same values and the same secp256k1 library."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

from eth_account import Account
from eth_account.messages import encode_typed_data

from harness import Row, Samples, at_least, compare, measure, timed
from loremesh.backends.tokens import load_counter
from loremesh.primitives import Hash, Millis
from loremesh.protocol.identity import Identity, evm_address_of, evm_address_text, verify
from loremesh.protocol.receipts import STOP, Receipt, check_receipt, make_receipt, receipt_digest, sign_receipt
from loremesh.protocol.vouchers import Voucher, next_voucher, voucher_digest
from loremesh.testing.builders import START
from loremesh.testing.calls import CLIENT, EXECUTOR, PRICE, chat_request

T = TypeVar("T", Receipt, Voucher)

_BILLS: Final = 100
_BATCH: Final = 5
_ANSWER: Final = "Nobody keeps the lamp; it keeps itself, and on some nights it keeps the sea as well. " * 6
_DOMAIN: Final = {"name": "loremesh", "version": "1", "chainId": 0, "verifyingContract": "0x" + "00" * 20}
_RECEIPT: Final = (
    "bytes32 request,address client,address executor,bytes32 session,string model,string tokenizer,"
    "uint64 promptTokens,uint64 completionTokens,bytes32 promptDigest,bytes32 outputDigest,uint64 price,"
    "uint64 amount,string finish,uint64 time"
)
_VOUCHER: Final = (
    "address client,address executor,bytes32 session,uint64 receipts,uint64 tokens,uint64 amount,bytes32 head"
)


def run() -> list[Row]:
    """Measure receipts and vouchers, then all that a client does with a receipt."""
    count = load_counter()
    requests = [chat_request(number) for number in range(_BILLS)]
    receipts = [
        make_receipt(request, _ANSWER, count, price=PRICE, finish=STOP, time=Millis(START + number))
        for number, request in enumerate(requests)
    ]
    vouchers = [next_voucher(None, receipt) for receipt in receipts]
    signed = [sign_receipt(EXECUTOR, receipt) for receipt in receipts]

    def checked() -> Samples:
        pairs = list(zip(signed, requests, strict=True))
        return timed(lambda pair: check_receipt(pair[0], pair[1], _ANSWER, count), pairs, _BATCH)

    return [
        _against_eth_account("receipt signed and recovered", receipts, _RECEIPT, EXECUTOR, receipt_digest),
        _against_eth_account("voucher signed and recovered", vouchers, _VOUCHER, CLIENT, voucher_digest),
        measure("receipt of 100 words counted again and checked", "µs", checked, None),
    ]


def _against_eth_account(
    what: str, bills: list[T], members: str, signer: Identity, digest_of: Callable[[T], Hash]
) -> Row:
    account = Account.from_key(signer.secret)
    name = type(bills[0]).__name__
    types = {name: [dict(zip(("type", "name"), member.split(" "), strict=True)) for member in members.split(",")]}
    told = [_told(bill, [member["name"] for member in types[name]]) for bill in bills]
    address = evm_address_text(signer.evm_address)

    def ours(bill: T) -> None:
        digest = digest_of(bill)
        verify(signer.sign(digest), digest, signer.peer_id)

    def theirs(values: dict[str, Any]) -> None:
        message = encode_typed_data(_DOMAIN, types, values)
        signature = account.sign_message(message).signature
        if Account.recover_message(message, signature=signature) != address:
            raise AssertionError(address)

    return compare(
        what,
        "µs",
        lambda: timed(ours, bills, _BATCH),
        against="eth_account",
        peer=lambda: timed(theirs, told, _BATCH),
        goal=at_least(3),
    )


def _told(bill: Receipt | Voucher, names: list[str]) -> dict[str, Any]:
    """Write a bill as eth_account wants it."""
    values = {field.name: getattr(bill, field.name) for field in fields(bill)}
    values |= {side: evm_address_text(evm_address_of(values[side])) for side in ("client", "executor")}
    return dict(zip(names, values.values(), strict=True))
