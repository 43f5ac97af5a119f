"""An executor without a model of its own mines through the mesh: its blocks carry the word of whoever served them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from loremesh.config import Program, load_settings
from loremesh.errors import Fault, InvalidBlock
from loremesh.primitives import Signature
from loremesh.protocol.block import Block, content_root
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.validation import check_block_alone
from loremesh.roles.client import Copy, visit
from loremesh.storage.keys import load_or_create_key
from loremesh.testing.builders import resigned
from loremesh.testing.node_processes import NodeProcess, StartNode, ask, run_program

ENOUGH = 3


async def fetched(address: str, folder: Path) -> tuple[Genesis, list[Block]]:
    """Fetch a story as a client does, judging every block."""
    flags = {"bootstrap_nodes": address, "data_dir": str(folder)}
    async with visit(load_settings(Program.CLIENT, flags, {})) as guest:
        genesis = await guest.fetch_story()
        copy = Copy(genesis)
        await guest.fetch(copy)
        return genesis, copy.canon()


def check_tampered(genesis: Genesis, block: Block, folder: Path) -> None:
    """Break the word in a block, and sign the block again with its producer's key: only the word is wrong."""
    (signed,) = block.content.certificate.serving
    broken = replace(signed, signature=Signature(bytes([signed.signature[0] ^ 1]) + signed.signature[1:]))
    certificate = replace(block.content.certificate, serving=(broken,))
    content = replace(block.content, certificate=certificate)
    story = story_id(genesis)
    producer = load_or_create_key(folder / "key", bytes(32))
    lie = resigned(replace(block, content=content), producer, content_root=content_root(story, content))
    with pytest.raises(InvalidBlock) as refusal:
        check_block_alone(genesis, story, lie)
    assert refusal.value.fault is Fault.BAD_SIGNATURE


async def check_bills(folder: Path) -> None:
    """Check an executor's journal offline: every receipt in it is countersigned."""
    journal = await run_program("loremesh-executor", "journal", "--data-dir", str(folder), "--json")
    assert journal.code == 0, journal.err
    assert journal.json()["sessions"]
    file = folder / "journal.json"
    file.write_text(journal.out, encoding="utf-8")
    verified = await run_program("loremesh", "verify", str(file))
    assert verified.code == 0, verified.err


async def test_blocks_of_an_executor_without_a_model_say_who_served_them_and_a_false_word_is_refused(
    start: StartNode, write_genesis: Callable[..., Path], tmp_path: Path
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    address = await validator.wait_address()
    serving = await start("ann", "--bootstrap-nodes", address, "--no-mine")
    await serving.wait_address()
    mining = await start("bob", "--bootstrap-nodes", address, "--backend", "mesh", "--model", "builtin")
    await validator.wait("head", min_height=ENOUGH)
    names = [(await node.wait("ready"))["peer_id"] for node in (serving, mining)]

    canon = await ask("canon", address)
    told = [(block["served_by"], block["producer"], block["model"]) for block in canon["blocks"]]
    assert set(told) == {(*names, "builtin")}
    shown = await run_program("loremesh", "canon", "--bootstrap-nodes", address)
    assert "served by" in shown.out

    genesis, blocks = await fetched(address, tmp_path / "client")
    check_tampered(genesis, blocks[-1], tmp_path / "bob")
    await check_ends([mining, serving, validator])
    for name in ("ann", "bob"):
        await check_bills(tmp_path / name)


async def check_ends(nodes: list[NodeProcess]) -> None:
    """End nodes as an operator does."""
    async with trio.open_nursery() as nursery:

        async def end(node: NodeProcess) -> None:
            assert await node.end() == 0, node.log()

        for node in nodes:
            nursery.start_soon(end, node)


async def test_whoever_serves_may_come_later_than_whoever_mines(
    start: StartNode, write_genesis: Callable[..., Path]
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    address = await validator.wait_address()
    mining = await start("bob", "--bootstrap-nodes", address, "--backend", "mesh", "--model", "builtin")
    await mining.wait_address()
    await start("ann", "--bootstrap-nodes", address, "--no-mine")
    await validator.wait("head", min_height=1)


async def test_an_executor_without_a_model_agrees_to_no_more_than_its_table_says(
    start: StartNode, write_genesis: Callable[..., Path], tmp_path: Path
) -> None:
    serves, writes = tmp_path / "serves.toml", tmp_path / "writes.toml"
    serves.write_text("mine = false\n[[backend]]\nprice = 500\n", encoding="utf-8")
    mesh = '[[backend]]\nkind = "mesh"\nmodels = ["builtin"]\nmax_price ='
    writes.write_text(f"{mesh} 499\n", encoding="utf-8")
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    address = await validator.wait_address()
    serving = await start("ann", "--bootstrap-nodes", address, "--config", str(serves))
    await serving.wait_address()
    mining = await start("bob", "--bootstrap-nodes", address, "--config", str(writes))
    with trio.fail_after(90):
        while "asks 500 gwei" not in mining.log():  # noqa: ASYNC110 - a log rings no bell
            await trio.sleep(0.1)
    assert await mining.end() == 0
    assert not serving.told("served")
    writes.write_text(f"{mesh} 500\n", encoding="utf-8")
    await start("cat", "--bootstrap-nodes", address, "--config", str(writes))
    await serving.wait("served")
