"""A birth certificate may carry the word of the executor that served the text; a wrong one makes the block invalid."""

from dataclasses import replace

import pytest

from loremesh.errors import InvalidBlock, InvalidMessage
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import on_block
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.llm import ChatMessage, SignedServing, prompt_digest, sign_serving
from loremesh.protocol.production import paragraph
from loremesh.protocol.views import block_view
from loremesh.testing.bad_blocks import Scene, scene, with_serving
from loremesh.testing.builders import BOB, CAT, block_on
from loremesh.testing.calls import chat_request

ANSWER = "Here is the next paragraph:\n\n**Nobody** kept the lamp that night.\n\nShall I go on?"
FOLDED = "Nobody kept the lamp that night."
ASKED = (ChatMessage("user", "What happens at night?"),)


@pytest.fixture(name="at", scope="module")
def _at() -> Scene:
    return scene()


@pytest.mark.parametrize("executor", [CAT, BOB], ids=["another", "its author"])
def test_a_paragraph_that_is_what_an_executor_served_may_say_so(at: Scene, executor: Identity) -> None:
    request = chat_request(executor=executor.peer_id, messages=ASKED, fold_words=140)
    statement = sign_serving(executor, request, ANSWER)
    content = paragraph(BOB.peer_id, FOLDED, request.model, prompt_digest(ASKED), serving=statement)
    block = block_on(at.genesis, at.parent, BOB, content=content)
    assert on_block(at.store, decode(Block, encode(block))).head == header_hash(block.header)
    assert block_view(block)["served_by"] == peer_id_text(executor.peer_id)


def test_without_that_word_a_paragraph_is_its_authors(at: Scene) -> None:
    assert at.good.content.certificate.serving == ()
    assert block_view(at.good)["served_by"] is None


def test_one_changed_byte_of_the_word_makes_the_block_invalid(at: Scene) -> None:
    (good,) = with_serving(at).content.certificate.serving
    data = encode(good)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        try:
            statement = decode(SignedServing, bytes(changed))
        except InvalidMessage:
            continue
        with pytest.raises(InvalidBlock):
            on_block(at.store, with_serving(at, statement))


def test_two_words_do_not_fit_into_a_certificate(at: Scene) -> None:
    content = with_serving(at).content
    (good,) = content.certificate.serving
    twice = replace(content, certificate=replace(content.certificate, serving=(good, good)))
    with pytest.raises(InvalidMessage):
        decode(Block, encode(replace(at.good, content=twice)))
