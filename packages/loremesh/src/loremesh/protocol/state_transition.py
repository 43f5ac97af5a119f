"""`apply`: what a block does to the state. Pure; the producer and every validator of a block call the same function.

Source: docs/protocol/state.md.
"""

from loremesh.errors import Fault, InvalidContent, InvalidTransaction
from loremesh.primitives import Hash, Height, PeerId, StoryId
from loremesh.protocol.block import Content
from loremesh.protocol.state import (
    MAX_OPEN_SUGGESTIONS,
    MAX_SUPPORTERS,
    State,
    Suggestion,
    with_nonce,
    with_paragraph_by,
    with_suggestion,
    without_suggestion,
)
from loremesh.protocol.transaction import Suggest, Transaction, check_transaction, suggestion_id


def apply(
    state: State,
    *,
    story: StoryId,
    height: Height,
    producer: PeerId,
    content: Content,
    transactions: tuple[Transaction, ...],
) -> State:
    """Give the state after a block with these parts.

    Transactions come first, in order; then the content closes the suggestions its birth certificate names, so a block
    may take up a suggestion that it carries itself.

    Raises:
        InvalidTransaction: A transaction that may not stand here.
        InvalidContent: UNKNOWN_SUGGESTION, the certificate names a suggestion that is not open.
    """
    for transaction in transactions:
        state = apply_transaction(state, story, height, transaction)
    for name in content.certificate.suggestions:
        if name not in state.suggestions:
            raise InvalidContent(Fault.UNKNOWN_SUGGESTION, name.hex()[:8])
        state = without_suggestion(state, name)
    return with_paragraph_by(state, producer, height)


def apply_transaction(state: State, story: StoryId, height: Height, transaction: Transaction) -> State:
    """Give the state after one transaction.

    Raises:
        InvalidTransaction: Bad in itself, WRONG_NONCE, or against what the state already says.
    """
    payload = check_transaction(story, transaction)
    sender, nonce = transaction.body.sender, transaction.body.nonce
    if nonce != state.nonce(sender):
        raise InvalidTransaction(Fault.WRONG_NONCE, f"{nonce}, the next is {state.nonce(sender)}")
    state = with_nonce(state, sender, nonce + 1)
    return _suggest(state, story, height, sender, payload)


def _suggest(state: State, story: StoryId, height: Height, sender: PeerId, suggest: Suggest) -> State:
    name = suggestion_id(story, suggest.text)
    known = state.suggestions.get(name)
    if known is None:
        if len(state.suggestions) >= MAX_OPEN_SUGGESTIONS:
            state = without_suggestion(state, _least_wanted(state))
        return with_suggestion(state, name, Suggestion(suggest.text, height, (sender,)))
    if sender in known.supporters:
        raise InvalidTransaction(Fault.DUPLICATE, "supports this suggestion already")
    if len(known.supporters) >= MAX_SUPPORTERS:
        raise InvalidTransaction(Fault.QUOTA, f"has {MAX_SUPPORTERS} supporters already")
    return with_suggestion(state, name, Suggestion(known.text, known.opened_at, (*known.supporters, sender)))


def _least_wanted(state: State) -> Hash:
    """Name the open suggestion with the fewest supporters; of those the oldest, then the lowest id."""
    return min(state.suggestions.items(), key=lambda item: (len(item[1].supporters), item[1].opened_at, item[0]))[0]
