"""Small stories for tests: identities by name, a genesis whose work is trivial, and blocks that are valid by default.

Everything is deterministic: the same calls give the same bytes.
"""

import hashlib
from dataclasses import replace
from functools import lru_cache

from loremesh.backends.prompt import ParagraphRequest
from loremesh.primitives import Hash, Height, Millis, StoryId, Target
from loremesh.protocol.block import Block, Content, header_hash
from loremesh.protocol.fork_choice import Store
from loremesh.protocol.genesis import Genesis, Parameters, story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.production import Parent, paragraph, produce
from loremesh.protocol.transaction import SUGGEST, Suggest, Transaction, sign_transaction
from loremesh.protocol.validation import earliest_time, target_after
from loremesh.protocol.work import search, search_prefix

START = Millis(1_700_000_000_000)
EASY = Parameters(initial_work=1, easiest_work=1)


@lru_cache
def identity(name: str) -> Identity:
    """Give the identity called `name`, the same in every run."""
    return Identity.new(hashlib.sha256(b"loremesh test identity " + name.encode()).digest())


ANN, BOB, CAT, DAN = (identity(name) for name in ("ann", "bob", "cat", "dan"))


def small_genesis(
    parameters: Parameters = EASY, *, tracker: Identity | None = None, title: str = "Lanterns"
) -> Genesis:
    """Give the genesis of a story for tests; every hash meets its work."""
    return Genesis(
        title=title,
        premise="A lighthouse keeper finds a map in a bottle and rows out past the reef.",
        language="en",
        time=START,
        tracker=(tracker.peer_id,) if tracker else (),
        parameters=parameters,
    )


def parent_of(store: Store, name: Hash | None = None) -> Parent:
    """Give what a block on `name` (or on the head) is built on."""
    name = store.head if name is None else name
    return Parent(store.entries[name].link, store.states[name])


def find_nonce(genesis: Genesis, parent: Parent, producer: Identity, start: int = 0) -> int:
    """Do the work for a block by `producer` on `parent`."""
    prefix = search_prefix(story_id(genesis), parent.link.hash, producer.peer_id)
    return find(prefix, target_after(genesis, parent.link), start)


@lru_cache(maxsize=256)
def find(prefix: bytes, target: Target, start: int = 0) -> int:
    """Give the first nonce from `start` that meets a target, however long that takes; work is done once."""
    while (nonce := search(prefix, target, start, 1000)) is None:
        start += 1000
    return nonce


def text_for(producer: Identity, parent: Parent, salt: str = "") -> str:
    """Give a paragraph that names its place, so that no two blocks say the same."""
    place = hashlib.sha256(parent.link.hash + producer.peer_id + salt.encode()).hexdigest()[:12]
    return f"At dusk the keeper wrote the word {place} in the margin of the map and turned the page."


def block_on(
    genesis: Genesis,
    parent: Parent,
    producer: Identity,
    *,
    text: str | None = None,
    content: Content | None = None,
    time: int | None = None,
    transactions: tuple[Transaction, ...] = (),
    suggestions: tuple[Hash, ...] = (),
    nonce: int | None = None,
    salt: str = "",
) -> Block:
    """Give a valid block by `producer` on `parent`; every part can be said otherwise.

    `time` defaults to one spacing after the parent, or to the earliest the rules allow; `salt` makes another block of
    the same producer on the same parent.
    """
    if time is None:
        usual = parent.link.time + genesis.parameters.spacing
        time = max(usual, earliest_time(genesis, parent.link, producer.peer_id))
    if content is None:
        text = text_for(producer, parent, salt) if text is None else text
        content = paragraph(producer.peer_id, text, "builtin", Hash(bytes(32)), suggestions)
    if nonce is None:
        nonce = find_nonce(genesis, parent, producer)
    return produce(
        genesis, parent, producer, time=Millis(time), nonce=nonce, content=content, transactions=transactions
    )


def resigned(block: Block, signer: Identity, **changes: object) -> Block:
    """Change header fields of a block and sign it again: a lie that its producer really told."""
    header = replace(block.header, **changes)  # type: ignore[arg-type]  # tests lie in every field
    return replace(block, header=header, signature=signer.sign(header_hash(header)))


def suggestion(sender: Identity, genesis: Genesis, text: str, nonce: int = 0) -> Transaction:
    """Give a signed suggestion."""
    return sign_transaction(sender, story_id(genesis), nonce, SUGGEST, Suggest(text))


def paragraph_request(**changes: object) -> ParagraphRequest:
    """Give what a backend is asked for the first paragraph of a story; every part can be said otherwise."""
    usual = ParagraphRequest(
        story=StoryId(Hash(bytes(32))),
        title="The Lamp",
        premise="A keeper finds a map.",
        language="en",
        height=Height(1),
        paragraphs=(),
        suggestions=(),
        max_words=140,
        max_context=30,
        seed=bytes(32),
    )
    return replace(usual, **changes)  # type: ignore[arg-type]  # the caller names real fields
