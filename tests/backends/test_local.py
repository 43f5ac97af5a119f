"""The local backend: what it says where it cannot run, and a real small model where there is one."""

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from loremesh.backends.chat import ChatRequest
from loremesh.backends.local import LocalBackend, check_processor
from loremesh.backends.writer import ChatWriter
from loremesh.config import models_directory
from loremesh.errors import MachineError, PromptTooLong, UsageError
from loremesh.protocol.content.paragraph import check_paragraph
from loremesh.protocol.llm import ChatMessage
from loremesh.storage.weights import known_weights
from loremesh.testing.builders import paragraph_request

ENGINE = importlib.util.find_spec("xllamacpp") is not None
WEIGHTS = known_weights("smollm2").path(models_directory())
GENEROUS = 300  # seconds: one thread of a busy machine
CPU = "processor : 0\nflags : fpu sse2 {}\nflags : other\n"

real = pytest.mark.skipif(
    not (ENGINE and WEIGHTS.is_file()),
    reason="needs a model: pip install 'loremesh[local]' && loremesh-executor model pull smollm2",
)


@pytest.mark.skipif(ENGINE, reason="the extra is installed")
async def test_without_the_extra_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pip install 'loremesh\[local\]'"):
        await LocalBackend.open(tmp_path / "none.gguf")


def test_a_processor_that_cannot_run_the_engine_is_told_before_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(CPU.format("avx2 fma f16c bmi2"))
    check_processor("x86_64", file)
    file.write_text(CPU.format("fma f16c"))
    with pytest.raises(MachineError, match="lacks avx2, bmi2, which the local backend needs: use --backend builtin"):
        check_processor("x86_64", file)
    check_processor("aarch64", file)
    check_processor("x86_64", tmp_path / "none")


@pytest.fixture
async def local() -> AsyncIterator[LocalBackend]:
    backend = await LocalBackend.open(WEIGHTS, context=2048, slots=2)
    yield backend
    await backend.aclose()


def request(asked: str, begun: str | None = None, max_tokens: int = 24) -> ChatRequest:
    messages = [ChatMessage("user", asked), *([] if begun is None else [ChatMessage("assistant", begun)])]
    return ChatRequest("smollm2", tuple(messages), begun is not None, max_tokens, temperature=0.7, seed=1)


async def ask(backend: LocalBackend, asked: ChatRequest) -> tuple[str, str, int]:
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        pieces.append(piece)

    with trio.fail_after(GENEROUS):
        end = await backend.chat(asked, deliver)
    assert end.usage is not None
    return "".join(pieces), end.finish, end.usage.completion_tokens


@real
async def test_a_real_model_answers_the_same_again_and_no_longer_than_asked(local: LocalBackend) -> None:
    asked = request("Tell a short story about a fox.")
    text, finish, tokens = await ask(local, asked)
    assert len(text.split()) > 8
    assert (finish, tokens) == ("length", 24)
    assert (await ask(local, asked))[0] == text


@real
async def test_a_real_model_carries_an_answer_on(local: LocalBackend) -> None:
    text, _, _ = await ask(local, request("Count from one to ten in words.", "one, two, three,"))
    assert text.lstrip().startswith("four")


@real
async def test_cancelling_in_the_middle_of_a_long_prompt_frees_the_engine(local: LocalBackend) -> None:
    with trio.move_on_after(0.5) as scope:
        await ask(local, request("word " * 1500))
    assert scope.cancelled_caught
    assert (await ask(local, request("Say hello.")))[0]


@real
async def test_a_prompt_beyond_the_context_has_its_own_error(local: LocalBackend) -> None:
    with pytest.raises(PromptTooLong):
        await ask(local, request("word " * 5000))


@real
async def test_a_real_model_writes_a_paragraph(local: LocalBackend) -> None:
    asked = paragraph_request(max_words=60)
    draft = await ChatWriter(local, "smollm2", context=2048, deadline=GENEROUS).write(asked)
    check_paragraph(draft.text, 60)


@pytest.mark.skipif(not ENGINE, reason="needs the engine: pip install 'loremesh[local]'")
async def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    file = tmp_path / "none.gguf"
    file.write_bytes(b"no model")
    with pytest.raises(MachineError, match="cannot be loaded"):
        await LocalBackend.open(file)
