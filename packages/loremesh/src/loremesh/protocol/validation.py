"""The objective rules of a block, in the order of their cost: what every node recomputes and nobody votes on.

Source: docs/protocol/block.md, which numbers the rules.
"""

import hashlib
from typing import Final, NamedTuple

from loremesh.errors import Fault, InvalidBlock, ProtocolError
from loremesh.primitives import Hash, Height, Millis, PeerId, Signature, StoryId, Target
from loremesh.protocol.block import (
    PARAGRAPH,
    BirthCertificate,
    Block,
    Content,
    Header,
    SignedHeader,
    content_root,
    header_hash,
    transaction_root,
)
from loremesh.protocol.codec import encode, limit_of
from loremesh.protocol.content.paragraph import check_paragraph
from loremesh.protocol.genesis import GENESIS_HEIGHT, Genesis, story_id
from loremesh.protocol.identity import check_peer_id, verify
from loremesh.protocol.llm import check_serving
from loremesh.protocol.recent import Recent
from loremesh.protocol.state import State
from loremesh.protocol.state_transition import apply
from loremesh.protocol.transaction import Transaction
from loremesh.protocol.work import meets, next_target, search_prefix, target_of

MODEL_WORDS: Final = 16


_BARE_BLOCK_BYTES: Final = limit_of(SignedHeader) + limit_of(Content)
good_signatures: Final = Recent(2048)
"""In sync a header comes ahead of its block, by so many at most; in gossip a block may come more than once."""


class Link(NamedTuple):
    """What a block's child needs to know of it: enough to check a chain of headers."""

    hash: Hash
    height: Height
    producer: PeerId | None
    """None: a genesis that names no first tracker."""
    time: Millis
    target: Target
    took: Millis
    """Time since this block's own parent."""


def genesis_link(genesis: Genesis) -> Link:
    """Give the link that every story starts from."""
    parameters = genesis.parameters
    return Link(
        hash=story_id(genesis),
        height=GENESIS_HEIGHT,
        producer=genesis.tracker[0] if genesis.tracker else None,
        time=genesis.time,
        target=target_of(parameters.initial_work),
        took=parameters.spacing,
    )


def link_of(header: Header, parent: Link, name: Hash | None = None) -> Link:
    """Give the link of a checked header; `name` is its hash where that is known already."""
    took = Millis(header.time - parent.time)
    producer = check_peer_id(header.producer)  # gives one object for all blocks of one producer: links are kept
    return Link(name or header_hash(header), header.height, producer, header.time, header.target, took)


def target_after(genesis: Genesis, parent: Link) -> Target:
    """Give the target that a child of `parent` must carry."""
    parameters = genesis.parameters
    return next_target(
        parent.target,
        parent.took,
        spacing=parameters.spacing,
        half_life=parameters.half_life,
        easiest_work=parameters.easiest_work,
    )


def earliest_time(genesis: Genesis, parent: Link, producer: PeerId) -> Millis:
    """Give the least time that a child of `parent` by `producer` may carry."""
    parameters = genesis.parameters
    wait = parameters.solo_after if producer == parent.producer else parameters.min_spacing
    return Millis(parent.time + max(wait, parameters.min_spacing))


def check_header_alone(genesis: Genesis, story: StoryId, signed: SignedHeader) -> Hash:
    """Check what can be said of a header whose parent may be unknown; give its hash.

    The work must meet the target the header *claims*, and that must be within the story's bounds: so even an orphan
    has cost its sender something.

    Raises:
        InvalidBlock: With the fault.
    """
    return _check_header(genesis, story, signed.header, signed.signature)


def _check_header(genesis: Genesis, story: StoryId, header: Header, signature: Signature) -> Hash:
    name = check_work(genesis, story, header)
    try:
        check_signature(name, signature, header.producer)
    except ProtocolError as error:
        raise InvalidBlock(error.fault, name, error.detail) from error
    return name


def check_signature(name: Hash, signature: Signature, producer: PeerId) -> None:
    """Check that a block's producer signed it.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    said = hashlib.sha256(name + signature + producer).digest()
    if said not in good_signatures:
        check_peer_id(producer)
        verify(signature, name, producer)
        good_signatures.add(said)


def check_work(genesis: Genesis, story: StoryId, header: Header) -> Hash:
    """Check that a header belongs to `story` and has done the work that it claims; give its hash.

    Raises:
        InvalidBlock: WRONG_STORY, WRONG_TARGET or WORK_NOT_MET.
    """
    name = header_hash(header)
    if header.story != story:
        raise InvalidBlock(Fault.WRONG_STORY, name)
    if not 1 <= header.target <= target_of(genesis.parameters.easiest_work):
        raise InvalidBlock(Fault.WRONG_TARGET, name, "outside the story's bounds")
    if not meets(search_prefix(story, header.parent, header.producer), header.nonce, header.target):
        raise InvalidBlock(Fault.WORK_NOT_MET, name)
    return name


def check_header_link(genesis: Genesis, header: Header, parent: Link, name: Hash) -> None:
    """Check a header against its parent.

    Raises:
        InvalidBlock: WRONG_HEIGHT, WRONG_TARGET, TOO_EARLY or TRACKER_TOO_SOON.
    """
    if header.height != parent.height + 1:
        raise InvalidBlock(Fault.WRONG_HEIGHT, name, f"{header.height} on {parent.height}")
    if header.target != target_after(genesis, parent):
        raise InvalidBlock(Fault.WRONG_TARGET, name, "not what the parent asks for")
    if header.time < earliest_time(genesis, parent, header.producer):
        if header.time < parent.time + genesis.parameters.min_spacing:
            raise InvalidBlock(Fault.TOO_EARLY, name, f"{header.time - parent.time} ms after its parent")
        raise InvalidBlock(Fault.TRACKER_TOO_SOON, name, f"{header.time - parent.time} ms after its own block")


def check_block_alone(genesis: Genesis, story: StoryId, block: Block) -> Hash:
    """Check what can be said of a block whose parent may be unknown; give its hash.

    Raises:
        InvalidBlock: With the fault.
    """
    name = _check_header(genesis, story, block.header, block.signature)
    rules, header, content = genesis.rules, block.header, block.content
    if len(block.transactions) > rules.transactions:
        raise InvalidBlock(
            Fault.TOO_MANY_TRANSACTIONS, name, f"{len(block.transactions)}, at most {rules.transactions}"
        )
    if header.content_root != content_root(story, content):
        raise InvalidBlock(Fault.WRONG_CONTENT_ROOT, name)
    if header.transaction_root != transaction_root(story, block.transactions):
        raise InvalidBlock(Fault.WRONG_TRANSACTION_ROOT, name)
    # A block with few transactions cannot be over the limit, so it need not be encoded to be measured.
    if _BARE_BLOCK_BYTES + len(block.transactions) * limit_of(Transaction) > rules.block_bytes:
        size = len(encode(block))
        if size > rules.block_bytes:
            raise InvalidBlock(Fault.TOO_LARGE, name, f"{size} bytes, at most {rules.block_bytes}")
    try:
        _check_content(genesis, block)
    except ProtocolError as error:
        raise InvalidBlock(error.fault, name, error.detail) from error
    return name


def _check_content(genesis: Genesis, block: Block) -> None:
    content, certificate = block.content, block.content.certificate
    if content.kind != PARAGRAPH:
        raise ProtocolError(Fault.UNKNOWN_CONTENT, repr(content.kind))
    check_paragraph(content.text, genesis.rules.words)
    # Shown beside the text: a name with control characters, or with characters whose normal form depends on the
    # Unicode table of the running Python, may not enter a chain either.
    check_paragraph(certificate.model, MODEL_WORDS)
    if certificate.author != block.header.producer:
        raise ProtocolError(Fault.WRONG_AUTHOR)
    if certificate.output_digest != hashlib.sha256(content.text.encode()).digest():
        raise ProtocolError(Fault.WRONG_OUTPUT)
    _check_servings(certificate)


def _check_servings(certificate: BirthCertificate) -> None:
    """Check that an executor served what the certificate attests; its author may be that executor."""
    for signed in certificate.serving:
        for field in ("model", "prompt_digest", "output_digest"):
            if getattr(signed.serving, field) != getattr(certificate, field):
                raise ProtocolError(Fault.WRONG_SERVING, f"another {field}")
        check_serving(signed)


def state_after(story: StoryId, block: Block, state: State, name: Hash) -> State:
    """Give the state after `block`, whose parent has `state`.

    Raises:
        InvalidBlock: A transaction or a citation that may not stand here, or WRONG_STATE_ROOT.
    """
    header = block.header
    try:
        after = apply(
            state,
            story=story,
            height=header.height,
            producer=header.producer,
            content=block.content,
            transactions=block.transactions,
        )
    except ProtocolError as error:
        raise InvalidBlock(error.fault, name, error.detail) from error
    if after.root != header.state_root:
        raise InvalidBlock(Fault.WRONG_STATE_ROOT, name)
    return after
