"""Other ways to each other than a TCP address somebody wrote down: each by flag, and off without it."""

from collections.abc import Callable
from pathlib import Path

import trio

from loremesh.testing.node_processes import StartNode, ask

WriteGenesis = Callable[..., Path]


async def test_executors_on_one_network_write_together_with_no_address_given(
    start: StartNode, write_genesis: WriteGenesis
) -> None:
    genesis = ("--genesis", str(write_genesis()))
    one, other = [await start(name, *genesis, "--mdns") for name in ("ann", "bob")]
    name = (await other.wait("ready"))["peer_id"]
    await one.wait("peer", peer_id=name, change="joined")
    await one.wait("head", producer=name)


async def test_executors_write_together_over_a_websocket(start: StartNode, write_genesis: WriteGenesis) -> None:
    genesis = ("--genesis", str(write_genesis()))
    one = await start("ann", *genesis, "--listen-address", "/ip4/127.0.0.1/tcp/0/ws")
    [place] = [place for place in (await one.wait("ready"))["addresses"] if "/ws/" in place]
    other = await start("bob", *genesis, "--bootstrap-nodes", place)
    await one.wait("head", producer=(await other.wait("ready"))["peer_id"])


async def test_a_validator_and_an_executor_tell_a_story_over_quic_alone(
    start: StartNode, write_genesis: WriteGenesis
) -> None:
    genesis = ("--genesis", str(write_genesis()))
    listen = "/ip4/127.0.0.1/udp/0/quic-v1"
    validator = await start("val", *genesis, role="validator", listen=listen)
    ready = await validator.wait("ready")
    assert ready["addresses"]
    assert all("/quic-v1/p2p/" in place for place in ready["addresses"])
    executor = await start("ann", *genesis, "--bootstrap-nodes", ready["addresses"][0], listen=listen)
    name = (await executor.wait("ready"))["peer_id"]
    await validator.wait("peer", peer_id=name, change="joined")
    await validator.wait("head", producer=name)


async def test_who_is_behind_a_relay_is_listed_where_the_relay_leads_to_it(
    start: StartNode, write_genesis: WriteGenesis
) -> None:
    genesis = ("--genesis", str(write_genesis()))
    relay = await start("relay", *genesis, "--relay", role="validator")
    address = await relay.wait_address()
    hidden = await start("ann", *genesis, "--bootstrap-nodes", address, "--listen-address", f"{address}/p2p-circuit")
    name = (await hidden.wait("ready"))["peer_id"]
    circuit = f"{address}/p2p-circuit/p2p/{name}"
    with trio.fail_after(90):
        while True:
            listed = {peer["peer_id"]: peer for peer in (await ask("peers", address))["peers"]}
            if name in listed and circuit in listed[name]["addresses"]:
                break
    other = await start("bob", *genesis, "--bootstrap-nodes", circuit)
    await other.wait("peer", peer_id=name, change="joined")
    await other.wait("head", min_height=2)
