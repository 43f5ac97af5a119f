"""The demo, as a stranger runs it."""

import json

from loremesh.testing.node_processes import run_program


async def test_the_demo_ends_with_a_canon_by_several_hands() -> None:
    ended = await run_program("loremesh", "demo", "--blocks", "6", "--json")
    assert ended.code == 0, ended.err
    *events, last = map(json.loads, ended.out.splitlines())
    assert last["height"] >= 6
    assert len({block["producer"] for block in last["blocks"]}) >= 3
    assert [block["height"] for block in last["blocks"]] == list(range(1, last["height"] + 1))
    assert events
    assert "Traceback" not in ended.err
