"""The pages for other implementations say what the rules say."""

import dataclasses
import re
from pathlib import Path

import pytest

from loremesh.errors import ErrorKind, Fault
from loremesh.primitives import Hash
from loremesh.protocol import (
    cards,
    codec,
    fork_choice,
    llm,
    mempool,
    receipts,
    state,
    transaction,
    vouchers,
    wire,
)
from loremesh.protocol.codec import limit_of
from loremesh.protocol.genesis import genesis_from_toml
from loremesh.protocol.identity import Identity, evm_address_text, keccak256, peer_id_text

PAGES = Path(__file__).parent.parent.parent / "docs" / "protocol"
TEXT = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
EVERYTHING = "\n".join(TEXT.values())
TYPES = [
    cls
    for cls in codec._schemas
    if cls.__module__.startswith("loremesh.protocol.") and not cls.__name__.startswith("_")
]
OF_CALLS = {"llm", "cards", "receipts", "vouchers", "typed_data"}
OF_CONVERSATIONS = {Fault.FRAME_TOO_LONG, Fault.UNFINISHED, Fault.UNEXPECTED, Fault.TOO_SLOW}


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in OF_CONVERSATIONS])
def test_every_fault_has_its_rule_on_a_page(fault: Fault) -> None:
    assert f"`{fault.name}`" in EVERYTHING


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_field_of_every_type_is_on_a_page(cls: type) -> None:
    for field in dataclasses.fields(cls):
        assert re.search(rf"`{field.name}`|\b{field.name}\b.*\]`", EVERYTHING), field.name


@pytest.mark.parametrize("kind", list(wire.MessageType))
def test_every_message_type_is_on_the_page_of_messages(kind: wire.MessageType) -> None:
    assert f"`{kind}`" in TEXT["wire.md"]


@pytest.mark.parametrize("cls", [cls for cls in TYPES if cls.__module__ == wire.__name__ and cls is not wire.Envelope])
def test_the_page_of_messages_gives_each_payloads_limit(cls: type) -> None:
    limit = limit_of(cls)
    shown = f"{limit} B" if limit < 1024 else f"{limit // 1024} KiB"
    assert f"| `{cls.__name__}` | {shown} |" in TEXT["wire.md"]


@pytest.mark.parametrize("cls", [cls for cls in TYPES if cls.__module__.removeprefix("loremesh.protocol.") in OF_CALLS])
def test_the_page_of_calls_gives_each_payloads_limit_and_its_fields_in_order(cls: type) -> None:
    limit = limit_of(cls)
    shown = f"{limit} B" if limit < 1024 else f"{limit // 1024} KiB"
    (row,) = re.findall(rf"\| `{cls.__name__}` \| {shown} \| (.*) \|\n", TEXT["llm.md"])
    fields = [field.name for field in dataclasses.fields(cls)]
    assert [name for name in re.findall(r"`([a-z_]+)`", row) if name in fields] == fields


def test_the_page_of_calls_gives_the_bounds_and_types_that_the_rules_have() -> None:
    text = TEXT["llm.md"]
    assert f"more than {cards.CARD_LIFE // 1000} s after" in text
    assert f"`time > now + {llm.CLOCK_SKEW // 1000} s`" in text
    assert f"more than {llm.LONGEST_CALL // 60_000} minutes after" in text
    assert f"more than {llm.MAX_CONTENT_BYTES // 1024} KiB together" in text
    assert f"of more than {llm.MAX_ANSWER_BYTES // 1024} KiB" in text
    assert all(f"`{kind}`" in text for kind in ErrorKind)
    flat = re.sub(r",\n +", ",", text)
    for struct in (receipts._RECEIPT, vouchers._VOUCHER):
        assert any(keccak256(line.strip().encode()) == struct.type_hash for line in flat.splitlines())


def test_the_pages_link_only_to_pages_that_exist() -> None:
    for name, text in TEXT.items():
        for target in re.findall(r"\]\(([a-z-]+\.md)\)", text):
            assert target in TEXT or target in {"network.md", "content.md"}, (name, target)


def test_the_genesis_on_its_page_is_one() -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT["genesis.md"], re.DOTALL)
    assert genesis_from_toml(toml).parameters.solo_after == 90_000


def test_the_known_key_on_its_page_is_right() -> None:
    one = Identity.from_str(f"{1:064x}")
    assert f"`{peer_id_text(one.peer_id)}`" in TEXT["identity.md"]
    assert f"`{evm_address_text(one.evm_address)}`" in TEXT["identity.md"]


def test_the_bounds_on_the_pages_are_those_of_the_rules() -> None:
    pool = mempool.Mempool(Hash(bytes(32)))
    said = {
        "fork-choice.md": [
            f"at most {fork_choice.MAX_ORPHANS} of them",
            f"at most {fork_choice.MAX_HELD} of\n",
            f"last {fork_choice.KEEP_STATES} heights",
            f"every {fork_choice.STATE_EVERY}th below; more than {fork_choice.FAR_BELOW} heights below the\nhead,",
            f"for every {fork_choice.FAR_STATE_EVERY}th.",
        ],
        "state.md": [f"When {state.MAX_OPEN_SUGGESTIONS:,} are open", f"there\n   are {state.MAX_SUPPORTERS}."],
        "transactions.md": [
            f"1 to {transaction.SUGGESTION_WORDS} words",
            f"At most {pool.capacity:,} in all and {pool.quota} of one sender",
        ],
    }
    for name, sentences in said.items():
        for sentence in sentences:
            assert sentence in TEXT[name], sentence
