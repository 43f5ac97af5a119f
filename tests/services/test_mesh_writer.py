"""A miner without a backend of its own: another executor's model writes, and the block carries that executor's word."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import trio

from loremesh.backends.base import Draft
from loremesh.backends.budget import DailyCap, MemoryTokenCounter
from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.chat import Deliver
from loremesh.backends.prompt import ParagraphRequest, answer_tokens, read_prompt
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendExhausted,
    BackendFailed,
    BackendGarbage,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    NoExecutor,
    PromptTooLong,
    ServiceError,
    StorageError,
    Unreachable,
    UnsupportedModel,
)
from loremesh.primitives import Height, Millis
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.journal import EntryKind
from loremesh.protocol.llm import check_serving, prompt_digest, sign_serving, text_digest
from loremesh.protocol.receipts import LENGTH, STOP
from loremesh.roles.mesh import entered
from loremesh.services.call_terms import Offered
from loremesh.services.counting import Counting
from loremesh.services.llm_server import LlmServer
from loremesh.services.mesh_writer import MeshWriter
from loremesh.services.router import Answer, Chat, Usage
from loremesh.services.slots import Slots
from loremesh.testing.builders import paragraph_request
from loremesh.testing.calls import EXECUTOR, PRICE, chat_request, count_words
from loremesh.testing.memory_journal import MemoryJournal
from loremesh.testing.small_network import SmallNetwork, SmallNode

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
MODEL = "small-model"
ANSWER = "Here is the next paragraph:\n\nNobody kept the lamp. It kept itself.\n\nShall I go on?"
FOLDED = "Nobody kept the lamp. It kept itself."
REQUEST = paragraph_request(
    height=Height(4), paragraphs=("The bottle came with the tide.",), suggestions=("The lamp should speak.",)
)


@dataclass
class OneAnswer:
    """A mesh with one executor, which signs what it is told to have answered."""

    text: str = ANSWER
    signed: str | None = ANSWER
    finish: str = STOP
    failure: ServiceError | None = None
    asked: list[Chat] = field(default_factory=list)

    async def call(self, chat: Chat, deliver: Deliver) -> Answer:
        self.asked.append(chat)
        if self.failure is not None:
            raise self.failure
        await deliver(self.text)
        request = chat_request(model=chat.model, messages=chat.messages, fold_words=chat.fold_words)
        return Answer(
            text=self.text,
            model=chat.model,
            executors=(EXECUTOR.peer_id,),
            usage=Usage(100, 11),
            finish=self.finish,
            evidence=(),
            backend_usage=None,
            served=None if self.signed is None else sign_serving(EXECUTOR, request, self.signed),
            attempts=(),
            warnings=(),
        )


async def written(mesh: OneAnswer, request: ParagraphRequest = REQUEST) -> Draft:
    return await MeshWriter(mesh, MODEL).write(request)


# ---- What is asked, and what comes of it ----------------------------------------------------------------------------


async def test_the_prompt_is_that_of_every_backend_and_says_how_many_words_are_folded() -> None:
    mesh = OneAnswer()
    await MeshWriter(mesh, MODEL, max_price=7, deadline=9).write(replace(REQUEST, max_words=30))
    (chat,) = mesh.asked
    parts = read_prompt(chat.messages[-1].content)
    assert parts is not None
    assert (parts.title, parts.paragraphs) == ("The Lamp", REQUEST.paragraphs)
    assert (chat.model, chat.fold_words, chat.max_tokens) == (MODEL, 30, answer_tokens(30))
    assert (chat.max_price, chat.deadline) == (7, 9)


async def test_a_draft_carries_the_word_of_the_executor_that_served_it() -> None:
    mesh = OneAnswer()
    draft = await written(mesh)
    assert (draft.text, draft.model, draft.output_digest) == (FOLDED, MODEL, text_digest(FOLDED))
    assert draft.serving is not None
    served = check_serving(draft.serving)
    assert (served.executor, served.model, served.output_digest) == (EXECUTOR.peer_id, MODEL, draft.output_digest)
    assert served.prompt_digest == draft.prompt_digest == prompt_digest(mesh.asked[0].messages)


@pytest.mark.parametrize("signed", [None, "Somebody else kept it."], ids=["no word", "the word of another text"])
async def test_a_draft_that_nobody_stands_by_carries_no_word(signed: str | None) -> None:
    draft = await written(OneAnswer(signed=signed))
    assert (draft.text, draft.serving) == (FOLDED, None)


async def test_half_a_sentence_is_left_out_and_so_is_the_word_for_it() -> None:
    draft = await written(OneAnswer("It kept itself. Nobody ever", "It kept itself. Nobody ever", finish=LENGTH))
    assert (draft.text, draft.serving) == ("It kept itself.", None)


async def test_an_answer_without_a_paragraph_is_garbage() -> None:
    with pytest.raises(BackendGarbage):
        await written(OneAnswer("---", None))


# ---- Nobody writes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (NoExecutor("no executor was found within 10 s"), BackendFailed),
        (UnsupportedModel(MODEL, ("other",)), BackendFailed),
        (Unreachable("gone"), BackendFailed),
        (StorageError("the disk is full"), BackendFailed),
        (DeadlinePassed("30 s"), BackendTimeout),
        (CallFailed(ErrorKind.BACKEND_FAILED, ""), BackendFailed),
        (CallFailed(ErrorKind.EXHAUSTED, ""), BackendFailed),
        (CallFailed(ErrorKind.BAD_REQUEST, ""), BackendRefused),
        (CallFailed(ErrorKind.TOO_EXPENSIVE, ""), BackendRefused),
        (CallFailed(ErrorKind.CONTEXT_TOO_LONG, ""), PromptTooLong),
        (CallFailed(ErrorKind.UNAUTHORISED, ""), BackendUnauthorised),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServiceError) else "",
)
async def test_every_outcome_of_the_mesh_is_one_of_a_backend(failure: ServiceError, kind: type[BackendError]) -> None:
    with pytest.raises(BackendError) as caught:
        await written(OneAnswer(failure=failure))
    assert type(caught.value) is kind
    assert str(failure) in str(caught.value)


async def test_busy_executors_say_when_to_come_again() -> None:
    with pytest.raises(BackendBusy) as caught:
        await written(OneAnswer(failure=ExecutorBusy("all are busy", 2.5)))
    assert caught.value.retry_after == 2.5


# ---- What it costs --------------------------------------------------------------------------------------------------


async def test_what_the_client_counted_is_what_the_day_is_charged_and_a_failure_costs_nothing() -> None:
    mesh, counter = OneAnswer(), MemoryTokenCounter()
    writer = MeshWriter(mesh, MODEL, cap=DailyCap(5000, counter, lambda: Millis(0)))
    await writer.write(REQUEST)
    assert counter.days == {0: 111}
    mesh.failure = NoExecutor("nobody")
    with pytest.raises(BackendFailed):
        await writer.write(REQUEST)
    assert counter.days == {0: 111}


async def test_beyond_the_days_tokens_nobody_is_asked() -> None:
    mesh = OneAnswer()
    writer = MeshWriter(mesh, MODEL, cap=DailyCap(300, MemoryTokenCounter(), lambda: Millis(0)))
    with pytest.raises(BackendExhausted):
        await writer.write(REQUEST)
    assert not mesh.asked


# ---- The whole of it, in memory -------------------------------------------------------------------------------------


def serve(node: SmallNode, nursery: trio.Nursery) -> None:
    """Let a node serve the builtin generator under the name of a model, as an executor that does not mine."""
    offer = ModelOffer(MODEL, 8192, PRICE)
    offered = Offered(offer, "builtin", BuiltinBackend(), Slots(4), None)
    server = LlmServer(
        identity=node.identity,
        models=lambda: {MODEL: offered},
        journal=MemoryJournal(),
        clock=node.clock,
        tell=node.happened,
        counting=Counting(count_words, short=1 << 20),
    )
    nursery.start_soon(node.services.serve_calls, server)


async def test_an_executor_without_a_model_writes_a_story_through_another_and_every_block_says_who_served_it(
    new_network: NewNetwork,
) -> None:
    network = new_network()
    validator = await network.start("validator")
    serving, mining = [await network.start(name, validator) for name in ("ann", "bob")]
    journal = MemoryJournal()
    async with trio.open_nursery() as nursery:
        serve(serving, nursery)
        counting = Counting(count_words, short=1 << 20)
        async with entered(mining.identity, mining.network, journal, mining.clock, counting=counting) as mesh:
            nursery.start_soon(network.miner(mining, MeshWriter(mesh, MODEL)).run)
            await validator.wait_height(3)
            nursery.cancel_scope.cancel()
    for block in await validator.canon():
        certificate = block.content.certificate
        assert (block.header.producer, certificate.author, certificate.model) == (*[mining.peer_id] * 2, MODEL)
        (signed,) = certificate.serving
        assert check_serving(signed).executor == serving.peer_id
    assert {EntryKind.RECEIVED, EntryKind.VOUCHER} <= {entry.kind for entry in journal.entries}
