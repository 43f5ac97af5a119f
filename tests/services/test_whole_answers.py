"""Answers whose pieces nobody reads: few pieces, late ones, and signs of life while there are none."""

import pytest
import trio

from loremesh.errors import BackendFailed, ErrorKind
from loremesh.primitives import KIB, Millis
from loremesh.protocol.llm import Accepted, Delta, LlmError
from loremesh.protocol.receipts import LlmFinal, SignedReceipt, check_receipt
from loremesh.protocol.wire import Nothing
from loremesh.testing.calls import count_words
from loremesh.testing.scripted_chat import FOREVER, ScriptedChat
from loremesh.testing.serving_scene import Scene

pytestmark = pytest.mark.usefixtures("autojump_clock")


async def test_a_client_that_reads_no_pieces_gets_the_answer_as_one_and_the_backend_knows(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing(("Nobody", 1.0, " keeps", 1.0, " the lamp."))
    async with scene.call() as caller:
        caller.is_whole = True
        request = caller.request()
        transcript, final = await caller.answer(request)
        assert isinstance(final, LlmFinal)
        assert [type(reply) for reply in caller.replies] == [Accepted, Delta, LlmFinal]
        assert transcript.text == "Nobody keeps the lamp."
        check_receipt(SignedReceipt(final.receipt, final.signature), request, transcript.text, count_words)
        await caller.pay(final)
        caller.is_whole = False
        await caller.answer()
    assert [one.is_whole for one in scene.chat.requests] == [True, False]


async def test_a_client_that_reads_no_pieces_hears_every_five_seconds_that_its_call_goes_on(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((42.0, "Late."))
    async with scene.call() as caller:
        caller.is_whole = True
        began, heard = trio.current_time(), list[float]()
        await caller.ask()
        while isinstance(await caller.reply(), Accepted | Nothing | Delta):
            heard.append(round(trio.current_time() - began))
    kinds = [type(reply) for reply in caller.replies]
    assert kinds == [Accepted, *[Nothing] * 7, Delta, LlmFinal]
    assert heard == [5, 10, 15, 20, 25, 30, 35, 40, 42]


async def test_of_a_long_answer_that_nobody_reads_yet_what_there_is_arrives_every_five_seconds(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((2.0, "One", 2.0, " two", 2.0, " three", 1.0, BackendFailed("broke off")))
    async with scene.call() as caller:
        caller.is_whole = True
        transcript, failed = await caller.answer()
        assert isinstance(failed, LlmError)
        deltas = [reply.text for reply in caller.replies if isinstance(reply, Delta)]
        assert deltas == ["One two", " three"]
        assert transcript.text == "One two three"


async def test_a_whole_answer_has_two_minutes(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((115.0, "Late."), (FOREVER,))
    async with scene.call() as caller:
        caller.is_whole = True
        _, final = await caller.answer(caller.request(expires=Millis(scene.clock() + 600_000)))
        assert isinstance(final, LlmFinal)
        await caller.pay(final)
        began = trio.current_time()
        _, failed = await caller.answer(caller.request(expires=Millis(scene.clock() + 600_000)))
        assert isinstance(failed, LlmError)
        assert failed.kind == ErrorKind.BACKEND_FAILED
        assert trio.current_time() - began == pytest.approx(120, abs=1)
    assert scene.slots.running == 0


async def test_a_client_that_leaves_while_it_waits_for_the_whole_answer_cancels_it(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((20.0, "late"))
    async with scene.call() as caller:
        caller.is_whole = True
        await caller.ask()
        with trio.fail_after(60):
            await scene.chat.begun.wait()
    await scene.wait_ended()
    assert scene.chat.aborted == 1
    assert not scene.journal.entries


async def test_a_long_whole_answer_comes_in_as_few_pieces_as_fit_frames(scene: Scene) -> None:
    scene.chat, scene.context = ScriptedChat.playing(("x" * 16 * KIB,) * 10), 8192
    async with scene.call() as caller:
        caller.is_whole = True
        transcript, _ = await caller.answer(caller.request(max_tokens=4096))
        assert len(transcript.text) == 160 * KIB
        assert [len(reply.text) for reply in caller.replies if isinstance(reply, Delta)] == [
            64 * KIB,
            64 * KIB,
            32 * KIB,
        ]
