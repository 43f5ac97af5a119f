"""What an executor opens out of its `[[backend]]` tables: models with their offers and limits, and what mines."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.chat import ChatRequest
from loremesh.config import load_executors
from loremesh.errors import BackendBusy, BackendExhausted, UsageError
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.llm import ChatMessage
from loremesh.roles.backends import MAX_MODELS, Backends, open_backends
from loremesh.settings_tables import BackendSettings
from loremesh.storage.store import Store
from loremesh.testing.builders import ANN, BOB, paragraph_request
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI

GENEROUS = 60  # seconds, for whatever must end by itself
REQUEST = paragraph_request()


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeOpenAI:
    fake = FakeOpenAI()
    await nursery.start(fake.serve)
    return fake


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "data") as store:
        yield store


def tables(tmp_path: Path, text: str) -> tuple[BackendSettings, ...]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return load_executors({"config": str(file)}, {})[0].backends


def server(fake: FakeOpenAI, more: str) -> str:
    return f'[[backend]]\nkind = "openai"\nbase_url = "{fake.base_url}"\n{more}\n'


async def drop(_: str) -> None:
    """Take a piece that nobody reads."""


async def text_of(backends: Backends, name: str) -> str:
    """What a client gets who calls a model by name."""
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        pieces.append(piece)

    served = backends.models[name]
    asked = (ChatMessage("user", "Tell me about a lamp."),)
    with trio.fail_after(GENEROUS):
        await served.backend.chat.chat(ChatRequest(served.model, asked, continues=False, max_tokens=200), deliver)
    return "".join(pieces)


async def test_each_model_is_served_by_its_backend_under_its_own_name_there(
    fake: FakeOpenAI, disk: Store, tmp_path: Path
) -> None:
    text = (
        server(fake, "models = {small = 'llama3.2'}\nprice = 7\ncontext = 512\nconcurrency = 3")
        + "[[backend]]\nseed = 4"
    )
    async with open_backends(tables(tmp_path, text), disk) as backends:
        assert {name: one.offer for name, one in backends.models.items()} == {
            "small": ModelOffer("small", 512, 7),
            "builtin": ModelOffer("builtin", 4096, 0),
        }
        assert backends.models["small"].backend.settings.concurrency == 3
        assert (await text_of(backends, "small")).startswith("On evening 1")
        assert await text_of(backends, "builtin")
    assert fake.calls[0].body["model"] == "llama3.2"


async def test_two_builtin_backends_with_different_seeds_say_different_things(disk: Store, tmp_path: Path) -> None:
    text = "[[backend]]\nmodels = ['a']\nseed = 1\n[[backend]]\nname = 'b'\nmodels = ['b']\nseed = 2"
    async with open_backends(tables(tmp_path, text), disk) as backends:
        assert await text_of(backends, "a") != await text_of(backends, "b")


async def test_the_first_model_that_is_named_writes_the_story(fake: FakeOpenAI, disk: Store, tmp_path: Path) -> None:
    listing = server(fake, "list_models = true\nname = 'listing'")
    async with open_backends(tables(tmp_path, listing + server(fake, "models = {m = 'real-1'}")), disk) as backends:
        assert backends.mines_with.settings.name == "openai"
        draft = await backends.writer().write(REQUEST)
    assert draft.model == "real-1"
    async with open_backends(tables(tmp_path, ""), disk) as backends:
        assert isinstance(backends.writer(), BuiltinBackend)


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ("", [None, None, None]),
        ("concurrency = 2", [None, None, "every slot is taken"]),
        ("concurrency_per_client = 1", [None, "one client may make 1 calls at once", None]),
        ("requests_per_minute = 1", [None, "many calls in one minute", None]),
    ],
)
async def test_what_a_table_says_of_clients_holds(
    limits: str, reasons: list[str | None], disk: Store, tmp_path: Path
) -> None:
    async with open_backends(tables(tmp_path, f"[[backend]]\n{limits}"), disk) as backends:
        slots = backends.models["builtin"].backend.slots
        assert slots is backends.mines_with.slots
        with ExitStack() as stack:
            for client, reason in zip((ANN, ANN, BOB), reasons, strict=True):
                with nullcontext() if reason is None else pytest.raises(BackendBusy, match=reason):
                    stack.enter_context(slots.client(client.peer_id))


async def test_a_builtin_backend_thinks_for_as_long_as_its_table_says(disk: Store, tmp_path: Path) -> None:
    async with open_backends(tables(tmp_path, "[[backend]]\nlatency = [0.2, 0.3]"), disk) as backends:
        began = trio.current_time()
        await text_of(backends, "builtin")
        assert trio.current_time() - began >= 0.2


async def test_a_server_is_told_to_carry_on_if_its_table_says_that_it_can(
    fake: FakeOpenAI, disk: Store, tmp_path: Path
) -> None:
    text = server(fake, "models = ['m']") + server(fake, "name = 'v'\nmodels = ['n']\ncontinue_final_message = true")
    begun = (ChatMessage("user", "Who?"), ChatMessage("assistant", "Nob"))
    async with open_backends(tables(tmp_path, text), disk) as backends:
        for served in backends.models.values():
            await served.backend.chat.chat(ChatRequest(served.model, begun, continues=True, max_tokens=9), drop)
    assert ["continue_final_message" in call.body for call in fake.calls] == [False, True]


async def test_a_paragraph_is_asked_for_within_the_context_that_the_table_says(
    fake: FakeOpenAI, disk: Store, tmp_path: Path
) -> None:
    long = replace(REQUEST, paragraphs=("The lamp burned low and the sea went on speaking of it. " * 10,) * 30)
    for context in ("context = 1000", "context = 9000"):
        async with open_backends(tables(tmp_path, server(fake, f"models = ['m']\n{context}")), disk) as backends:
            await backends.writer().write(long)
    short, whole = (sum(len(message["content"]) for message in call.body["messages"]) for call in fake.calls)
    assert (short < 4000, whole > 15_000) == (True, True)


async def test_the_days_tokens_are_kept_over_restarts_for_each_backend(
    fake: FakeOpenAI, disk: Store, tmp_path: Path
) -> None:
    text = server(fake, "models = ['m']\nmax_tokens_per_day = 1200") + server(
        fake, "models = ['n']\nname = 'other'\nmax_tokens_per_day = 1200"
    )
    fake.content = "The lamp burned low. " * 30
    for _ in range(2):  # each says that it took 100 tokens
        async with open_backends(tables(tmp_path, text), disk) as backends:
            await backends.writer().write(REQUEST)
    async with open_backends(tables(tmp_path, text), disk) as backends:
        first, other = (one.cap for one in backends.opened)
        assert first is not None
        assert other is not None
        with pytest.raises(BackendExhausted):
            await first.reserve(1001)
        await first.reserve(1000)
        await other.reserve(1200)


async def test_what_a_server_lists_is_served_too(fake: FakeOpenAI, disk: Store, tmp_path: Path) -> None:
    fake.models = ("llama3.2", "small", "x" * 129, "bad\nname", "", *(f"m{number}" for number in range(100)))
    text = server(fake, "models = {small = 'real'}\nlist_models = true")
    async with open_backends(tables(tmp_path, text), disk) as backends:
        with trio.fail_after(GENEROUS):
            while "llama3.2" not in (models := backends.models):  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.05)
    assert len(models) == MAX_MODELS
    assert list(models)[:3] == ["small", "llama3.2", "m0"]
    assert (models["small"].model, models["m0"].model) == ("real", "m0")


async def test_a_server_that_does_not_list_its_models_keeps_nobody_from_starting(
    fake: FakeOpenAI, disk: Store, tmp_path: Path
) -> None:
    fake.otherwise = Behaviour.FAILED
    async with open_backends(tables(tmp_path, server(fake, "models = ['m']\nlist_models = true")), disk) as backends:
        assert list(backends.models) == ["m"]


async def test_weights_that_are_not_here_are_told_before_anything_starts(disk: Store, tmp_path: Path) -> None:
    text = "[[backend]]\nkind = 'local'\nweights = 'none.gguf'"
    with pytest.raises(UsageError, match="there are no weights in"):
        async with open_backends(tables(tmp_path, text), disk):
            pass


async def test_openais_own_server_is_not_asked_without_a_key(disk: Store, tmp_path: Path) -> None:
    text = "[[backend]]\nkind = 'openai'\nmodels = ['m']"
    with pytest.raises(UsageError, match="set OPENAI_API_KEY, or name another server with --base-url"):
        async with open_backends(tables(tmp_path, text), disk):
            pass
