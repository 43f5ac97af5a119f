"""Verify a story with no network at all: the rules are plain functions over plain values.

Three authors write six paragraphs in memory, with real work and real signatures. A second reader, who has nothing but
the genesis and the bytes, checks all of it; then somebody changes one word.

Run it: python examples/verify_offline.py
"""

from dataclasses import replace

from loremesh.errors import InvalidBlock
from loremesh.primitives import Hash, Millis
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import Store, new_store, on_block
from loremesh.protocol.genesis import Genesis, Parameters, story_id
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.production import Parent, paragraph, produce
from loremesh.protocol.validation import earliest_time, target_after
from loremesh.protocol.work import search, search_prefix

START = Millis(1_700_000_000_000)
MUCH_LATER = Millis(START + 3_600_000)
GENESIS = Genesis(
    title="The Lamp at Gull Harbour",
    premise="A keeper finds a map of an island that no chart has ever shown.",
    language="en",
    time=START,
    parameters=Parameters(initial_work=2**12, easiest_work=2**8),
)
AUTHORS = [Identity.generate(bytes([number]) * 32) for number in (1, 2, 3)]
PARAGRAPHS = [
    "Mara unrolled the map on the lamp-room floor and held its corners down with oil cans.",
    "The island lay three days west of anything, drawn by somebody who had counted every rock.",
    "In the margin stood a single word, and the word was her own name.",
    "She told nobody. She mended the small boat and learned to sleep in the afternoons.",
    "On the ninth night the lamp went out by itself, and far off a second one answered.",
    "So she rowed, with the map between her knees, towards a light that should not be there.",
]


def write_story() -> list[bytes]:
    """Take turns at writing; give the encoded blocks, as they would lie on a disk or travel in a frame."""
    store = new_store(GENESIS, MUCH_LATER)
    written = []
    for number, text in enumerate(PARAGRAPHS):
        block = write_block(store, AUTHORS[number % len(AUTHORS)], text)
        store = on_block(store, block)
        written.append(encode(block))
    return written


def write_block(store: Store, author: Identity, text: str) -> Block:
    """Do the work for a block on the head, and sign it."""
    parent = Parent(store.tip.link, store.states[store.head])
    prefix = search_prefix(store.story, parent.link.hash, author.peer_id)
    target, nonce, start = target_after(GENESIS, parent.link), None, 0
    while nonce is None:
        nonce = search(prefix, target, start, 4096)
        start += 4096
    usual = Millis(parent.link.time + GENESIS.parameters.spacing)
    return produce(
        GENESIS,
        parent,
        author,
        time=max(usual, earliest_time(GENESIS, parent.link, author.peer_id)),
        nonce=nonce,
        content=paragraph(author.peer_id, text, "by hand", Hash(bytes(32))),
    )


def verify(encoded: list[bytes]) -> Store:
    """Check everything: encoding, signatures, work, links, times, content and state roots.

    Raises:
        ProtocolError: With the fault of the first thing that is wrong.
    """
    store = new_store(GENESIS, MUCH_LATER)
    for data in encoded:
        store = on_block(store, decode(Block, data))
    return store


def main() -> None:
    """Write, verify, forge, and see the forgery refused."""
    story = write_story()
    store = verify(story)
    print(
        f"story {story_id(GENESIS).hex()[:16]}…: {store.tip.link.height} blocks verified, {store.tip.work} hashes spent"
    )
    for data in story:
        block = decode(Block, data)
        print(f"  {block.header.height} …{peer_id_text(block.header.producer)[-8:]}  {block.content.text}")

    block = decode(Block, story[2])
    forged = replace(block, content=replace(block.content, text=block.content.text.replace("her own", "the king's")))
    try:
        verify([*story[:2], encode(forged), *story[3:]])
    except InvalidBlock as error:
        print(f"one word changed in block 3: refused, {error.fault}")


if __name__ == "__main__":
    main()
