"""A block off the wire with every rule on, against the least that would do: decode, one hash, the signatures.

Accepting: decode, `on_block` with the state transition and the choice of the head. Refusing: the same for a block that
breaks one rule, against accepting the good one.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import msgpack

from harness import Row, Samples, at_least, at_most, compare, timed
from loremesh.errors import InvalidBlock, InvalidMessage
from loremesh.primitives import Hash, Signature, Target
from loremesh.protocol.block import Block, transaction_root
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import on_block
from loremesh.protocol.identity import Identity, verify
from loremesh.protocol.transaction import _checked
from loremesh.protocol.validation import good_signatures
from loremesh.testing.builders import ANN, BOB, resigned
from stories import Sample, chain, signer_of

Spoil = Callable[[Block], bytes]


def run() -> list[Row]:
    """Measure accepting, then refusing, the costliest refusals first."""
    usual, small, full = chain(100, 0), chain(17, 0), chain(100, 4)
    return [
        _accept("block of 100 words", usual),
        _accept("block of 17 words", small),
        _accept("block of 100 words and 4 suggestions", full),
        _refuse("wrong state root", usual, _with_state_root),
        _refuse("wrong signature", usual, _with_signature),
        _refuse("changed text", usual, _with_text),
        _refuse("wrong target", usual, _with_target),
        _refuse("cut short", usual, lambda block: encode(block)[:-1]),
        _refuse("wrong state root, 4 suggestions", full, _with_state_root),
        _refuse("wrong signature of the last of 4 suggestions", full, _with_bad_suggestion),
    ]


def _accept(what: str, samples: list[Sample]) -> Row:
    def bare(sample: Sample) -> None:
        msgpack.unpackb(sample.wire)
        hashlib.sha256(sample.wire).digest()
        for signature, digest, signer in sample.signatures:
            verify(signature, digest, signer)

    size, checks = sum(len(sample.wire) for sample in samples) // len(samples), len(samples[0].signatures)
    return compare(
        f"accept a {what}, {size} bytes",
        "µs",
        lambda: _accepting(samples),
        against=f"decode + sha256 + {checks} signature{'s' if checks > 1 else ''}",
        peer=lambda: timed(bare, samples),
        goal=at_least(0.5),
    )


def _refuse(what: str, samples: list[Sample], spoil: Spoil) -> Row:
    bad = [(sample, spoil(sample.block)) for sample in samples]

    def refuse(case: tuple[Sample, bytes]) -> None:
        sample, wire = case
        try:
            on_block(sample.before, decode(Block, wire))
        except (InvalidBlock, InvalidMessage):
            return
        raise AssertionError(f"{what} was accepted")

    def refusing() -> Samples:
        _forget_signatures()
        return timed(refuse, bad)

    def accepting() -> Samples:
        return _accepting(samples)

    return compare(
        f"refuse: {what}", "µs", refusing, against="accepting the good one", peer=accepting, goal=at_most(1.1)
    )


def _accepting(samples: list[Sample]) -> Samples:
    def accept(sample: Sample) -> None:
        on_block(sample.before, decode(Block, sample.wire))

    _forget_signatures()
    return timed(accept, samples)


def _forget_signatures() -> None:
    """Forget what gossip or sync had seen of these blocks and transactions: every signature is checked."""
    _checked.cache_clear()
    good_signatures.clear()


def _with_state_root(block: Block) -> bytes:
    return encode(resigned(block, signer_of(block), state_root=Hash(bytes(32))))


def _with_signature(block: Block) -> bytes:
    return encode(resigned(block, _stranger_to(block)))


def _with_text(block: Block) -> bytes:
    return encode(replace(block, content=replace(block.content, text=block.content.text.swapcase())))


def _with_target(block: Block) -> bytes:
    return encode(resigned(block, signer_of(block), target=Target(block.header.target - 1)))


def _with_bad_suggestion(block: Block) -> bytes:
    last = block.transactions[-1]
    forged = replace(last, signature=Signature(_stranger_to(block).sign(Hash(bytes(32)))))
    block = replace(block, transactions=(*block.transactions[:-1], forged))
    root = transaction_root(block.header.story, block.transactions)
    return encode(resigned(block, signer_of(block), transaction_root=root))


def _stranger_to(block: Block) -> Identity:
    return ANN if signer_of(block) is BOB else BOB
