"""A story by real processes: it grows, it is one, and it outlives any of its nodes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loremesh.testing.node_processes import NodeProcess, StartNode, ask, run_program

Story = tuple[NodeProcess, NodeProcess, NodeProcess]


async def test_a_validator_and_two_executors_tell_one_story(story: Story) -> None:
    validator, first, second = story
    await validator.wait("head", min_height=6)
    addresses = [await node.wait_address() for node in story]
    canons = [await ask("canon", address) for address in addresses[1:]]
    common = min(canon["height"] for canon in canons)
    assert common >= 6
    assert canons[0]["story"] == canons[1]["story"] == validator.told("ready")[0]["story"]
    assert [block["hash"] for block in canons[0]["blocks"][:common]] == [
        block["hash"] for block in canons[1]["blocks"][:common]
    ]
    peers = {node.told("ready")[0]["peer_id"] for node in story}
    blocks = canons[0]["blocks"]
    assert {block["producer"] for block in blocks} == {node.told("ready")[0]["peer_id"] for node in (first, second)}
    assert [block["height"] for block in blocks] == list(range(1, len(blocks) + 1))
    assert {block["kind"] for block in blocks} == {"paragraph"}
    assert {block["model"] for block in blocks} == {"builtin"}
    assert len({block["text"] for block in blocks}) == len(blocks)
    seen = await ask("peers", addresses[0])
    assert {peer["peer_id"] for peer in seen["peers"]} == peers
    assert {role for peer in seen["peers"] for role in peer["roles"]} == {"validator", "executor"}
    assert all(peer["latency_ms"] is not None for peer in seen["peers"])
    assert seen["tracker"] in peers
    tree = await ask("tree", addresses[0])
    assert tree["branches"][0]["fate"] == "canonical"
    assert tree["branches"][0]["tip"] == tree["head"]
    assert [block["hash"] for block in tree["branches"][0]["blocks"]][:6] == [block["hash"] for block in blocks][:6]


async def test_a_suggestion_is_taken_in_and_taken_up(story: Story, tmp_path: Path) -> None:
    validator, *_ = story
    address = await validator.wait_address()
    said = await run_program(
        "loremesh",
        "suggest",
        "A ship of glass comes in.",
        "--bootstrap-nodes",
        address,
        "--data-dir",
        str(tmp_path / "me"),
        "--json",
    )
    assert said.code == 0, said.err
    wish = said.json()
    assert len(wish["transaction"]) == 64
    assert wish["included_at"] >= 1
    await validator.wait("head", min_height=wish["included_at"] + 4)
    canon = await ask("canon", address)
    assert "glass" in " ".join(block["text"] for block in canon["blocks"][wish["included_at"] - 1 :])
    again = await run_program(
        "loremesh",
        "suggest",
        "It is empty.",
        "--no-wait",
        "--bootstrap-nodes",
        address,
        "--data-dir",
        str(tmp_path / "me"),
        "--json",
    )
    assert again.json()["included_at"] is None


async def test_a_suggestion_that_breaks_a_rule_is_refused_with_the_reason(story: Story, tmp_path: Path) -> None:
    address = await story[0].wait_address()
    me = ["--bootstrap-nodes", address, "--data-dir", str(tmp_path / "me")]
    said = await run_program("loremesh", "suggest", "word " * 61, *me)
    assert said.code == 4
    assert "too many words" in said.err
    assert said.err.count("\n") == 1


async def test_the_validators_death_leaves_the_story_growing(story: Story) -> None:
    validator, first, second = story
    await first.wait("head", min_height=3)
    killed = validator.told("ready")[0]["peer_id"]
    assert await validator.end(signal.SIGKILL) == -signal.SIGKILL
    await first.wait("peer", peer_id=killed, change="dead")
    await second.wait("head", min_height=first.height + 4)
    canon = await ask("canon", await second.wait_address())
    assert canon["height"] >= 7


async def test_a_node_that_is_stopped_and_started_again_carries_on(story: Story, start: StartNode) -> None:
    validator, first, second = story
    await first.wait("head", min_height=3)
    before = first.told("ready")[0]["peer_id"]
    began = time.monotonic()
    assert await first.end() == 0
    assert time.monotonic() - began < 3
    assert "Traceback" not in first.log()
    height = first.height
    await second.wait("peer", peer_id=before, change="left")
    again = await start("ann", "--bootstrap-nodes", await validator.wait_address(), "--latency", "0.1,0.3")
    ready = await again.wait("ready")
    assert ready["peer_id"] == before
    next_head = await again.wait("head")
    assert next_head["height"] >= height
    await again.wait("head", producer=before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_validator_that_nobody_met_ends_cleanly_too(
    number: signal.Signals, start: StartNode, write_genesis: Callable[..., Path]
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    await validator.wait("ready")
    assert await validator.end(number) == 0
