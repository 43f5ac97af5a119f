"""Vectors of the state: list roots, map roots and the fold of transactions and content.

A case has a `rule`: `list root`; `map root` (steps, each `[op, key, value]`, and the root after each); or `apply`
(steps on the state of an empty story: what a block brings, and the root after it or the fault, which leaves the state
as it was).
"""

import hashlib
from dataclasses import replace

from loremesh.errors import ProtocolError
from loremesh.primitives import Hash, Height
from loremesh.protocol.block import Content
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.merkle import MerkleMap, list_root
from loremesh.protocol.production import paragraph
from loremesh.protocol.state import State
from loremesh.protocol.state_transition import apply
from loremesh.protocol.transaction import SUGGEST, Suggest, Transaction, TransactionBody, sign_transaction
from loremesh.protocol.transaction import suggestion_id as name_of
from loremesh.testing.builders import ANN, BOB, CAT, small_genesis
from loremesh.testing.vectors.plain import Case, plain

_STORY = story_id(small_genesis())
_RAIN, _SNOW = "It should rain.", "It should snow."
_PUT, _REMOVE = "put", "remove"


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    leaves = [bytes([number]) * number for number in range(9)]
    lists: list[Case] = [
        {
            "rule": "list root",
            "name": f"{size} leaves",
            "leaves": [leaf.hex() for leaf in leaves[:size]],
            "root": list_root(leaves[:size]).hex(),
        }
        for size in range(len(leaves) + 1)
    ]
    return [*lists, *_maps(), *_folds()]


def _maps() -> list[Case]:
    keys = [b"nonce/ann", b"nonce/bob", b"author/ann", b"suggestion/rain"]
    # Two keys whose paths share their first bits: they part several levels down.
    near = sorted((f"key {number}".encode() for number in range(500)), key=lambda key: hashlib.sha256(key).digest())[:2]
    told = (
        ("one key", [(_PUT, keys[0], b"1")]),
        ("a changed value", [(_PUT, keys[0], b"1"), (_PUT, keys[0], b"2"), (_PUT, keys[0], b"1")]),
        ("four keys", [(_PUT, key, b"1") for key in keys]),
        ("four keys in another order", [(_PUT, key, b"1") for key in reversed(keys)]),
        ("two near keys", [(_PUT, key, b"1") for key in near]),
        (
            "removing undoes putting",
            [*((_PUT, key, b"1") for key in [*keys, *near]), *((_REMOVE, key, b"") for key in [*near, *keys])],
        ),
        ("removing what is not there", [(_PUT, keys[0], b"1"), (_REMOVE, keys[1], b"")]),
    )
    made: list[Case] = []
    for name, steps in told:
        tree, roots = MerkleMap(), list[str]()
        for step, key, value in steps:
            tree = tree.put(key, value) if step == _PUT else tree.remove(key)
            roots.append(tree.root.hex())
        made.append(
            {
                "rule": "map root",
                "name": name,
                "steps": [[step, key.hex(), value.hex()] for step, key, value in steps],
                "roots": roots,
            }
        )
    return made


def _folds() -> list[Case]:
    def suggest(sender: Identity, nonce: int, text: str) -> Transaction:
        return sign_transaction(sender, _STORY, nonce, SUGGEST, Suggest(text))

    rain, snow = name_of(_STORY, _RAIN), name_of(_STORY, _SNOW)
    first = (suggest(ANN, 0, _RAIN),)
    forged = replace(first[0], body=replace(first[0].body, sender=BOB.peer_id))
    unknown = TransactionBody(ANN.peer_id, 0, "wish", encode(Suggest(_RAIN)))
    return [
        _fold("a block with nothing but its paragraph", [(BOB, (), ()), (CAT, (), ()), (BOB, (), ())]),
        _fold("a suggestion opens", [(BOB, first, ())]),
        _fold("the same text from another sender supports it", [(BOB, (*first, suggest(CAT, 0, _RAIN)), ())]),
        _fold("a paragraph closes a suggestion", [(BOB, first, ()), (CAT, (), (rain,))]),
        _fold("a block takes up what it carries itself", [(BOB, first, (rain,))]),
        _fold("a closed suggestion may open again", [(BOB, first, (rain,)), (CAT, (suggest(ANN, 1, _RAIN),), ())]),
        _fold("nonces go up by one", [(BOB, (suggest(ANN, 0, _RAIN), suggest(ANN, 1, _SNOW)), ())]),
        _fold("a nonce left out", [(BOB, (suggest(ANN, 1, _RAIN),), ())]),
        _fold("a nonce used twice", [(BOB, first, ()), (CAT, (suggest(ANN, 0, _SNOW),), ())]),
        _fold("support from the sender itself", [(BOB, first, ()), (CAT, (suggest(ANN, 1, _RAIN),), ())]),
        _fold("an unknown suggestion taken up", [(BOB, first, (snow,))]),
        _fold("a suggestion taken up twice", [(BOB, first, (rain, rain))]),
        _fold("a signature of somebody else", [(BOB, (forged,), ())]),
        _fold("an unknown kind", [(BOB, (Transaction(unknown, ANN.sign(Hash(bytes(32)))),), ())]),
        _fold("two lines in a suggestion", [(BOB, (suggest(ANN, 0, "Rain.\nSnow."),), ())]),
    ]


def _fold(name: str, blocks: list[tuple[Identity, tuple[Transaction, ...], tuple[Hash, ...]]]) -> Case:
    state, steps = State(), list[Case]()
    for height, (producer, transactions, suggestions) in enumerate(blocks, start=1):
        content = paragraph(producer.peer_id, f"Night {height}.", "builtin", Hash(bytes(32)), suggestions)
        step: Case = {
            "height": height,
            "producer": producer.peer_id.hex(),
            "content": encode(content).hex(),
            "transactions": [encode(transaction).hex() for transaction in transactions],
        }
        result, state = _applied(state, Height(height), producer, content, transactions)
        steps.append(step | result)
    return {"rule": "apply", "name": name, "story": _STORY.hex(), "steps": steps, "state": _entries(state)}


def _applied(
    state: State, height: Height, producer: Identity, content: Content, transactions: tuple[Transaction, ...]
) -> tuple[Case, State]:
    try:
        state = apply(
            state,
            story=_STORY,
            height=height,
            producer=producer.peer_id,
            content=content,
            transactions=transactions,
        )
    except ProtocolError as error:
        return {"fault": str(error.fault), "root": state.root.hex()}, state
    return {"fault": None, "root": state.root.hex()}, state


def _entries(state: State) -> Case:
    """Show what the state holds at the end, sorted by key."""
    return {
        "nonces": {sender.hex(): nonce for sender, nonce in sorted(state.nonces.items())},
        "suggestions": {name.hex(): plain(entry) for name, entry in sorted(state.suggestions.items())},
        "authors": {author.hex(): plain(entry) for author, entry in sorted(state.authors.items())},
    }
