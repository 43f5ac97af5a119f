"""Putting a block together: the producer's side of the rules in `validation`.

Source: docs/protocol/block.md.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.block import (
    PARAGRAPH,
    BirthCertificate,
    Block,
    Content,
    Header,
    content_root,
    header_hash,
    transaction_root,
)
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import SignedServing
from loremesh.protocol.state import State
from loremesh.protocol.state_transition import apply
from loremesh.protocol.transaction import Transaction
from loremesh.protocol.validation import Link, target_after


@dataclass(frozen=True, slots=True)
class Parent:
    """What a block is built on."""

    link: Link
    state: State


def paragraph(
    author: PeerId,
    text: str,
    model: str,
    prompt_digest: Hash,
    suggestions: Sequence[Hash] = (),
    *,
    serving: SignedServing | None = None,
) -> Content:
    """Give a paragraph with its birth certificate.

    Args:
        author: Whose block it goes into.
        text: Already folded to one paragraph.
        model: The name the backend gave.
        prompt_digest: Of the whole prompt.
        suggestions: Ids of the open suggestions in the prompt.
        serving: Of the executor that served exactly this text, with this model, to this prompt.
    """
    output = Hash(hashlib.sha256(text.encode()).digest())
    served = () if serving is None else (serving,)
    return Content(PARAGRAPH, text, BirthCertificate(author, model, prompt_digest, output, tuple(suggestions), served))


def produce(
    genesis: Genesis,
    parent: Parent,
    identity: Identity,
    *,
    time: Millis,
    nonce: int,
    content: Content,
    transactions: tuple[Transaction, ...] = (),
) -> Block:
    """Sign the block with these parts.

    Args:
        genesis: Of the story.
        parent: The block to build on.
        identity: The producer.
        time: Not before `validation.earliest_time`.
        nonce: Meets the parent's `validation.target_after`.
        content: Its author is the producer.
        transactions: In the order in which they apply.

    Raises:
        ProtocolError: The state after these parts cannot be computed, so nobody would accept the block.
    """
    story, height = story_id(genesis), Height(parent.link.height + 1)
    after = apply(
        parent.state,
        story=story,
        height=height,
        producer=identity.peer_id,
        content=content,
        transactions=transactions,
    )
    header = Header(
        story=story,
        height=height,
        parent=parent.link.hash,
        producer=identity.peer_id,
        time=time,
        target=target_after(genesis, parent.link),
        nonce=nonce,
        content_root=content_root(story, content),
        transaction_root=transaction_root(story, transactions),
        state_root=after.root,
    )
    return Block(header, identity.sign(header_hash(header)), content, transactions)
