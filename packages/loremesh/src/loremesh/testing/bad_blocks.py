"""One block for every rule that a block can break: for tests of the rules, of a node under attack, and for vectors.

Every lie is told as well as it can be told: apart from the one rule it breaks, the block is in order, its work is done
and its producer really signed it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from loremesh.errors import Fault
from loremesh.primitives import KIB, Hash, Millis, PeerId, Signature, Target
from loremesh.protocol.block import (
    Block,
    Content,
    Header,
    content_root,
    header_hash,
    transaction_root,
)
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import Store, new_store, on_block
from loremesh.protocol.genesis import Genesis, Parameters, Rules, story_id
from loremesh.protocol.identity import NO_STORY, Identity, digest
from loremesh.protocol.llm import Serving, SignedServing, serving_digest
from loremesh.protocol.production import Parent, paragraph
from loremesh.protocol.transaction import (
    SUGGEST,
    Suggest,
    Transaction,
    TransactionBody,
    sign_transaction,
    suggestion_id,
    transaction_hash,
)
from loremesh.protocol.work import meets, search_prefix, target_of
from loremesh.testing.builders import (
    ANN,
    BOB,
    CAT,
    DAN,
    START,
    block_on,
    find,
    identity,
    parent_of,
    resigned,
    small_genesis,
    suggestion,
)

PARAMETERS: Final = Parameters(initial_work=16, easiest_work=4)
"""Little work, but enough that a wrong nonce shows."""
RULES: Final = Rules(block_bytes=8 * KIB, transactions=8)
WISH: Final = "The tide should bring a second bottle."
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_WORDS: Final = "the lamp went out and came back"


@dataclass(frozen=True, slots=True)
class Cast:
    """Whose keys are at hand."""

    ann: Identity = ANN
    bob: Identity = BOB
    cat: Identity = CAT
    dan: Identity = DAN


@dataclass(frozen=True, slots=True)
class Scene:
    """A short story, and a good block that has not arrived yet.

    Ann is the first tracker; Bob wrote block 1, which opened Dan's suggestion; Cat wrote block 2, the head, so she is
    the tracker now; Dan signed two headers beside block 1; Bob's `good` is the next block.
    """

    genesis: Genesis
    story: Hash
    store: Store
    before: tuple[Block, ...]
    """What the store has taken in, oldest first."""
    good: Block
    cast: Cast = Cast()

    @property
    def parent(self) -> Parent:
        """What the next block is built on."""
        return parent_of(self.store)

    @property
    def root(self) -> Parent:
        """What the first blocks were built on."""
        return parent_of(self.store, self.story)


def scene() -> Scene:
    """Set the scene; the same in every run."""
    genesis = replace(small_genesis(PARAMETERS, tracker=ANN), rules=RULES)
    store = new_store(genesis, Millis(START + 60_000))
    root = parent_of(store)
    first = block_on(genesis, root, BOB, transactions=(suggestion(DAN, genesis, WISH),))
    before = [first, block_on(genesis, root, DAN), block_on(genesis, root, DAN, salt="again")]
    for block in before:
        store = on_block(store, block)
    second = block_on(genesis, parent_of(store, header_hash(first.header)), CAT)
    store = on_block(store, second)
    good = block_on(genesis, parent_of(store), BOB)
    return Scene(genesis, story_id(genesis), store, (*before, second), good)


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A block that must be refused, and why."""

    name: str
    fault: Fault
    make: Callable[[Scene], Block]


def with_body(
    where: Scene,
    *,
    content: Content | None = None,
    transactions: tuple[Transaction, ...] = (),
) -> Block:
    """Give Bob's block with another body, to which its header commits; the state root is left as it was."""
    content = where.good.content if content is None else content
    block = replace(where.good, content=content, transactions=transactions)
    return resigned(
        block,
        where.cast.bob,
        content_root=content_root(where.story, content),
        transaction_root=transaction_root(where.story, transactions),
    )


def with_text(where: Scene, text: str) -> Block:
    """Give Bob's block with another text."""
    return with_body(where, content=paragraph(where.cast.bob.peer_id, text, "builtin", Hash(bytes(32))))


def with_serving(where: Scene, serving: SignedServing | None = None) -> Block:
    """Give Bob's block with the word of whoever served the text; Dan's by default."""
    content = where.good.content
    certificate = replace(content.certificate, serving=(serving or _served(where),))
    return with_body(where, content=replace(content, certificate=certificate))


def worked(block: Block, signer: Identity, **changes: object) -> Block:
    """Change header fields, do the work that the new header claims, and sign it."""
    header = resigned(block, signer, **changes).header
    is_done = header.target == block.header.target and _is_worked(header)
    nonce = header.nonce if is_done else _nonce(header, header.target, met=True)
    return resigned(block, signer, **changes, nonce=nonce)


def wishes(where: Scene, count: int, text: str) -> tuple[Transaction, ...]:
    """Give Ann's first `count` suggestions, all different."""
    return tuple(suggestion(where.cast.ann, where.genesis, f"{text} {number}.", number) for number in range(count))


def _nonce(header: Header, target: Target, *, met: bool) -> int:
    prefix = search_prefix(header.story, header.parent, header.producer)
    if met:
        return find(prefix, target)
    return next(nonce for nonce in range(2**20) if not meets(prefix, nonce, target))


def _signed_as(where: Scene, signature: bytes) -> Block:
    return replace(where.good, signature=Signature(signature))


def _high_s(where: Scene) -> Block:
    signature = where.good.signature
    mirrored = _ORDER - int.from_bytes(signature[32:64], "big")
    return _signed_as(where, signature[:32] + mirrored.to_bytes(32, "big") + bytes([signature[64] ^ 1]))


def _another_parent(where: Scene) -> Hash:
    """Give a parent for which the work is not done."""
    header = where.good.header
    strays = (Hash(hashlib.sha256(bytes([number])).digest()) for number in range(256))
    return next(stray for stray in strays if not _is_worked(replace(header, parent=stray)))


def _another_producer(where: Scene) -> PeerId:
    """Give a producer for whom the work is not done."""
    header = where.good.header
    others = (identity(f"producer {number}").peer_id for number in range(256))
    return next(other for other in others if not _is_worked(replace(header, producer=other)))


def _is_worked(header: Header) -> bool:
    return meets(search_prefix(header.story, header.parent, header.producer), header.nonce, header.target)


def _unsigned_change(**changes: Callable[[Scene], object]) -> Callable[[Scene], Block]:
    """Change header fields and leave the signature: somebody else tampered with the block."""

    def make(where: Scene) -> Block:
        values = {name: change(where) for name, change in changes.items()}
        return replace(where.good, header=replace(where.good.header, **values))  # type: ignore[arg-type]  # any field

    return make


def _signed_change(**changes: Callable[[Scene], object]) -> Callable[[Scene], Block]:
    """Change header fields, do the work again and sign: the producer lies."""
    return lambda where: worked(where.good, where.cast.bob, **{name: change(where) for name, change in changes.items()})


def _text(text: str) -> Callable[[Scene], Block]:
    return lambda where: with_text(where, text)


def _transactions(make: Callable[[Scene], tuple[Transaction, ...]]) -> Callable[[Scene], Block]:
    return lambda where: with_body(where, transactions=make(where))


def _content(**changes: object) -> Callable[[Scene], Block]:
    def make(where: Scene) -> Block:
        return with_body(where, content=replace(where.good.content, **changes))  # type: ignore[arg-type]  # any field

    return make


def _certificate(**changes: object) -> Callable[[Scene], Block]:
    def make(where: Scene) -> Block:
        content = where.good.content
        certificate = replace(content.certificate, **changes)  # type: ignore[arg-type]  # any field
        return with_body(where, content=replace(content, certificate=certificate))

    return make


def _served(where: Scene, **changes: object) -> SignedServing:
    """Give Dan's word that he served Bob's text; `changes` make it another word, which he signs too."""
    told = where.good.content.certificate
    dan, request = where.cast.dan, _other(where.story)
    serving = Serving(dan.peer_id, request, told.model, told.prompt_digest, told.output_digest)
    serving = replace(serving, **changes)  # type: ignore[arg-type]  # any field
    return SignedServing(serving, dan.sign(serving_digest(serving)))


def _serving(**changes: Callable[[Scene], object]) -> Callable[[Scene], Block]:
    def make(where: Scene) -> Block:
        values = {name: change(where) for name, change in changes.items()}
        return with_serving(where, _served(where, **values))

    return make


def _served_under_a_progress(where: Scene) -> Block:
    signed = _served(where)
    signature = where.cast.dan.sign(digest("llm-progress", NO_STORY, encode(signed.serving)))
    return with_serving(where, replace(signed, signature=signature))


def _author(who: Callable[[Scene], Identity]) -> Callable[[Scene], Block]:
    return lambda where: _certificate(author=who(where).peer_id)(where)


def _citing(*texts: str) -> Callable[[Scene], Block]:
    def make(where: Scene) -> Block:
        names = tuple(suggestion_id(where.story, text) for text in texts)
        return _certificate(suggestions=names)(where)

    return make


def _raw(where: Scene, sender: Identity, nonce: int, kind: str, payload: bytes) -> Transaction:
    body = TransactionBody(sender.peer_id, nonce, kind, payload)
    return Transaction(body, sender.sign(transaction_hash(where.story, body)))


def _wish(text: str) -> bytes:
    return encode(Suggest(text))


def _suggested_by_no_key(where: Scene) -> tuple[Transaction, ...]:
    body = TransactionBody(_NO_POINT, 0, SUGGEST, _wish("A wish."))
    return (Transaction(body, where.cast.ann.sign(transaction_hash(where.story, body))),)


def _for_another_story(where: Scene) -> tuple[Transaction, ...]:
    return (sign_transaction(where.cast.ann, _other(where.story), 0, SUGGEST, Suggest("A wish.")),)


def _easiest(where: Scene) -> Target:
    return target_of(where.genesis.parameters.easiest_work)


def _too_easy(where: Scene) -> Target:
    return Target(_easiest(where) + 1)


def _too_soon(where: Scene) -> Block:
    time = where.parent.link.time + where.genesis.parameters.solo_after - 1
    return block_on(where.genesis, where.parent, where.cast.cat, time=time)


def _wish_unsigned(where: Scene) -> tuple[Transaction, ...]:
    return (replace(suggestion(where.cast.ann, where.genesis, "A wish."), signature=Signature(bytes(65))),)


def _other(name: bytes) -> Hash:
    return Hash(hashlib.sha256(name).digest())


_NO_POINT: Final = PeerId(bytes.fromhex("002508021221") + b"\x02" + b"\xff" * 32)


THIRD_HEADER: Final = BadBlock(
    "a third header on one parent",
    Fault.EQUIVOCATION,
    lambda at: block_on(at.genesis, at.root, at.cast.dan, salt="and again"),
)
"""Valid, and so not one of the following; but nobody passes it on before somebody builds on it."""
BAD_BLOCKS: Final = (
    # ---- signatures
    BadBlock("no signature", Fault.BAD_SIGNATURE, lambda at: _signed_as(at, bytes(65))),
    BadBlock("signature with a high s", Fault.BAD_SIGNATURE, _high_s),
    BadBlock(
        "signature with an Ethereum recovery byte",
        Fault.BAD_SIGNATURE,
        lambda at: _signed_as(at, at.good.signature[:64] + bytes([at.good.signature[64] + 27])),
    ),
    BadBlock("signature too short", Fault.BAD_SIGNATURE, lambda at: _signed_as(at, at.good.signature[:64])),
    BadBlock(
        "signed by another key",
        Fault.BAD_SIGNATURE,
        lambda at: _signed_as(at, at.cast.ann.sign(header_hash(at.good.header))),
    ),
    BadBlock(
        "signed as another kind of message",
        Fault.BAD_SIGNATURE,
        lambda at: _signed_as(at, at.cast.bob.sign(digest("transaction", at.story, encode(at.good.header)))),
    ),
    BadBlock(
        "signed for another story",
        Fault.BAD_SIGNATURE,
        lambda at: _signed_as(at, at.cast.bob.sign(digest("block", _other(at.story), encode(at.good.header)))),
    ),
    # ---- a changed field under the old signature
    BadBlock("changed story", Fault.WRONG_STORY, _unsigned_change(story=lambda at: _other(at.story))),
    BadBlock("changed height", Fault.BAD_SIGNATURE, _unsigned_change(height=lambda at: at.good.header.height + 1)),
    BadBlock("changed parent", Fault.WORK_NOT_MET, _unsigned_change(parent=_another_parent)),
    BadBlock("changed producer", Fault.WORK_NOT_MET, _unsigned_change(producer=_another_producer)),
    BadBlock("changed time", Fault.BAD_SIGNATURE, _unsigned_change(time=lambda at: at.good.header.time + 1)),
    BadBlock("changed target", Fault.BAD_SIGNATURE, _unsigned_change(target=lambda at: at.good.header.target - 1)),
    BadBlock(
        "changed nonce",
        Fault.WORK_NOT_MET,
        _unsigned_change(nonce=lambda at: _nonce(at.good.header, at.good.header.target, met=False)),
    ),
    BadBlock(
        "changed content root",
        Fault.BAD_SIGNATURE,
        _unsigned_change(content_root=lambda at: _other(at.good.header.content_root)),
    ),
    BadBlock(
        "changed transaction root",
        Fault.BAD_SIGNATURE,
        _unsigned_change(transaction_root=lambda at: _other(at.good.header.transaction_root)),
    ),
    BadBlock(
        "changed state root",
        Fault.BAD_SIGNATURE,
        _unsigned_change(state_root=lambda at: _other(at.good.header.state_root)),
    ),
    # ---- a header that its producer really signed
    BadBlock("of another story", Fault.WRONG_STORY, _signed_change(story=lambda at: _other(at.story))),
    BadBlock("a height left out", Fault.WRONG_HEIGHT, _signed_change(height=lambda at: at.good.header.height + 1)),
    BadBlock("a height repeated", Fault.WRONG_HEIGHT, _signed_change(height=lambda at: at.good.header.height - 1)),
    BadBlock(
        "work not met",
        Fault.WORK_NOT_MET,
        lambda at: resigned(at.good, at.cast.bob, nonce=_nonce(at.good.header, at.good.header.target, met=False)),
    ),
    BadBlock("an easier target", Fault.WRONG_TARGET, _signed_change(target=_easiest)),
    BadBlock("a harder target", Fault.WRONG_TARGET, _signed_change(target=lambda at: at.good.header.target - 1)),
    BadBlock("target easier than the story allows", Fault.WRONG_TARGET, _signed_change(target=_too_easy)),
    BadBlock("target of zero", Fault.WRONG_TARGET, lambda at: resigned(at.good, at.cast.bob, target=0)),
    BadBlock(
        "a millisecond before the minimum spacing",
        Fault.TOO_EARLY,
        _signed_change(time=lambda at: at.parent.link.time + at.genesis.parameters.min_spacing - 1),
    ),
    BadBlock("before its parent", Fault.TOO_EARLY, _signed_change(time=lambda at: at.parent.link.time - 1)),
    BadBlock(
        "the tracker, a millisecond too soon",
        Fault.TRACKER_TOO_SOON,
        _too_soon,
    ),
    BadBlock(
        "the first tracker, too soon",
        Fault.TRACKER_TOO_SOON,
        lambda at: block_on(at.genesis, at.root, at.cast.ann, time=at.genesis.time + at.genesis.parameters.spacing),
    ),
    BadBlock("a producer that is no key", Fault.BAD_KEY, _signed_change(producer=lambda _: _NO_POINT)),
    # ---- roots
    BadBlock(
        "content root of another content",
        Fault.WRONG_CONTENT_ROOT,
        lambda at: replace(at.good, content=replace(at.good.content, text=f"{_WORDS}.")),
    ),
    BadBlock(
        "transaction root of other transactions",
        Fault.WRONG_TRANSACTION_ROOT,
        lambda at: replace(at.good, transactions=(suggestion(at.cast.ann, at.genesis, "A wish."),)),
    ),
    BadBlock(
        "state root of another state",
        Fault.WRONG_STATE_ROOT,
        _signed_change(state_root=lambda at: at.parent.state.root),
    ),
    # ---- content
    BadBlock("two paragraphs", Fault.NOT_ONE_PARAGRAPH, _text("The lamp went out.\n\nThe door opened.")),
    BadBlock("no words", Fault.EMPTY_TEXT, _text("")),
    BadBlock("only a space", Fault.EMPTY_TEXT, _text(" ")),
    BadBlock("141 words", Fault.TOO_MANY_WORDS, _text(" ".join(["word"] * 141))),
    BadBlock("a control character", Fault.FORBIDDEN_CHARACTER, _text("The lamp \x1b[2J went out.")),
    BadBlock("a bidi override", Fault.FORBIDDEN_CHARACTER, _text("The lamp \u202etuo tnew.")),
    BadBlock("text not in NFC", Fault.NOT_NFC, _text("The cafe\u0301 was dark.")),
    BadBlock("two spaces", Fault.NOT_CANONICAL, _text("The  lamp went out.")),
    BadBlock("a text over 4 KiB", Fault.TOO_LARGE, _text("lantern" * 586)),
    BadBlock("an unknown kind of content", Fault.UNKNOWN_CONTENT, _content(kind="recipe")),
    BadBlock("a control character in the model's name", Fault.FORBIDDEN_CHARACTER, _certificate(model="gpt\x1b[2J")),
    BadBlock("a model without a name", Fault.EMPTY_TEXT, _certificate(model="")),
    BadBlock("another author", Fault.WRONG_AUTHOR, _author(lambda at: at.cast.dan)),
    BadBlock("output digest of another text", Fault.WRONG_OUTPUT, _certificate(output_digest=Hash(bytes(32)))),
    BadBlock("another model was served", Fault.WRONG_SERVING, _serving(model=lambda _: "another")),
    BadBlock("another prompt was answered", Fault.WRONG_SERVING, _serving(prompt_digest=lambda at: _other(at.story))),
    BadBlock("another text was served", Fault.WRONG_SERVING, _serving(output_digest=lambda at: _other(at.story))),
    BadBlock("served by no key", Fault.BAD_KEY, _serving(executor=lambda _: _NO_POINT)),
    BadBlock("served by whom another names", Fault.BAD_SIGNATURE, _serving(executor=lambda at: at.cast.cat.peer_id)),
    BadBlock("served, signed as another kind of message", Fault.BAD_SIGNATURE, _served_under_a_progress),
    BadBlock("an unknown suggestion taken up", Fault.UNKNOWN_SUGGESTION, _citing("Nobody asked for this.")),
    BadBlock("a suggestion taken up twice", Fault.UNKNOWN_SUGGESTION, _citing(WISH, WISH)),
    # ---- transactions
    BadBlock(
        "more transactions than the story allows",
        Fault.TOO_MANY_TRANSACTIONS,
        _transactions(lambda at: wishes(at, at.genesis.rules.transactions + 1, "Wish")),
    ),
    BadBlock(
        "larger than the story allows",
        Fault.TOO_LARGE,
        lambda at: with_body(
            at,
            content=paragraph(at.cast.bob.peer_id, "lantern" * 580, "builtin", Hash(bytes(32))),
            transactions=wishes(at, at.genesis.rules.transactions, "lantern" * 70),
        ),
    ),
    BadBlock(
        "a transaction without signature",
        Fault.BAD_SIGNATURE,
        _transactions(_wish_unsigned),
    ),
    BadBlock("a transaction of another story", Fault.BAD_SIGNATURE, _transactions(_for_another_story)),
    BadBlock("a transaction of no key", Fault.BAD_KEY, _transactions(_suggested_by_no_key)),
    BadBlock(
        "a transaction that leaves out a nonce",
        Fault.WRONG_NONCE,
        _transactions(lambda at: (suggestion(at.cast.ann, at.genesis, "A wish.", 1),)),
    ),
    BadBlock(
        "a transaction of an earlier block",
        Fault.WRONG_NONCE,
        _transactions(lambda at: at.before[0].transactions),
    ),
    BadBlock(
        "a transaction twice",
        Fault.WRONG_NONCE,
        _transactions(lambda at: (suggestion(at.cast.ann, at.genesis, "A wish."),) * 2),
    ),
    BadBlock(
        "a transaction of an unknown kind",
        Fault.UNKNOWN_TYPE,
        _transactions(lambda at: (_raw(at, at.cast.ann, 0, "wish", _wish("A wish.")),)),
    ),
    BadBlock(
        "a transaction with a payload cut off",
        Fault.TRUNCATED,
        _transactions(lambda at: (_raw(at, at.cast.ann, 0, SUGGEST, _wish("A wish.")[:-1]),)),
    ),
    BadBlock(
        "a suggestion of 61 words",
        Fault.TOO_MANY_WORDS,
        _transactions(lambda at: (_raw(at, at.cast.ann, 0, SUGGEST, _wish(" ".join(["word"] * 61))),)),
    ),
    BadBlock(
        "a suggestion supported twice by one sender",
        Fault.DUPLICATE,
        _transactions(lambda at: (suggestion(at.cast.dan, at.genesis, WISH, 1),)),
    ),
)
