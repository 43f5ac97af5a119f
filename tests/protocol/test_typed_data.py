"""EIP-712 by hand gives what the reference implementation of the EVM world gives."""

import random
from dataclasses import fields
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_utils.crypto import keccak

from loremesh.errors import InvalidMessage
from loremesh.primitives import Hash, Millis
from loremesh.protocol.identity import Identity, evm_address_of, keccak256, verify
from loremesh.protocol.receipts import FINISHES, Receipt, receipt_digest
from loremesh.protocol.typed_data import LOCAL, Domain, domain_separator, signing_digest, struct_type
from loremesh.protocol.vouchers import Voucher, voucher_digest

MEMBERS = {
    "Receipt": (
        "bytes32 request,address client,address executor,bytes32 session,string model,string tokenizer,"
        "uint64 promptTokens,uint64 completionTokens,bytes32 promptDigest,bytes32 outputDigest,uint64 price,"
        "uint64 amount,string finish,uint64 time"
    ),
    "Voucher": (
        "address client,address executor,bytes32 session,uint64 receipts,uint64 tokens,uint64 amount,bytes32 head"
    ),
}
TEXTS = ("", "builtin", "gpt-4o-mini", "qwen2.5:1.5b", "ré\u0301🐉 灯", "x" * 128)
EDGES = (0, 1, 255, 256, 2**32 - 1, 2**63, 2**64 - 1)


def as_json_rpc(kind: str, values: dict[str, Any], domain: Domain) -> SignableMessage:
    contract = "0x" + domain.contract.hex()
    members = [member.split(" ") for member in MEMBERS[kind].split(",")]
    return encode_typed_data(
        {
            "name": "loremesh",
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": contract,
        },
        {kind: [{"type": type_, "name": name} for type_, name in members]},
        dict(zip((name for _, name in members), values.values(), strict=True)),
    )


def digest_of(message: SignableMessage) -> bytes:
    return keccak(b"\x19" + message.version + message.header + message.body)


def random_number(chance: random.Random) -> int:
    return chance.choice(EDGES) if chance.random() < 0.3 else chance.getrandbits(chance.randint(1, 64))


def random_case(chance: random.Random) -> tuple[Hash, SignableMessage]:
    """One receipt or voucher with any values: our digest, and what eth_account makes of the same."""
    client, executor = (Identity.new(chance.randbytes(32)).peer_id for _ in "ab")
    domain = LOCAL if chance.random() < 0.3 else Domain(random_number(chance), chance.randbytes(20))
    hashes = [Hash(chance.randbytes(32)) for _ in range(4)]
    numbers = [random_number(chance) for _ in range(5)]
    bill: Receipt | Voucher
    if chance.random() < 0.5:
        bill = Voucher(client, executor, hashes[0], numbers[0], numbers[1], numbers[2], hashes[1])
        ours = voucher_digest(bill, domain)
    else:
        model, finish, tokenizer = chance.choice(TEXTS), chance.choice(FINISHES), chance.choice(TEXTS)
        bill = Receipt(
            hashes[0], client, executor, hashes[1], model, tokenizer, numbers[0], numbers[1], hashes[2], hashes[3],
            numbers[2], numbers[3], finish, Millis(numbers[4]),
        )  # fmt: skip
        ours = receipt_digest(bill, domain)
    values = {field.name: getattr(bill, field.name) for field in fields(bill)}
    values |= {name: "0x" + evm_address_of(values[name]).hex() for name in ("client", "executor")}
    return ours, as_json_rpc(type(bill).__name__, values, domain)


def test_a_thousand_random_receipts_and_vouchers_have_the_digests_and_signatures_of_eth_account() -> None:
    chance = random.Random(712)
    signer = Identity.new(chance.randbytes(32))
    account = Account.from_key(signer.secret)
    for _ in range(1000):
        ours, message = random_case(chance)
        assert ours == digest_of(message)
        signature = signer.sign(ours)
        theirs = bytes(account.sign_message(message).signature)
        assert signature[:64] + bytes([signature[64] + 27]) == theirs
        assert bytes.fromhex(Account.recover_message(message, signature=theirs)[2:]) == signer.evm_address
        verify(signature, ours, signer.peer_id)


def test_a_signature_holds_for_no_other_value() -> None:
    struct = struct_type("Bill", ("uint64", "amount"))
    signer = Identity.new(b"\x07" * 32)
    signature = signer.sign(signing_digest(LOCAL, struct, 1))
    verify(signature, signing_digest(LOCAL, struct, 1), signer.peer_id)
    for other in (
        signing_digest(LOCAL, struct, 2),
        signing_digest(Domain(1), struct, 1),
        signing_digest(Domain(0, b"\x01" * 20), struct, 1),
        signing_digest(LOCAL, struct_type("Bill", ("uint64", "price")), 1),
        signing_digest(LOCAL, struct_type("Invoice", ("uint64", "amount")), 1),
    ):
        with pytest.raises(InvalidMessage):
            verify(signature, other, signer.peer_id)


def test_a_domain_is_hashed_as_the_standard_says() -> None:
    type_hash = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    words = (
        type_hash + keccak256(b"loremesh") + keccak256(b"1") + (31337).to_bytes(32, "big") + bytes(12) + b"\x22" * 20
    )
    assert domain_separator(Domain(31337, b"\x22" * 20)) == keccak256(words)


def test_keccak_is_the_one_of_the_evm() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
