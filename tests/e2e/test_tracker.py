"""The tracker's process dies, and the next one of the genesis takes over: real programs, nobody mining."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

from loremesh.protocol.genesis import Validator, genesis_from_toml, genesis_to_toml
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.node_processes import NodeProcess, StartNode, ask

KEYS = {"ann": f"{1:064x}", "bob": f"{2:064x}", "cat": f"{3:064x}"}


async def test_a_killed_tracker_is_followed_and_the_list_is_the_followers(
    start: StartNode, write_genesis: Callable[..., Path], tmp_path: Path
) -> None:
    peers = [Identity.from_str(key).peer_id for key in KEYS.values()]
    genesis = genesis_from_toml(write_genesis().read_text(encoding="utf-8"))
    file = tmp_path / "voted.toml"
    named = replace(genesis, tracker=(peers[0],), validators=tuple(map(Validator, peers)))
    file.write_text(genesis_to_toml(named), encoding="utf-8")
    nodes, known = list[NodeProcess](), ""
    for name, key in KEYS.items():
        joining = ("--bootstrap-nodes", known.rstrip(",")) if known else ()
        nodes.append(await start(name, "--genesis", str(file), *joining, role="validator", LOREMESH_PRIVATE_KEY=key))
        known += await nodes[-1].wait_address() + ","
    ann, bob, cat = nodes
    await ann.wait("state", state="tracker", height=0)
    names = [peer_id_text(peer) for peer in peers]
    await bob.wait("peer", peer_id=names[2], change="joined")
    await cat.wait("peer", peer_id=names[0], change="joined")
    await ann.end(SIGKILL)
    await bob.wait("state", state="tracker")
    await cat.wait("tracker", peer_id=names[1])
    found = await ask("peers", await cat.wait_address())
    assert found["tracker"] == names[1]
    assert {one["peer_id"] for one in found["peers"]} == set(names[1:])
    assert [one["state"] for one in cat.told("state")] == ["peer"]
    assert not [one for node in (bob, cat) for one in node.told("rejected")]
