"""Reading along, as a person does who ends it when there is no time left."""

import json
import signal
import subprocess
from itertools import pairwise

import trio

from loremesh.testing.node_processes import NodeProcess, clean_environment, program

PATIENCE = 120


async def test_who_reads_along_sees_the_story_grow_until_ctrl_c(story: tuple[NodeProcess, ...]) -> None:
    validator, *_ = story
    reader = await trio.lowlevel.open_process(
        [program("loremesh"), "canon", "--follow", "--json", "--bootstrap-nodes", await validator.wait_address()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(),
    )
    assert reader.stdout is not None
    assert reader.stderr is not None
    with trio.fail_after(PATIENCE):
        read = b""
        while read.count(b"\n") < 3:
            read += await reader.stdout.receive_some()
        reader.send_signal(signal.SIGINT)
        async for piece in reader.stdout:
            read += piece
        complaint = b"".join([piece async for piece in reader.stderr])
        assert await reader.wait() == 0
    assert complaint == b""
    heights = [json.loads(line)["height"] for line in read.splitlines()]
    assert heights[0] == 1
    # A branch that takes the place of another begins further down.
    assert all(later <= earlier + 1 for earlier, later in pairwise(heights))
