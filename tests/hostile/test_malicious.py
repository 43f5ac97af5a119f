"""A node that is lied to in every way there is: each lie is refused for what it is, and its teller is shut out."""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from loremesh.primitives import Millis
from loremesh.protocol.genesis import Genesis, genesis_to_toml
from loremesh.testing.bad_blocks import BAD_BLOCKS
from loremesh.testing.bad_messages import BAD_ANSWERS, BAD_MESSAGES
from loremesh.testing.node_processes import BRISK, StartNode, ask, program

NOT_IN_A_LIVE_STORY = {"the first tracker, too soon", "larger than the story allows"}
"""For the one the first tracker's key is needed; the other is longer than an announcement."""


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    """A story that began a minute ago, so that a branch of liars has some past to stand in."""
    file = tmp_path / "genesis.toml"
    now = Millis(time.time_ns() // 1_000_000)
    story = Genesis(
        title="The Honest Lamp",
        premise="A keeper writes down only what she has seen.",
        language="en",
        time=Millis(now - 60_000),
        parameters=BRISK,
    )
    file.write_text(genesis_to_toml(story), encoding="utf-8")
    return file


async def lie_to(address: str) -> list[dict[str, Any]]:
    """Run the liar to its end; give what it said."""
    with trio.fail_after(180):
        done = await trio.run_process(
            [sys.executable, "-m", "loremesh.testing.malicious", address, "--json"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_every_lie_is_refused_for_what_it_is_and_the_story_goes_on(start: StartNode, genesis: Path) -> None:
    victim = await start("validator", "--genesis", str(genesis), role="validator")
    address = await victim.wait_address()
    honest = await start("ann", "--bootstrap-nodes", address, "--latency", "0.1,0.4")
    await honest.wait("head", min_height=3)
    said = await lie_to(address)
    lies = [event for event in said if event["event"] == "lie"]
    liars = {event["as"] for event in lies}
    before = honest.height
    await victim.wait("head", min_height=before + 2)

    names = {event["name"] for event in lies}
    assert names >= {bad.name for bad in BAD_BLOCKS} - NOT_IN_A_LIVE_STORY
    assert names >= {bad.name for bad in (*BAD_MESSAGES, *BAD_ANSWERS)}
    told = Counter((event["as"], event["what"], event["fault"]) for event in lies)
    assert Counter((one["peer_id"], one["what"], one["fault"]) for one in victim.told("rejected")) == told

    shut_out = [event for event in said if event["event"] == "shut_out"]
    assert len(shut_out) >= 5
    assert not [event for event in shut_out if event["came_back"]]
    assert {one["peer_id"] for one in victim.told("banned")} == {event["as"] for event in shut_out}

    canon = await ask("canon", address)
    assert not liars & {block["producer"] for block in canon["blocks"]}
    for node in (victim, honest):
        assert not [one for one in node.told("rejected") + node.told("banned") if one["peer_id"] not in liars]
        assert "Traceback" not in node.log()


async def test_a_lie_that_only_some_can_see_is_never_blamed_on_whoever_passed_it_on(
    start: StartNode, genesis: Path
) -> None:
    """The liar speaks to one node alone; what that one passes on, the next refuses and blames on the liar."""
    first = await start("first", "--genesis", str(genesis), role="validator")
    address = await first.wait_address()
    second = await start("second", "--bootstrap-nodes", address, role="validator")
    await second.wait_address()
    said = await lie_to(address)
    liars = {event["as"] for event in said if event["event"] == "lie"}
    assert second.told("rejected")
    assert not [one for one in second.told("rejected") if one["peer_id"] not in liars]
    assert not first.told("banned", peer_id=(await second.wait("ready"))["peer_id"])


async def test_the_demo_shows_a_stranger_who_is_refused() -> None:
    with trio.fail_after(400):
        done = await trio.run_process(
            [program("loremesh"), "demo", "--malicious", "--blocks", "4", "--executors", "2", "--json"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    *events, canon = map(json.loads, done.stdout.decode().splitlines())
    banned = {event["peer_id"] for event in events if event["event"] == "banned"}
    assert len(banned) >= 5
    assert not banned & {block["producer"] for block in canon["blocks"]}
