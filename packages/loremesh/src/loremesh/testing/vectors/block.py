"""Vectors of the rules of a block, one broken rule at a time.

The file's `scene` is the genesis, the local clock and the blocks that a node has taken in, in this order. A case is
`{"name", "hex", "hash", "fault"}`: the next block to arrive (`fault` null: it joins, and is the head). Every case
starts from the scene.
"""

from loremesh.errors import ProtocolError
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import on_block
from loremesh.testing.bad_blocks import BAD_BLOCKS, Scene, scene, wishes, with_serving
from loremesh.testing.builders import ANN, CAT, block_on
from loremesh.testing.vectors.plain import Case

# These cannot be written in bytes: the encoding refuses them before any rule of blocks is asked.
_NOT_ENCODABLE = frozenset({"signature too short", "a text over 4 KiB", "text not in NFC"})


def context() -> Case:
    """Give what every case starts from."""
    at = scene()
    return {
        "scene": {
            "genesis": encode(at.genesis).hex(),
            "story": at.story.hex(),
            "now": at.store.now,
            "blocks": [encode(block).hex() for block in at.before],
            "head": at.store.head.hex(),
        }
    }


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    at = scene()
    parameters = at.genesis.parameters
    good = (
        ("in order", at.good),
        ("at the minimum spacing", block_on(at.genesis, at.parent, ANN, time=at.parent.link.time + 1000)),
        (
            "the tracker, after solo_after",
            block_on(at.genesis, at.parent, CAT, time=at.parent.link.time + parameters.solo_after),
        ),
        (
            "as many transactions as allowed",
            block_on(
                at.genesis,
                at.parent,
                ANN,
                transactions=wishes(at, at.genesis.rules.transactions, "Wish"),
            ),
        ),
        ("served by an executor", with_serving(at)),
        ("a hundred and forty words", block_on(at.genesis, at.parent, ANN, text=" ".join(["word"] * 140))),
    )
    bad = [(bad.name, bad.make(at)) for bad in BAD_BLOCKS if bad.name not in _NOT_ENCODABLE]
    return [_case(at, name, block) for name, block in [*good, *bad]]


def _case(at: Scene, name: str, block: Block) -> Case:
    try:
        fault = None
        on_block(at.store, block)
    except ProtocolError as error:
        fault = str(error.fault)
    return {"name": name, "hex": encode(block).hex(), "hash": header_hash(block.header).hex(), "fault": fault}
