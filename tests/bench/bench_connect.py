"""Connecting two nodes over TCP, noise and yamux on loopback, ours against js-libp2p's: both nodes in one process.

Timed is the dial alone, from the call to a connection that can be used; then both sides let go of it. Between two dials
both pause, because nodes dial now and then: in a burst, caches and branch predictors would do half of the work.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from harness import BenchError, Row, Samples, at_most, compare
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected, PeerDisconnected
from loremesh.testing.loopback import make_node, wait_event
from npm import JS, set_up

_DIALS = 5
_PAUSE = 0.2
_ROUNDS = 15
_PATIENCE = 60.0


def run() -> list[Row]:
    """Measure dialling a node that is listening."""
    with _js_nodes() as theirs:
        return [trio.run(_measure, theirs)]


async def _measure(theirs: "subprocess.Popen[str]") -> Row:
    dialler, listener = make_node(), make_node()

    def compare_them() -> Row:
        return compare(
            "dial a listening node",
            "ms",
            lambda: trio.from_thread.run(_dial, dialler, listener),
            against="js-libp2p",
            peer=lambda: _ask(theirs),
            goal=at_most(0.8),
            rounds=_ROUNDS,
            note="ours has Kademlia and gossip running, js-libp2p only identify and ping",
        )

    async with trio.open_nursery() as nursery:
        for node in (dialler, listener):
            await nursery.start(node.run)
        # The measuring is in a thread, so that our nodes live as long as the others do: both sides are warm.
        row = await trio.to_thread.run_sync(compare_them)
        nursery.cancel_scope.cancel()
    return row


async def _dial(dialler: Behaviour, listener: Behaviour) -> Samples:
    [address] = listener.addresses()
    taken = []
    for _ in range(_DIALS):
        await trio.sleep(_PAUSE)
        before = time.perf_counter()
        await dialler.connect(address)
        taken.append(time.perf_counter() - before)
        for node in (dialler, listener):
            await wait_event(node, PeerConnected)
        await dialler.disconnect(listener.peer_id)
        for node in (dialler, listener):
            await wait_event(node, PeerDisconnected)
    return taken


def _ask(theirs: "subprocess.Popen[str]") -> Samples:
    assert theirs.stdin is not None
    assert theirs.stdout is not None
    theirs.stdin.write(f"{_DIALS} {_PAUSE * 1000}\n")
    theirs.stdin.flush()
    line = theirs.stdout.readline()
    if not line:
        raise BenchError(f"the js-libp2p nodes stopped with exit code {theirs.wait(_PATIENCE)}")
    taken: list[float] = json.loads(line)
    return taken


@contextmanager
def _js_nodes() -> Iterator["subprocess.Popen[str]"]:
    command = [set_up(), "dial.js"]
    with subprocess.Popen(command, cwd=JS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as theirs:
        try:
            yield theirs
        finally:
            theirs.kill()
