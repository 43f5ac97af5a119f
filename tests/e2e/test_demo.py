"""The demo, as a stranger runs it, and as one who pulls its plugs."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from loremesh.testing.node_processes import clean_environment, program, run_program

Event = dict[str, Any]
PATIENCE = 240


def killed(demo: trio.Process, name: str) -> str:
    """Kill the process of one of the demo's nodes; give the name."""
    for child in psutil.Process(demo.pid).children():
        if f"/{name}/key" in " ".join(child.cmdline()):
            child.kill()
            return name
    raise AssertionError(f"the demo runs no {name}")


async def watch(demo: trio.Process, hear: Callable[[Event], None]) -> list[Event]:
    """Let `hear` hear each line of a demo as it comes; give all of them when it has ended."""
    assert demo.stdout is not None
    said, unread = list[Event](), b""
    async for piece in demo.stdout:
        *lines, unread = (unread + piece).split(b"\n")
        for line in map(json.loads, lines):
            said.append(line)
            hear(line)
    return said


@pytest.fixture(scope="module")
def told() -> tuple[list[Event], Event]:
    """Run the demo once, as programs see it; give its events and the canon."""
    ended = subprocess.run(
        [program("loremesh"), "demo", "--blocks", "6", "--json"],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        env=clean_environment(),
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"Traceback" not in ended.stderr
    *events, canon = map(json.loads, ended.stdout.splitlines())
    return events, canon


def test_the_demo_ends_with_a_canon_by_several_hands(told: tuple[list[Event], Event]) -> None:
    _, canon = told
    assert canon["height"] >= 6
    assert len({block["producer"] for block in canon["blocks"]}) >= 3
    assert [block["height"] for block in canon["blocks"]] == list(range(1, canon["height"] + 1))
    assert all(block["text"] for block in canon["blocks"])


def test_the_nodes_of_the_demo_meet_change_their_state_and_hear_how_the_story_goes_on(
    told: tuple[list[Event], Event],
) -> None:
    events, canon = told
    names = {event["node"] for event in events}
    assert names == {"validator", "executor-1", "executor-2", "executor-3", "executor-4"}
    assert {event["node"] for event in events if event["event"] == "peer" and event["change"] == "joined"} == names
    peer_ids = {event["peer_id"]: event["node"] for event in events if event["event"] == "ready"}
    states = [(event["node"], event["state"]) for event in events if event["event"] == "state"]
    *_, last = (peer_ids[block["producer"]] for block in canon["blocks"])
    for winner in {peer_ids[block["producer"]] for block in canon["blocks"]} - {last}:
        changes = [state for name, state in states if name == winner]
        assert "tracker" in changes
        assert "peer" in changes[changes.index("tracker") :], f"{winner} stayed the tracker"
    told_of = {event["hash"] for event in events if event["event"] == "head"}
    assert {block["hash"] for block in canon["blocks"]} <= told_of
    heard = {event["hash"] for event in events if event["event"] == "head" and event["node"] == "validator"}
    # Two blocks that come together are one change of head, and the last may come when nobody listens any more.
    assert {block["hash"] for block in canon["blocks"][-3:]} & heard


async def test_the_demo_shows_people_who_meets_who_wins_who_is_tracker_and_the_story_as_it_grows() -> None:
    ended = await run_program("loremesh", "demo", "--blocks", "4", "--executors", "2")
    assert ended.code == 0, ended.err
    for words in (
        "executor-1 listens at",
        "all 3 nodes have found each other",
        "won by executor-",
        "is the tracker of the next round",
        "validator is a peer again",
        "fork: two canons at once",
        "healed: all 3 nodes have head",
        "one head everywhere",
    ):
        assert words in ended.out
    assert "$ loremesh canon" in ended.out


async def test_whichever_node_of_the_demo_is_killed_the_demo_comes_to_its_end_with_one_canon() -> None:
    """The validator before the first block, then the tracker, which wrote the newest block, then another miner."""
    demo = await trio.lowlevel.open_process(
        [program("loremesh"), "demo", "--blocks", "9", "--executors", "3", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    names: dict[str, str] = {}
    gone: list[str] = []

    def hear(line: Event) -> None:
        if line.get("event") == "ready":
            names[line["peer_id"]] = line["node"]
        if not gone and len(names) == 4:
            gone.append(killed(demo, "validator"))
        if line.get("event") != "head":
            return
        tracker = names[line["producer"]]
        if len(gone) == 1 and line["height"] >= 5:
            gone.append(killed(demo, tracker))
        elif len(gone) == 2 and line["height"] >= 7:
            miners = {"executor-1", "executor-2", "executor-3"}
            gone.append(killed(demo, min(miners - {tracker, *gone})))

    try:
        with trio.fail_after(PATIENCE):
            *events, canon = await watch(demo, hear)
            assert await demo.wait() == 0
    finally:
        demo.terminate()
    assert len(gone) == 3
    lives = [event["node"] for event in events if event["event"] == "ready"]
    assert sorted(lives) == sorted([*names.values(), *gone])
    assert [block["height"] for block in canon["blocks"]] == list(range(1, canon["height"] + 1))
    told = {
        name: {event["hash"] for event in events if event["event"] == "head" and event["node"] == name}
        for name in lives
    }
    agreed = [block["height"] for block in canon["blocks"] if all(block["hash"] in heads for heads in told.values())]
    assert max(agreed) >= 9  # what a miner told of in its very last moment may be its own alone


async def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = await trio.lowlevel.open_process(
        [program("loremesh"), "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment({"TMPDIR": str(tmp_path)}),
    )
    assert demo.stdout is not None
    assert demo.stderr is not None
    with trio.fail_after(PATIENCE):
        said = b""
        while b"validator listens at" not in said:
            said += await demo.stdout.receive_some()
        nodes = psutil.Process(demo.pid).children()
        demo.send_signal(signal.SIGINT)
        complaint = b"".join([piece async for piece in demo.stderr])
        assert await demo.wait() == 130
    assert complaint == b"loremesh: interrupted\n"
    assert not any(node.is_running() for node in nodes)
    assert list(await trio.Path(tmp_path).iterdir()) == []
