"""The committed vectors: this implementation answers them, and they are what this implementation writes.

Nothing here calls the code that wrote them, except where a test says so: another implementation would read the same
files in the same way.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import pytest

from loremesh.backends.tokens import load_counter
from loremesh.errors import (
    Fault,
    InvalidBlock,
    InvalidGenesis,
    InvalidKey,
    InvalidMessage,
    Mismatch,
    ProtocolError,
)
from loremesh.primitives import Hash, Height, Millis, PeerId, Signature, Target
from loremesh.protocol.block import Block, Content, header_hash
from loremesh.protocol.cards import SignedCard, card_digest, check_capability_card
from loremesh.protocol.changes import Change
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.content.paragraph import check_paragraph, fold_paragraph
from loremesh.protocol.fork_choice import Store, new_store, on_block, on_tick
from loremesh.protocol.genesis import Genesis, Validator, genesis_from_toml, story_id
from loremesh.protocol.identity import (
    Identity,
    digest,
    evm_address_text,
    peer_id_from_text,
    peer_id_text,
    verify,
)
from loremesh.protocol.llm import (
    ChatMessage,
    LlmRequest,
    SignedRequest,
    Transcript,
    answer_limit,
    check_request,
    progress_digest,
    prompt_digest,
    request_digest,
    sign_serving,
)
from loremesh.protocol.merkle import MerkleMap, list_root
from loremesh.protocol.metering import amount_of
from loremesh.protocol.receipts import (
    Evidence,
    PartialReceipt,
    Receipt,
    SignedReceipt,
    check_evidence,
    check_receipt,
    receipt_digest,
)
from loremesh.protocol.state import State
from loremesh.protocol.state_transition import apply
from loremesh.protocol.tracker import open_office, order_of_candidates
from loremesh.protocol.transaction import Transaction
from loremesh.protocol.typed_data import Domain
from loremesh.protocol.vouchers import SignedVoucher, Voucher, check_voucher, next_voucher, voucher_digest, voucher_of
from loremesh.protocol.work import meets, next_target, scale, search_prefix, target_of, work_of
from loremesh.testing.builders import small_genesis
from loremesh.testing.vectors.codec import TYPES
from loremesh.testing.vectors.files import vector_files
from loremesh.testing.vectors.fork_choice import change_view
from loremesh.testing.vectors.plain import plain
from loremesh.testing.vectors.tracker import after, send_view

VECTORS = Path(__file__).parent.parent / "vectors"
FILES = sorted(path.name for path in VECTORS.iterdir())
Case = dict[str, Any]
T = TypeVar("T")


def family(name: str) -> list[Case]:
    cases: list[Case] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return cases


def each(name: str, rule: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    chosen = [case for case in family(name) if rule is None or case["rule"] == rule]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=[case["name"] for case in chosen])


def fault_of(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except ProtocolError as error:
        return str(error.fault)
    return None


def as_hash(text: str) -> Hash:
    return Hash(bytes.fromhex(text))


def as_target(text: str) -> Target:
    return Target(int(text, 16))


@pytest.fixture(name="written", scope="module")
def _written() -> dict[str, str]:
    return vector_files()


@pytest.mark.parametrize("name", FILES)
def test_the_committed_files_are_what_the_rules_give_today(name: str, written: dict[str, str]) -> None:
    assert (VECTORS / name).read_bytes() == written[name].encode(), "python -m loremesh.testing.vectors OUT_DIR"


def test_every_family_has_its_file_and_no_other_is_there(written: dict[str, str]) -> None:
    assert {path.name for path in VECTORS.iterdir()} == set(written)


def test_one_command_writes_them_all_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loremesh.testing.vectors"]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=120, capture_output=True)
    for path in VECTORS.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    refused = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("usage:")


def test_every_fault_of_a_block_or_an_encoding_has_a_vector() -> None:
    text = "".join((VECTORS / name).read_text(encoding="utf-8") for name in FILES)
    elsewhere = {
        Fault.EQUIVOCATION,
        Fault.FLOOD,
        Fault.WRONG_SENDER,
        Fault.QUOTA,
        Fault.FRAME_TOO_LONG,
        Fault.UNFINISHED,
        Fault.UNEXPECTED,
        Fault.TOO_SLOW,
        Fault.NOT_AS_ASKED,
        Fault.REPLAYED,
    }
    assert {fault for fault in Fault if f'"fault": "{fault}"' not in text} <= elsewhere


@each("codec")
def test_codec(case: Case) -> None:
    cls, data = TYPES[case["type"]], bytes.fromhex(case["hex"])
    if "fault" in case:
        with pytest.raises(InvalidMessage) as refusal:
            decode(cls, data)
        assert str(refusal.value.fault) == case["fault"]
    else:
        value: object = decode(cls, data)
        assert plain(value) == case["value"]
        assert encode(value) == data


@each("identity", "key")
def test_identity_key(case: Case) -> None:
    made = Identity.from_str(case["text"])
    assert made.public_key.hex() == case["public_key"]
    assert made.peer_id.hex() == case["peer_id"]
    assert peer_id_text(made.peer_id) == case["peer_id_text"]
    assert evm_address_text(made.evm_address) == case["evm_address"]


@each("identity", "bad key")
def test_identity_bad_key(case: Case) -> None:
    with pytest.raises(InvalidKey):
        Identity.from_str(case["text"])


@each("identity", "peer id")
def test_identity_peer_id(case: Case) -> None:
    assert fault_of(lambda: peer_id_from_text(case["text"])) == case["fault"]


@each("identity", "digest")
def test_identity_digest(case: Case) -> None:
    made = digest(case["kind"], as_hash(case["story"]), bytes.fromhex(case["payload"]))
    assert made.hex() == case["digest"]


@each("identity", "sign")
def test_identity_sign(case: Case) -> None:
    assert Identity.from_str(case["key"]).sign(as_hash(case["digest"])).hex() == case["signature"]


@each("identity", "verify")
def test_identity_verify(case: Case) -> None:
    signature, signer = Signature(bytes.fromhex(case["signature"])), PeerId(bytes.fromhex(case["signer"]))
    assert fault_of(lambda: verify(signature, as_hash(case["digest"]), signer)) == case["fault"]


@each("genesis")
def test_genesis(case: Case) -> None:
    if case["fault"]:
        with pytest.raises(InvalidGenesis):
            genesis_from_toml(case["toml"])
    else:
        genesis = genesis_from_toml(case["toml"])
        assert encode(genesis).hex() == case["hex"]
        assert story_id(genesis).hex() == case["story"]


@each("work", "scale")
def test_work_scale(case: Case) -> None:
    assert scale(as_target(case["target"]), case["exponent"]) == as_target(case["scaled"])


@each("work", "next target")
def test_work_next_target(case: Case) -> None:
    result = next_target(
        as_target(case["target"]),
        case["took"],
        spacing=case["spacing"],
        half_life=case["half_life"],
        easiest_work=case["easiest_work"],
    )
    assert result == as_target(case["next"])


@each("work", "target of work")
def test_work_target_of_work(case: Case) -> None:
    assert target_of(case["work"]) == as_target(case["target"])


@each("work", "work of target")
def test_work_work_of_target(case: Case) -> None:
    assert work_of(as_target(case["target"])) == case["work"]


@each("work", "meets")
def test_work_meets(case: Case) -> None:
    prefix = search_prefix(as_hash(case["story"]), as_hash(case["parent"]), PeerId(bytes.fromhex(case["producer"])))
    assert meets(prefix, case["nonce"], as_target(case["target"])) is case["meets"]


@each("state", "list root")
def test_state_list_root(case: Case) -> None:
    assert list_root([bytes.fromhex(leaf) for leaf in case["leaves"]]).hex() == case["root"]


@each("state", "map root")
def test_state_map_root(case: Case) -> None:
    tree, roots = MerkleMap(), []
    for step, key, value in case["steps"]:
        name = bytes.fromhex(key)
        tree = tree.put(name, bytes.fromhex(value)) if step == "put" else tree.remove(name)
        roots.append(tree.root.hex())
    assert roots == case["roots"]


@each("state", "apply")
def test_state_apply(case: Case) -> None:
    state = State()
    for step in case["steps"]:
        state = applied(state, case, step)
        assert state.root.hex() == step["root"]
    assert {sender.hex(): nonce for sender, nonce in state.nonces.items()} == case["state"]["nonces"]
    open_now = {name.hex(): plain(entry) for name, entry in state.suggestions.items()}
    assert open_now == case["state"]["suggestions"]
    assert {author.hex(): plain(entry) for author, entry in state.authors.items()} == case["state"]["authors"]


def applied(state: State, case: Case, step: Case) -> State:
    fault = None
    try:
        after = apply(
            state,
            story=as_hash(case["story"]),
            height=Height(step["height"]),
            producer=PeerId(bytes.fromhex(step["producer"])),
            content=decode(Content, bytes.fromhex(step["content"])),
            transactions=tuple(decode(Transaction, bytes.fromhex(data)) for data in step["transactions"]),
        )
    except ProtocolError as error:
        after, fault = state, str(error.fault)
    assert fault == step["fault"]
    return after


@each("fork_choice")
def test_fork_choice(case: Case) -> None:
    genesis = decode(Genesis, bytes.fromhex(case["genesis"]))
    store = new_store(genesis, Millis(case["now"]), case["max_reorg"])
    for event in case["events"]:
        fault, changes = None, tuple[Change, ...]()
        try:
            store = happened(store, event)
            changes = store.changes
        except InvalidBlock as error:
            fault = str(error.fault)
        assert fault == event["fault"]
        assert store.head.hex() == event["head"]
        assert store.tip.link.height == event["height"]
        assert [change_view(change) for change in changes] == event["changes"]


@each("tracker", "order")
def test_tracker_order(case: Case) -> None:
    validators = tuple(Validator(PeerId(bytes.fromhex(one))) for one in case["validators"])
    producers = [PeerId(bytes.fromhex(one)) if one else None for one in case["producers"]]
    order = order_of_candidates(producers, replace(small_genesis(), validators=validators))
    assert [one.hex() for one in order] == case["candidates"]


@each("tracker", "office")
def test_tracker_office(case: Case) -> None:
    order = tuple(PeerId(bytes.fromhex(one)) for one in case["order"])
    office = open_office(PeerId(bytes.fromhex(case["me"])), Hash(bytes(32)), Height(0), order, 0)
    for event in case["events"]:
        fault, sends = None, list[object]()
        try:
            office = after(office, event)
            sends = [send_view(send) for send in office.sends]
        except ProtocolError as error:
            fault = str(error.fault)
        assert fault == event["fault"]
        assert (office.view, str(office.state), sends) == (event["view"], event["state"], event["sends"])
        assert (office.tracker.hex() if office.tracker else None) == event["tracker"]


def happened(store: Store, event: Case) -> Store:
    if "tick" in event:
        return on_tick(store, Millis(event["tick"]))
    return on_block(store, decode(Block, bytes.fromhex(event["block"])))


@pytest.fixture(name="scene", scope="module")
def _scene() -> Store:
    told = json.loads((VECTORS / "block.json").read_text(encoding="utf-8"))["scene"]
    store = new_store(decode(Genesis, bytes.fromhex(told["genesis"])), Millis(told["now"]))
    assert store.story.hex() == told["story"]
    for data in told["blocks"]:
        store = on_block(store, decode(Block, bytes.fromhex(data)))
    assert store.head.hex() == told["head"]
    return store


@each("block")
def test_block(case: Case, scene: Store) -> None:
    block = decode(Block, bytes.fromhex(case["hex"]))
    assert header_hash(block.header).hex() == case["hash"]
    if case["fault"]:
        with pytest.raises(InvalidBlock) as refusal:
            on_block(scene, block)
        assert str(refusal.value.fault) == case["fault"]
    else:
        assert on_block(scene, block).head.hex() == case["hash"]


@each("paragraph", "check")
def test_paragraph_check(case: Case) -> None:
    assert fault_of(lambda: check_paragraph(case["text"], case["max_words"])) == case["fault"]


@each("paragraph", "fold")
def test_paragraph_fold(case: Case) -> None:
    assert fold_paragraph(case["text"], case["max_words"]) == case["folded"]


@each("llm", "request")
def test_llm_request(case: Case) -> None:
    signed = decode(SignedRequest, bytes.fromhex(case["hex"]))
    assert request_digest(signed.request).hex() == case["digest"]
    executor, client = (PeerId(bytes.fromhex(case[side])) for side in ("executor", "client"))
    assert fault_of(lambda: check_request(signed, executor, client, Millis(case["now"]))) == case["fault"]


@each("llm", "progress")
def test_llm_progress(case: Case) -> None:
    executor = Identity.from_str(case["key"])
    transcript = Transcript(as_hash(case["request"]), case["price"])
    for piece in case["pieces"]:
        delta = transcript.add(executor, piece["text"])
        assert delta.signature.hex() == piece["signature"]
        assert (transcript.progress.size, transcript.progress.digest.hex()) == (piece["size"], piece["hash"])
        assert progress_digest(transcript.progress).hex() == piece["digest"]


@each("llm", "prompt")
def test_llm_prompt(case: Case) -> None:
    assert prompt_digest(tuple(ChatMessage(*message) for message in case["messages"])).hex() == case["digest"]


@each("llm", "serving")
def test_llm_serving(case: Case) -> None:
    request = decode(LlmRequest, bytes.fromhex(case["request"]))
    assert request.fold_words == case["words"]
    served = sign_serving(Identity.from_str(case["key"]), request, case["answer"])
    assert (encode(served).hex() if served else None) == case["hex"]


@each("llm", "tokens")
def test_llm_tokens(case: Case) -> None:
    assert load_counter()(case["unit"] * case["times"]) == case["tokens"]


@each("llm", "answer limit")
def test_llm_answer_limit(case: Case) -> None:
    assert answer_limit(case["max_tokens"]) == case["bytes"]


@each("llm", "amount")
def test_llm_amount(case: Case) -> None:
    assert amount_of(case["tokens"], case["price"]) == case["amount"]


@each("llm", "card")
def test_llm_card(case: Case) -> None:
    signed = decode(SignedCard, bytes.fromhex(case["hex"]))
    assert card_digest(signed.card).hex() == case["digest"]
    assert fault_of(lambda: check_capability_card(signed, Millis(case["now"]))) == case["fault"]


def check_typed_data(case: Case, cls: type[T], digest_of: Callable[[T, Domain], Hash]) -> None:
    types = get_type_hints(cls)
    told = {
        name: bytes.fromhex(value) if isinstance(value, str) and types[name] is not str else value
        for name, value in case["value"].items()
    }
    domain = Domain(case["domain"][0], bytes.fromhex(case["domain"][1]))
    found = digest_of(cls(**told), domain)
    assert found.hex() == case["digest"]
    assert Identity.from_str(case["key"]).sign(found).hex() == case["signature"]


@each("receipts", "receipt")
def test_receipts_receipt(case: Case) -> None:
    check_typed_data(case, Receipt, receipt_digest)


@each("receipts", "voucher")
def test_receipts_voucher(case: Case) -> None:
    check_typed_data(case, Voucher, voucher_digest)


def result_of(attempt: Callable[[], object]) -> Case:
    try:
        attempt()
    except Mismatch as error:
        return {"fault": str(error.fault), "field": error.field}
    except ProtocolError as error:
        return {"fault": str(error.fault), "field": None}
    return {"fault": None, "field": None}


@each("receipts", "evidence")
def test_receipts_evidence(case: Case) -> None:
    kinds: dict[str, type[Evidence]] = {"SignedReceipt": SignedReceipt, "PartialReceipt": PartialReceipt}
    evidence = decode(kinds[case["type"]], bytes.fromhex(case["hex"]))
    request = decode(LlmRequest, bytes.fromhex(case["request"]))
    assert result_of(lambda: check_evidence(evidence)) == case["alone"]
    assert result_of(lambda: check_receipt(evidence, request, case["answer"], load_counter())) == case["recounted"]


@each("receipts", "next voucher")
def test_receipts_next_voucher(case: Case) -> None:
    before = voucher_of(decode(Receipt, bytes.fromhex(data)) for data in case["before"])
    receipt = decode(Receipt, bytes.fromhex(case["receipt"]))
    signed = decode(SignedVoucher, bytes.fromhex(case["hex"]))
    assert before is not None
    assert [before.head.hex(), next_voucher(before, receipt).head.hex()] == case["heads"]
    found = result_of(lambda: check_voucher(signed, before, receipt))
    assert found == {"fault": case["fault"], "field": case["field"]}
