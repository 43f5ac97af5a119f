"""Finding the story: by an anchor's list of peers, by its id, and what happens when there are two."""

from collections.abc import Callable
from pathlib import Path

import pytest

from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.node_processes import StartNode, ask, run_program

WriteGenesis = Callable[..., Path]


async def test_a_validator_is_who_its_key_says_and_listens_where_it_is_told(start: StartNode) -> None:
    key = Identity.from_str("5e" * 32)
    node = await start("validator", "--private-key", "0x" + "5e" * 32, role="validator", listen="/ip4/127.0.0.1/tcp/0")
    ready = await node.wait("ready")
    assert ready["peer_id"] == peer_id_text(key.peer_id)
    assert [address.startswith("/ip4/127.0.0.1/tcp/") for address in ready["addresses"]] == [True]
    assert node.log().count("prefer --key-file") == 1
    assert "5e5e" not in node.log()


async def test_an_anchor_without_a_story_leads_readers_and_writers_to_it(
    start: StartNode, write_genesis: WriteGenesis, tmp_path: Path
) -> None:
    anchor = await start("anchor", role="validator")
    address = await anchor.wait_address()
    assert anchor.told("ready")[0]["story"] is None
    writer = await start("ann", "--genesis", str(write_genesis()), "--bootstrap-nodes", address)
    await writer.wait("head", min_height=2)
    joiner = await start("bob", "--bootstrap-nodes", address)
    await joiner.wait("head", min_height=2)
    assert (await joiner.wait("ready"))["story"] == writer.told("ready")[0]["story"]
    canon = await ask("canon", address)
    assert canon["story"] == writer.told("ready")[0]["story"]
    assert canon["height"] >= 2
    wish = await ask("suggest", address, "A ship of glass comes in.", "--data-dir", str(tmp_path / "me"))
    assert wish["included_at"] >= 1


async def test_of_two_stories_one_must_be_chosen(start: StartNode, write_genesis: WriteGenesis, tmp_path: Path) -> None:
    anchor = await start("anchor", role="validator")
    address = await anchor.wait_address()
    stories = []
    for name, title in (("ann", "Lanterns"), ("bob", "Harbours")):
        node = await start(name, "--genesis", str(write_genesis(title)), "--bootstrap-nodes", address)
        stories.append((await node.wait("ready"))["story"])
        await anchor.wait("peer", peer_id=node.told("ready")[0]["peer_id"], change="joined")
    undecided = await run_program("loremesh", "canon", "--bootstrap-nodes", address)
    assert undecided.code == 2
    assert all(story in undecided.err for story in stories)
    assert undecided.err.count("\n") == 1
    for story, title in zip(stories, ("Lanterns", "Harbours"), strict=True):
        canon = await ask("canon", address, "--story", story)
        assert (canon["story"], canon["title"]) == (story, title)
    executor = await run_program(
        "loremesh-executor", "--bootstrap-nodes", address, "--data-dir", str(tmp_path / "undecided")
    )
    assert executor.code == 2
    assert all(story in executor.err for story in stories)
    joiner = await start("cat", "--bootstrap-nodes", address, "--story", stories[1])
    assert (await joiner.wait("ready"))["story"] == stories[1]


@pytest.mark.parametrize("program", ["loremesh canon", "loremesh-executor"])
async def test_a_story_that_nobody_keeps_is_not_found(
    program: str, start: StartNode, write_genesis: WriteGenesis, tmp_path: Path
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    name, *command = program.split()
    where = ["--bootstrap-nodes", await validator.wait_address(), "--data-dir", str(tmp_path / "me")]
    ended = await run_program(name, *command, "--story", "05" * 32, *where)
    assert ended.code == 3
    assert "05" * 32 in ended.err
    assert ended.err.count("\n") == 1


async def test_a_data_directory_keeps_its_one_story(
    start: StartNode, write_genesis: WriteGenesis, tmp_path: Path
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    await validator.wait("ready")
    await validator.end()
    kept = ["--data-dir", str(tmp_path / "validator"), "--listen-address", "/ip4/127.0.0.1/tcp/0"]
    for flags in (["--genesis", str(write_genesis("Harbours"))], ["--story", "05" * 32]):
        ended = await run_program("loremesh-validator", *kept, *flags)
        assert ended.code == 2
        assert "--data-dir" in ended.err
    again = await start("validator", role="validator")
    assert (await again.wait("ready"))["story"] == validator.told("ready")[0]["story"]
